"""What the ledgers of a site file say: releases, spending and budget of each table, and whether they are whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.privacy.events import mechanism_to_dict
from fate_llm_ext.privacy.report import LedgerTotal, to_json
from fate_llm_ext.site import Budget, Site, load_sites

if TYPE_CHECKING:
    from fate_llm_ext.privacy.ledger import Entry, Ledger


@dataclass(frozen=True)
class Spending:
    """One table of one party.

    Attributes:
        party: the section of the site file, "" for a file of one site; sections with one ledger are named together.
        table: ``<namespace>/<name>``.
        records: as of the last release, None before the first.
        total: spending and budget.
        entries: the releases that count against the budget, by time; with ε of each alone at the total's δ.
    """

    party: str
    table: str
    records: Optional[int]
    total: LedgerTotal
    entries: List[Tuple[Entry, float]]

    def to_dict(self) -> Dict[str, Any]:
        """What JSON can hold."""
        budget = self.total.budget
        return {
            "party": self.party,
            "table": self.table,
            "records": self.records,
            "epsilon": to_json(self.total.epsilon),
            "delta": self.total.delta,
            "budget": None if budget is None else {"epsilon": to_json(budget.epsilon), "delta": budget.delta},
            "left": to_json(self.total.left),
            "releases": [_entry(entry, alone) for entry, alone in self.entries],
        }


@dataclass(frozen=True)
class Checked:
    """One party's ledger: where it is, how many releases it holds, what is wrong with it."""

    party: str
    folder: Path
    releases: int
    problems: List[Problem]


def spending(
    sites_path: Path, root: Optional[str] = None, party: Optional[str] = None, table: Optional[str] = None
) -> List[Spending]:
    """Every table that has a budget or a release.

    Args:
        sites_path: the site file.
        root: folder that its relative paths start at.
        party: only this section.
        table: only this table.

    Raises:
        ExtensionError: E114 if there is no such section, E612 if a ledger is damaged.
    """
    found = []
    for name, site, ledger in _ledgers(sites_path, root, party):
        entries = ledger.entries()

        for one in sorted({*site.budgets, *(entry.data.table for entry in entries)}):
            if table in (None, one):
                found.append(_spending(name, site, ledger, one))
    return found


def verify(sites_path: Path, root: Optional[str] = None) -> List[Checked]:
    """Check every ledger of a site file."""
    found = []
    for name, _, ledger in _ledgers(sites_path, root, None):
        problems = ledger.verify()
        releases = 0 if problems else len(ledger.entries())
        found.append(Checked(name, ledger.folder, releases, problems))
    return found


def _ledgers(sites_path: Path, root: Optional[str], party: Optional[str]) -> Iterator[Tuple[str, Site, Ledger]]:
    from fate_llm_ext.privacy.ledger import Ledger

    sites = load_sites(sites_path, root)
    if party is not None and party not in sites:
        raise ExtensionError("E114", path=sites_path, party=party, known=", ".join(sorted(sites)))
    found: Dict[Path, List[str]] = {}
    for name, site in sites.items():
        if party in (None, name):
            found.setdefault(site.ledger(), []).append(name)
    for folder, names in found.items():
        yield ", ".join(names), sites[names[0]], Ledger(folder)


def _spending(party: str, site: Site, ledger: Ledger, table: str) -> Spending:
    from fate_llm_ext.privacy.accountants import default_delta, epsilon

    entries = ledger.about(table)
    budget: Optional[Budget] = site.budget_if_any(table)
    records = entries[-1].data.records if entries else None
    delta = budget.delta if budget else default_delta(max(2, records or 0))
    spent = ledger.spent(table, delta) if entries else 0.0
    alone = [epsilon(one.release.mechanisms, delta) for one in entries]
    return Spending(party, table, records, LedgerTotal(spent, delta, len(entries), budget), list(zip(entries, alone)))


def _entry(entry: Entry, alone: float) -> Dict[str, Any]:
    release = entry.release
    return {
        "time": entry.time,
        "table": entry.data.table,
        "records": entry.data.records,
        "fingerprint": entry.data.fingerprint,
        "algorithm": release.algorithm,
        "job": release.job,
        "what": release.what,
        "recipients": list(release.recipients),
        "mechanisms": [_finite(mechanism_to_dict(one)) for one in release.mechanisms],
        "epsilon": to_json(alone),
        "hash": entry.hash,
    }


def _finite(fields: Dict[str, Any]) -> Dict[str, Any]:
    return {name: to_json(value) for name, value in fields.items()}
