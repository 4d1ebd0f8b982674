"""What a worker of FATE Flow reads, reports, and has said in its place when it is killed."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

PARAMETERS = {"rounds": 2, "model": {"name": "slm"}}

SCRIPT = """
import os, signal, sys, time
from fate_llm_ext import worker
worker.enter(["rounds", "model"])
task = worker.current()
settings = os.environ["HF_HUB_OFFLINE"], os.environ["OMP_NUM_THREADS"]
print(task.party, task.version, *task.tables, *settings, flush=True)
if "table" in sys.argv:
    print(worker.table(sys.argv[-1]), flush=True)
worker.note(doing="training")
if "report" in sys.argv:
    worker.report("the reason")
    worker.report("a consequence")
if "die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "wait" in sys.argv:
    time.sleep(60)
"""


class Flow(http.server.BaseHTTPRequestHandler):
    """The requests that a worker makes, answered by a real HTTP server."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append((path, dict(urllib.parse.parse_qsl(query))))  # type: ignore[attr-defined]
        if path == "/v2/worker/data/tracking/query":
            read = [{"namespace": "llm", "name": "news", "path": self.server.table}]  # type: ignore[attr-defined]
            self._answer({"code": 0, "data": read})
            return
        job = self.server.job  # type: ignore[attr-defined]
        if path == "/v2/job/query":
            self._answer({"code": 0, "data": [{"status": job.pop(0) if len(job) > 1 else job[0]}]})
            return
        answers = {"/v2/job/task/query": [{"party_status": self.server.status}]}  # type: ignore[attr-defined]
        self._answer({"code": 0, "data": answers.get(path, {"path": self.server.table})})  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.reports.append((self.path, body))  # type: ignore[attr-defined]
        self._answer({"code": 0})

    def _answer(self, content: dict[str, Any]) -> None:
        blob = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(blob)))
        self.end_headers()
        self.wfile.write(blob)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Scene:
    """A task folder as FATE Flow lays it out, and its server."""

    def __init__(self, folder: Path) -> None:
        self.server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flow)
        self.server.status, self.server.job, self.server.table = "running", ["running"], ""
        self.server.reports, self.server.asked = [], []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.folder = folder
        (folder / "input").mkdir(parents=True)
        (folder / "output").mkdir()
        self.final = folder / "output" / "task_result.yaml"
        (folder / "site.yaml").write_text("threads: 3\n")
        self.write()

    def write(self, **changes: Any) -> None:
        warehouse = [
            {"namespace": "llm", "name": "news", "parties": [{"role": "guest", "party_id": ["9999"]}]},
            {"namespace": "llm", "name": "other", "parties": [{"role": "host", "party_id": ["10000"]}]},
        ]
        raw = {
            "job_id": "J",
            "task_name": "fedmkt_0",
            "task_version": "1",
            "party_task_id": "J_fedmkt_0_1_guest_9999",
            "role": "guest",
            "party_id": "9999",
            "parameters": PARAMETERS,
            "input_artifacts": {"data": {"train_data": warehouse}, "model": None},
            "mlmd": {
                "metadata": {
                    "protocol": "http",
                    "host": "127.0.0.1",
                    "port": self.server.server_address[1],
                    "api_version": "v2",
                }
            },
            **changes,
        }
        (self.folder / "input" / "preprocess_parameters.yaml").write_text(yaml.safe_dump(raw))
        (self.folder / "input" / "task_parameters.yaml").write_text("{}")

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, "--config", str(self.folder / "input" / "task_parameters.yaml")]
        command += ["--execution-final-meta-path", str(self.final), *words]
        environment = {**os.environ, "FATE_LLM_EXT_SITE": str(self.folder / "site.yaml")}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    @property
    def texts(self) -> list[str]:
        return [body["error"] for _, body in self.server.reports]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    one = Scene(tmp_path / "task")
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_a_worker_knows_its_task_and_uses_its_site(scene: Scene) -> None:
    code, out, err = scene.run()
    assert code == 0, err
    assert out.split("\n")[0] == "guest 9999 1 llm/news 1 3"
    assert not scene.texts, "who ends in its own way needs nobody to speak"
    assert not scene.final.exists()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"namespace": "llm", "name": "news"}, {"namespace": "llm", "name": "news"}),
        (
            {"producer_task": "reader_0", "output_artifact_key": "output_data"},
            {"job_id": "J", "role": "guest", "party_id": "9999", "task_name": "reader_0", "output_key": "output_data"},
        ),
        (
            {"job_id": "EARLIER", "producer_task": "reader_0", "output_artifact_key": "output_data"},
            {
                "job_id": "EARLIER",
                "role": "guest",
                "party_id": "9999",
                "task_name": "reader_0",
                "output_key": "output_data",
            },
        ),
    ],
)
def test_a_folder_has_the_name_of_its_table(
    scene: Scene, given: dict[str, str], asked: dict[str, str], tmp_path: Path
) -> None:
    """Bound, read by FATE's reader, or by that of an earlier job: ledger and budgets know it by one name."""
    scene.write(input_artifacts={"data": {"train_data": given}, "model": None})
    scene.server.table = f"file://{tmp_path}"
    code, out, err = scene.run("table", str(tmp_path))
    assert code == 0, err
    assert out.split("\n")[1] == "llm/news"
    assert ("/v2/worker/data/tracking/query", asked) in scene.server.asked
    code, _, err = scene.run("table", str(tmp_path / "other"))
    assert code == 1
    assert "E313" in err, "no name is better than one that the site does not know"


def test_a_job_cannot_hide_which_table_it_reads(scene: Scene, tmp_path: Path) -> None:
    scene.write(input_artifacts={"data": {"train_data": {"dataset_id": "x"}}, "model": None})
    code, _, err = scene.run("table", str(tmp_path))
    assert code == 1
    assert "E313" in err


def test_the_first_reason_is_reported_and_no_later_one(scene: Scene) -> None:
    assert scene.run("report")[0] == 0
    assert scene.server.reports == [
        (
            "/v2/worker/task/status",
            {"execution_id": "J_fedmkt_0_1_guest_9999", "status": "running", "error": "the reason"},
        )
    ]


def test_a_killed_worker_has_its_end_reported_while_its_error_stream_stays_open(scene: Scene) -> None:
    code, _, _ = scene.run("die")  # returns when standard error is closed: after the last words
    assert code == -signal.SIGKILL
    (text,) = scene.texts
    assert text.startswith("E309 The process of guest 9999 was killed (it was last busy with: training).")
    assert json.loads(scene.final.read_text())["status"] == {"code": -1, "exceptions": text}


def test_who_has_reported_and_is_killed_keeps_its_report(scene: Scene) -> None:
    scene.run("report", "die")
    assert scene.texts == ["the reason"]


@pytest.mark.parametrize(
    ("status", "job", "codes"),
    [
        ("canceled", ["canceled"], ["E310"]),
        ("failed", ["running", "failed", "canceled"], ["E311", "E310"]),  # where the scheduler is not
        ("failed", ["running", "failed"], ["E311"]),
        ("running", ["running"], ["E309"]),
    ],
)
def test_last_words_tell_a_stopped_job_and_a_failed_one_from_a_kill(
    scene: Scene, status: str, job: list[str], codes: list[str]
) -> None:
    scene.server.status, scene.server.job = status, job
    scene.run("die")
    assert [text[:4] for text in scene.texts] == codes
    query = {"job_id": "J", "task_name": "fedmkt_0", "role": "guest", "party_id": "9999", "task_version": "1"}
    assert ("/v2/job/task/query", query) in scene.server.asked


def test_killing_the_whole_session_spares_the_last_words(scene: Scene) -> None:
    process = scene.start("wait")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert [text[:4] for text in scene.texts] == ["E309"]


def test_a_worker_dies_with_its_parent(scene: Scene) -> None:
    arguments = ["--config", str(scene.folder / "input" / "task_parameters.yaml")]
    arguments += ["--execution-final-meta-path", str(scene.final), "wait"]
    run = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen(
        [sys.executable, "-c", run, sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FATE_LLM_EXT_SITE": str(scene.folder / "site.yaml")},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("guest 9999")
    time.sleep(0.3)
    parent.kill()
    parent.wait(timeout=10)
    deadline = time.monotonic() + 20
    while not scene.final.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [text[:4] for text in scene.texts] == ["E309"]


def test_parameters_that_the_component_does_not_have_are_refused(scene: Scene) -> None:
    scene.write(parameters={**PARAMETERS, "round": 3, "sed": 1})
    code, _, err = scene.run()
    assert code == 1
    assert "E312 The job gives parameters that the component does not have: round, sed." in err


def test_outside_fate_flow_nothing_happens() -> None:
    from fate_llm_ext import worker

    worker.enter([])
    assert worker.current() is None
    worker.report("nobody hears this")
    worker.note(doing="nothing")
    assert worker.table("/nowhere") is None
