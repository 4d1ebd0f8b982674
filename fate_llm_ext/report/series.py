"""From a run's events to what the page shows: curves, bytes, seconds. Only numbers and names pass."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fate_llm_ext.pipelines.results import ARM_ORDER
from fate_llm_ext.report.charts import Line, line_chart

Event = Dict[str, Any]
Parties = Dict[str, List[Event]]
_MOST_ROUND_COLUMNS = 12


@dataclass(frozen=True)
class Chart:
    """One metric: a panel per party, all with the same axis, and the arms of the legend."""

    metric: str
    panels: List[Tuple[str, str]]
    legend: List[Tuple[str, int]]


@dataclass(frozen=True)
class Grid:
    """A table: ``rows`` are (labels, cells)."""

    labels: List[str]
    columns: List[str]
    rows: List[Tuple[List[str], List[str]]]


def charts(parties: Parties) -> List[Chart]:
    """Curves of all metrics; a metric with a single point per line is no curve and left out."""
    lines: Dict[str, Dict[str, Dict[str, List[Event]]]] = {}
    for party, events in parties.items():
        for event in events:
            if event.get("type") == "metric" and _is_number(event.get("value")):
                by_party = lines.setdefault(str(event.get("name")), {})
                by_party.setdefault(party, {}).setdefault(str(event.get("arm") or "all"), []).append(event)
    arms = _ordered({arm for metric in lines.values() for party in metric.values() for arm in party})
    found = [_chart(metric, by_party, arms) for metric, by_party in lines.items()]
    return sorted((one for one in found if one), key=lambda one: (one.metric != "accuracy", one.metric))


def message_grid(parties: Parties) -> Optional[Grid]:
    """Bytes per party, direction and message name: one column per round and the total."""
    bytes_: Dict[Tuple[str, str, str], Counter[Any]] = {}
    counts: Counter[Tuple[str, str, str]] = Counter()
    for party, events in parties.items():
        for event in events:
            if event.get("type") == "message" and _is_number(event.get("bytes")):
                key = (label(party), str(event.get("direction")), str(event.get("name")))
                bytes_.setdefault(key, Counter())[event.get("round")] += int(event["bytes"])
                counts[key] += 1
    if not bytes_:
        return None
    rounds = sorted({one for row in bytes_.values() for one in row}, key=lambda one: -1 if one is None else one)
    shown = rounds if len(rounds) <= _MOST_ROUND_COLUMNS else []
    columns = ["messages", *("setup" if one is None else f"round {one}" for one in shown), "total"]
    rows: List[Tuple[List[str], List[str]]] = []
    for key, row in sorted(bytes_.items()):
        cells = [size(row[one]) if one in row else "" for one in shown]
        rows.append((list(key), [str(counts[key]), *cells, size(sum(row.values()))]))
    sent = {key: row for key, row in bytes_.items() if key[1] == "sent"}
    total = [size(sum(row[one] for row in sent.values())) for one in shown]
    number = str(sum(counts[key] for key in sent))
    rows.append((["all parties", "sent", ""], [number, *total, size(sum(sum(row.values()) for row in sent.values()))]))
    return Grid(["party", "direction", "message"], columns, rows)


def phase_grid(parties: Parties) -> Optional[Grid]:
    """Seconds per arm and phase, one column per party; a phase lasts until the party's next phase or last event."""
    seconds: Dict[Tuple[str, str], Counter[str]] = {}
    for party, events in parties.items():
        timed = [event for event in events if _is_number(event.get("time"))]
        phases = [event for event in timed if event.get("type") == "phase"]
        ends = [float(event["time"]) for event in phases[1:]] + [float(timed[-1]["time"])] if phases else []
        for event, end in zip(phases, ends):
            key = (str(event.get("arm") or ""), str(event.get("phase") or ""))
            seconds.setdefault(key, Counter())[party] += end - float(event["time"])  # type: ignore[assignment]
    if not seconds:
        return None
    rows = [(list(key), [_seconds(row.get(party)) for party in parties]) for key, row in seconds.items()]
    total = [_seconds(sum(row.get(party, 0) for row in seconds.values())) for party in parties]
    return Grid(["arm", "phase"], [label(party) for party in parties], [*rows, (["all", ""], total)])


def errors(parties: Parties) -> List[Tuple[str, str]]:
    """(party, message) of each `error` or `warning` event."""
    found: List[Tuple[str, str]] = []
    for party, events in parties.items():
        for event in events:
            if event.get("type") in ("error", "warning"):
                code, message = str(event.get("code", "")), str(event.get("message", ""))
                found.append((label(party), message if message.startswith(code) else f"{code} {message}"))
    return found


def label(party: str) -> str:
    """`guest 9999` for `guest_9999`."""
    return party.replace("_", " ", 1) if " " not in party else party


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _chart(metric: str, by_party: Dict[str, Dict[str, List[Event]]], arms: Sequence[str]) -> Optional[Chart]:
    panels: Dict[str, List[Line]] = {}
    for party, by_arm in by_party.items():
        lines = [Line(arm, _points(by_arm[arm]), _style(arm, arms)) for arm in arms if arm in by_arm]
        panels[party] = lines
    everything = [line for lines in panels.values() for line in lines]
    if all(len(line.points) < 2 for line in everything):
        return None
    values = [value for line in everything for _, value in line.points]
    share = metric == "accuracy" or (metric.endswith(("share", "_accuracy", "rate")) and max(values) <= 1)
    limits = (min(values), max(values))
    drawn = [(label(party), line_chart(lines, limits, share)) for party, lines in panels.items()]
    used = [arm for arm in arms if any(line.name == arm for line in everything)]
    return Chart(metric.replace("_", " "), drawn, [(arm, _style(arm, arms)) for arm in used])


def _points(events: List[Event]) -> Tuple[Tuple[float, float], ...]:
    """X is the round; several values of one round are spread evenly over it, without rounds x counts."""
    if not all(_is_number(event.get("round")) for event in events):
        return tuple((float(index), float(event["value"])) for index, event in enumerate(events))
    per_round = Counter(event["round"] for event in events)
    seen: Counter[Any] = Counter()
    points: List[Tuple[float, float]] = []
    for event in events:
        points.append((event["round"] + seen[event["round"]] / per_round[event["round"]], float(event["value"])))
        seen[event["round"]] += 1
    return tuple(sorted(points))


def _style(arm: str, arms: Sequence[str]) -> int:
    """Known arms always look the same; others share what is left."""
    if arm in ARM_ORDER:
        return ARM_ORDER.index(arm)
    return len(ARM_ORDER) + [one for one in arms if one not in ARM_ORDER].index(arm) % 2


def _ordered(arms: Any) -> List[str]:
    return sorted(arms, key=lambda arm: (ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER), arm))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.1f}"
