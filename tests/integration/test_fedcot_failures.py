"""What goes wrong in FedCoT jobs: one clear error, nothing charged that was not released, nobody hangs."""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fdkt_jobs import marker
from fedcot_jobs import (
    ARBITER,
    GUEST,
    HOST,
    RECORDS,
    SAYS,
    FedCoTFiles,
    answer,
    events,
    llm,
    metrics,
    one_client,
    private_rows,
    results,
    two_clients,
    warnings,
)
from jobs import ENVIRONMENT, PROGRAM, failed, nothing_started, one_error

from fate_llm_ext.data.datasets import read_rows, write_jsonl

pytestmark = pytest.mark.integration

Change = Callable[[FedCoTFiles], None]


def setting(name: str, value: Any) -> Change:
    def change(job: FedCoTFiles) -> None:
        *groups, field = name.split(".")
        place = job.parameters
        for group in groups:
            place = place.setdefault(group, {})
        place[field] = value

    return change


def table(job: FedCoTFiles, party: str = GUEST) -> Path:
    return Path(job.sites[party]["tables"]["llm/private"]) / "train.jsonl"


# --- found before anything starts ---------------------------------------------------------------------


def test_all_problems_of_all_parties_at_once(world: Path, tmp_path: Path) -> None:
    job = two_clients(world, tmp_path)
    job.parameters.update(llm={"name": "gpt"}, question={"fields": ["label"]})
    job.own(HOST).update(student={"name": "other"}, vocabulary={"public": "words"})
    done = job.run()
    assert done.returncode == 1
    for words in ("E131 The LLM 'gpt'", "E784", "'other'", "'words'"):
        assert words in done.stderr, done.stderr
    nothing_started(job)


def test_a_table_without_a_budget(world: Path, tmp_path: Path) -> None:
    job = one_client(world, tmp_path)
    job.sites[GUEST]["budgets"] = {"llm/other": {"epsilon": 1.0, "delta": 0.01}}
    failed(job, "E616", "llm/private", "guest 9999", "llm/other")
    nothing_started(job)


# --- found by a party, before anything is charged -------------------------------------------------------


def no_answers(job: FedCoTFiles) -> None:
    rows = read_rows(table(job))
    write_jsonl(table(job), [{"text": row["text"]} for row in rows])


def another_label(job: FedCoTFiles) -> None:
    rows = read_rows(table(job))
    write_jsonl(table(job), [*rows[:-1], {**rows[-1], "label": "secretlabel"}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_answers, ("E787", f"{RECORDS} of {RECORDS}")),
        (another_label, ("E211", f"row {RECORDS}")),
    ],
    ids=["no answer column", "another label"],
)
def test_a_table_that_does_not_fit(world: Path, tmp_path: Path, change: Change, words: tuple[str, ...]) -> None:
    job = one_client(world, tmp_path)
    change(job)
    line = failed(job, "E521 guest 9999", *words)
    assert "secretlabel" not in line
    assert job.ledger(GUEST) == []
    (told,) = [one for one in events(job.directory(), ARBITER) if one["type"] == "error"]
    assert told["code"] == "E303"
    constant = "E303 guest 9999 stopped the job: it could not prepare its data (see its own log). Next: "
    assert told["message"].startswith(constant), "which problem it is may depend on one row"


def test_an_endpoint_that_is_down(world: Path, tmp_path: Path) -> None:
    """The arbiter asks before it greets anybody, so no client has charged for nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = one_client(world, tmp_path, f"http://127.0.0.1:{port}/v1")
    job.sites[ARBITER]["endpoints"]["llm"].update(retries=0, deadline_seconds=5.0)
    failed(job, "E521 arbiter 9998", "E414", "'llm'")
    assert job.ledger(GUEST) == []


# --- no failure -----------------------------------------------------------------------------------------


def test_one_record(world: Path, tmp_path: Path) -> None:
    with llm() as server:
        job = one_client(world, tmp_path, server.url)
        write_jsonl(table(job), read_rows(table(job))[:1])
        done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    assert metrics(job.directory(), GUEST)["rationales_kept"] == 1
    assert len(job.ledger(GUEST)) == 1


GARBAGE = ("", "   \n\n", "!?", "\x00\x1b[31m", "word " * 40_000, "猫" * 3, "�", "Q: " * 3)


@pytest.fixture(scope="module")
def nonsense(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FedCoTFiles, Path]:
    """The guest's LLM answers nonsense of all kinds, the host's without reasons; the guest keeps none, the host all."""
    turns = itertools.count()

    def reply(prompt: str) -> Any:
        return f"{SAYS}." if "negative" in prompt else GARBAGE[next(turns) % len(GARBAGE)]

    with llm(reply) as server:
        job = two_clients(world, tmp_path_factory.mktemp("nonsense"), server.url)
        job.parameters["quality"] = {"answered": True}
        job.own(HOST)["quality"] = {"min_words": 5}
        job.parameters["attack"] = {"methods": []}
        done = job.run()
        assert done.returncode == 0, done.stderr + done.stdout
        return job, job.directory()


def test_nonsense_is_counted_and_ends_no_job(nonsense: tuple[FedCoTFiles, Path]) -> None:
    _, directory = nonsense
    found = metrics(directory, GUEST)
    assert found["rationales"] < RECORDS
    dropped = sum(value for name, value in found.items() if name.startswith("rationales_dropped_"))
    assert dropped == RECORDS - found["rationales"]
    assert "E789" in warnings(directory, GUEST)


def test_without_good_rationales_it_is_the_labels_alone(nonsense: tuple[FedCoTFiles, Path]) -> None:
    job, directory = nonsense
    for client in (GUEST, HOST):
        assert metrics(directory, client)["rationales_kept"] == 0
        assert warnings(directory, client)[-1] == "E790"
        alone = metrics(directory, client, "standalone")
        for name in ("label_loss", "accuracy", "nll_per_byte"):
            assert metrics(directory, client)[name] == alone[name], name
        assert len(job.ledger(client)) == 1, "the questions have left all the same"


def test_no_rationale_is_in_any_file(nonsense: tuple[FedCoTFiles, Path]) -> None:
    _, directory = nonsense
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert SAYS not in path.read_text(errors="replace"), path


def test_a_slow_llm_is_waited_for(world: Path, tmp_path: Path) -> None:
    """It takes longer than a party may be silent; the client that is served last waits longest."""
    with llm(lambda prompt: (time.sleep(0.3 if "Answer choices" in prompt else 0), answer(prompt))[1]) as server:
        job = two_clients(world, tmp_path, server.url)
        job.sites[ARBITER]["endpoints"]["llm"]["concurrency"] = 1
        job.parameters["network"].update(silence_seconds=6.0, heartbeat_seconds=0.5)
        job.parameters.update(compare=[], attack={"methods": []})
        done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    for client in (GUEST, HOST):
        assert metrics(job.directory(), client)["rationales"] == RECORDS
    waits = [one for one in events(job.directory(), HOST) if one["type"] == "waiting"]
    assert max(one["seconds"] for one in waits) > 6.0


# --- a client drops out ---------------------------------------------------------------------------------


# Fails on what it is given, not on made-up words, and quotes it in its exception.
BREAKS = "{{ text }}{% if 'perturbed>' not in text %}{{ {}[text].x }}{% endif %}"


def ask(job: FedCoTFiles, server: Any, at: str, then: Callable[[], None]) -> tuple[int, str]:
    """Run the job; once the LLM has been asked a question with the word ``at``, do something."""
    running = subprocess.Popen(
        [PROGRAM, *job.write()], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: any(at in prompt for prompt in list(server.attempts)), 150)
        then()
        _, stderr = running.communicate(timeout=150)
        return running.returncode, stderr
    finally:
        running.kill()


def component(job: FedCoTFiles, party: str) -> Any:
    """A party's own process, not the guard above it."""
    (found,) = [
        one
        for one in job.alive()
        if one.cmdline()[1:3] == ["-m", "fate.components"] and any(f"/{party}/task.yaml" in w for w in one.cmdline())
    ]
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_client_that_is_killed_stops_nobody_else(world: Path, tmp_path: Path) -> None:
    """It dies while the LLM writes for it; the host is served after it, and learns."""
    gate = threading.Event()

    def reply(prompt: str) -> str:
        if "billing" in prompt:
            gate.wait(100)
        return answer(prompt)

    def kill() -> None:
        component(job, GUEST).kill()
        time.sleep(1.0)
        gate.set()

    with llm(reply) as server:
        job = two_clients(world, tmp_path, server.url)
        job.parameters["network"]["silence_seconds"] = 12.0
        job.parameters.update(compare=[], attack={"methods": []})
        code, stderr = ask(job, server, "billing", kill)
    assert code == 1, stderr
    one_error(job, stderr, "E522 guest 9999 was killed by SIGKILL")
    directory = job.directory()
    for party in (HOST, ARBITER):
        assert events(directory, party)[-1]["type"] == "done"
    assert set(results(directory, HOST)) == {"fedcot"}
    assert metrics(directory, HOST)["rationales_kept"] == RECORDS
    assert (directory / "fedcot_0" / HOST / "model" / "output_model" / "adapter_config.json").exists()
    assert metrics(directory, ARBITER)["clients_lost"] == 1
    (told,) = [one for one in events(directory, ARBITER) if one["type"] == "warning"]
    assert told["code"] == "E788"
    assert "1 of 2 clients dropped out: guest 9999: " in told["message"]
    assert len(job.ledger(GUEST)) == 1, "its questions had left"
    assert not job.alive()


def test_a_client_that_fails_by_itself_stops_nobody_else(world: Path, tmp_path: Path) -> None:
    """A template that breaks on the host's perturbed words: after its charge, while the arbiter serves the guest."""
    with llm() as server:
        job = two_clients(world, tmp_path, server.url)
        job.own(HOST)["question"] = {
            "max_words": 12,
            "template": BREAKS,
        }
        job.parameters.update(compare=[], attack={"methods": []})
        done = job.run()
    assert done.returncode == 1, done.stdout
    one_error(job, done.stderr, "E521 host 10000", "E209", "question.template")
    directory = job.directory()
    for party in (GUEST, ARBITER):
        assert events(directory, party)[-1]["type"] == "done"
    assert metrics(directory, GUEST)["rationales_kept"] == RECORDS
    assert metrics(directory, ARBITER)["clients_lost"] == 1
    (told,) = [one["message"] for one in events(directory, ARBITER) if one["type"] == "warning"]
    assert "host 10000: it could not prepare its data (see its own log)" in told
    assert "question.template" not in told


def test_without_any_client_the_arbiter_fails_too(world: Path, tmp_path: Path) -> None:
    """And no error, log or event quotes the row that the template has put into its exception."""
    job = one_client(world, tmp_path)
    job.parameters["question"]["template"] = BREAKS
    job.parameters["perturbation"] = {"strategy": "none"}
    job.sites[GUEST]["budgets"]["llm/private"]["epsilon"] = float("inf")
    line = failed(job, "E521 guest 9999", "E209", "question.template", "UndefinedError")
    (told,) = [one for one in events(job.directory(), ARBITER) if one["type"] == "error"]
    assert told["code"] == "E788"
    assert "1 of 1 clients" in told["message"]
    markers = [marker(GUEST, number) for number in range(RECORDS)]
    begins = [row["text"][:40] for row in private_rows(job, GUEST)]
    seen = [path.read_text(errors="replace") for path in job.directory().rglob("*") if path.is_file()]
    assert not [word for word in (*markers, *begins) for text in (line, *seen) if word in text]


def test_the_arbiter_is_killed_while_it_writes(world: Path, tmp_path: Path) -> None:
    """The client has released its questions: that is charged, and it ends with an error, not in wait."""
    gate = threading.Event()
    with llm(lambda prompt: (gate.wait(100 if "billing" in prompt else 0), answer(prompt))[1]) as server:
        job = one_client(world, tmp_path, server.url)
        job.parameters["network"]["silence_seconds"] = 10.0
        began = time.monotonic()
        code, stderr = ask(job, server, "billing", lambda: component(job, ARBITER).kill())
        gate.set()
    assert time.monotonic() - began < 150
    assert code == 1, stderr
    one_error(job, stderr, "E522 arbiter 9998 was killed by SIGKILL")
    assert len(job.ledger(GUEST)) == 1
