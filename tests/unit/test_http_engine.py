"""The HTTP engine against a server that is slow, drops connections, answers garbage, is busy or broken."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_server import FAULTS, Handler, Script, crashed, echo, serving, twice

from fate_llm_ext.config import GenerationConfig, LLMConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import Completion, HTTPEngine, http, inflight, open_engine, transport
from fate_llm_ext.site import Endpoint, Site, load_sites

KEY = "sk-very-secret"
REFUSED = Completion("", True, refused=True)
CONFIG = GenerationConfig(max_new_tokens=20, top_k=7, top_p=0.8, temperature=0.5)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(inflight, "BEAT", 0.05)
    monkeypatch.setattr(http, "_GRACE", 0.2)


def endpoint(url: str, **changes: Any) -> Endpoint:
    settings = {"model": "the-model", "concurrency": 4, "timeout_seconds": 20.0, "deadline_seconds": 40.0}
    return Endpoint(url=url, **{**settings, **changes})


def engine(url: str, **changes: Any) -> HTTPEngine:
    return HTTPEngine(endpoint(url, **changes), KEY, "llm")


def prompts(count: int) -> list[str]:
    return [f"private words {index}" for index in range(count)]


def echoed(asked: list[str]) -> list[Completion]:
    return [Completion(f"<{prompt}>", True) for prompt in asked]


def failure(one: HTTPEngine, asked: list[str]) -> tuple[ExtensionError, float]:
    """The error and how long it took; it tells neither key nor prompt nor what the server said."""
    start = time.monotonic()
    with pytest.raises(ExtensionError) as caught:
        one.generate(asked, CONFIG, seed=0)
    assert not any(word in str(caught.value) for word in (KEY, "private", "Traceback", "127.0.0.1"))
    assert caught.value.__cause__ is None
    return caught.value, time.monotonic() - start


# --- nothing lost, nothing doubled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_no_text_is_lost_doubled_or_swapped_whatever_the_server_does(
    api: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every text meets two faults, every fault meets two texts."""
    asked = prompts(len(FAULTS))

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        place = asked.index(prompt)
        (FAULTS[(place + attempt) % len(FAULTS)] if attempt <= 2 else echo)(handler, prompt, attempt)

    with serving(script) as server, caplog.at_level(logging.DEBUG):
        got = engine(server.url, api=api, timeout_seconds=1.0).generate(asked, CONFIG, seed=5)
    assert got == echoed(asked)
    assert server.attempts == dict.fromkeys(asked, 3)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("fate_llm_ext")]
    assert len(said) == 2 * len(asked)
    assert not any(word in line for line in said for word in ("private", KEY, "Traceback"))


def test_an_answer_that_comes_twice_answers_one_request() -> None:
    asked = prompts(60)
    with serving(twice) as server:
        assert engine(server.url).generate(asked, CONFIG, seed=0) == echoed(asked)
    assert sum(server.attempts.values()) == 60


def test_a_text_keeps_its_seed_over_retries_and_shares_it_with_none() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        (crashed if attempt == 1 else echo)(handler, prompt, attempt)

    asked = prompts(20)
    with serving(script) as server:
        chat = engine(server.url, api="chat")
        chat.generate(asked, CONFIG, seed=5)
        first = [(body["messages"][0]["content"], body["seed"]) for body in server.bodies]
        server.bodies.clear()
        chat.generate(asked, CONFIG, seed=5)
        again = [(body["messages"][0]["content"], body["seed"]) for body in server.bodies]
        server.bodies.clear()
        chat.generate(asked, CONFIG, seed=6)
        other = {body["seed"] for body in server.bodies}
    assert len(first) == 40
    assert set(first) == set(again)
    assert len(set(first)) == len({seed for _, seed in first}) == 20
    assert not other & {seed for _, seed in first}
    assert all(0 <= seed < 2**31 for _, seed in first)


# --- in flight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 8])
def test_there_are_as_many_requests_in_flight_as_allowed_while_there_is_work(width: int) -> None:
    """The server answers only while that many wait for it: with fewer, nothing would ever come."""
    total, missed = 30, []
    state = {"waiting": 0, "seen": 0, "most": 0}
    changed = threading.Condition()

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        with changed:
            state["waiting"] += 1
            state["seen"] += 1
            state["most"] = max(state["most"], state["waiting"])
            changed.notify_all()
            if not changed.wait_for(lambda: state["waiting"] == width or state["seen"] == total, timeout=10):
                missed.append(prompt)
            state["waiting"] -= 1
        handler.good(prompt)

    asked = prompts(total)
    with serving(script) as server:
        assert engine(server.url, concurrency=width).generate(asked, CONFIG, seed=0) == echoed(asked)
    assert not missed
    assert state["most"] == width


def test_no_more_requests_after_an_error() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        time.sleep(0.1)
        handler.answer(b"{}", 400) if prompt.endswith(" 10") else handler.good(prompt)

    with serving(script) as server:
        failure(engine(server.url), prompts(200))
        seen = sum(server.attempts.values())
        time.sleep(0.4)
        assert sum(server.attempts.values()) <= seen + 4
    assert seen < 100


def test_an_error_of_the_caller_ends_it_too() -> None:
    def step(done: int, total: int) -> None:
        if done == 3:
            raise ConnectionResetError("the federation has gone")

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        time.sleep(0.1)
        handler.good(prompt)

    with serving(script) as server:
        with pytest.raises(ConnectionResetError, match="federation"):
            engine(server.url).generate(prompts(200), CONFIG, seed=0, step=step)
        time.sleep(0.3)
        assert sum(server.attempts.values()) < 100


def test_signs_of_life_come_from_the_waiting_thread_while_the_server_thinks() -> None:
    said: list[tuple[str, int]] = []
    steps: list[tuple[int, int]] = []

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        time.sleep(0.4)
        handler.good(prompt)

    with serving(script) as server:
        one = HTTPEngine(endpoint(server.url), KEY, "llm", lambda doing: said.append((doing, threading.get_ident())))
        one.generate(prompts(5), CONFIG, seed=0, step=lambda *at: steps.append(at))
    assert steps == [(done, 5) for done in range(1, 6)]
    assert len(said) >= 6
    assert {thread for _, thread in said} == {threading.get_ident()}
    assert said[0][0] == "waiting for the LLM, 0 of 5"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(400, "E413"), (401, "E415"), (403, "E415"), (404, "E413"), (422, "E413"), (302, "E413")]
)
def test_a_refusal_is_an_error_at_once(status: int, code: str) -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(f"Traceback: {prompt} {KEY}".encode(), status, {"Location": "/v1/elsewhere"})

    with serving(script) as server:
        error, _ = failure(engine(server.url), prompts(1))
        assert server.attempts.total() == 1
    assert error.code == code
    assert f"'llm' refused text 1 of 1 with status {status}" in str(error)


def refusing(status: int) -> Script:
    """Refuses every prompt but the trial request and those that end with an even number."""

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        if prompt == "a" or prompt[-1] in "02468":
            handler.good(prompt)
        else:
            handler.answer(f"Traceback: {prompt} {KEY}".encode(), status)

    return script


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_is_refused_says_so_once_the_trial_has_passed(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked, steps = prompts(7), []
    with serving(refusing(status)) as server, caplog.at_level(logging.DEBUG):
        with opened(server.url, None) as one:
            got = one.generate(asked, CONFIG, seed=0, step=lambda *at: steps.append(at))
            again = one.generate(["b 1", "b 3"], CONFIG, seed=0)
        assert set(server.attempts.values()) == {1}
    assert got == [one if row % 2 == 0 else REFUSED for row, one in enumerate(echoed(asked))]
    assert steps[-1] == (7, 7)
    assert again == [REFUSED] * 2, "it has answered, so this is about these texts"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("fate_llm_ext")]
    assert said == ["endpoint llm refused 3 of 7 texts", "endpoint llm refused 2 of 2 texts"]


def test_an_answer_that_is_a_refusal() -> None:
    """A content filter's, with status 200."""
    answers = {
        "filtered": {"message": {"content": None}, "finish_reason": "content_filter"},
        "partly": {"message": {"content": "half of"}, "finish_reason": "content_filter"},
        "declined": {"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"},
        "fine": {"message": {"content": "x", "refusal": None}, "finish_reason": "stop"},
    }

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(json.dumps({"choices": [answers.get(prompt, answers["fine"])]}).encode())

    with serving(script) as server, opened(server.url, None, api="chat", retries=0) as one:
        assert one.generate(list(answers), CONFIG, seed=0) == [REFUSED] * 3 + [Completion("x", True)]


def test_a_server_that_refuses_every_text() -> None:
    with serving(refusing(400)) as server, opened(server.url, None) as one:
        assert one.generate(["b 1"], CONFIG, seed=0) == [REFUSED], "one text says nothing about the next"
        error, _ = failure(one, ["private 1", "private 3", "private 5"])
        assert error.code == "E413"
        assert "'llm' refused all of 3 texts with status 400" in str(error)


@pytest.mark.parametrize(("status", "code"), [(401, "E415"), (404, "E413"), (402, "E413")])
def test_what_is_not_about_a_text_stays_an_error(status: int, code: str) -> None:
    with serving(refusing(status)) as server, opened(server.url, None) as one:
        error, _ = failure(one, prompts(7))
    assert error.code == code


def test_a_server_that_is_down() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # not listening
        error, _ = failure(engine(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", retries=2), prompts(3))
    assert error.code == "E414"
    assert "3 attempt(s)" in str(error)
    assert "the last: the connection was refused." in str(error)


def test_a_host_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error, _ = failure(engine("http://llm.internal/v1", retries=1), prompts(1))
    assert error.code == "E414"
    assert "the last: the name of its host is not known." in str(error)
    assert "internal" not in str(error)


def test_a_connection_that_breaks_off() -> None:
    with serving(lambda handler, prompt, attempt: handler.drop()) as server:
        error, _ = failure(engine(server.url, retries=1), prompts(1))
    assert "the last: the connection broke off." in str(error)


def always(fault: Script) -> Script:
    return lambda handler, prompt, attempt: fault(handler, prompt, attempt)


def dripping(handler: Handler, prompt: str, attempt: int) -> None:
    """A byte now and then: each read succeeds, the answer never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def silent(handler: Handler, prompt: str, attempt: int) -> None:
    time.sleep(8)


@pytest.mark.parametrize("fault", [crashed, silent, dripping])
def test_the_deadline_of_a_text_holds_whatever_the_server_does(fault: Script) -> None:
    with serving(always(fault)) as server:
        error, seconds = failure(engine(server.url, retries=1000, deadline_seconds=0.8), prompts(3))
    assert error.code == "E414"
    assert "allowed are 1001 attempt(s) in 0.8 s" in str(error)
    assert seconds < 4


def test_an_answer_that_comes_drop_by_drop_is_asked_for_again() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        (dripping if attempt == 1 else echo)(handler, prompt, attempt)

    with serving(script) as server:
        assert engine(server.url, timeout_seconds=1.0).generate(["a"], CONFIG, seed=0) == echoed(["a"])


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_LONGEST_ANSWER", 5000)

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b" " * 6000 + handler.text("x") if attempt == 1 else handler.text(f"<{prompt}>"))

    with serving(script) as server:
        assert engine(server.url).generate(["a"], CONFIG, seed=0) == echoed(["a"])
        assert server.attempts["a"] == 2


@pytest.mark.parametrize("url", ["http://[::1/v1", "http:///v1", "http://127.0.0.1:99999/v1"])
def test_an_address_that_is_none(url: str) -> None:
    error, _ = failure(engine(url, retries=0), prompts(1))
    assert error.code == "E417"


# --- pace ------------------------------------------------------------------------------------------------------------


def test_a_busy_server_is_left_alone_by_all_for_as_long_as_it_says() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        if prompt.endswith(" 5") and attempt == 1:
            handler.answer(b"{}", 429, {"Retry-After": "1"})
        else:
            time.sleep(0.03)
            handler.good(prompt)

    asked = prompts(30)
    with serving(script) as server:
        assert engine(server.url).generate(asked, CONFIG, seed=0) == echoed(asked)
        gaps = [later - earlier for earlier, later in zip(server.arrivals, server.arrivals[1:])]
    assert sum(server.attempts.values()) == 31
    assert max(gaps) > 0.9


def test_a_pause_longer_than_the_deadline_is_not_waited_for() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", 429, {"Retry-After": "3600"})

    with serving(script) as server:
        error, seconds = failure(engine(server.url), prompts(1))
    assert error.code == "E414"
    assert "1 attempt(s)" in str(error)
    assert "status 429" in str(error)
    assert seconds < 5


def test_waiting_for_a_turn_counts_once_a_text_has_been_asked_for() -> None:
    with serving(crashed) as server:
        one = engine(server.url, concurrency=30, requests_per_second=20.0, retries=1000, deadline_seconds=1.0)
        error, seconds = failure(one, prompts(30))
    assert error.code == "E414"
    assert "the last: status 500." in str(error)
    assert seconds < 4


def test_the_pace_holds_after_a_pause_and_turns_go_by_order() -> None:
    pacer, never, taken = transport.Pacer(5.0), threading.Event(), []

    def go(name: int) -> None:
        assert pacer.take_turn(never)
        taken.append((name, time.monotonic()))

    threads = [threading.Thread(target=go, args=(name,)) for name in range(7)]
    for thread in threads:
        thread.start()
        time.sleep(0.03)
    time.sleep(0.1)
    before, paused = len(taken), time.monotonic()
    pacer.pause(0.6)
    pacer.pause(0.3)  # says nothing new
    assert not pacer.take_turn(never, until=time.monotonic() + 0.5)
    threads.append(threading.Thread(target=go, args=(7,)))
    threads[-1].start()
    for thread in threads:
        thread.join()
    assert [name for name, _ in taken] == list(range(8))
    after = [at for _, at in taken[before:]]
    assert before >= 1
    assert len(after) >= 2
    assert after[0] >= paused + 0.6
    assert after[-1] - after[0] >= 0.8 * 0.2 * (len(after) - 1)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert transport._retry_after("7") == 7.0
    assert transport._retry_after("-7") == 0.0
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 57 < (transport._retry_after(in_a_minute) or 0) < 61
    assert transport._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert transport._retry_after(None) is None


@pytest.mark.parametrize(
    "value", ["soon", "", "9" * 400, "9" * 5000, "1e999", "nan", "999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "1 2 3"]
)
def test_a_retry_after_that_makes_no_sense_is_none(value: str) -> None:
    assert transport._retry_after(value) is None

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", 429, {"Retry-After": value}) if attempt == 1 else handler.good(prompt)

    with serving(script) as server:
        assert engine(server.url).generate(["a"], CONFIG, seed=0) == echoed(["a"])


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "0"}), (429, {}), (503, {"Retry-After": "0"})])
def test_a_server_that_is_too_busy_uses_up_no_retries(status: int, headers: dict[str, str]) -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", status, headers) if attempt <= 6 else handler.good(prompt)

    with serving(script) as server:
        assert engine(server.url, retries=1).generate(["a"], CONFIG, seed=0) == echoed(["a"])
        gaps = [later - earlier for earlier, later in zip(server.arrivals, server.arrivals[1:])]
    assert len(gaps) == 6
    assert gaps[-1] > 0.16, "0 seconds of Retry-After do not replace the pauses, which double"


def test_the_deadline_holds_for_a_server_that_is_too_busy() -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", 429, {"Retry-After": "0"})

    with serving(script) as server:
        error, seconds = failure(engine(server.url, retries=0, deadline_seconds=0.6), prompts(1))
        tried = sum(server.attempts.values())
    assert error.code == "E414"
    assert tried > 3
    assert f"{tried} attempt(s)" in str(error)
    assert f"allowed are 1 attempt(s) beside {tried} that it was too busy for, in 0.6 s" in str(error)
    assert seconds < 3


def test_pauses_double_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.0 ** 1100 is no number."""
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.0)

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", 429) if attempt <= 1100 else handler.good(prompt)

    with serving(script) as server:
        assert engine(server.url).generate(["a"], CONFIG, seed=0) == echoed(["a"])


def test_requests_per_second() -> None:
    asked = prompts(9)
    with serving(echo) as server:
        engine(server.url, requests_per_second=20.0).generate(asked, CONFIG, seed=0)
        took = server.arrivals[-1] - server.arrivals[0]
    assert 0.9 * 8 / 20 < took < 4


# --- what is sent, what is read --------------------------------------------------------------------------------------


def test_the_request_says_what_the_job_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the environment has no say in it: no proxy, no .netrc, no cookie."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(handler.text("x"), headers={"Set-Cookie": "who=you; Path=/"})

    with serving(script) as server:
        one = engine(server.url, api="chat", concurrency=1)
        one.generate(["a", "b"], CONFIG, seed=0, stop=["1", "", "2", "3", "4", "5"])
        one.generate(["c"], CONFIG.copy(update={"top_k": 1}), seed=0)
        one.generate(["d"], CONFIG.copy(update={"top_k": 0}), seed=0)
        without = engine(server.url, top_k=False)
        without.generate(["e"], CONFIG, seed=0)
        without.generate(["e"], CONFIG, seed=0)
        HTTPEngine(endpoint(server.url), None, "llm").generate(["f"], CONFIG, seed=0)
    for body in server.bodies:
        del body["seed"]
    chat = {"model": "the-model", "max_tokens": 20}
    a, _, c, d, e, _, _ = server.bodies
    assert [record.getMessage() for record in caplog.records if "top_k" in record.getMessage()] == [
        "endpoint llm does not know top_k: the job's 7 has no effect"
    ]
    sampled = {"temperature": 0.5, "top_p": 0.8}
    stops = {"stop": ["1", "2", "3", "4"]}
    assert a == {**chat, **sampled, **stops, "top_k": 7, "messages": [{"role": "user", "content": "a"}]}
    assert c == {**chat, "temperature": 0.0, "messages": [{"role": "user", "content": "c"}]}
    assert d == {**chat, **sampled, "top_k": -1, "messages": [{"role": "user", "content": "d"}]}
    assert e == {**chat, **sampled, "prompt": "e"}
    assert [headers.get("Authorization") for headers in server.headers] == [f"Bearer {KEY}"] * 6 + [None]
    assert not any("Cookie" in headers for headers in server.headers)
    assert {headers["Connection"] for headers in server.headers} == {"close"}


def test_how_a_text_ended() -> None:
    answers = {
        "cut": ("long", "length"),
        "stop": ("a\n\nb", "length"),
        "thought": (None, "length"),
        "ended": ("", "stop"),
    }

    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(handler.text(*answers[prompt]))

    with serving(script) as server:
        got = engine(server.url, api="chat").generate(list(answers), CONFIG, seed=0, stop=["b", "\n\n"])
    assert got == [Completion("long", False), Completion("a", True), Completion("", False), Completion("", True)]


# --- the site file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def opened(server_url: str, key: Path | None, **changes: Any) -> HTTPEngine:
    site = Site(
        root="/", endpoints={"llm": endpoint(server_url, key_file=None if key is None else str(key), **changes)}
    )
    one = open_engine(site, LLMConfig(name="llm"), torch.device("cpu"))
    assert isinstance(one, HTTPEngine)
    return one


def test_the_key_comes_from_its_file(key_file: Path) -> None:
    with serving(echo) as server, opened(server.url, key_file) as one:
        one.generate(["b"], CONFIG, seed=0)
        assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize(
    ("content", "mode", "code", "says"),
    [
        (KEY.encode(), 0o604, "E412", "has the mode 604"),
        (KEY.encode(), 0o644, "E412", "chmod 600"),
        (b" \n", 0o600, "E411", "it is empty"),
        (KEY.encode() + b"\nother", 0o600, "E411", "more than one key"),
        (b"\xff" + KEY.encode(), 0o600, "E411", "not text"),
        (None, 0o600, "E411", "No such file"),
    ],
)
def test_a_key_file_that_is_wrong(key_file: Path, content: bytes | None, mode: int, code: str, says: str) -> None:
    if content is None:
        key_file.unlink()
    else:
        key_file.write_bytes(content)
        key_file.chmod(mode)
    with serving(echo) as server:
        with pytest.raises(ExtensionError, match=says) as caught:
            opened(server.url, key_file)
        assert not server.arrivals
    assert caught.value.code == code
    assert KEY not in str(caught.value)


def test_a_missing_certificate_file(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E411 `ca_file` of the endpoint 'llm' points to .*no such file"):
        opened("https://127.0.0.1:1/v1", None, ca_file=str(tmp_path / "ca.pem"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_certificates(tmp_path: Path) -> None:
    """One that nobody vouches for is an error at once; the site file can name it."""
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names], check=True)
    with serving(echo) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(ExtensionError, match=r"E417 .*its certificate is not trusted"):
            opened(url, None)
        assert opened(url, None, ca_file=str(tmp_path / "cert.pem")).generate(["b"], CONFIG, seed=0) == echoed(["b"])


def test_the_only_model_is_taken() -> None:
    with serving(echo, ["its-model"]) as server:
        opened(server.url, None, model=None).generate(["b"], CONFIG, seed=0)
        assert [body["model"] for body in server.bodies] == ["its-model"] * 2


@pytest.mark.parametrize(("models", "says"), [([], "lists 0 models: none"), (["a", "b"], "lists 2 models: a, b")])
def test_no_model_or_several(models: list[str], says: str) -> None:
    with serving(echo, models) as server:
        with pytest.raises(ExtensionError, match=f"E416 .*{says}"):
            opened(server.url, None, model=None)
        assert not server.arrivals


def test_a_server_without_a_list_of_models() -> None:
    with serving(echo, 404) as server:
        opened(server.url, None)
        with pytest.raises(ExtensionError, match=r"E413 .*refused the list of models with status 404"):
            opened(server.url, None, model=None)


def test_a_trial_of_one_token_with_all_fields_opens_the_engine() -> None:
    with serving(echo) as server:
        opened(server.url, None)
    (body,) = server.bodies
    assert body["max_tokens"] == 1
    assert set(body) == {"model", "prompt", "max_tokens", "seed", "temperature", "top_p", "top_k", "stop"}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"E415 .*a trial request with status 401 \(a key was sent\)"),
        (404, r"E413 .*refused a trial request with status 404"),
        (503, r"E414 .*no usable answer to a trial request: 2 attempt.*status 503"),
    ],
)
def test_what_is_wrong_shows_when_the_engine_is_opened(key_file: Path, status: int, says: str) -> None:
    def script(handler: Handler, prompt: str, attempt: int) -> None:
        handler.answer(b"{}", status)

    with serving(script) as server, pytest.raises(ExtensionError, match=says):
        opened(server.url, key_file, retries=1)
    with pytest.raises(ExtensionError, match=r"E414 .*no usable answer to a trial request: 2 attempt.*refused"):
        opened(server.url, key_file, retries=1)


def test_prompts_are_plain_text_unless_the_site_says_otherwise() -> None:
    assert Endpoint(url="http://127.0.0.1:1/v1").api == "completions"


@pytest.mark.parametrize(
    "url",
    ["http://me:hidden@host/v1", "https://hidden@host:8000/v1", "http://:hidden@host?x", "http://a@hidden@host#x/v1"],
)
def test_a_password_in_the_url_is_refused(tmp_path: Path, url: str) -> None:
    """It would be sent in place of the key."""
    file = tmp_path / "site.yaml"
    file.write_text(f"endpoints: {{llm: {{url: '{url}'}}}}\n")
    with pytest.raises(ExtensionError, match=r"E113 .*llm\.url: no user name or password here.*`key_file`") as caught:
        load_sites(file)
    assert "hidden" not in str(caught.value)
    assert Endpoint(url="http://host/v1/@name?me@here").url == "http://host/v1/@name?me@here"


def test_an_adapter_cannot_be_asked_for() -> None:
    site = Site(endpoints={"llm": endpoint("http://127.0.0.1:1/v1")})
    with pytest.raises(ExtensionError, match=r"E410 `llm.adapter` is 'mine'"):
        open_engine(site, LLMConfig(name="llm", adapter="mine"), torch.device("cpu"))


def test_prompts_in_the_clear_are_warned_of(caplog: pytest.LogCaptureFixture, key_file: Path) -> None:
    name = socket.gethostname()
    if name in ("localhost", "") or not os.environ.get("PATH"):
        pytest.skip("this machine has no name of its own")
    with pytest.raises(ExtensionError, match=r"E414"):
        opened(f"http://{name}:1/v1", key_file, retries=0)
    assert "prompts, texts and the key can be read on the way" in caplog.text
