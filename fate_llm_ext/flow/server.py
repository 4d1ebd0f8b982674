"""What a FATE Flow server knows and does, as typed calls. A server knows only its own site's parties of a job."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.archive import unpack
from fate_llm_ext.flow.connection import FEDERATED_SECONDS, Connection, find_account
from fate_llm_ext.flow.refusals import refused
from fate_llm_ext.pipelines.job import Party

ENDED = ("success", "pass", "failed", "timeout", "canceled")
GOOD = ("success", "pass")
_NO_JOB = 1001
_NO_TASK = 2000
_NO_MODEL = 2005
_STANDALONE = 3000
_NO_TABLE = 7001
_LISTED_JOBS = 20
# FATE writes the broker's password into the log of every task that it cleans up.
_SECRET = re.compile(r"""((['"])[\w-]*(?:password|passwd|secret|token)\2: ?)(['"])(?:(?!\3).)*\3""", re.IGNORECASE)


def without_secrets(line: str) -> str:
    """A line of a log with the passwords in it made unreadable."""
    return _SECRET.sub(r"\1\3***\3", line)


@dataclass(frozen=True)
class JobState:
    """A job as one site's server sees it.

    Attributes:
        progress: tasks that are done, in per cent.
        parties: those of this site.
        others: those of other sites.
        dag: the job file with the server's defaults.
        started: seconds since epoch, None before it started.
        seconds: how long it ran, or has run until now.
        model: id and version under which the server keeps the job's models.
        scheduler: the party whose server conducts the job; it alone can end it.
    """

    job_id: str
    status: str
    progress: int
    parties: Tuple[Party, ...]
    others: Tuple[Party, ...]
    dag: Dict[str, Any]
    created: float
    started: Optional[float]
    seconds: float
    model: Tuple[str, str]
    scheduler: str

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more, unless it is started again."""
        return self.status in ENDED


@dataclass(frozen=True)
class TaskState:
    """The latest try of a task at one party; ``version`` is its number, from 0."""

    task: str
    role: str
    party_id: str
    version: int
    status: str
    error_report: str
    seconds: float

    @property
    def party(self) -> Party:
        """Whose part of the task this is."""
        return Party(self.role, self.party_id)

    @property
    def ended(self) -> bool:
        """Whether this try is over."""
        return self.status in ENDED

    @property
    def failed(self) -> bool:
        """Whether it is over and did not end well."""
        return self.ended and self.status not in GOOD


class FlowServer:
    """A FATE Flow server.

    Args:
        address: ``host:port``, see :func:`~fate_llm_ext.flow.connection.find_account`.

    All calls raise E801 (no answer), E804 (something else answers), E805 (this client is refused) and E806 (the server
    refuses what is asked), besides what they say themselves.
    """

    def __init__(self, address: Optional[str] = None) -> None:
        self._connection = Connection(find_account(address))

    @property
    def address(self) -> str:
        """``host:port``."""
        return self._connection.address

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, so that its paths are paths here."""
        return self._connection.account.host in ("127.0.0.1", "localhost", "[::1]")

    def version(self) -> str:
        """FATE Flow's version, e.g. ``2.2.0``."""
        servers = self._data("/server/fateflow")
        return next((str(one.get("version", "")) for one in servers.values()), "") if isinstance(servers, dict) else ""

    def party_id(self) -> Optional[str]:
        """The id of the server's site; None for a server that plays all parties by itself."""
        answer = self._connection.get("/site/info/query", missing=(_STANDALONE,))
        return str(answer["data"]["party_id"]) if answer and answer.get("data") else None

    def submit(self, dag: Mapping[str, Any]) -> str:
        """Start a job at all its sites; its id.

        Raises:
            ExtensionError: E839 if sites do not take it.
        """
        try:
            answer = self._connection.post("/job/submit", {"dag_schema": dict(dag)}, FEDERATED_SECONDS)
        except ExtensionError as error:
            raise refused(error) or error from error
        if not answer.get("job_id"):
            raise ExtensionError("E804", address=self.address, reason="it gives a submitted job no id")
        return str(answer["job_id"])

    def job(self, job_id: str) -> JobState:
        """How a job stands.

        Raises:
            ExtensionError: E809 if the server does not know it.
        """
        rows = self._data("/job/query", missing=(_NO_JOB,), job_id=job_id)
        if not rows:
            raise ExtensionError("E809", address=self.address, job=job_id)
        return _job_state(rows)

    def jobs(self, limit: int = _LISTED_JOBS) -> List[JobState]:
        """The latest jobs, newest first."""
        listed = (self._data("/job/list/query", limit=limit, page=1) or {}).get("data") or []
        rows: Dict[str, List[Dict[str, Any]]] = {}
        for row in listed:
            rows.setdefault(str(row["job_id"]), []).append(row)
        return [_job_state(one) for one in rows.values()]

    def tasks(self, job_id: str) -> List[TaskState]:
        """The tasks of this site's parties, the latest try of each, in the order in which they were made."""
        rows = self._data("/job/task/query", missing=(_NO_TASK,), job_id=job_id) or []
        latest: Dict[Tuple[str, str, str], Dict[str, Any]] = {}
        for row in sorted(rows, key=lambda one: (one.get("create_time") or 0, int(one["task_version"]))):
            key = (str(row["task_name"]), str(row["role"]), str(row["party_id"]))
            if key not in latest or int(latest[key]["task_version"]) < int(row["task_version"]):
                latest[key] = row
        return [_task_state(row) for row in latest.values()]

    def log(
        self, job_id: str, role: str, party_id: str, task: str, begin: int = 1, kind: str = "task_info"
    ) -> List[str]:
        """The complete lines of a task's log from number ``begin`` (the first is 1); all tries write into one log."""
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task}
        rows = self._data("/log/query", (), log_type=kind, begin=begin, **where) or []
        # What follows the last line break is empty, or a line that is being written.
        return [without_secrets(str(row.get("content", ""))) for row in rows[:-1]]

    def log_length(self, job_id: str, role: str, party_id: str, task: str) -> int:
        """The number of lines of a task's log, 0 if there is none."""
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task}
        return int(self._data("/log/count", (), log_type="task_info", **where) or 0)

    def metrics(self, job_id: str, role: str, party_id: str, task: str) -> List[Dict[str, Any]]:
        """FATE's metrics of a task's latest try, as FATEBoard shows them."""
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task}
        return self._data("/output/metric/query", missing=(_NO_TASK,), **where) or []

    def stop(self, job_id: str) -> None:
        """End a job at all sites."""
        self._connection.post("/job/stop", {"job_id": job_id}, FEDERATED_SECONDS)

    def rerun(self, job_id: str) -> None:
        """Start again the tasks of an ended job that have not ended well."""
        self._connection.post("/job/rerun", {"job_id": job_id}, FEDERATED_SECONDS)

    def model_outputs(self, job_id: str, role: str, party_id: str, task: str) -> List[str]:
        """The names of a task's model outputs."""
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task}
        return sorted(self._data("/output/model/query", missing=(_NO_MODEL, _NO_TASK), **where) or {})

    def download_model(self, job: JobState, role: str, party_id: str, task: str, output: str, folder: Path) -> None:
        """Unpack one model output into a new folder.

        `flow output download-model` has only the first output of a task; this asks as a task does that takes the model.

        Raises:
            ExtensionError: E815 if the archive is none, or would write elsewhere.
        """
        where = {"role": role, "party_id": party_id, "task_name": task, "output_key": output}
        model_id, version = job.model
        path = "/worker/model/download"
        self._unpack(path, f"{output} of {task}", folder, model_id=model_id, model_version=version, **where)

    def data_outputs(self, job_id: str, role: str, party_id: str, task: str) -> Dict[str, List[Dict[str, str]]]:
        """Name of each data output -> namespace and name of its tables."""
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task}
        answer = self._connection.get_raw("/output/data/table", **where)
        return {str(name): list(tables) for name, tables in answer.items() if isinstance(tables, list)}

    def download_data(self, job_id: str, role: str, party_id: str, task: str, output: str, folder: Path) -> None:
        """Unpack one data output that is a table of FATE into a new folder; folders cannot be had this way.

        Raises:
            ExtensionError: E815 as for models.
        """
        where = {"job_id": job_id, "role": role, "party_id": party_id, "task_name": task, "output_key": output}
        self._unpack("/output/data/download", f"{output} of {task}", folder, **where)

    def download_logs(self, job_id: str, folder: Path) -> None:
        """Unpack all logs of this site into a new folder: <role>/<party id>/<task>/{root, stdout}/.

        Raises:
            ExtensionError: E815 as for models.
        """
        self._unpack("/job/log/download", f"the logs of job {job_id}", folder, method="POST", job_id=job_id)

    def query_provider(self, name: str, version: str) -> Optional[Dict[str, Any]]:
        """A registered provider, None if there is none of that name and version."""
        found = self.providers(name, version=version)
        return found[0] if found else None

    def providers(self, name: str = "fate", **only: Any) -> List[Dict[str, Any]]:
        """The registered providers of a name, all versions unless one is asked for."""
        return [dict(one) for one in self._data("/provider/query", name=name, **only) or []]

    def register_provider(self, spec: Mapping[str, Any]) -> None:
        """Register a provider, or change one of the same name and version."""
        self._connection.post("/provider/register", dict(spec))

    def query_table(self, namespace: str, name: str) -> Optional[Dict[str, Any]]:
        """A table's path, engine and kind; None if it is not bound."""
        found = self._data("/table/query", missing=(_NO_TABLE,), namespace=namespace, name=name)
        return dict(found) if found else None

    def bind_table(self, namespace: str, name: str, path: str) -> None:
        """Give a folder of the server's machine a table's name."""
        self._connection.post("/table/bind/path", {"namespace": namespace, "name": name, "path": path})

    def _data(self, path: str, missing: Tuple[int, ...] = (), **params: Any) -> Any:
        answer = self._connection.get(path, missing, **params)
        return answer.get("data") if answer else None

    def _unpack(self, path: str, what: str, folder: Path, method: str = "GET", **arguments: Any) -> None:
        import tempfile

        with tempfile.TemporaryFile() as file:
            if not self._connection.download(path, file, method, **arguments):
                raise ExtensionError("E815", what=what, reason="the server sends none")
            file.seek(0)
            unpack(file, folder, what)


def _job_state(rows: List[Dict[str, Any]]) -> JobState:
    """One state of a site's rows, a row per party."""
    first = rows[0]
    statuses = [str(row["status"]) for row in rows]
    running = [status for status in statuses if status not in ENDED]
    bad = [status for status in statuses if status not in GOOD]
    mine = tuple(Party(str(row["role"]), str(row["party_id"])) for row in rows)
    everyone = [Party(str(one["role"]), str(id)) for one in first.get("parties") or [] for id in one["party_id"]]
    started = min((row["start_time"] / 1000 for row in rows if row.get("start_time")), default=None)
    ends = [row["end_time"] / 1000 for row in rows if row.get("end_time")]
    end = max(ends) if len(ends) == len(rows) else time.time()
    return JobState(
        job_id=str(first["job_id"]),
        status=(running or bad or statuses)[0],
        progress=min(int(row.get("progress") or 0) for row in rows),
        parties=mine,
        others=tuple(one for one in everyone if one not in mine),
        dag=dict(first.get("dag") or {}),
        created=(first.get("create_time") or 0) / 1000,
        started=started,
        seconds=max(0.0, end - started) if started else 0.0,
        model=(str(first.get("model_id") or ""), str(first.get("model_version") or "")),
        scheduler=str(first.get("scheduler_party_id") or ""),
    )


def _task_state(row: Dict[str, Any]) -> TaskState:
    started = (row.get("start_time") or 0) / 1000
    end = row["end_time"] / 1000 if row.get("end_time") else time.time()
    return TaskState(
        task=str(row["task_name"]),
        role=str(row["role"]),
        party_id=str(row["party_id"]),
        version=int(row["task_version"]),
        status=str(row.get("party_status") or row.get("status") or ""),
        error_report=str(row.get("error_report") or ""),
        seconds=max(0.0, end - started) if started else 0.0,
    )
