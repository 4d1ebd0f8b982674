"""Runs of several jobs that are looked at together: which are of one job, and in what the jobs differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from fate_llm_ext.pipelines.results import differences, read_jobs


@dataclass(frozen=True)
class JobRuns:
    """The runs of one job.

    Attributes:
        label: what is special about it, e.g. ``strategy metric, epsilon 8.0``; empty if it is the only job.
        runs: their directories.
    """

    label: str
    runs: Tuple[Path, ...]


def group_runs(runs: Sequence[Path]) -> List[JobRuns]:
    """Runs by job, apart from seeds, in the order in which they are given.

    Raises:
        ExtensionError: E531 a directory is no run, E532 it is given twice.
    """
    jobs: List[Dict[str, Any]] = []
    found: List[List[Path]] = []
    for run, job in read_jobs(runs).items():
        if job not in jobs:
            jobs.append(job)
            found.append([])
        found[jobs.index(job)].append(run)
    return [JobRuns(label, tuple(own)) for label, own in zip(_labels(jobs), found)]


def _labels(jobs: Sequence[Dict[str, Any]]) -> List[str]:
    """Of each job its values where the jobs differ, by the last part of their path if that tells them apart."""
    paths = list(dict.fromkeys(path for job in jobs[1:] for path, _, _ in differences(jobs[0], job)))
    last = [path.rpartition(".")[2] for path in paths]
    names = [short if last.count(short) == 1 else path for short, path in zip(last, paths)]
    labels = []
    for job in jobs:
        values = [(name, _value(job, path.split("."))) for name, path in zip(names, paths)]
        labels.append(", ".join(_text(name, value) for name, value in values if value is not None))
    return labels


def _value(node: Any, path: Sequence[str]) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _text(name: str, value: Any) -> str:
    return f"with {name}" if isinstance(value, dict) else f"{name} {value}"
