"""The sites of a folder of deploy/federation.sh, as the benchmark uses them: jobs, providers, processes, queues."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import requests

HERE = Path(__file__).parent
VERSION = "flow_round"
PROVIDER = f"fate:{VERSION}@local"
TICKS = os.sysconf("SC_CLK_TCK")
COMPONENTS = ("flow_round_nothing", "flow_round_messages")


class Site:
    """One site: its settings, its FATE Flow and its broker."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "site.env").read_text(encoding="utf-8").splitlines()
        pairs = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        self.folder = folder
        self.party_id = pairs["PARTY_ID"]
        self.host = pairs["LISTEN"]
        self.broker_port = int(pairs["BROKER_PORT"])
        self.management_port = int(pairs["BROKER_MANAGEMENT_PORT"])
        self.provider = f"fate:{pairs['PROVIDER_VERSION']}@local"
        self._url = f"http://{self.host}:{pairs['FLOW_HTTP_PORT']}/v2"

    def get(self, path: str, **query: str) -> Any:
        """What FATE Flow answers to a question."""
        return self._data(requests.get(f"{self._url}/{path}", params=query, timeout=60))

    def post(self, path: str, **content: Any) -> Any:
        """What FATE Flow answers to an order."""
        return self._data(requests.post(f"{self._url}/{path}", json=content, timeout=60))

    @staticmethod
    def _data(answer: requests.Response) -> Any:
        content = answer.json()
        if content.get("code") != 0:
            raise SystemExit(f"{answer.url}: {content.get('message')}")
        return content.get("data")

    def password(self) -> str:
        """The broker's."""
        return (self.folder / "secrets/broker").read_text(encoding="utf-8").strip()

    def queues(self) -> list[str]:
        """Names of all queues at the broker."""
        url = f"http://{self.host}:{self.management_port}/api/queues?columns=name"
        return [one["name"] for one in requests.get(url, auth=("fate", self.password()), timeout=10).json()]

    def service_cpu(self) -> dict[str, float]:
        """CPU seconds that server and broker have used since they started."""
        found = {}
        for name, file in {"server": "flow.pid", "broker": "broker/pid"}.items():
            pid = (self.folder / file).read_text(encoding="utf-8").strip()
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / TICKS
        return found


class Federation:
    """Sites with the benchmark's provider: the registered one, with the recorder in front of it.

    Use as a context: at its end the provider is taken back.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.sites = {site.party_id: site for site in map(Site, sorted(folder.resolve().glob("site_*")))}
        self._scratch = scratch

    def __enter__(self) -> Federation:
        for site in self.sites.values():
            self._register(site)
        return self

    def __exit__(self, *_: object) -> None:
        for site in self.sites.values():
            site.post("provider/delete", name="fate", version=VERSION, device="local")

    def _register(self, site: Site) -> None:
        found = site.get("provider/query", provider_name=site.provider)
        if not found:
            raise SystemExit(f"{site.folder}: no provider {site.provider}; register it first")
        own = found[0]["metadata"]
        folder = self._folder(site)
        lines = ["[fate.ext.component_desc]", *(f"{name} = flow_round_component:{name}" for name in COMPONENTS), ""]
        (folder / "flow_round-1.dist-info").mkdir(parents=True)
        (folder / "flow_round-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: flow-round\nVersion: 1\n")
        (folder / "flow_round-1.dist-info/entry_points.txt").write_text("\n".join(lines))
        shutil.copy(HERE / "flow_round_component.py", folder)
        shutil.copy(HERE / "flow_round_recorder.py", folder / "sitecustomize.py")
        for name in ("fate_flow", "ofx"):
            if (Path(own["path"]) / name).exists():
                (folder / name).symlink_to((Path(own["path"]) / name).resolve())
        metadata = {"path": str(folder), "venv": own["venv"]}
        site.post(
            "provider/register",
            name="fate",
            device="local",
            version=VERSION,
            metadata=metadata,
            components_description={name: {} for name in COMPONENTS},  # FATE Flow does not read it, and wants one
        )

    def _folder(self, site: Site) -> Path:
        return self._scratch / f"provider_{site.party_id}"

    def run(self, dag: dict[str, Any], watch: bool = False) -> dict[str, Any]:
        """Run a job and wait until its clean-up has ended at all sites.

        Returns:
            ``times`` (of the job), ``tasks`` (of each party), ``records`` (of each process), ``services`` (CPU seconds
            meanwhile), ``queues`` (names seen at the brokers; only if ``watch``).
        """
        dag["dag"].setdefault("conf", {}).setdefault("task", {})["provider"] = PROVIDER
        parties = [(one["role"], party) for one in dag["dag"]["parties"] for party in one["party_id"]]
        before = self._service_cpu()
        submitter = self.sites[parties[0][1]]
        sent = time.time()
        job = self._submit(submitter, dag)
        queues: set[str] = set()
        while True:
            state = submitter.get("job/query", job_id=job)[0]
            if state["status"] not in ("waiting", "running"):
                break
            if watch:
                queues |= {name for site in self.sites.values() for name in site.queues() if job in name}
            time.sleep(0.3 if watch else 1.0)
        if state["status"] != "success":
            raise SystemExit(f"job {job}: {state['status']}; see the logs below {submitter.folder}/flow/logs/{job}")
        records = self._records(job, 2 * len(parties))
        tasks = {
            f"{role} {party}": self.sites[party].get("job/task/query", job_id=job, role=role, party_id=party)[0]
            for role, party in parties
        }
        after = self._service_cpu()
        return {
            "times": {"sent": sent, **{key: (state[f"{key}_time"] or 0) / 1000 for key in ("create", "start", "end")}},
            "tasks": {
                name: {key: one[f"{key}_time"] / 1000 for key in ("start", "end")} for name, one in tasks.items()
            },
            "records": records,
            "services": {name: after[name] - before[name] for name in after},
            "queues": queues,
        }

    def _submit(self, site: Site, dag: dict[str, Any]) -> str:
        answer = requests.post(f"{site._url}/job/submit", json={"dag_schema": dag}, timeout=60).json()
        if answer.get("code") != 0:
            raise SystemExit(f"{site.folder}: {answer.get('message')}")
        return str(answer["job_id"])

    def _service_cpu(self) -> dict[str, float]:
        all_sites = [site.service_cpu() for site in self.sites.values()]
        return {name: sum(one[name] for one in all_sites) for name in all_sites[0]}

    def _records(self, job: str, cleaners: int, limit: float = 180.0) -> list[dict[str, Any]]:
        """What the job's processes left, once the last of them has ended."""
        deadline = time.time() + limit
        while True:
            files = [file for site in self.sites.values() for file in self._folder(site).glob("records/*.json")]
            texts = [(file.parents[1].name.split("_")[1], file.read_text(encoding="utf-8")) for file in files]
            all_records = [{"party": party, **json.loads(text)} for party, text in texts if text.endswith("}")]
            found = [one for one in all_records if job in one["job"]]
            if sum(one["command"] == "cleanup" for one in found) >= cleaners:
                return found
            if time.time() > deadline:
                raise SystemExit(f"job {job}: its clean-up has not ended after {limit:.0f} s")
            time.sleep(0.5)
