"""The local engine with real processes and FATE's own federation; the component under test is made here."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import yaml

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import catalog, supervise
from fate_llm_ext.pipelines.dag import load_dag
from fate_llm_ext.pipelines.local import run_job

pytestmark = pytest.mark.integration

PROBE = """
import os, signal, time
from pathlib import Path
from fate.components.core import ARBITER, GUEST, HOST, Role, cpn
from fate_llm_ext.progress import emit


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="test", version="1")
def engine_probe(
    ctx,
    role: Role,
    before: cpn.model_directory_input(roles=[GUEST, HOST, ARBITER], optional=True),
    behaviour: cpn.parameter(type=str, default="ok"),
    after: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER]),
):
    Path("pid").write_text(str(os.getpid()))
    emit("phase", arm="probe", round=0, phase=behaviour)
    if behaviour == "raise":
        raise ValueError("no rows in table llm/news")
    if behaviour == "catalogued":
        emit("error", code="E302", message="E302 host 10000 sent 3 rows, arbiter holds 4.")
        raise SystemExit(1)
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "pool":
        ctx.computing.parallelize(range(4), partition=2, include_key=False).mapValues(abs).count()
    if behaviour in ("wait", "pool"):
        Path("ready").touch()
        time.sleep(600)
    if role.is_arbiter:
        ctx.guest.put("question", 41)
        answer = ctx.guest.get("answer")
    else:
        answer = ctx.arbiter.get("question") + 1
        ctx.arbiter.put("answer", answer)
    told = (Path(before.get_directory()) / "told").read_text() if before else ""
    folder = Path(after.get_directory())
    (folder / "told").write_text(f"{told}{role.name}={answer};")
    emit("result", arm="probe", metric="accuracy", value=0.5)
"""


@pytest.fixture
def site_dir(tmp_path, monkeypatch):
    """A plug-in as pip would leave it, visible to this process and to the parties."""
    plugin = tmp_path / "plug in"
    info = plugin / "engine_probe-1.egg-info"
    info.mkdir(parents=True)
    (plugin / "engine_probe.py").write_text(PROBE)
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: engine-probe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fate.ext.component_desc]\nengine_probe = engine_probe:engine_probe\n")
    paths = [str(plugin), str(Path(__file__).resolve().parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.5)
    catalog.plugins.cache_clear()
    yield tmp_path
    catalog.plugins.cache_clear()
    sys.modules.pop("engine_probe", None)


def write_job(folder, tasks=1, **behaviours):
    """A job of one or two linked tasks; behaviours: role -> what that party does in the first task."""
    probe = {"component_ref": "engine_probe", "parameters": {"behaviour": "ok"}}
    dag = {
        "parties": [{"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}],
        "stage": "default",
        "tasks": {"probe_0": probe},
        "party_tasks": {
            role: {
                "parties": [{"role": role, "party_id": [{"guest": "9999", "arbiter": "9998"}[role]]}],
                "tasks": {"probe_0": {"parameters": {"behaviour": behaviour}}},
            }
            for role, behaviour in behaviours.items()
        },
    }
    if tasks == 2:
        link = {"producer_task": "probe_0", "output_artifact_key": "after"}
        dag["tasks"]["probe_1"] = {**probe, "inputs": {"model": {"before": {"task_output_artifact": link}}}}
    path = folder / "dag.yaml"
    path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    return path


def alive(directory):
    """Processes that still have something to do with a run directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(directory) in " ".join(process.info["cmdline"] or []) and process.info["status"] != "zombie":
            found.append(process)
    return found


def test_two_tasks_pass_artifacts_on_and_leave_a_tidy_directory(site_dir):
    seen = []
    out = site_dir / "out"
    result = run_job(load_dag(write_job(site_dir, tasks=2)), None, None, out, lambda *event: seen.append(event))

    assert (result.status, result.exit_code, result.error) == ("success", 0, None)
    assert list(result.tasks) == ["probe_0", "probe_1"]
    guest = result.directory / "probe_1" / "guest_9999"
    told = next(guest.rglob("told")).read_text()
    assert told == "guest=42;guest=42;"
    expected = {"task.yaml", "meta.json", "events.jsonl", "log.txt", "stdout.txt", "model"}
    assert expected <= {path.name for path in guest.iterdir()}
    assert not (result.directory / ".scratch").exists()
    assert json.loads((result.directory / "job.json").read_text())["status"] == "success"
    types = [(task, str(party), event["type"]) for task, party, event in seen if party]
    assert ("probe_0", "guest 9999", "started") in types
    assert ("probe_1", "arbiter 9998", "result") in types
    assert not alive(result.directory)


@pytest.mark.parametrize(
    ("behaviours", "code", "words"),
    [
        (
            {"guest": "raise", "arbiter": "wait"},
            "E521",
            ["guest 9999", "ValueError: no rows in table llm/news", "log.txt"],
        ),
        ({"arbiter": "catalogued", "guest": "wait"}, "E521", ["arbiter 9998", "E302 host 10000 sent 3 rows"]),
        ({"guest": "kill", "arbiter": "wait"}, "E522", ["guest 9999", "SIGKILL", "memory"]),
    ],
)
def test_a_failing_party_ends_the_job_and_is_named(site_dir, behaviours, code, words):
    result = run_job(load_dag(write_job(site_dir, **behaviours)), None, None, site_dir / "out")
    assert (result.status, result.exit_code, result.error.code) == ("failed", 1, code)
    assert all(word in str(result.error) for word in words), str(result.error)
    assert not alive(result.directory)
    assert not (result.directory / ".scratch").exists()


def test_what_cannot_start_is_said_before_anything_runs(site_dir):
    dag = load_dag(write_job(site_dir))
    (site_dir / "file").touch()
    for out, python, code in (
        (site_dir / "out", "no-such-python", "E529"),
        (site_dir / "file", sys.executable, "E530"),
    ):
        with pytest.raises(ExtensionError, match=code):
            run_job(dag, None, None, out, python=python)
    assert not (site_dir / "out").exists()


def test_time_limit_of_the_job(site_dir):
    path = write_job(site_dir, guest="wait", arbiter="wait")
    dag = load_dag(path, ["conf.task.timeout=2"])
    result = run_job(dag, None, None, site_dir / "out")
    assert (result.exit_code, result.error.code) == (1, "E528")
    assert not alive(result.directory)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=lambda value: str(value),
)
def test_a_signal_to_the_engine_leaves_no_process(site_dir, number, exit_code):
    """Party processes with FATE's own pool below them: all gone, even if the engine has no chance to act."""
    path = write_job(site_dir, guest="pool", arbiter="wait")
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from fate_llm_ext.pipelines.dag import load_dag
        from fate_llm_ext.pipelines.local import run_job
        sys.exit(run_job(load_dag(Path({str(path)!r})), None, None, Path({str(site_dir / "out")!r})).exit_code)
    """)
    engine = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_for(lambda: len(list((site_dir / "out").rglob("ready"))) == 2, 60)
        pids = [int(path.read_text()) for path in (site_dir / "out").rglob("pid")]
        groups = {os.getpgid(pid) for pid in pids}
        members = [p for p in psutil.process_iter() if getpgid(p.pid) in groups]
        assert len(members) >= 2 * len(pids) + 1, "guards, parties and the guest's pool"
        engine.send_signal(number)
        assert engine.wait(timeout=20) == exit_code
        wait_for(
            lambda: not any(p.is_running() and p.status() != "zombie" for p in members if psutil.pid_exists(p.pid)), 10
        )
    finally:
        engine.kill()


def getpgid(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
