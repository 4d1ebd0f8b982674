"""What a run directory holds after a job: events per task and party, and the tables made from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.document import read_document
from fate_llm_ext.pipelines.process import Event, Follower

ARM_ORDER = (
    *("zero_shot", "standalone", "standalone_public", "centralized", "paper", "fedmkt"),
    *("local", "local_synthetic", "fdkt"),
    *("fedcot", "distilling"),
    *("dp_teacher", "dp_sgd_student", "dpkd", "synthetic_ce", "dp_kd", "on_policy", "non_private"),
)
ARM_TITLES = {
    "zero_shot": "Zero-shot",
    "standalone": "Standalone",
    "standalone_public": "Standalone+Public",
    "centralized": "Centralized",
    "paper": "FedMKT (paper)",
    "fedmkt": "FedMKT",
    "local": "Local",
    "local_synthetic": "Local + synthetic",
    "fdkt": "FDKT",
    "fedcot": "FedCoT",
    "distilling": "Distilling step-by-step",
    "dp_teacher": "DP teacher",
    "dp_sgd_student": "DP-SGD student",
    "dpkd": "DPKD",
    "synthetic_ce": "Synthetic text, CE",
    "dp_kd": "DP-KD",
    "on_policy": "DP-KD on-policy",
    "non_private": "Non-private",
    "evaluation": "Evaluation",
}
FEDMKT_NOTE = (
    "Standalone: private rows only. Standalone+Public: and public gold answers, no teaching; for the arbiter: public "
    "gold only. FedMKT (paper): teaching on labelled public rows. FedMKT: and on public rows without an answer."
)
DPKD_NOTE = (
    "DP teacher: what the student learns from, with a tokenizer of its own. DP-SGD student: the whole ε spent on the "
    "student. DPKD: teacher and student by DP-SGD, at this ε together. Synthetic text, CE: the DP teacher's texts "
    "alone. DP-KD: and its distributions. On-policy: and over what the student writes. Non-private: a teacher trained "
    "without noise and clipping. Comparisons on private records stay at their owner."
)
FDKT_NOTE = (
    "Local: the client's own records. Local + synthetic: and texts of its DP generator. FDKT: and what the LLM has "
    "written after these. Non-private: as local + synthetic, with a generator trained without noise and clipping. None "
    "of these models is differentially private: all have read the records, and stay at their client."
)
FEDCOT_NOTE = (
    "Standalone: the client's own labels. FedCoT: and rationales of the LLM for perturbed prompts. Distilling "
    "step-by-step: and rationales for the prompts in clear, which is no privacy at all. None of these models is "
    "differentially private: all have read the records, and stay at their client."
)
# An arm that only tables of one algorithm have -> the note under these.
ARM_NOTES = {
    "standalone_public": FEDMKT_NOTE,
    "dp_kd": DPKD_NOTE,
    "fdkt": FDKT_NOTE,
    **dict.fromkeys(("fedcot", "distilling"), FEDCOT_NOTE),
}
CLIENTS = "mean of clients"
_CLIENT_ROLES = ("guest", "host")
_PREFERRED = ("accuracy", "nll_per_byte", "perplexity", "code_accuracy")
# With several runs: what the method gains on each of these, run by run.
_METHODS = {
    "fedmkt": ("standalone", "standalone_public"),
    "dp_kd": ("dp_sgd_student", "dpkd", "synthetic_ce"),
    "fdkt": ("local", "local_synthetic"),
    "fedcot": ("standalone",),
    "distilling": ("standalone",),
}

_Values = Dict[str, Dict[str, List[float]]]  # party -> arm -> a value per run


@dataclass(frozen=True)
class Cell:
    """A mean over runs; ``spread`` is the sample standard deviation, None for a single run."""

    mean: float
    spread: Optional[float] = None


@dataclass(frozen=True)
class ResultTable:
    """One metric of one task: party (e.g. ``guest_9999``) -> arm -> cell.

    With a ``method`` the cells are what that arm gains on another, subtracted within each run before the mean is taken.
    """

    task: str
    metric: str
    arms: Tuple[str, ...]
    rows: Dict[str, Dict[str, Cell]]
    method: str = ""

    @property
    def paired(self) -> bool:
        """Whether the cells are differences."""
        return bool(self.method)

    @property
    def title(self) -> str:
        """What the numbers are."""
        return self.metric + (" difference" if self.paired else "")

    @property
    def titles(self) -> Tuple[str, ...]:
        """The arms' names for people."""
        method = f"{ARM_TITLES[self.method]} - " if self.paired else ""
        return tuple(method + ARM_TITLES.get(arm, arm) for arm in self.arms)

    @property
    def note(self) -> str:
        """What the columns mean, where they need it."""
        if self.paired:
            return "Subtracted within each run, then mean ± sample standard deviation over the runs."
        return next((note for arm, note in ARM_NOTES.items() if arm in self.arms), "")

    def text(self, cell: Optional[Cell]) -> str:
        """A cell for people: a share as per cent (a difference in points), anything else with four digits."""
        if cell is None:
            return "-"
        share = self.metric == "accuracy" or self.metric.endswith(("_accuracy", "_share", "_success"))
        sign = "+" if self.paired and cell.mean > 0 else ""
        spread = "" if cell.spread is None else f" ± {_number(cell.spread, share)}"
        unit = (" points" if self.paired else " %") if share else ""
        return sign + _number(cell.mean, share) + spread + unit


def _number(value: float, share: bool) -> str:
    if share:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def read_job(directory: Path) -> Dict[str, Any]:
    """The content of ``job.json``, or nothing if the run did not come that far."""
    try:
        record: Dict[str, Any] = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def require_one_job(runs: Sequence[Path]) -> Dict[Path, str]:
    """Check that directories are different runs of one job, apart from seeds; how each run ended.

    Raises:
        ExtensionError: E531 a directory is no run, E532 it is given twice, E533 the jobs differ.
    """
    jobs = read_jobs(runs)
    first = next(iter(jobs.values()), {})
    for run, job in jobs.items():
        if job != first:
            where, one, other = next(differences(first, job))
            raise ExtensionError("E533", first=runs[0], second=run, where=where, one=one, other=other)
    return {run: how_it_ended(run) for run in runs}


def read_jobs(runs: Sequence[Path]) -> Dict[Path, Dict[str, Any]]:
    """The job of each run, without its seeds.

    Raises:
        ExtensionError: E531 a directory is no run, E532 it is given twice.
    """
    jobs: Dict[Path, Dict[str, Any]] = {}
    seen: Dict[Path, Path] = {}
    for run in runs:
        if not (run / "dag.yaml").is_file():
            raise ExtensionError("E531", path=run)
        if run.resolve() in seen:
            raise ExtensionError("E532", path=run, runs=len(runs))
        jobs[run] = _without_seeds(read_document(run / "dag.yaml")[0])
        seen[run.resolve()] = run
    return jobs


def how_it_ended(run: Path) -> str:
    """A run's outcome, ``success`` or another word."""
    return str(read_job(run).get("status", "still running, or killed"))


def _without_seeds(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_seeds(value) for key, value in node.items() if key != "seed"}
    return [_without_seeds(value) for value in node] if isinstance(node, list) else node


def differences(one: Any, other: Any, path: str = "") -> Iterator[Tuple[str, Any, Any]]:
    """(dotted path, value, value) wherever two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif one != other:
        yield path, one, other


def read_events(directory: Path) -> Dict[str, Dict[str, List[Event]]]:
    """Task -> party key -> events, tasks in the order they ran."""
    found: Dict[str, Dict[str, List[Event]]] = {}
    order = read_job(directory).get("order", [])
    folders = [one for one in directory.iterdir() if one.is_dir() and not one.name.startswith(".")]
    for task in sorted(folders, key=lambda one: (order.index(one.name) if one.name in order else len(order), one.name)):
        for path in sorted(task.glob("*/events.jsonl")):
            follower = Follower(path)
            found.setdefault(task.name, {})[path.parent.name] = follower.read()
            follower.close()
    return found


def result_tables(runs: Sequence[Dict[str, Dict[str, List[Event]]]]) -> List[ResultTable]:
    """Tables of the ``result`` events of one or several runs; accuracy before other metrics.

    With several runs, each table is followed by the paired differences between the method and its baselines.
    """
    values: Dict[Tuple[str, str], _Values] = {}
    differences: Dict[Tuple[str, str, str], _Values] = {}
    for run in runs:
        for task, parties in run.items():
            for metric, rows in _with_mean(_one_run(parties)).items():
                _collect(values.setdefault((task, metric), {}), rows)
                for method in _METHODS:
                    _collect(differences.setdefault((task, metric, method), {}), _gains(rows, method))
    tables: List[ResultTable] = []
    for (task, metric), found in values.items():
        tables.append(_table(task, metric, found))
        for method in _METHODS:
            if len(runs) > 1 and differences[task, metric, method]:
                tables.append(_table(task, metric, differences[task, metric, method], method))
    return sorted(tables, key=lambda table: _PREFERRED.index(table.metric) if table.metric in _PREFERRED else 9)


def party_order(party: str) -> Tuple[bool, bool, str]:
    """Sort key: clients, then the arbiter, then the mean."""
    return party == CLIENTS, party.startswith("arbiter"), party


def main_tables(tables: Sequence[ResultTable]) -> List[ResultTable]:
    """The tables of the first metric of each task: those to print."""
    metrics = {table.task: table.metric for table in reversed(tables)}
    return [table for table in tables if table.metric == metrics[table.task]]


def _one_run(parties: Dict[str, List[Event]]) -> Dict[str, Dict[str, Dict[str, float]]]:
    """Metric -> party -> arm -> value; the last event of a kind counts."""
    found: Dict[str, Dict[str, Dict[str, float]]] = {}
    for party, events in parties.items():
        for event in events:
            value = event.get("value")
            if event.get("type") == "result" and isinstance(value, (int, float)):
                rows = found.setdefault(str(event.get("metric")), {})
                rows.setdefault(party, {})[str(event.get("arm"))] = float(value)
    return found


def _with_mean(found: Dict[str, Dict[str, Dict[str, float]]]) -> Dict[str, Dict[str, Dict[str, float]]]:
    for rows in found.values():
        clients = [arms for party, arms in rows.items() if _is_client(party)]
        if len(clients) > 1:
            arms = [arm for arm in clients[0] if all(arm in one for one in clients)]
            rows[CLIENTS] = {arm: statistics.fmean(one[arm] for one in clients) for arm in arms}
    return found


def _gains(rows: Dict[str, Dict[str, float]], method: str) -> Dict[str, Dict[str, float]]:
    """The method minus each baseline, for the clients' mean (a single client itself) and the arbiter."""
    shown = {
        party: arms
        for party, arms in rows.items()
        if party == CLIENTS or party.startswith("arbiter") or (CLIENTS not in rows and _is_client(party))
    }
    gains = {
        party: {arm: arms[method] - arms[arm] for arm in _METHODS[method] if arm in arms and method in arms}
        for party, arms in shown.items()
    }
    return {party: arms for party, arms in gains.items() if arms}


def _is_client(party: str) -> bool:
    return party.split("_")[0] in _CLIENT_ROLES


def _collect(table: _Values, rows: Dict[str, Dict[str, float]]) -> None:
    for party, arms in rows.items():
        for arm, value in arms.items():
            table.setdefault(party, {}).setdefault(arm, []).append(value)


def _table(task: str, metric: str, rows: _Values, method: str = "") -> ResultTable:
    seen = list(dict.fromkeys(arm for arms in rows.values() for arm in arms))
    arms = sorted(seen, key=lambda arm: ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER))
    order = sorted(rows, key=party_order)
    cells = {party: {arm: _cell(values) for arm, values in rows[party].items()} for party in order}
    return ResultTable(task, metric, tuple(arms), cells, method)


def _cell(values: List[float]) -> Cell:
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
