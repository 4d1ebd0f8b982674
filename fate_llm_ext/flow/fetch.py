"""What a job left at one site, as a run directory of the local engine: the same report reads it.

``<out>/<job id>/<task>/<party>/{events.jsonl, log.txt, stdout.txt, metric.json, model/<output>/, data/<output>/}``, for
the parties of this site alone, with the job in ``dag.yaml`` and its outcome in ``job.json``.
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, Optional
from urllib.parse import unquote, urlparse

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.failure import explain
from fate_llm_ext.flow.follow import of_try, read_events
from fate_llm_ext.flow.server import FlowServer, JobState, TaskState, without_secrets
from fate_llm_ext.pipelines.dag import parse_dag

_META = ("model_directory.meta.yaml", "json_model.meta.yaml")  # FATE Flow's own, among a model's files
# Of the job's settings only what its author chose; the rest is the server's, and other in every job.
_DEFAULTS = {"auto_retries": 0, "computing_partitions": 8, "launcher_name": "default"}
_PER_JOB = ("model_id", "model_version", "initiator_party_id", "scheduler_party_id", "sync_type")
_NONE = object()

Say = Callable[[str], None]


def fetch(
    server: FlowServer,
    job_id: str,
    out: Path,
    say: Optional[Say] = None,
    error: Optional[ExtensionError] = None,
) -> Path:
    """Fetch events, logs, metrics, models and data of a job's parties at this site.

    All is written beside the target first. An earlier fetch of the same job is replaced.

    Args:
        out: the run directory is made in it.
        say: called with a line for each output that cannot be fetched.
        error: why the job failed, if that is known already.

    Returns:
        The run directory.

    Raises:
        ExtensionError: E530 it cannot be written, E809 no such job, E815 an archive is refused, E816 the target is
            something else, or what the server says.
    """
    state = server.job(job_id)
    target = Path(out).resolve() / job_id
    _may_replace(target, job_id)
    part = target.with_name(f".{job_id}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        _Fetch(server, state, part, say or _silent).everything(error)
        _move(part, target)
    except OSError as problem:
        raise ExtensionError("E530", path=problem.filename or out, reason=problem.strerror or problem) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


class _Fetch:
    """One job on its way into a folder."""

    def __init__(self, server: FlowServer, state: JobState, folder: Path, say: Say) -> None:
        self._server = server
        self._state = state
        self._folder = folder
        self._say = say
        self._missing: List[str] = []

    def everything(self, error: Optional[ExtensionError]) -> None:
        """Fetch all of it."""
        tasks = [task for task in self._server.tasks(self._state.job_id) if task.status != "waiting"]
        logs = self._folder / ".logs"
        self._server.download_logs(self._state.job_id, logs)
        for task in tasks:
            folder = self._folder / _name(task.task) / _name(task.party.key)
            folder.mkdir(parents=True)
            self._logs(task, logs / task.role / task.party_id / task.task, folder)
            metrics = self._server.metrics(self._state.job_id, task.role, task.party_id, task.task)
            (folder / "metric.json").write_text(json.dumps(metrics, ensure_ascii=False) + "\n", encoding="utf-8")
            self._models(task, folder)
            self._data(task, folder)
        shutil.rmtree(logs)
        self._record(tasks, error or explain(self._server, self._state))

    def _logs(self, task: TaskState, logs: Path, folder: Path) -> None:
        if (logs / "root/INFO").is_file():
            lines = _copy_text(logs / "root/INFO", folder / "log.txt")
        else:
            self._lack(f"{task.task}, {task.party}: it has no log")
            lines = []
        if (logs / "stdout/task_execute").is_file():
            _copy_text(logs / "stdout/task_execute", folder / "stdout.txt")
        events = of_try(read_events(lines), task.version)
        text = "".join(json.dumps(event) + "\n" for event in events)
        (folder / "events.jsonl").write_text(text, encoding="utf-8")

    def _models(self, task: TaskState, folder: Path) -> None:
        where = (task.role, task.party_id, task.task)
        for output in self._server.model_outputs(self._state.job_id, *where):
            target = folder / "model" / _name(output)
            self._server.download_model(self._state, *where, output, target)
            for name in _META:
                (target / name).unlink(missing_ok=True)

    def _data(self, task: TaskState, folder: Path) -> None:
        """Tables come from the server. Folders it does not hand out: they are copied where it runs on this machine."""
        where = (self._state.job_id, task.role, task.party_id, task.task)
        for output, tables in self._server.data_outputs(*where).items():
            target = folder / "data" / _name(output)
            facts = [self._server.query_table(one["namespace"], one["name"]) for one in tables]
            known = [one for one in facts if one is not None]
            if known and all(one.get("data_type") != "data_directory" for one in known):
                self._server.download_data(*where, output, target)
                continue
            for number, one in enumerate(known):
                self._folder_of(one, f"{output} of {task.task}, {task.party}", target, number, len(known))

    def _folder_of(self, table: Dict[str, Any], what: str, target: Path, number: int, count: int) -> None:
        path = Path(unquote(urlparse(str(table.get("path", ""))).path))
        if not (self._server.is_local and path.is_dir()):
            self._lack(f"{what}: it is a folder, which FATE Flow does not send; at the server's machine it is {path}")
            return
        shutil.copytree(path, target / str(number) if count > 1 else target, symlinks=True)

    def _record(self, tasks: List[TaskState], error: Optional[ExtensionError]) -> None:
        """``dag.yaml`` and ``job.json``."""
        state = self._state
        dag = parse_dag(_authored(state.dag), Path("dag.yaml"))
        (self._folder / "dag.yaml").write_text(dag.to_yaml(), encoding="utf-8")
        seconds: Dict[str, float] = {}
        for task in tasks:
            seconds[task.task] = round(max(task.seconds, seconds.get(task.task, 0.0)), 3)
        record = {
            "job_id": state.job_id,
            "server": self._server.address,
            "dag": f"job {state.job_id}/dag.yaml",
            "status": state.status,
            "error": str(error) if error else None,
            "started": state.started,
            "seconds": round(state.seconds, 3),
            "tasks": seconds,
            "order": list(seconds),
            "parties": [party.key for party in state.parties],
            "elsewhere": [party.key for party in state.others],
            "tries": {f"{task.task} {task.party.key}": task.version + 1 for task in tasks},
            "parameters": {name: task.parameters for name, task in dag.tasks.items()},
            "missing": self._missing,
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        (self._folder / "job.json").write_text(text + "\n", encoding="utf-8")

    def _lack(self, what: str) -> None:
        self._missing.append(what)
        self._say(f"not fetched: {what}")


def _copy_text(source: Path, target: Path) -> List[str]:
    """Copy a log without passwords; its lines."""
    text = "".join(map(without_secrets, source.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)))
    target.write_text(text, encoding="utf-8")
    return text.splitlines()


def _authored(dag: Dict[str, Any]) -> Dict[str, Any]:
    """A server's job without what it has filled in, so that all runs of a job have one dag.yaml."""

    def without(node: Any, defaults: Mapping[str, Any] = MappingProxyType({})) -> Any:
        if isinstance(node, dict):
            kept = {
                key: value for key, value in node.items() if value is not None and defaults.get(key, _NONE) != value
            }
            return {key: value if key == "parameters" else without(value, defaults) for key, value in kept.items()}
        return [without(one, defaults) for one in node] if isinstance(node, list) else node

    cleaned: Dict[str, Any] = without(dag)
    conf = (cleaned.get("dag") or {}).get("conf") or {}
    if conf:
        cleaned["dag"]["conf"] = without({key: conf[key] for key in conf if key not in _PER_JOB}, _DEFAULTS)
    return cleaned


def _may_replace(target: Path, job_id: str) -> None:
    if not target.exists():
        return
    try:
        record = json.loads((target / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if not isinstance(record, dict) or record.get("job_id") != job_id or "server" not in record:
        raise ExtensionError("E816", path=target, job=job_id)


def _move(part: Path, target: Path) -> None:
    """Put the finished folder in its place; what was there goes only then."""
    old = part.with_suffix(".old")
    if target.exists():
        target.replace(old)
    part.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _name(text: str) -> str:
    """A name of the server's as one folder name."""
    if text in ("", ".", "..") or "/" in text or "\0" in text:
        raise ExtensionError("E815", what="a task's outputs", reason=f"{text!r} is no name")
    return text


def _silent(_line: str) -> None:
    """Without a listener the gaps stand in job.json only."""
