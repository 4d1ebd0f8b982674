"""This process as a worker of FATE Flow: what the local engine does around a party, a site's own worker does itself.

FATE Flow starts a worker with the environment of its server, shows no progress, and when a party fails kills the
workers of all others within two seconds: their reports would stay empty. So a worker sets the environment from the site
file, writes its events into its log, and hands the site's FATE Flow the reason as soon as it knows one. A small process
beside it (:mod:`fate_llm_ext.last_words`) speaks for it if it is killed.

Outside FATE Flow nothing here does anything.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Mapping, Optional, Tuple

from fate_llm_ext import last_words, progress
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.site import OFFLINE, Site, cuda_environment, current_site

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_REPORT_SECONDS = 5.0
_RESTART_SECONDS = 60.0  # a server that is started anew is back within 30
_SAME_SECONDS = 3.0


@dataclass(frozen=True)
class Task:
    """What FATE Flow says about the task that this process runs.

    Attributes:
        execution: the party's id of this try; FATE Flow's key for reports.
        version: number of the try, from 0.
        tables: ``<namespace>/<name>`` of the tables that this party reads.
        producers: queries for the task outputs from which its other data inputs come, FATE's reader's too.
        given: the parameters as the job gives them, those that FATE drops included.
        server: the site's FATE Flow, with its version prefix.
        config: FATE's configuration of the task.
        final: where FATE Flow looks for the outcome.
    """

    job: str
    name: str
    execution: str
    version: int
    role: str
    party_id: str
    tables: Tuple[str, ...]
    producers: Tuple[Mapping[str, str], ...]
    given: Mapping[str, Any]
    server: str
    config: Path
    final: Path

    @property
    def party(self) -> str:
        """E.g. ``guest 9999``."""
        return f"{self.role} {self.party_id}"


class _Worker:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.reported = ""
        self._pipe: Optional[int] = None

    def start(self) -> None:
        """Start the process that speaks last words; it is nobody's child, so that what kills the worker spares it."""
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)  # who does not read must not hold up the work
        script = [sys.executable, "-I", "-S", last_words.__file__]
        with suppress(OSError):
            subprocess.run(script, stdin=reader, stdout=subprocess.DEVNULL, start_new_session=True, check=False)
        os.close(reader)
        task = self.task
        facts = {"party": task.party, "job": task.job}
        self.note(
            parent=os.getppid(),
            python=sys.executable,
            server=task.server,
            execution=task.execution,
            query={"job_id": task.job, "task_name": task.name, "role": task.role, "party_id": task.party_id},
            version=task.version,
            config=str(task.config),
            final=str(task.final),
            # Written here, where the catalogue is: the other process has the standard library only.
            killed=str(ExtensionError("E309", **facts, doing="{doing}")),
            stopped=str(ExtensionError("E310", **facts)),
            ended=str(ExtensionError("E311", **facts, doing="{doing}")),
        )

    def note(self, **state: Any) -> None:
        """Tell the process beside this one what it would have to know."""
        if self._pipe is None:
            return
        with suppress(OSError):  # it is gone, or does not read: then there are no last words
            os.write(self._pipe, json.dumps(state).encode() + b"\n")

    def leave(self) -> None:
        """The process ends in its own way: nothing is left to be said about it."""
        self.note(left=True)
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)


_worker: Optional[_Worker] = None


def enter(parameters: Collection[str]) -> None:
    """To be called first in every stage of every component.

    Args:
        parameters: names of those that the component has.

    Raises:
        ExtensionError: E312 for parameters of the job that the component does not have: FATE drops them silently.
    """
    global _worker
    task = _read_task()
    if task is None or _worker is not None:
        return
    _worker = _Worker(task)
    progress.log_events()
    progress.emit("started", version=task.version)
    _die_with_parent()
    _worker.start()
    atexit.register(_worker.leave)
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with suppress(ExtensionError):  # said by who needs the site file, when the other parties can hear it
        _use_site(current_site(task.role, task.party_id))
    unknown = sorted(set(task.given) - set(parameters))
    if unknown:
        error = ExtensionError("E312", names=", ".join(unknown), known=", ".join(sorted(parameters)))
        report(str(error))
        time.sleep(_SAME_SECONDS)  # the other parties find the same a moment later, unless this one's end kills them
        raise error


def current() -> Optional[Task]:
    """The task of FATE Flow that this process runs, None outside FATE Flow."""
    return _worker.task if _worker else None


def report(reason: str) -> None:
    """Hand the site's FATE Flow the reason of a failure, before it can kill this process because of it.

    The first reason stays: what follows is a consequence.
    """
    if _worker is None or _worker.reported:
        return
    _worker.reported = reason
    _worker.note(reported=True)
    try:
        last_words.report(_worker.task.server, _worker.task.execution, reason, _REPORT_SECONDS)
    except last_words.UNREACHABLE:
        logger.warning("this site's FATE Flow takes no report", exc_info=True)


def note(**state: Any) -> None:
    """Tell the process beside this one, see :mod:`fate_llm_ext.last_words`."""
    if _worker is not None:
        _worker.note(**state)


def table(folder: str) -> Optional[str]:
    """``<namespace>/<name>`` of the table in a folder: FATE Flow hands a component the folder only. None outside it.

    Raises:
        ExtensionError: E313 if this site's FATE Flow does not say: no job may choose what its table is called.
    """
    if _worker is None:
        return None
    queries: List[Dict[str, Any]] = []
    for name in _worker.task.tables:
        namespace, _, table_name = name.partition("/")
        queries.append({"namespace": namespace, "name": table_name})
    own = {"job_id": _worker.task.job, "role": _worker.task.role, "party_id": _worker.task.party_id}
    queries += [{**own, **producer} for producer in _worker.task.producers]
    deadline = time.monotonic() + _RESTART_SECONDS
    reason = "none of the job's inputs is there"
    while True:
        answered = True
        for query in queries:
            try:
                found = last_words.get(f"{_worker.task.server}/worker/data/tracking/query", query, _REPORT_SECONDS)
            except last_words.UNREACHABLE as error:
                answered, reason = False, " ".join(f"{type(error).__name__} {error}".split())
                continue
            for one in found.get("data") or []:
                if _is_at(one, folder) and one.get("namespace") and one.get("name"):
                    return f"{one['namespace']}/{one['name']}"
        if answered or time.monotonic() > deadline:
            raise ExtensionError("E313", folder=Path(folder).name, reason=reason)
        time.sleep(1.0)


def _is_at(table: Mapping[str, Any], folder: str) -> bool:
    return Path(str(table.get("path", "")).replace("file://", "", 1)).resolve() == Path(folder).resolve()


def _read_task() -> Optional[Task]:
    """From the files that FATE Flow names on the command line."""
    config = _argument("--config")
    final = _argument("--execution-final-meta-path")
    if config is None or final is None or not (config.parent / "preprocess_parameters.yaml").exists():
        return None
    import yaml

    raw: Dict[str, Any] = yaml.safe_load((config.parent / "preprocess_parameters.yaml").read_text(encoding="utf-8"))
    server = raw["mlmd"]["metadata"]
    return Task(
        job=str(raw["job_id"]),
        name=str(raw["task_name"]),
        execution=str(raw["party_task_id"]),
        version=int(raw["task_version"]),
        role=str(raw["role"]),
        party_id=str(raw["party_id"]),
        tables=_tables(raw),
        producers=_producers(raw),
        given=raw.get("parameters") or {},
        server=f"{server['protocol']}://{server['host']}:{server['port']}/{server['api_version']}",
        config=config,
        final=final,
    )


def _argument(name: str) -> Optional[Path]:
    if name in sys.argv[:-1]:
        return Path(sys.argv[sys.argv.index(name) + 1])
    return None


def _tables(raw: Mapping[str, Any]) -> Tuple[str, ...]:
    """The tables that this party reads; FATE Flow lists the inputs of all parties."""
    given = [one for one in _channels(raw) if one.get("name") and one.get("namespace")]
    return tuple(f"{one['namespace']}/{one['name']}" for one in given)


def _producers(raw: Mapping[str, Any]) -> Tuple[Mapping[str, str], ...]:
    """What asks FATE Flow for outputs of other tasks that this party reads, of another job too."""
    given = [one for one in _channels(raw) if one.get("producer_task") and one.get("output_artifact_key")]
    return tuple(
        {
            "task_name": str(one["producer_task"]),
            "output_key": str(one["output_artifact_key"]),
            **({"job_id": str(one["job_id"])} if one.get("job_id") else {}),
        }
        for one in given
    )


def _channels(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """This party's data inputs and where they come from."""
    for given in ((raw.get("input_artifacts") or {}).get("data") or {}).values():
        for channel in given if isinstance(given, list) else [given]:
            parties = channel.get("parties")
            if not parties or any(
                one["role"] == raw["role"] and str(raw["party_id"]) in map(str, one["party_id"]) for one in parties
            ):
                yield channel


def _use_site(site: Site) -> None:
    """Device and threads of the site file; torch may be there already, without having looked for either."""
    os.environ.update(cuda_environment(site.device, os.environ.get("CUDA_VISIBLE_DEVICES")))
    if site.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(site.threads)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(site.threads)


def _die_with_parent() -> None:
    """FATE Flow finds its workers through the parent of this process; without it nobody would ever end this one."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
