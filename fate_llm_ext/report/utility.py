"""What privacy costs: accuracy over the success of attacks, a point for each strategy and ε."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from fate_llm_ext.pipelines.results import ARM_TITLES, CLIENTS, Cell, ResultTable, result_tables
from fate_llm_ext.report.charts import Mark, scatter_chart, shape
from fate_llm_ext.report.privacy import statements
from fate_llm_ext.report.series import Parties

ATTACK = "attack_success"
TITLE = "Privacy and utility"

_METRICS = ("accuracy", "nll_per_byte")  # the first that there is
_STYLES = ("standalone", "none", "exponential", "adaptive_exponential", "fixed_vocabulary", "metric", "dp_generator")
_OTHER = 7

Run = Mapping[str, Parties]  # task -> party -> events


@dataclass(frozen=True)
class UtilityPlot:
    """One task's plot.

    Attributes:
        task: its name.
        svg: the drawing.
        legend: (name, SVG of its mark).
        heads: of the table beside it, rows as drawn.
        note: how to read it.
    """

    task: str
    svg: str
    legend: List[Tuple[str, str]]
    heads: List[str]
    rows: List[List[str]]
    note: str


@dataclass(frozen=True)
class _Point:
    series: str
    epsilon: Optional[float]
    runs: int
    utility: Cell
    attack: Cell
    values: Tuple[float, ...]  # of the utility, one per run


def utility_plots(jobs: Sequence[Sequence[Run]]) -> List[UtilityPlot]:
    """A plot for each task of which a party has measured attacks.

    Args:
        jobs: the events of the runs of each job; runs of one job (seeds) are one point, their mean.
    """
    tables = [result_tables([dict(run) for run in runs]) for runs in jobs]
    tasks = dict.fromkeys(table.task for found in tables for table in found if table.metric == ATTACK)
    return [plot for task in tasks for plot in _plots(task, jobs, tables)]


def _plots(task: str, jobs: Sequence[Sequence[Run]], tables: Sequence[Sequence[ResultTable]]) -> List[UtilityPlot]:
    own = [{table.metric: table for table in found if table.task == task and not table.paired} for found in tables]
    metric = next((one for one in _METRICS if any(one in found and ATTACK in found for found in own)), None)
    if metric is None:
        return []
    points: List[_Point] = []
    for runs, found in zip(jobs, own):
        if metric in found and ATTACK in found:
            points += _points(task, runs, found[metric], found[ATTACK])
    points = _told_apart(points)
    points.sort(key=lambda one: (_style(one.series), one.series, one.epsilon or 0.0))
    if not points:
        return []
    name = metric.replace("_", " ")
    cells = next(found[metric] for found in own if metric in found)
    attacked = next(found[ATTACK] for found in own if ATTACK in found)
    marks = [_mark(one) for one in points]
    many = max(one.runs for one in points) > 1
    legend = {one.series: _key(_style(one.series)) for one in points}
    return [
        UtilityPlot(
            task,
            scatter_chart(marks, f"{TITLE}: {name} over attack success", "attack success", name, metric == "accuracy"),
            list(legend.items()),
            ["strategy", "ε of a word", "runs", name, "attack success"],
            [
                [
                    one.series,
                    _epsilon(one),
                    str(one.runs),
                    cells.text(one.utility),
                    attacked.text(one.attack),
                ]
                for one in points
            ],
            _note(metric, many),
        )
    ]


def _points(task: str, runs: Sequence[Run], utility: ResultTable, attacked: ResultTable) -> List[_Point]:
    """An arm's point is the mean of the clients; of a single client its own."""
    party = CLIENTS if CLIENTS in attacked.rows else next(iter(attacked.rows))
    perturbed = _perturbation(task, runs)
    found = []
    for arm, attack in attacked.rows[party].items():
        value = utility.rows.get(party, {}).get(arm)
        if value is None:
            continue
        series, epsilon = ARM_TITLES.get(arm, arm), None
        if arm != "standalone" and perturbed:
            series, epsilon = str(perturbed.get("strategy")), perturbed.get("epsilon")
        values = _values(task, utility.metric, party, arm, runs)
        found.append(_Point(series, epsilon, len(values), value, attack, values))
    return found


def _perturbation(task: str, runs: Sequence[Run]) -> Dict[str, Any]:
    """What the parties' statements say about strategy and ε: the same of all parties and runs of a job."""
    for run in runs:
        for statement in statements(run.get(task, {})).values():
            if isinstance(statement.get("perturbation"), dict):
                return dict(statement["perturbation"])
    return {}


def _values(task: str, metric: str, party: str, arm: str, runs: Sequence[Run]) -> Tuple[float, ...]:
    """The utility in each run that has one."""
    found = []
    for run in runs:
        for table in result_tables([{task: run[task]}] if task in run else []):
            cell = table.rows.get(party, {}).get(arm)
            if table.metric == metric and cell is not None:
                found.append(cell.mean)
    return tuple(found)


def _told_apart(points: Sequence[_Point]) -> List[_Point]:
    """Without points whose runs another one of their name has too: training alone, whatever the strategy."""
    kept: List[_Point] = []
    for point in sorted(points, key=lambda one: -one.runs):
        same = (
            one
            for one in kept
            if (one.series, one.epsilon, one.attack.mean) == (point.series, point.epsilon, point.attack.mean)
        )
        if not any(not Counter(point.values) - Counter(one.values) for one in same):
            kept.append(point)
    return kept


def _mark(point: _Point) -> Mark:
    return Mark(
        point.series,
        "" if point.epsilon is None else f"ε {point.epsilon:g}",
        point.attack.mean,
        point.utility.mean,
        point.attack.spread or 0.0,
        point.utility.spread or 0.0,
        _style(point.series),
    )


def _style(series: str) -> int:
    names = [ARM_TITLES.get(one, one) for one in _STYLES]
    return names.index(series) if series in names else _OTHER


def _key(style: int) -> str:
    return f'<svg viewBox="0 0 26 12"><path class="m{style}" d="{shape(style, 13, 6)}"/></svg>'


def _epsilon(point: _Point) -> str:
    return "-" if point.epsilon is None else f"{point.epsilon:g}"


def _note(metric: str, many: bool) -> str:
    said = "Means of the clients. Attack success: share of what is private in the questions that the best attack reads."
    said += " Standalone sends nothing."
    if metric == "nll_per_byte":
        said += " Of the nats per byte, less is better."
    return said + (" Bars: sample standard deviation over the runs." if many else "")
