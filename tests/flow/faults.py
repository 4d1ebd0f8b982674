"""A job over FATE Flow whose parties and services are struck, and what every site knows of it then."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import requests
import yaml
from sites import ENDED, REPOSITORY, ROLES, Federation, Site, marked, touching

PARTIES = {role: party for party, role in ROLES.items()}
EVERYWHERE = tuple(ROLES)
# A party waits for another one at most so long without a sign of life; FATE Flow itself waits for ever.
SILENCE = 15
NETWORK = {"silence_seconds": SILENCE, "startup_seconds": 120, "heartbeat_seconds": 1}


def site_check(round_trips: int = 1000, **network: float) -> dict[str, Any]:
    """A light job whose arbiter and clients wait for each other in turn; 1000 round trips take a minute or more."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "conf/site_check/dag.yaml").read_text())
    parameters = {"round_trips": round_trips, "message_bytes": 0, "network": {**NETWORK, **network}}
    task_of(content)["parameters"] = parameters
    return content


def fedmkt(**parameters: Any) -> dict[str, Any]:
    """The job of conf/fedmkt/three_sites with these parameters on top."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "conf/fedmkt/three_sites/dag.yaml").read_text())
    task = task_of(content)
    task["parameters"] = {**task["parameters"], "network": NETWORK, **parameters}
    return content


def task_of(content: dict[str, Any]) -> dict[str, Any]:
    """The only task of a DAG."""
    task: dict[str, Any]
    (task,) = content["dag"]["tasks"].values()
    return task


@dataclass(frozen=True)
class Task:
    """What a site says about its own part of a job's only task, newest version."""

    status: str = ""
    report: str = ""
    version: int = -1


class Job:
    """A submitted job, as each of the sites sees it."""

    def __init__(self, federation: Federation, content: dict[str, Any]) -> None:
        self.federation = federation
        answer = requests.post(
            f"{federation.site('9999').url}/v2/job/submit", json={"dag_schema": content}, timeout=60
        ).json()
        assert answer["code"] == 0, answer
        self.id = str(answer["job_id"])

    def ask(self, party: str, what: str, **query: str) -> list[dict[str, Any]]:
        """Rows of the site's answer; none if it does not answer."""
        try:
            found = self.federation.site(party).get(what, job_id=self.id, **query)
        except (requests.RequestException, ValueError):
            return []
        return list(found or [])

    def status(self, party: str) -> str:
        """Of the job, at this party's site."""
        return next((str(one["status"]) for one in self.ask(party, "job/query") if one["party_id"] == party), "")

    def task(self, party: str) -> Task:
        """The newest version of the party's own task, at its site."""
        found = [one for one in self.ask(party, "job/task/query") if one["party_id"] == party]
        newest = max(found, key=lambda one: int(one["task_version"]), default=None)
        if newest is None:
            return Task()
        return Task(str(newest["party_status"]), str(newest["error_report"] or ""), int(newest["task_version"]))

    def report(self, party: str) -> str:
        """The error report at the party's own site."""
        return self.task(party).report

    def wait(self, seconds: float, at: tuple[str, ...] = EVERYWHERE, status: str = "") -> float:
        """Until the job has ended at these parties' sites; seconds that it took."""
        took = wait_for(lambda: all(self.status(party) in ENDED for party in at), seconds, lambda: f"{self}")
        for party in at:
            assert not status or self.status(party) == status, f"{self}"
        return took

    def succeeds_after_all(self, seconds: float) -> None:
        """Until success everywhere, though the job has failed: between two tries FATE Flow says so."""
        wait_for(lambda: all(self.status(p) == "success" for p in EVERYWHERE), seconds, lambda: f"{self}")

    def log(self, party: str) -> str:
        """The log of the party's component, of all versions."""
        logs = self.federation.site(party).folder / "flow/logs" / self.id / ROLES[party] / party
        return "".join(file.read_text(errors="replace") for file in logs.glob("*/root/INFO"))

    def wait_for_log(self, party: str, words: str, seconds: float = 120) -> None:
        """Until the party's component has logged these words."""
        wait_for(lambda: words in self.log(party), seconds, lambda: f"{self}\n{self.federation.report(self.id)}")

    def events(self, party: str) -> list[dict[str, Any]]:
        """What the party's component logged as events, of all versions."""
        marked_lines = [line.partition(": event ")[2] for line in self.log(party).splitlines() if ": event {" in line]
        return [json.loads(line) for line in marked_lines]

    def metrics(self, party: str) -> list[dict[str, Any]]:
        """All metrics of the party's newest task, at its site."""
        name = self.ask(party, "job/task/query")[0]["task_name"]
        return self.ask(party, "output/metric/query", role=ROLES[party], party_id=party, task_name=name)

    def processes(self, party: str, kind: str = "") -> list[psutil.Process]:
        """What runs for the job at a site: FATE's ``entrypoint``, ``execute``, ``cleanup``, our last words."""
        found = []
        for process in marked(self.federation.site(party).folder):
            try:
                words = process.cmdline()
                mine = process.environ().get("FATE_JOB_ID") == self.id or any(self.id in word for word in words)
            except (psutil.Error, OSError):
                continue
            if mine and (not kind or kind in words):
                found.append(process)
        return found

    def kill(self, party: str, *kinds: str) -> None:
        """SIGKILL to the party's processes of these kinds; none of them sees another one die."""
        victims = [one for kind in kinds for one in self.processes(party, kind)]
        assert len(victims) == len(kinds), f"{kinds} of {party}: {victims}"
        strike(victims)

    def nothing_runs(self, seconds: float = 15, at: tuple[str, ...] = EVERYWHERE) -> None:
        """No process of the job is left after so long, but FATE Flow's own that clean up."""

        def left() -> list[psutil.Process]:
            tidying = [one for party in at for one in self.processes(party, "cleanup")]
            return [one for party in at for one in self.processes(party) if one not in tidying]

        wait_for(lambda: not left(), seconds, lambda: f"{left()}")

    def command(self, name: str, party: str = "9999") -> dict[str, Any]:
        """As `flow job stop` and `flow job rerun`."""
        url = f"{self.federation.site(party).url}/v2/job/{name}"
        return dict(requests.post(url, json={"job_id": self.id}, timeout=60).json())

    def __str__(self) -> str:
        return f"job {self.id}: " + "; ".join(f"{p}: {self.status(p) or '-'}, {self.task(p)}" for p in EVERYWHERE)


def strike(victims: list[psutil.Process]) -> None:
    """SIGKILL to all of them at once."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for one in victims:
            try:
                os.kill(one.pid, number)
            except ProcessLookupError:
                continue


def kill_site(site: Site) -> None:
    """Server, workers, broker and gateway: as when its power fails."""
    strike(touching(site.folder))


def kill_server(site: Site) -> None:
    """FATE Flow alone; its workers stay."""
    os.kill(int((site.folder / "flow.pid").read_text()), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float, seen: Callable[[], str] = str) -> float:
    """Until it holds; seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {seen()}"
        time.sleep(0.25)
    return time.monotonic() - began


def left_at_broker(site: Site, job: Job) -> list[str]:
    """Virtual hosts, users, queues and connections that the site's broker holds for a job; all have its name."""
    found = []
    for kind in ("vhosts", "users", "queues", "connections"):
        names = [str(one.get("vhost", one.get("name"))) for one in _manage(site, "get", kind).json()]
        found += [f"{kind} at {site.party_id}: {name}" for name in names if name.startswith(job.id)]
    return found


def purge(site: Site, job: Job, to: str) -> int:
    """Lose what waits at the site's broker to be fetched by another role's one; how many messages that were."""
    count = 0
    for queue in _manage(site, "get", "queues").json():
        receiver = queue["name"].partition(f"-{site.party_id}-")[2]
        if queue["name"].startswith(f"send-{job.id}") and receiver.startswith(f"{to}-"):
            count += int(queue.get("messages", 0))
            assert _manage(site, "delete", f"queues/{queue['vhost']}/{queue['name']}/contents").ok
    return count


def _manage(site: Site, method: str, path: str) -> requests.Response:
    settings, password = site.settings, (site.folder / "secrets/broker").read_text().strip()
    root = f"http://{settings['LISTEN']}:{settings['BROKER_MANAGEMENT_PORT']}/api"
    return requests.request(method, f"{root}/{path}", auth=("fate", password), timeout=20)
