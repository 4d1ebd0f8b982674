"""The parties' privacy statements, as the page and the terminal show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from fate_llm_ext.privacy import report
from fate_llm_ext.report.series import Event, Parties, label


@dataclass(frozen=True)
class PrivacyView:
    """What a task's section shows.

    Attributes:
        totals: party, guarantee, and where its ledger stands.
        releases: party, what, to whom, ε, mechanisms; one row per release.
        notes: what several parties may say alike, once: (parties, [(name, text)]).
        silent: parties that ended without a statement.
    """

    totals: List[List[str]]
    releases: List[List[str]]
    notes: List[Tuple[str, List[Tuple[str, str]]]]
    silent: List[str]


def view(parties: Parties) -> Optional[PrivacyView]:
    """The section of one task; None if none of its parties made a statement."""
    found = statements(parties)
    if not found:
        return None
    notes: Dict[Tuple[Tuple[str, str], ...], List[str]] = {}
    for party, one in found.items():
        notes.setdefault(tuple(_notes(one)), []).append(label(party))
    return PrivacyView(
        [_total(party, one) for party, one in found.items()],
        [row for party, one in found.items() for row in _releases(party, one)],
        [(", ".join(names), list(texts)) for texts, names in notes.items()],
        [label(party) for party in parties if party not in found],
    )


def statements(parties: Parties) -> Dict[str, Mapping[str, Any]]:
    """The last statement of each party that made one."""
    found: Dict[str, Mapping[str, Any]] = {}
    for party, events in parties.items():
        for event in events:
            if _is_statement(event):
                found[party] = event
    return found


def lines(tasks: Mapping[str, Parties]) -> List[str]:
    """A line per task and data owner from whom something left, for the end of a run."""
    found = []
    for parties in tasks.values():
        for _, one in sorted(statements(parties).items()):
            if one["data"] is not None and one["releases"]:
                found.append(report.headline(one))
    return found


def _is_statement(event: Event) -> bool:
    return event.get("type") == report.EVENT and all(key in event for key in ("party", "guarantee", "releases"))


def _total(party: str, one: Mapping[str, Any]) -> List[str]:
    data, guarantee, ledger = one["data"], one["guarantee"], one["ledger"]
    if data is None:
        return [label(party), "none", *["-"] * 7]
    spent, at, budget, left = "-", "-", "-", "-"
    if ledger is not None:
        at = report.show_delta(ledger["delta"])
        spent = report.show_epsilon(ledger["epsilon"])
        budget = "none" if ledger["budget"] is None else report.show_epsilon(ledger["budget"]["epsilon"])
        left = report.show_epsilon(ledger["left"], down=True)
    delta = "-" if guarantee["delta"] is None else report.show_delta(guarantee["delta"])
    epsilon = report.show_epsilon(guarantee["epsilon"])
    return [label(party), data["table"], f"{data['records']:,}", epsilon, delta, spent, at, budget, left]


def _releases(party: str, one: Mapping[str, Any]) -> List[List[str]]:
    return [
        [
            label(party),
            release["what"],
            ", ".join(release["recipients"]),
            "; ".join(release["how"]),
            report.show_epsilon(release["epsilon"]),
        ]
        for release in one["releases"]
    ]


def _notes(one: Mapping[str, Any]) -> List[Tuple[str, str]]:
    found = [("guarantee", one["guarantee"]["text"]), ("trust", one["trust"])]
    found += [(name, text) for name, text in report.facts(one)]
    found += [(artefact["name"], report.artefact_text(artefact)) for artefact in one["artefacts"]]
    for name, key in (("public", "public"), ("not covered", "not_covered")):
        if one[key]:
            found.append((name, "; ".join(one[key])))
    return found
