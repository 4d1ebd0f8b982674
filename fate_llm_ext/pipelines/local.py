"""The local engine: a FATE job on one machine, one process per party, through FATE's own entry.

Run directory: ``<out>/<job id>/<task>/<party>/{task.yaml, meta.json, events.jsonl, log.txt, stdout.txt,
metric.json, data/, model/}``, with the job as it ran in ``dag.yaml`` and its outcome in ``job.json``.
"""

from __future__ import annotations

import errno
import json
import platform
import secrets
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Dag, Party, Task
from fate_llm_ext.pipelines.process import Event, PartyProcess
from fate_llm_ext.pipelines.supervise import Interrupts, supervise
from fate_llm_ext.pipelines.taskfile import Job, available_cores, environment, write_task
from fate_llm_ext.site import load_sites

OnEvent = Callable[[str, Optional[Party], Event], None]

MINIMUM_DISK_MB = 50
MINIMUM_MEMORY_MB = 150  # per party: less than that does not even import FATE and torch


@dataclass
class JobResult:
    """Outcome of a run; ``exit_code`` is 0, 1, or 128 + the signal that stopped it."""

    job_id: str
    directory: Path
    status: str = "running"
    exit_code: int = 0
    error: Optional[ExtensionError] = None
    seconds: float = 0.0
    tasks: Dict[str, float] = field(default_factory=dict)


def run_job(
    dag: Dag,
    sites_path: Optional[Path],
    root: Optional[str],
    out_dir: Path,
    on_event: Optional[OnEvent] = None,
    python: str = sys.executable,
) -> JobResult:
    """Run a job to its end, its failure, or a signal (SIGINT, SIGTERM); no process survives.

    Args:
        dag: the job; run `check` on it first.
        sites_path: site file with a section per party; None if the job needs nothing of a site.
        root: folder that the site file's relative paths start at, instead of the file's own.
        out_dir: where the run directory is made.
        on_event: called with (task, party, event) for every event of a party, for ``started`` and
            ``ended``, and with party None about once a second (event type ``tick``).
        python: interpreter of the parties' processes.

    Raises:
        ExtensionError: for what can be known before a process starts: E109, E11x, E127, E520, E529, E530.
    """
    if dag.problems:
        text = "\n".join(map(str, dag.problems))
        raise ExtensionError("E109", path=dag.path, count=len(dag.problems), problems=text)
    for source in dag.needs_flow():
        raise ExtensionError("E520", where=source.where, source=source.kind)
    if shutil.which(python) is None:
        raise ExtensionError("E529", party="the parties", reason=f"{python} is not a program")
    order = dag.order()
    sites = load_sites(sites_path, root) if sites_path is not None else {}
    absolute_root = str(Path(root).expanduser().resolve()) if root is not None else None
    job_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
    directory = _make_directory(Path(out_dir).resolve() / job_id)
    job = Job(job_id, directory, sites, sites_path.resolve() if sites_path else None, absolute_root)
    result = JobResult(job_id, directory)
    (directory / "dag.yaml").write_text(dag.to_yaml(), encoding="utf-8")
    started = time.time()
    try:
        with Interrupts() as interrupts:
            for task in order:
                _run_task(dag, job, task, result, interrupts, on_event or _ignore, python)
        result.status = "success"
    except ExtensionError as error:
        _settle(result, error, interrupts.number)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _settle(result, _disk_full(directory), 0)
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)
        result.seconds = time.time() - started
        _record(dag, result, started)
    return result


def _run_task(
    dag: Dag, job: Job, task: Task, result: JobResult, interrupts: Interrupts, on_event: OnEvent, python: str
) -> None:
    whole = catalog.component(task.component)
    part = catalog.stage_of(whole, task.stage)
    parties = catalog.parties_of(task, dag.parties, whole)
    _enough_room(job.directory, len(parties))
    processes: List[PartyProcess] = []
    for party in parties:
        write_task(job, task, party, parties, part)
        processes.append(PartyProcess(party, job.folder(task, party)))
    began = time.time()
    try:
        for process in processes:
            process.start(python, environment(job, process.party, parties, process.folder))
            on_event(task.name, process.party, {"type": "started", "time": time.time(), "pid": process.pid})
        supervise(task.name, processes, interrupts, on_event, _timeout(dag, task))
    finally:
        for process in processes:
            process.close()
        result.tasks[task.name] = round(time.time() - began, 3)
    for process in processes:
        outputs = process.meta().get("io_meta", {}).get("outputs")
        if outputs is None:
            raise ExtensionError("E527", party=process.party, task=task.name, log=process.log)
        job.produced[task.name, process.party] = outputs


def _timeout(dag: Dag, task: Task) -> Optional[float]:
    raw: Dict[str, Any] = (dag.raw["dag"]["tasks"].get(task.name) or {}).get("conf") or {}
    value = raw.get("timeout") or (dag.conf.get("task") or {}).get("timeout")
    return float(value) if value else None


def _make_directory(directory: Path) -> Path:
    if any(mark in str(directory) for mark in "?#{}"):
        raise ExtensionError("E530", path=directory, reason="FATE's file names must not contain ? # { }")
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(directory.parent) from error
        raise ExtensionError("E530", path=directory.parent, reason=error.strerror) from error
    return directory


def _enough_room(directory: Path, parties: int) -> None:
    if shutil.disk_usage(directory).free < MINIMUM_DISK_MB << 20:
        raise _disk_full(directory)
    free = _free_memory_mb()
    if free is not None and free < MINIMUM_MEMORY_MB * parties:
        raise ExtensionError("E524", parties=parties, free_mb=free, needed_mb=MINIMUM_MEMORY_MB * parties)


def _disk_full(directory: Path) -> ExtensionError:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return ExtensionError("E523", path=directory, free_mb=shutil.disk_usage(existing).free >> 20)


def _free_memory_mb() -> Optional[int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] >> 10 if found else None


def _settle(result: JobResult, error: ExtensionError, signal_number: int) -> None:
    result.error = error
    result.status = "stopped" if signal_number else "failed"
    result.exit_code = 128 + signal_number if signal_number else 1


def _record(dag: Dag, result: JobResult, started: float) -> None:
    record = {
        "job_id": result.job_id,
        "dag": str(dag.path.resolve()),
        "status": result.status,
        "error": str(result.error) if result.error else None,
        "started": started,
        "seconds": round(result.seconds, 3),
        "tasks": result.tasks,
        "order": list(result.tasks),
        "parties": [party.key for party in dag.parties],
        "parameters": {name: task.parameters for name, task in dag.tasks.items()},
        "versions": versions(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {available_cores()} cores",
    }
    try:
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        (result.directory / "job.json").write_text(text + "\n", encoding="utf-8")
    except OSError:
        if result.error is None:
            raise


def versions() -> Dict[str, str]:
    """Versions of what decides about a result."""
    import importlib.metadata

    found: List[Tuple[str, str]] = [("python", platform.python_version())]
    for name in ("fate-llm-ext", "pyfate", "torch", "transformers", "peft", "numpy"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(found)


def _ignore(_task: str, _party: Optional[Party], _event: Event) -> None:
    """Without a listener events only go to the files."""
