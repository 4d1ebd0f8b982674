"""`fate-llm-ext submit | status | logs | stop | rerun | fetch` between three servers of FATE Flow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import yaml
from sites import CONF, ENVIRONMENT, PROGRAM, Federation, Site

DAG = CONF / "dag.yaml"
SMALL = "tasks.fedmkt_0.parameters.rounds=1"
LONG = "tasks.fedmkt_0.parameters.rounds=8"  # so that there is time to strike
JOB_ID = re.compile(r"\bjob (\d{15,})\b")


class Watching:
    """A command of ours that goes on while the test does things."""

    def __init__(self, site: Site, *arguments: object) -> None:
        env = {**ENVIRONMENT, "FATE_LLM_EXT_SERVER": site.address, "FATE_LLM_EXT_SITE": str(site.sites_file)}
        self.output = Path(site.folder, f"cli-{time.monotonic_ns()}.txt")
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [str(PROGRAM), *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**env, "PYTHONUNBUFFERED": "1"},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def job_id(self) -> str:
        self.until(lambda text: JOB_ID.search(text) is not None, 60)
        match = JOB_ID.search(self.text)
        assert match
        return match[1]

    def until(self, there: str | Callable[[str], bool], seconds: float = 240) -> None:
        """Wait for a word in its output."""
        found = there if callable(there) else lambda text: str(there) in text
        deadline = time.monotonic() + seconds
        while not found(self.text):
            assert self.process.poll() is None, f"it ended:\n{self.text}"
            assert time.monotonic() < deadline, f"not in {seconds} s: {there}\n{self.text}"
            time.sleep(0.2)

    def end(self, seconds: float = 300) -> int:
        """Its exit code."""
        return self.process.wait(seconds)


@pytest.fixture
def watching() -> Iterator[Callable[..., Watching]]:
    started: list[Watching] = []

    def start(*arguments: Any) -> Watching:
        started.append(Watching(*arguments))
        return started[-1]

    yield start
    for one in started:
        with suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()


def events(party: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (party / "events.jsonl").read_text().splitlines()]


def test_submit_and_wait_ends_as_run_does(federation: Federation, tmp_path: Path) -> None:
    guest, host, arbiter = (federation.site(party) for party in ("9999", "10000", "10001"))
    done = guest.cli("submit", DAG, "--wait", "--out", tmp_path / "guest", "--set", SMALL, seconds=400)
    assert done.returncode == 0, done.stdout + done.stderr
    match = JOB_ID.search(done.stdout)
    assert match
    job_id = match[1]
    assert "fedmkt_0 guest 9999: started" in done.stdout
    assert "round 0, private training" in done.stdout  # live, of this site
    assert "host 10000" not in done.stdout.split("\nfedmkt_0: accuracy")[0]
    assert re.search(r"^guest 9999 +[\d.]+ %", done.stdout, re.MULTILINE), done.stdout

    run = tmp_path / "guest" / job_id
    party = run / "fedmkt_0/guest_9999"
    found = events(party)
    result = {(one["arm"], one["metric"]): one["value"] for one in found if one["type"] == "result"}
    assert ("fedmkt", "accuracy") in result
    assert found[-1]["type"] == "done"
    metrics = json.loads((party / "metric.json").read_text())
    assert any(one["name"] == "private_loss" for one in metrics)
    assert json.loads((run / "job.json").read_text())["parties"] == ["guest_9999"]
    page = (run / "report.html").read_text()
    assert "FedMKT" in page
    assert str(tmp_path) not in page
    loads_with_plain_peft(federation, party / "model/output_model", "guest_9999")

    # The other sites have their own part, and their own only.
    for site, key in ((host, "host_10000"), (arbiter, "arbiter_10001")):
        done = site.cli("fetch", job_id, "--out", tmp_path / key)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / key / job_id / "fedmkt_0"
        assert [one.name for one in folder.iterdir()] == [key]
        assert (folder / key / "model/output_model/adapter_config.json").is_file()
        loads_with_plain_peft(federation, folder / key / "model/output_model", key)
    report = host.cli("report", tmp_path / "host_10000" / job_id)
    assert "host 10000" in report.stdout

    assert job_id in host.cli("status").stdout
    status = host.cli("status", job_id)
    assert status.returncode == 0
    assert "fedmkt_0, host 10000" in status.stdout
    assert "elsewhere: guest 9999, arbiter 10001" in status.stdout
    logs = host.cli("logs", job_id, "--follow").stdout
    assert "event {" in logs
    for secret in (federation.folder / "site_10000/secrets").iterdir():
        assert secret.read_text().strip() not in logs
        assert (
            secret.read_text().strip()
            not in (tmp_path / "host_10000" / job_id / "fedmkt_0/host_10000/log.txt").read_text()
        )
    assert "E818" in host.cli("stop", job_id).stderr
    assert "E818" in host.cli("rerun", job_id).stderr


def loads_with_plain_peft(federation: Federation, folder: Path, key: str) -> None:
    """In another process, without this package."""
    sites = yaml.safe_load(federation.sites_file.read_text())
    base = federation.data / next(iter(sites[key]["models"].values()))
    code = (
        "import sys, peft, transformers\n"
        "base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = peft.PeftModel.from_pretrained(base, sys.argv[2])\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "named = model.named_parameters()\n"
        "assert any(name.endswith('lora_B.default.weight') and p.abs().max() > 0 for name, p in named)\n"
        "assert not any(name.startswith('fate') for name in sys.modules)\n"
    )
    call = [str(PROGRAM.with_name("python")), "-c", code, str(base), str(folder)]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_problem_is_told_and_nothing_submitted(federation: Federation, tmp_path: Path) -> None:
    guest = federation.site("9999")
    before = guest.cli("status").stdout
    dag = federation.dag()
    task = dag["dag"]["tasks"]["fedmkt_0"]
    task["parameters"].update(rounds=-1, roundz=2, model={"name": "nowhere"})
    task["inputs"]["data"]["train_data"]["data_warehouse"][0]["name"] = "unbound"
    dag["dag"]["conf"]["task"]["provider"] = "fate:llm_ext_0.0.0@local"
    path = tmp_path / "dag.yaml"
    path.write_text(yaml.safe_dump(dag))
    done = guest.cli("submit", path)
    assert done.returncode == 1
    for code in ("E120", "E119", "E807", "E808"):
        assert code in done.stderr
    assert "llm/unbound of guest 9999" in done.stderr
    assert "llm/unbound of host 10000" not in done.stderr  # this server cannot know
    assert "flow table bind" in done.stderr
    assert "provider register" in done.stderr
    assert "nothing was submitted" in done.stderr
    assert guest.cli("status").stdout == before
    task["parameters"].update(rounds=1)
    del task["parameters"]["roundz"]
    path.write_text(yaml.safe_dump(dag))
    assert "`models`" in guest.cli("submit", path).stderr  # the site file was looked at


def test_a_killed_party_is_named_then_rerun_survives_a_restart_of_the_server(
    federation: Federation, watching: Callable[..., Watching], tmp_path: Path
) -> None:
    guest, host = federation.site("9999"), federation.site("10000")
    job = watching(guest, "submit", DAG, "--wait", "--out", tmp_path / "guest", "--set", LONG)
    job_id = job.job_id
    job.until("standalone, round 0, training")
    os.kill(federation.workers(job_id)["10000"][0], signal.SIGKILL)
    killed = time.monotonic()
    assert job.end() == 1
    assert time.monotonic() - killed < 60
    assert re.search(r"E811 Job \d+ failed at another site \(host 10000\): E309", job.text), job.text
    assert f"`fate-llm-ext logs {job_id} --errors` at host 10000" in job.text
    assert (tmp_path / "guest" / job_id / "report.html").is_file()
    there = host.cli("status", job_id)
    assert there.returncode == 1
    assert re.search(rf"E810 Job {job_id} failed at host 10000 in fedmkt_0: E309", there.stderr), there.stderr
    assert "E309" in host.cli("logs", job_id, "--errors").stdout

    again = watching(guest, "rerun", job_id, "--wait", "--out", tmp_path / "guest")
    again.until("try 2")
    again.until("standalone, round 0, training")
    assert "E309" not in again.text  # what the first try has logged
    assert guest.script("server", "stop").returncode == 0
    again.until("gives no answer", 60)
    assert guest.script("server", "start").returncode == 0
    again.until("answers again", 60)
    assert again.end() == 0, again.text
    record = json.loads((tmp_path / "guest" / job_id / "job.json").read_text())
    assert (record["status"], record["tries"]) == ("success", {"fedmkt_0 guest_9999": 2})
    assert not any(one["type"] == "error" for one in events(tmp_path / "guest" / job_id / "fedmkt_0/guest_9999"))


def test_control_c_stops_the_job_everywhere_and_detach_does_not(
    federation: Federation, watching: Callable[..., Watching], tmp_path: Path
) -> None:
    guest, host = federation.site("9999"), federation.site("10000")
    job = watching(guest, "submit", DAG, "--wait", "--detach", "--out", tmp_path)
    job_id = job.job_id
    job.until("guest 9999: started")
    job.process.send_signal(signal.SIGINT)
    assert job.end(30) == 130
    assert "The job goes on" in job.text
    assert federation.status(job_id) == "running"
    again = watching(host, "status", job_id, "--wait", "--out", tmp_path)
    again.until("host 10000: started")
    again.process.send_signal(signal.SIGTERM)
    assert again.end(30) == 143
    assert "The job goes on" in again.text
    late = host.cli("status", job_id, "--wait", "--timeout", 0.5)
    assert late.returncode == 1
    assert "E813" in late.stderr
    last = watching(host, "status", job_id, "--wait", "--out", tmp_path)
    last.until("host 10000: started")
    last.process.send_signal(signal.SIGINT)
    assert last.end(120) == 130
    assert "The job was stopped at all sites" in last.text
    for party in federation.sites:
        # Stopped at another site than its scheduler's, FATE Flow calls a job failed for some seconds.
        assert federation.status(job_id, party) in ("canceled", "failed")
        assert "E814" in federation.site(party).cli("status", job_id).stderr
    assert not federation.workers(job_id)


def test_two_roles_at_one_site(federation: Federation, tmp_path: Path) -> None:
    guest = federation.site("9999")
    dag = federation.dag()
    dag["dag"]["parties"][2]["party_id"] = ["9999"]
    override = dag["dag"]["party_tasks"].pop("arbiter_10001")
    override["parties"][0]["party_id"] = ["9999"]
    dag["dag"]["party_tasks"]["arbiter_9999"] = override
    dag["dag"]["tasks"]["fedmkt_0"]["parameters"]["rounds"] = 1
    path = tmp_path / "dag.yaml"
    path.write_text(yaml.safe_dump(dag))
    sites = yaml.safe_load(federation.sites_file.read_text())
    sites["arbiter_9999"] = sites["arbiter_10001"]
    (tmp_path / "sites.yaml").write_text(yaml.safe_dump(sites))
    done = guest.cli("submit", path, "--sites", tmp_path / "sites.yaml", "--wait", "--out", tmp_path, seconds=400)
    match = JOB_ID.search(done.stdout)
    assert match, done.stderr
    parties = {one.name for one in (tmp_path / match[1] / "fedmkt_0").iterdir()}
    assert parties == {"guest_9999", "arbiter_9999"}
    assert "fedmkt_0 arbiter 9999: started" in done.stdout
    assert "arbiter 9999: done" in done.stdout or "E114" in done.stderr  # the server's own site file lacks that role


def test_client_authentication(federation: Federation, tmp_path: Path) -> None:
    arbiter = federation.site("10001")
    conf = arbiter.folder / "flow/conf/service_conf.yaml"
    before = conf.read_text()
    settings = yaml.safe_load(before)
    settings["authentication"]["client"] = True
    account = {"FATE_LLM_EXT_APP_ID": "admin", "FATE_LLM_EXT_APP_TOKEN_FILE": str(tmp_path / "token")}
    try:
        arbiter.script("server", "stop")
        conf.write_text(yaml.safe_dump(settings))
        arbiter.script("server", "start")
        assert "E805" in arbiter.cli("status").stderr
        (tmp_path / "token").write_text("wrong")
        assert "E805" in arbiter.cli("status", **account).stderr
        (tmp_path / "token").write_text("fate_flow_admin\n")  # FATE Flow's own, unless its settings.py is changed
        done = arbiter.cli("status", **account)
        assert done.returncode == 0, done.stderr
        assert "E809" in arbiter.cli("status", "nothing", **account).stderr
    finally:
        conf.write_text(before)
        arbiter.script("server", "stop")
        assert arbiter.script("server", "start").returncode == 0
    assert arbiter.cli("status").returncode == 0
