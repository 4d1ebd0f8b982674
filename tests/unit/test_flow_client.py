"""The client of FATE Flow against a real HTTP server that is wrong, slow, odd or away."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flow_server import JOB, PREFIX, Handler, archive, data, event, job_row, log, running, sends, task_row

from fate_llm_ext.cli.board import LiveBoard, PlainBoard
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow import connection, control, failure, follow
from fate_llm_ext.flow.archive import unpack
from fate_llm_ext.flow.connection import find_account
from fate_llm_ext.flow.fetch import fetch
from fate_llm_ext.flow.provider import PROVIDER
from fate_llm_ext.flow.server import FlowServer, without_secrets
from fate_llm_ext.flow.submission import own_parties, prepared, problems_at
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import load_dag
from fate_llm_ext.pipelines.job import Party

VARIABLES = (connection.SERVER_VARIABLE, connection.APP_ID_VARIABLE, connection.TOKEN_FILE_VARIABLE)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "_flow_init", dict)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(failure, "SETTLE_SECONDS", 0.2)


def refused(code: str, call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ExtensionError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return str(caught.value)


# --- which server ---------------------------------------------------------------------------------------


def test_address_from_option_then_variable_then_flow_init(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("E800", find_account)
    monkeypatch.setattr(connection, "_flow_init", lambda: {"ip": "10.0.0.1", "port": 9380})
    assert find_account().address == "10.0.0.1:9380"
    monkeypatch.setenv(connection.SERVER_VARIABLE, "flow.bank:9381")
    assert find_account().address == "flow.bank:9381"
    assert find_account("https://other:1").scheme == "https"


@pytest.mark.parametrize("text", ["host", "host:", ":9380", "host:0", "host:99999", "host:9380/v2", "a b:1", "u@h:1"])
def test_what_is_no_address(text: str) -> None:
    assert repr(text) in refused("E802", find_account, text)


def test_flow_init_file_is_read_without_importing_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "fate_client"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "settings.yaml").write_text(
        "flow_service: {api_version: v2, ip: 10.1.1.1, port: 7, app_id: me, app_token: t}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fate_client", raising=False)  # the real one, of another test
    account = find_account()
    assert (account.address, account.app_id, account.token) == ("10.1.1.1:7", "me", "t")
    assert find_account("10.1.1.2:7").app_id == ""  # credentials are for that server


def test_credentials_come_from_a_file_and_sign_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.APP_ID_VARIABLE, "me")
    assert "not set" in refused("E803", FlowServer, "h:1")
    (tmp_path / "token").write_text("")
    monkeypatch.setenv(connection.TOKEN_FILE_VARIABLE, str(tmp_path / "token"))
    assert "empty" in refused("E803", FlowServer, "h:1")
    (tmp_path / "token").write_text(" secret\n")
    with running(site__info__query=data({"party_id": "9999"})) as server:
        assert FlowServer(server.address).party_id() == "9999"
        sent = server.asked[0][2]
    inner = hashlib.md5(f"me{sent['Nonce']}{sent['Timestamp']}".encode()).hexdigest()
    assert sent["Signature"] == hashlib.md5(f"{inner}secret".encode()).hexdigest()
    assert sent["appId"] == "me"
    assert abs(int(sent["Timestamp"]) / 1000 - time.time()) < 5
    assert "secret" not in json.dumps(sent)


# --- what goes wrong ------------------------------------------------------------------------------------


def test_nothing_listens() -> None:
    with running() as server:
        address = server.address
    server.server_close()
    assert "connection refused" in refused("E801", FlowServer(address).version)


def test_a_server_that_takes_the_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    with running(server__fateflow=lambda *_: time.sleep(1.0)) as server:
        began = time.monotonic()
        assert "no answer came in time" in refused("E801", FlowServer(server.address).version)
        assert time.monotonic() - began < 0.8


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda h, _: h.reply(b"<html>", 200, "text/html"), "E804"),
        (lambda h, _: h.reply(b"[1]"), "E804"),
        (lambda h, _: h.reply(b'{"code": "zero"}'), "E804"),
        (lambda h, _: h.reply({"code": 0}, 404), "E804"),
        (lambda h, _: h.reply({"code": 0}, 302), "E804"),
        (lambda h, _: h.reply(b"bad gateway", 502, "text/html"), "E801"),
        ({"code": 5003, "message": "varify failed!"}, "E805"),
        ({"code": 5001, "message": "Invalid parameter: name[appId]"}, "E805"),
        ({"code": 5001, "message": "Invalid request.", "data": {"json": {"x": ["Missing"]}}}, "E806"),
        ({"code": 6000, "message": "KeyError('a')"}, "E806"),
    ],
)
def test_odd_answers(answer: Any, code: str) -> None:
    with running(job__query=answer) as server:
        text = refused(code, FlowServer(server.address).job, JOB)
    assert server.address in text


def test_environment_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with running(site__info__query={"code": 3000, "message": "Site is standalone"}) as server:
        assert FlowServer(server.address).party_id() is None


def test_submit_sends_the_job_and_wants_an_id() -> None:
    with running(job__submit={"code": 0, "data": {}, "job_id": JOB}) as server:
        assert FlowServer(server.address).submit({"dag": {"stage": "train"}}) == JOB
        assert server.asked[-1][1] == {"dag_schema": {"dag": {"stage": "train"}}}
        server.answers["/job/submit"] = {"code": 0}
        refused("E804", FlowServer(server.address).submit, {})
        server.answers["/job/submit"] = {"code": 1002, "message": "Create job failed", "data": {"host": "10000 away"}}
        assert "10000 away" in refused("E806", FlowServer(server.address).submit, {})


# --- states ---------------------------------------------------------------------------------------------


def test_a_job_of_two_roles_at_one_site_goes_on_until_both_end() -> None:
    rows = [job_row("success"), job_row("running", role="arbiter", end_time=None)]
    with running(job__query=data(rows)) as server:
        state = FlowServer(server.address).job(JOB)
        assert (state.status, state.ended) == ("running", False)
        assert state.parties == (Party("guest", "9999"), Party("arbiter", "9999"))
        assert state.others == (Party("host", "10000"),)
        rows[1] = job_row("failed", role="arbiter", end_time=7_000)
        state = FlowServer(server.address).job(JOB)
        assert (state.status, state.ended, state.seconds) == ("failed", True, 5.0)


def test_of_a_task_the_latest_try_counts() -> None:
    rows = [task_row(task_version=1), task_row("failed", task_version=0), task_row(role="host", task_version=10)]
    with running(job__task__query=data(rows)) as server:
        tasks = {one.party.key: one for one in FlowServer(server.address).tasks(JOB)}
    assert (tasks["guest_9999"].version, tasks["guest_9999"].status) == (1, "running")
    assert tasks["host_9999"].version == 10


def test_no_such_job_task_table_model() -> None:
    with running() as server:
        flow = FlowServer(server.address)
        server.answers["/job/query"] = {"code": 1001, "message": "No found job"}
        refused("E809", flow.job, JOB)
        server.answers["/job/task/query"] = {"code": 2000, "message": "No found task"}
        assert flow.tasks(JOB) == []
        server.answers["/table/query"] = {"code": 7001, "message": "No found table"}
        assert flow.query_table("llm", "news") is None
        server.answers["/output/model/query"] = {"code": 2005, "message": "No found output model"}
        assert flow.model_outputs(JOB, "guest", "9999", "t") == []
        server.answers["/provider/query"] = data([])
        assert flow.query_provider("fate", "llm_ext_0") is None


def test_passwords_in_logs_are_hidden() -> None:
    line = "{'host': 'xxx', 'user': 'fate', 'password': 'vYbz99', 'mng_port': 1, \"app_token\": \"t'\", 'passwords': 2}"
    hidden = without_secrets(line)
    assert "vYbz99" not in hidden
    assert hidden == line.replace("vYbz99", "***").replace('"t\'"', '"***"')


# --- following ------------------------------------------------------------------------------------------


class Story:
    """A job that takes a step at each look of the client."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.steps = steps
        self.number = -1
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    @property
    def now(self) -> dict[str, Any]:
        return self.steps[min(self.number, len(self.steps) - 1)]

    def job(self, handler: Handler, _arguments: dict[str, Any]) -> Any:
        self.number += 1
        if "away" in self.now:
            handler.reply(b"", 503)
            return None
        return data([job_row(self.now["job"], **self.now.get("fields", {}))])

    def follow(self, **options: Any) -> Any:
        answers = {
            "job__query": self.job,
            "job__task__query": lambda *_: data(self.now.get("tasks", [])),
            "log__query": log(lambda: self.now.get("log", []), "[INFO] half a li"),
            "log__count": lambda *_: data(len(self.now.get("log", []))),
        }
        with running(**answers) as server:
            return follow.follow(FlowServer(server.address), JOB, self.hear, **options)

    def hear(self, task: str, party: Party | None, event: dict[str, Any]) -> None:
        if event["type"] != "tick":
            self.events.append((task, str(party or ""), event))

    @property
    def heard(self) -> list[str]:
        return [one["type"] for _, _, one in self.events]

    @property
    def notices(self) -> list[str]:
        return [str(one["message"]) for _, _, one in self.events if one["type"] == "notice"]


def test_events_of_the_log_reach_the_board_once_and_in_order() -> None:
    first = ["[INFO] start run task", event("started", version=0), event("phase", phase="a")]
    second = [*first, PREFIX + "event {broken", PREFIX + 'event ["list"]', event("phase", phase="b")]
    story = Story(
        [
            {"job": "waiting", "fields": {"start_time": None, "end_time": None}},
            {"job": "running", "tasks": [task_row("waiting")]},
            {"job": "running", "tasks": [task_row()], "log": first},
            {"job": "running", "tasks": [task_row()], "log": second},
            {"job": "success", "tasks": [task_row("success")], "log": [*second, event("done")]},
        ]
    )
    assert story.follow().status == "success"
    assert story.heard == ["notice", "started", "phase", "phase", "done", "ended"]
    assert [one["phase"] for _, _, one in story.events if one["type"] == "phase"] == ["a", "b"]
    assert story.events[-1][:2] == ("fedmkt_0", "guest 9999")
    assert story.events[-1][2]["exit_code"] == 0
    assert "is waiting" in story.notices[0]


def test_a_second_try_starts_the_party_anew_and_a_shorter_log_is_read_from_its_begin() -> None:
    story = Story(
        [
            {"job": "running", "tasks": [task_row()], "log": ["x", event("phase", phase="a"), "y"]},
            {"job": "running", "tasks": [task_row("failed")], "log": ["x", event("phase", phase="a"), "y"]},
            {"job": "running", "tasks": [task_row(task_version=1)], "log": [event("phase", phase="b")]},
            {"job": "success", "tasks": [task_row("success", task_version=1)], "log": [event("phase", phase="b")]},
        ]
    )
    story.follow()
    assert story.heard == ["started", "phase", "ended", "notice", "started", "phase", "ended"]
    assert "try 2" in story.notices[0]


def test_who_comes_late_sees_nothing_of_earlier_tries() -> None:
    old = [event("started", version=0), event("phase", phase="old"), event("error", code="E1", message="E1 old")]
    new = [*old, event("started", version=1), event("phase", phase="new")]
    story = Story(
        [
            {"job": "running", "tasks": [task_row(task_version=1)], "log": old},
            {"job": "running", "tasks": [task_row(task_version=1)], "log": new},
            {"job": "success", "tasks": [task_row("success", task_version=1)], "log": new},
        ]
    )
    story.follow()
    assert story.heard == ["notice", "started", "phase", "ended"]
    assert story.events[2][2]["phase"] == "new"


def test_a_server_that_is_away_for_a_while_is_asked_again() -> None:
    running_task = {"job": "running", "tasks": [task_row()], "log": [event("phase", phase="a")]}
    story = Story([running_task, {"away": 1}, {"away": 1}, {"job": "success", "tasks": [task_row("success")]}])
    assert story.follow().status == "success"
    assert len(story.notices) == 2
    assert "503" in story.notices[0]
    assert "answers again" in story.notices[1]
    assert story.heard.count("started") == 1


def test_patience_ends() -> None:
    story = Story([{"job": "running"}, {"away": 1}])
    text = refused("E812", story.follow, patience=0.2, timeout=5)
    assert "goes on" in text
    assert "503" in text
    assert "status" in text


def test_time_to_watch_ends_and_interruption_returns() -> None:
    assert "is running; it goes on" in refused("E813", Story([{"job": "running"}]).follow, timeout=0.1)
    assert "is running; it goes on" in refused("E813", Story([{"job": "running"}, {"away": 1}]).follow, timeout=0.2)
    assert Story([{"job": "running"}]).follow(interrupted=lambda: True).status == "running"
    away = Story([{"job": "running"}, {"away": 1}])
    assert away.follow(interrupted=lambda: away.number > 2).status == "running"


def test_a_job_that_nobody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "STUCK_SECONDS", 0.2)
    story = Story([{"job": "running", "tasks": [task_row("failed", error_report="E304 silence.")]}])
    assert story.follow(timeout=5).status == "running"
    error = explained([task_row("failed", error_report="E304 silence.")], job="running")
    assert error is not None
    assert (error.code, error.facts["reason"]) == ("E810", "E304 silence.")
    assert explained([task_row("failed"), task_row("waiting", task_name="next")], job="running") is not None
    assert explained([task_row("failed"), task_row(role="arbiter")], job="running") is None
    # One that is started again is not stuck.
    again = [{"job": "running", "tasks": [task_row("failed")]}] * 5
    restarted = {"job": "running", "tasks": [task_row("running", task_version=1)]}
    refused("E813", Story([*again, restarted]).follow, timeout=0.6)


def test_an_error_of_the_server_is_not_waited_for() -> None:
    with running(job__query={"code": 6000, "message": "database is gone"}) as server:
        refused("E806", follow.follow, FlowServer(server.address), JOB, lambda *_: None)


# --- why it failed --------------------------------------------------------------------------------------

E303 = "E303 host 10000 stopped the job: E201 x does not exist. Next: Solve it."


def explained(
    tasks: list[dict[str, Any]], lines: list[str] | None = None, job: str = "failed"
) -> ExtensionError | None:
    answers = {
        "job__query": data([job_row(job)]),
        "job__task__query": data(tasks),
        "log__query": lambda _h, a: log(lambda: (lines or []) if a["log_type"] == "task_info" else [])(_h, a),
    }
    with running(**answers) as server:
        flow = FlowServer(server.address)
        return failure.explain(flow, flow.job(JOB))


def reason(tasks: list[dict[str, Any]], lines: list[str]) -> str:
    error = explained(tasks, lines)
    assert error is not None
    return str(error.facts["reason"])


def test_reasons() -> None:
    assert explained([task_row("success")], job="success") is None
    assert explained([task_row()], job="running") is None
    trace = "Traceback (most recent call last):\n  File x\nfate_llm_ext.errors.ExtensionError: E201 a. Next: b."
    for report in (trace, "E201 a. Next: b."):
        error = explained([task_row("failed", error_report=report)])
        assert error is not None
        assert (error.code, error.facts["reason"]) == ("E810", "E201 a. Next: b.")
        assert error.facts["party"] == Party("guest", "9999")


def test_a_report_that_is_empty_gives_way_to_the_log_of_this_try() -> None:
    old, new = event("error", code="E1", message="E1 old"), event("error", code="E2", message="new")
    begin = PREFIX + "start generating input artifacts"
    first = [begin, event("started", version=0), old]
    second = [*first, begin, event("started", version=1), new]
    failed = task_row("failed", error_report="No found task output.", task_version=1)
    assert reason([failed], second) == "E2 new."
    assert reason([failed], first).startswith("no task of")  # the second try left nothing
    logged = PREFIX.replace("INFO", "ERROR") + "no connection"
    trace = ["Traceback (most recent call last):", "ValueError: x", "[INFO][1]: later"]
    assert reason([failed], [*first, begin, logged]) == "no connection."
    assert reason([failed], [*first, begin, logged, *trace]) == "ValueError: x."


def test_a_reason_of_this_site_comes_before_what_it_was_told() -> None:
    rows = [
        task_row("failed", error_report=E303),
        task_row("failed", role="arbiter", error_report="ValueError: own", create_time=2_000),
    ]
    error = explained(rows)
    assert error is not None
    assert (error.code, error.facts["reason"]) == ("E810", "ValueError: own.")


def test_elsewhere_names_whom_to_ask() -> None:
    error = explained([task_row("failed", error_report=E303)])
    assert error is not None
    assert (error.code, error.facts["others"]) == ("E811", "host 10000")
    error = explained([task_row("failed")])
    assert error is not None
    assert (error.code, error.facts["others"]) == ("E811", "host 10000")
    assert "gives a reason" in str(error)
    for status in ("canceled", "failed"):
        error = explained([task_row("canceled", error_report="E310 stopped")], job=status)
        assert error is not None
        assert error.code == "E814"


# --- stopping -------------------------------------------------------------------------------------------


def test_stop_is_asked_again_while_a_task_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS_EACH", 0.1)
    monkeypatch.setattr(control, "_POLL_SECONDS", 0.02)
    posts: list[str] = []

    def tasks(*_: Any) -> Any:
        return data([task_row("running" if len(posts) < 3 else "canceled")])

    def stop(_handler: Handler, arguments: dict[str, Any]) -> Any:
        posts.append(arguments["job_id"])
        return data(None)

    with running(job__query=data([job_row("canceled")]), job__task__query=tasks, job__stop=stop) as server:
        flow = FlowServer(server.address)
        assert not control.is_over(flow, JOB)
        control.stop(flow, JOB)
        assert posts == [JOB] * 3
        server.answers["/job/task/query"] = data([task_row("running")])
        assert "Repeat" in refused("E818", control.stop, flow, JOB)
        assert len(posts) == 3 + control.REQUESTS


def test_restart_is_asked_again_until_there_is_a_new_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler had not noticed the end: the job waits for a moment, and ends once more."""
    monkeypatch.setattr(control, "SECONDS_EACH", 0.3)
    monkeypatch.setattr(control, "RESTART_SECONDS", 2.0)
    monkeypatch.setattr(control, "_POLL_SECONDS", 0.02)
    posts: list[str] = []
    needed = 3

    def tasks(*_: Any) -> Any:
        first = task_row("canceled", task_version="0")
        return data([first] if len(posts) < needed else [first, task_row("waiting", task_version="1")])

    def rerun(_handler: Handler, arguments: dict[str, Any]) -> Any:
        posts.append(arguments["job_id"])
        return data(None)

    with running(job__query=data([job_row("waiting")]), job__task__query=tasks, job__rerun=rerun) as server:
        flow = FlowServer(server.address)
        control.restart(flow, JOB)
        assert posts == [JOB] * 3
        server.answers["/job/query"] = data([job_row("canceled")])
        assert "fate_flow_schedule.log" in refused("E818", control.restart, flow, JOB), "a new try of an ended job"
        server.answers["/job/query"] = data([job_row("waiting")])
        needed = 1_000
        assert "fate_flow_schedule.log" in refused("E818", control.restart, flow, JOB)
        server.answers["/job/query"] = data([job_row("running")])
        control.restart(flow, JOB)  # it runs, at other sites


# --- fetching -------------------------------------------------------------------------------------------

LOG = [event("phase", phase="old"), event("started", version=1), event("result", arm="fedmkt", value=0.5)]


def answers_of_a_job(folder: Path | None = None) -> dict[str, Any]:
    table = {"path": f"file://{folder}", "data_type": "data_directory"}
    logs = {"guest/9999/fedmkt_0/root/INFO": "\n".join(LOG).encode(), "fate_flow_schedule.log": b"environment"}
    return {
        "job__query": data([job_row("success")]),
        "job__task__query": data([task_row("success", task_version=1), task_row("waiting", task_name="later")]),
        "job__log__download": sends(archive(logs, mode="w:gz"), "application/gzip"),
        "output__metric__query": data([{"name": "loss", "data": []}]),
        "output__model__query": data({"output_model": [], "generator_model": []}),
        "worker__model__download": lambda h, a: h.reply(
            archive({"config.json": a["output_key"].encode(), "model_directory.meta.yaml": b"x"}),
            kind="application/x-tar",
        ),
        "output__data__table": {"synthetic": [{"namespace": "n", "name": "x"}]} if folder else {},
        "table__query": data(table),
    }


def test_fetch_lays_out_a_run(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/train.jsonl").write_text("{}")
    with running(**answers_of_a_job(tmp_path / "made")) as server:
        run = fetch(FlowServer(server.address), JOB, tmp_path / "runs")
        fetch(FlowServer(server.address), JOB, tmp_path / "runs")  # again: replaces it
    party = run / "fedmkt_0/guest_9999"
    events = [json.loads(line) for line in (party / "events.jsonl").read_text().splitlines()]
    assert [one["type"] for one in events] == ["result"]
    for output in ("output_model", "generator_model"):
        assert (party / "model" / output / "config.json").read_text() == output
        assert not (party / "model" / output / "model_directory.meta.yaml").exists()
    assert (party / "data/synthetic/train.jsonl").read_text() == "{}"
    assert json.loads((party / "metric.json").read_text())[0]["name"] == "loss"
    record = json.loads((run / "job.json").read_text())
    assert (record["status"], record["order"], record["missing"]) == ("success", ["fedmkt_0"], [])
    assert sorted(one.name for one in run.iterdir()) == ["dag.yaml", "fedmkt_0", "job.json"]
    assert sorted(one.name for one in (tmp_path / "runs").iterdir()) == [JOB]


def test_fetch_leaves_nothing_half_written_and_nothing_of_others_overwritten(tmp_path: Path) -> None:
    answers = answers_of_a_job()
    whole = archive({"config.json": b"x" * 5000})
    with running(**answers) as server:
        flow = FlowServer(server.address)
        server.answers["/worker/model/download"] = sends(whole[:3000], size=len(whole))
        refused("E801", fetch, flow, JOB, tmp_path)
        server.answers["/worker/model/download"] = sends(b"no archive")
        refused("E815", fetch, flow, JOB, tmp_path)
        server.answers["/worker/model/download"] = {"code": 6000, "message": "gone"}
        refused("E815", fetch, flow, JOB, tmp_path)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / JOB).mkdir()
        (tmp_path / JOB / "mine.txt").write_text("mine")
        refused("E816", fetch, flow, JOB, tmp_path)
        assert [one.name for one in (tmp_path / JOB).iterdir()] == ["mine.txt"]


def test_what_the_server_does_not_send_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with running(**answers_of_a_job(tmp_path / "only there")) as server:
        run = fetch(FlowServer(server.address), JOB, tmp_path / "runs", said.append)
    assert "only there" in said[0]
    assert json.loads((run / "job.json").read_text())["missing"][0] in said[0]


def test_the_job_file_holds_what_its_author_chose() -> None:
    from fate_llm_ext.flow.fetch import _authored

    source = {"producer_task": None, "model_id": "m", "model_version": "0"}
    dag = {
        "kind": "fate",
        "dag": {
            "conf": {
                "model_id": JOB,
                "auto_retries": 2,
                "sync_type": "poll",
                "computing_partitions": 8,
                "model_warehouse": dict(source),
            },
            "tasks": {"t": {"conf": None, "parameters": {"model": None, "auto_retries": 0}, "inputs": [source]}},
        },
    }
    warehouse = {"model_id": "m", "model_version": "0"}
    assert _authored(dag) == {
        "kind": "fate",
        "dag": {
            "conf": {"auto_retries": 2, "model_warehouse": warehouse},
            "tasks": {"t": {"parameters": {"model": None, "auto_retries": 0}, "inputs": [warehouse]}},
        },
    }


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "content",
    [
        archive({"good": b"1", "../evil": b"x"}),
        archive({"/tmp/evil_of_flow_test": b"x"}),
        archive({"a/../../evil": b"x"}),
        archive({}, [_link("evil", "/etc")]),
        archive({}, [_link("evil", "/etc/passwd", tarfile.LNKTYPE)]),
        archive({}, [_link("evil", "", tarfile.FIFOTYPE)]),
        archive({"a": b"1", "a/b": b"2"}),
        archive({"a": b"1", "./a": b"2"}),
        archive({"good": b"1" * 9000}, mode="w:gz")[:-60],
        b"",
    ],
)
def test_archives_that_are_refused(content: bytes, tmp_path: Path) -> None:
    refused("E815", unpack, io.BytesIO(content), tmp_path / "inside", "x")
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil_of_flow_test").exists()


def test_a_plain_archive(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./empty")
    folder.type = tarfile.DIRTYPE
    unpack(io.BytesIO(archive({"./a/b.txt": b"1", "c": b""}, [folder])), tmp_path / "x", "x")
    assert sorted(str(one.relative_to(tmp_path / "x")) for one in (tmp_path / "x").rglob("*")) == [
        *("a", "a/b.txt", "c", "empty")
    ]


def test_many_threads_share_nothing_but_the_server() -> None:
    """The SDK's FlowClient keeps one client per class; two servers at once must not be mixed up."""
    with (
        running(site__info__query=data({"party_id": "1"})) as one,
        running(site__info__query=data({"party_id": "2"})) as two,
    ):
        found: list[tuple[str, str | None]] = []

        def ask(expected: str, address: str) -> None:
            found.extend((expected, FlowServer(address).party_id()) for _ in range(10))

        threads = [threading.Thread(target=ask, args=given) for given in (("1", one.address), ("2", two.address))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 20
    assert all(expected == got for expected, got in found)


# --- submission -----------------------------------------------------------------------------------------

CONF = Path(__file__).resolve().parents[2] / "conf/fedmkt/three_sites"


def problem_codes(server_answers: dict[str, Any], *overrides: str) -> list[str]:
    job = load_dag(CONF / "dag.yaml", overrides)
    with running(site__info__query=data({"party_id": "9999"}), **server_answers) as server:
        flow = FlowServer(server.address)
        own = own_parties(flow, job)
        assert own == (Party("guest", "9999"),)
        return [f"{one.where} {one.error.code}" for one in problems_at(flow, job, own)]


def test_what_the_server_lacks() -> None:
    there = {"provider__query": data([{"name": "fate"}]), "table__query": data({"path": "file:///x"})}
    table = "tasks.fedmkt_0.inputs.data.train_data.data_warehouse.0 E807"
    assert problem_codes(there) == []
    assert problem_codes({**there, "table__query": {"code": 7001, "message": "No found table"}}) == [table]
    none = {**there, "provider__query": data([])}
    assert problem_codes(none) == ["conf.task.provider E808"]
    assert problem_codes(none, "conf.task.provider=*:*@*") == []  # the server's default


def test_a_site_that_takes_no_part_needs_no_table() -> None:
    job = load_dag(CONF / "dag.yaml")
    with running(site__info__query=data({"party_id": "1"}), provider__query=data([{}])) as server:
        flow = FlowServer(server.address)
        assert problems_at(flow, job, own_parties(flow, job)) == []


def test_the_job_is_submitted_with_our_provider_and_otherwise_as_it_is() -> None:
    job = load_dag(CONF / "dag.yaml")
    given = json.loads(json.dumps(job.raw))
    made = prepared(job)
    assert job.raw == given
    assert made["dag"]["conf"] == {"task": {"timeout": 3600, "provider": PROVIDER}, "sync_type": "poll"}
    assert {**made["dag"], "conf": 0} == {**given["dag"], "conf": 0}
    chosen = load_dag(CONF / "dag.yaml", ["conf.task.provider=fate:other@local", "conf.sync_type=callback"])
    assert prepared(chosen)["dag"]["conf"] == chosen.raw["dag"]["conf"]


def test_a_table_without_parties_is_for_those_that_read_it() -> None:
    job = load_dag(CONF / "dag.yaml")
    tables = job.raw["dag"]["tasks"]["fedmkt_0"]["inputs"]["data"]["train_data"]["data_warehouse"]
    listed = tables[0].pop("parties")
    made = prepared(job)["dag"]["tasks"]["fedmkt_0"]["inputs"]["data"]["train_data"]["data_warehouse"]
    assert made[0].pop("parties") == listed, "the arbiter has no such input"
    assert made == tables


def test_between_sites_only_the_own_names_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "site.yaml").write_text("models: {slm: m}\n")
    job = load_dag(CONF / "dag.yaml")
    found = {one.where: one.error.code for one in check(job, tmp_path / "site.yaml", own=(Party("guest", "9999"),))}
    assert found == {"tasks.fedmkt_0.parameters.public.name (guest 9999)": "E110"}
    (tmp_path / "site.yaml").write_text("host_10000: {models: {slm: m}}\n")
    codes = {one.error.code for one in check(job, tmp_path / "site.yaml", own=(Party("guest", "9999"),))}
    assert codes == {"E114"}
    assert check(job, tmp_path / "site.yaml", own=()) == []


def test_boards_show_notices(capsys: pytest.CaptureFixture[str]) -> None:
    notice = {"type": "notice", "message": "the server is away"}
    PlainBoard()("", None, notice)
    assert "the server is away" in capsys.readouterr().out
    board = LiveBoard()
    board("fedmkt_0", Party("guest", "9999"), {"type": "started"})
    board("", None, notice)
    table = board._render()
    assert table.caption == "the server is away"
    assert table.row_count == 1
