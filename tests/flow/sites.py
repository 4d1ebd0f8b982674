"""Three sites of FATE Flow on this machine: brought up, asked through FATE's client and ours, and taken down."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Mapping

import psutil
import requests
import yaml
from machine import MARK, free_base, kill, marked, port_is_free, touching

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "deploy"
CONF = REPOSITORY / "conf/fedmkt/three_sites"
ASSETS = REPOSITORY.parent / "shared/assets"
PROGRAM = Path(sys.executable).with_name("fate-llm-ext")
ROLES = {"9999": "guest", "10000": "host", "10001": "arbiter"}
ENDED = {"success", "failed", "canceled"}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != MARK},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class FederationError(AssertionError):
    """The federation did not do what the tests need; the text says what it said."""


@dataclass
class Site:
    """One site: ``folder`` as deploy/federation.sh made it."""

    party_id: str
    folder: Path
    sites_file: Path

    @property
    def role(self) -> str:
        return ROLES[self.party_id]

    @property
    def settings(self) -> dict[str, str]:
        lines = (self.folder / "site.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    @property
    def port(self) -> int:
        return int(self.settings["FLOW_HTTP_PORT"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def python(self) -> Path:
        """Of the server's environment: fate_client, no torch."""
        return self.folder / "server/bin/python"

    def get(self, path: str, **query: Any) -> Any:
        """The ``data`` of ``GET /v2/path``, None if there is none."""
        return requests.get(f"{self.url}/v2/{path}", params=query, timeout=20).json().get("data")

    def flow(self, *arguments: object, seconds: float = 120) -> dict[str, Any]:
        """What FATE's own command ``flow`` answers."""
        command = [str(self.python.with_name("flow")), *map(str, arguments)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            raise FederationError(f"{' '.join(command)}\n{done.stdout}{done.stderr}") from None

    def cli(self, *arguments: object, seconds: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """``fate-llm-ext`` of this checkout with this site's server and site file."""
        names = {"FATE_LLM_EXT_SERVER": self.address, "FATE_LLM_EXT_SITE": str(self.sites_file), **environment}
        command = [str(PROGRAM), *map(str, arguments)]
        env = {**ENVIRONMENT, **names}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds, check=False)

    def script(self, name: str, command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """``deploy/NAME.sh COMMAND`` for this site: ``site``, ``server``, ``broker`` or ``proxy``."""
        call = ["bash", str(SCRIPTS / f"{name}.sh"), command, str(self.folder)]
        return subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False)

    def tables(self, **tables: Path) -> None:
        """Bind ``llm/NAME`` to a path."""
        for name, path in tables.items():
            answer = self.flow("table", "bind", "--namespace", "llm", "--name", name, "--path", path)
            assert answer["code"] == 0, answer

    def report(self, job_id: str, lines: int = 15) -> str:
        """The error reports of this site's tasks and the ends of their logs."""
        parts = []
        for task in self.get("job/task/query", job_id=job_id) or []:
            if task["party_id"] == self.party_id and task["role"] == self.role:
                parts.append(f"{task['task_name']} {task['status']}: {task.get('error_report', '')}")
        logs = self.folder / "flow/logs" / job_id
        own = sorted(logs.glob(f"{self.role}/{self.party_id}/*/root/INFO"))
        for path in [*own, *sorted(logs.glob(f"{self.role}/{self.party_id}/*/stdout/*/*"))]:
            tail = [line[:400] for line in path.read_text(errors="replace").splitlines() if line.strip()][-lines:]
            if tail:
                parts.append("\n".join([f"-- {path.relative_to(self.folder)}", *tail]))
        return "\n".join([f"---- {self.role} {self.party_id}, job {job_id}", *parts])


@dataclass
class Federation:
    """Sites by party: 9999 (guest), 10000 (host), 10001 (arbiter)."""

    folder: Path
    data: Path  # what conf/fedmkt/three_sites/prepare.sh made: data/{guest_9999,host_10000,public}, models/
    environment: Path | None = None  # of the provider
    sites: dict[str, Site] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for party in ROLES:
            self.sites[party] = Site(party, self.folder / f"site_{party}", self.sites_file)

    @property
    def sites_file(self) -> Path:
        return self.folder / "sites.yaml"

    def site(self, party_id: str) -> Site:
        return self.sites[party_id]

    def dag(self) -> dict[str, Any]:
        """The job of conf/fedmkt/three_sites, to be changed and submitted."""
        return dict(yaml.safe_load((CONF / "dag.yaml").read_text()))

    def submit(self, dag: Mapping[str, Any] | Path) -> str:
        """Submit at the guest's site with FATE's client; the job's id."""
        path = dag
        if not isinstance(dag, Path):
            path = self.folder / f"dag_{random.getrandbits(32):08x}.yaml"
            path.write_text(yaml.safe_dump(dict(dag)))
        answer = self.site("9999").flow("job", "submit", "-c", path)
        if answer["code"] != 0:
            raise FederationError(str(answer))
        return str(answer["job_id"])

    def status(self, job_id: str, party_id: str = "9999") -> str:
        jobs = self.site(party_id).get("job/query", job_id=job_id) or []
        return str(jobs[0]["status"]) if jobs else "unknown"

    def wait(self, job_id: str, seconds: float = 180) -> str:
        """Until the job ended at the guest's site: ``success``, ``failed`` or ``canceled``."""
        deadline = time.monotonic() + seconds
        while (status := self.status(job_id)) not in ENDED:
            if time.monotonic() > deadline:
                raise FederationError(f"job {job_id}: {status} after {seconds} s\n{self.report(job_id)}")
            time.sleep(0.5)
        return status

    def succeeds(self, dag: Mapping[str, Any] | Path, seconds: float = 240) -> str:
        """Submit, wait, and have success; the job's id."""
        job_id = self.submit(dag)
        status = self.wait(job_id, seconds)
        if status != "success":
            raise FederationError(f"job {job_id}: {status}\n{self.report(job_id)}")
        return job_id

    def tasks(self, job_id: str, party_id: str) -> list[dict[str, Any]]:
        """The tasks of one party as its own site tells them (``task_name``, ``status``, ``error_report``, ...)."""
        found = self.site(party_id).get("job/task/query", job_id=job_id) or []
        return [task for task in found if task["party_id"] == party_id and task["role"] == ROLES[party_id]]

    def workers(self, job_id: str) -> dict[str, list[int]]:
        """Process ids of what runs the components of a job, by party; only parties that run something."""
        found: dict[str, list[int]] = {}
        for party, site in self.sites.items():
            for process in marked(site.folder):
                with suppress(psutil.Error):  # it ended meanwhile
                    words, job = process.cmdline(), process.environ().get("FATE_JOB_ID")
                    if job == job_id and {"component", "execute"} <= set(words):
                        found.setdefault(party, []).append(process.pid)
        return found

    def report(self, job_id: str) -> str:
        return "\n".join(site.report(job_id) for site in self.sites.values())

    def jobs(self, since: float = 0.0) -> list[str]:
        """Jobs that some site has logged something of since then, oldest first."""
        found = {}
        for site in self.sites.values():
            for path in (site.folder / "flow/logs").glob("[0-9]*"):
                if path.stat().st_mtime >= since:
                    found[path.name] = None
        return sorted(found)

    # --- up and down ----------------------------------------------------------------------------------

    def up(self, attempts: int = 3) -> None:
        """Bring up brokers, gateways and servers, register the provider, bind the tables."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = (CONF / "sites.yaml").read_text()
        site_file = yaml.safe_load(content)
        self.sites_file.write_text(yaml.safe_dump({**site_file, "root": str(self.data)}))
        for attempt in range(1, attempts + 1):
            done = script("up", self.folder, BASE_PORT=str(free_base()), SITES_FILE=str(self.sites_file))
            if done.returncode == 0:
                break
            if " is taken" not in done.stderr or attempt == attempts:  # somebody was faster: try other ports
                raise FederationError(f"deploy/federation.sh up:\n{done.stdout}{done.stderr}\n{self.logs()}")
            for site in self.sites.values():
                shutil.rmtree(site.folder, ignore_errors=True)
        register(self.sites.values(), self.environment)
        for party, site in self.sites.items():
            if site.role != "arbiter":
                site.tables(news=self.data / f"data/{site.role}_{party}")

    def down(self) -> list[str]:
        """Stop everything; what was left behind in spite of it (and is ended now)."""
        done = script("down", self.folder)
        left = [f"federation.sh down:\n{done.stdout}{done.stderr}"] if done.returncode else []
        left += kill(touching(self.folder))
        return [*left, *(f"port {port} is open" for port in self.open_ports())]

    def ports(self) -> list[int]:
        found = [site for site in self.sites.values() if (site.folder / "site.env").exists()]
        return [int(value) for site in found for name, value in site.settings.items() if name.endswith("_PORT")]

    def open_ports(self) -> list[int]:
        return [port for port in self.ports() if not port_is_free(port)]

    def logs(self, lines: int = 8) -> str:
        """The ends of the services' own logs."""
        parts = []
        for site in self.sites.values():
            for name in ("install.log", "flow.log", "broker/log/console.log", "proxy/error.log"):
                path = site.folder / name
                if path.exists() and (tail := path.read_text(errors="replace").splitlines()[-lines:]):
                    parts.append("\n".join([f"-- {path}", *(line[:300] for line in tail)]))
        return "\n".join(parts)


def script(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``deploy/federation.sh COMMAND FOLDER``. If it is interrupted, it and what it started ends first."""
    uv = Path(sys.executable).with_name("uv")
    env = {**ENVIRONMENT, "PYTHON": sys.executable, **({"UV": str(uv)} if uv.exists() else {}), **environment}
    call = ["bash", str(SCRIPTS / "federation.sh"), command, str(folder)]
    process = subprocess.Popen(
        call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=600)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(call, process.returncode, out, err)


def register(sites: Iterable[Site], environment: Path | None = None) -> None:
    """Build the provider of each site and make it known to its server, as an operator does.

    Args:
        sites: what runs.
        environment: a provider environment that is there; by default .venv-provider, made or renewed by this.
    """
    sites = list(sites)
    if environment is None:
        environment = REPOSITORY / ".venv-provider"
        _provider("build", environment, "--server-python", sites[0].python)
    for site in sites:
        folder = site.folder / "provider"
        _provider("build", folder, "--server-python", site.python, "--environment", environment)
        _provider("register", folder, "--server", site.address)


def _provider(*arguments: object) -> None:
    call = [str(PROGRAM), "provider", *map(str, arguments)]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise FederationError(f"{' '.join(call)}\n{done.stdout}{done.stderr}")


def prepare(folder: Path) -> subprocess.Popen[str]:
    """Start to make data and tiny models for the three sites from AG News."""
    call = ["sh", str(CONF / "prepare.sh"), str(ASSETS), str(folder)]
    return subprocess.Popen(
        call, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
