"""The privacy ledger: what a site has released about its tables, and what it still may.

One hash-chained file per content of a table (its fingerprint) in the site's state folder, see
:mod:`~fate_llm_ext.privacy.chain`. A release is charged before it happens: a crash in between costs budget,
never the reverse. What counts against a budget is everything released about the table of this name or about
these records under any name, and so on from there: a table that gains a row keeps its history.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Set, Tuple, Union

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.privacy import chain as chains
from fate_llm_ext.privacy.accountants import Accountant, epsilon
from fate_llm_ext.privacy.chain import Chain
from fate_llm_ext.privacy.events import (
    Budget,
    DataSet,
    Gaussian,
    Mechanism,
    Release,
    check_mechanism,
    mechanism_from_dict,
    mechanism_to_dict,
)
from fate_llm_ext.privacy.report import show_epsilon

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One charged release.

    Attributes:
        sequence: its place in the file of its data set.
        time: UTC, ISO 8601.
        data: what it is about.
        release: what was released.
        resumes: hash of the entry that has paid for it already, of the same release before an interruption.
        hash: of this entry.
    """

    sequence: int
    time: str
    data: DataSet
    release: Release
    resumes: Optional[str]
    hash: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a release is charged; without one nothing may leave.

    Attributes:
        hash: of the entry; give it as ``resumes`` when the very same release goes on after an interruption.
        entry: what was written.
        alone: ε of this release at the budget's δ; inf without a budget.
        composed: ε of everything released about the table, this one included.
        budget: what is allowed, None if the site sets nothing.
        accountant: which computed both.
    """

    hash: str
    entry: Entry
    alone: float
    composed: float
    budget: Optional[Budget]
    accountant: Accountant


class Ledger:
    """The ledger of one site.

    Args:
        folder: :meth:`fate_llm_ext.site.Site.ledger`; made when the first release is charged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def charge(
        self,
        data: DataSet,
        release: Release,
        budget: Optional[Budget],
        accountant: Accountant = "prv",
        resumes: Optional[str] = None,
    ) -> Receipt:
        """Write a release down, durably, if the budget allows it; call before anything leaves.

        Args:
            data: the table.
            release: all that is about to leave; charged twice it costs twice.
            budget: of the table; its δ decides. None allows only what is not private anyway, with a warning.
            accountant: how to compose.
            resumes: receipt of the same release before an interruption, from the checkpoint it goes on from; it
                costs nothing again.

        Raises:
            ExtensionError: E610 over budget, E611 not private under a finite budget, E616 no budget, E612 if the
                ledger is damaged, E617 if ``resumes`` is no receipt of this release, E618 if the disk refuses,
                E601, E602 or E619 for what cannot be classified. Nothing is written then.
        """
        _check(data, release)
        _check_kind(data, release, budget)
        with chains.locked(self.folder):
            found = chains.read_all(self.folder)
            entries = self._entries(found)
            if resumes is not None:
                _check_resumed(entries, data, release, resumes)
            before = _related(entries, data.table, data.fingerprint)
            spent = _mechanisms(before)
            own: Tuple[Mechanism, ...] = () if resumes is not None else release.mechanisms
            composed = math.inf
            if budget is not None:
                composed = epsilon([*spent, *own], budget.delta, accountant)
            if budget is None or composed <= budget.epsilon:
                chain = next((one for one in found if one.name == data.fingerprint), Chain(data.fingerprint))
                entry = _parse(chains.append(self.folder, chain, _content(data, release, resumes)))
        alone = math.inf if budget is None else epsilon(release.mechanisms, budget.delta, accountant)
        if budget is not None and composed > budget.epsilon:
            raise _over_budget(data, release, budget, accountant, spent, len(before), alone, composed)
        if not release.private:
            logger.warning("%s of %s leaves without differential privacy (epsilon = inf)", release.what, data.table)
        return Receipt(entry.hash, entry, alone, composed, budget, accountant)

    def quote(
        self,
        data: DataSet,
        release: Release,
        budget: Optional[Budget],
        accountant: Accountant = "prv",
        pending: Sequence[Mechanism] = (),
    ) -> float:
        """ε of everything released about the table if this were charged now; nothing is written.

        Args:
            data: the table.
            release: what would leave.
            budget: of the table.
            accountant: how to compose.
            pending: what else will have been charged by then.

        Raises:
            ExtensionError: E610, E611, E612 or E616, as :meth:`charge` would.
        """
        _check_kind(data, release, budget)
        before = self.about(data)
        if budget is None:
            return math.inf
        spent = [*_mechanisms(before), *pending]
        composed = epsilon([*spent, *release.mechanisms], budget.delta, accountant)
        if composed > budget.epsilon:
            alone = epsilon(release.mechanisms, budget.delta, accountant)
            raise _over_budget(data, release, budget, accountant, spent, len(before), alone, composed)
        return composed

    def entries(self) -> List[Entry]:
        """All releases, by time.

        Raises:
            ExtensionError: E612 if the ledger is damaged.
        """
        return self._entries(self._read())

    def about(self, data: Union[DataSet, str]) -> List[Entry]:
        """The releases that count against the budget of a table (or data set), by time."""
        table, fingerprint = (data, None) if isinstance(data, str) else (data.table, data.fingerprint)
        return _related(self.entries(), table, fingerprint)

    def mechanisms(self, data: Union[DataSet, str]) -> Tuple[Mechanism, ...]:
        """What has touched a table (or data set) so far, for :func:`~.accountants.noise_multiplier`."""
        return _mechanisms(self.about(data))

    def spent(self, data: Union[DataSet, str], delta: float, accountant: Accountant = "prv") -> float:
        """ε at δ of everything released about a table (or data set) so far.

        Raises:
            ExtensionError: E612 if the ledger is damaged.
        """
        return epsilon(self.mechanisms(data), delta, accountant)

    def verify(self) -> List[Problem]:
        """Everything that is wrong: changed, removed, added, moved and cut-off entries, torn ends, unknown kinds.

        A torn end is what a crash leaves; the next charge marks it and goes on. Anything else stops all charges.
        """
        found = self._read()
        problems = [problem for chain in found for problem in chain.problems + _unknown(chain, found)]
        torn = [
            Problem(f"{chain.name}.jsonl", ExtensionError("E615", bytes=len(chain.torn)))
            for chain in found
            if chain.torn and not chain.problems
        ]
        return problems + torn

    def _read(self) -> List[Chain]:
        if not self.folder.exists():
            return []
        with chains.locked(self.folder, exclusive=False):
            return chains.read_all(self.folder)

    def _entries(self, found: Sequence[Chain]) -> List[Entry]:
        problems = [problem for chain in found for problem in chain.problems + _unknown(chain, found)]
        if problems:
            text = "; ".join(map(str, problems[:3])) + (" ..." if len(problems) > 3 else "")
            raise ExtensionError("E612", path=self.folder, count=len(problems), problems=text)
        parsed = [_parse(line) for chain in found for line in chain.entries]
        return sorted(parsed, key=lambda entry: (entry.time, entry.data.fingerprint, entry.sequence))


def _check(data: DataSet, release: Release) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", data.fingerprint) or not data.table:
        raise ExtensionError("E619", reason=f"table {data.table!r}, fingerprint {data.fingerprint[:80]!r}")
    if not release.mechanisms:
        raise ExtensionError("E619", reason="it names no mechanism")
    for mechanism in release.mechanisms:
        mechanism_from_dict(mechanism_to_dict(check_mechanism(mechanism)))


def _check_kind(data: DataSet, release: Release, budget: Optional[Budget]) -> None:
    """Whether the budget allows releases of this kind at all."""
    if budget is None and release.private:
        raise ExtensionError("E616", table=data.table, known="nothing")
    if budget is not None and not release.private and math.isfinite(budget.epsilon):
        raise ExtensionError(
            "E611", what=release.what, table=data.table, budget=f"{budget.epsilon:g}", delta=f"{budget.delta:g}"
        )


def _check_resumed(entries: Sequence[Entry], data: DataSet, release: Release, resumes: str) -> None:
    earlier = next((entry for entry in entries if entry.hash == resumes), None)
    if earlier is None:
        raise ExtensionError("E617", receipt=resumes[:12], reason="the ledger holds no such entry")
    for name, old, new in (
        ("data set", earlier.data.fingerprint, data.fingerprint),
        ("algorithm", earlier.release.algorithm, release.algorithm),
        ("what is released", earlier.release.what, release.what),
        ("recipients", earlier.release.recipients, release.recipients),
        ("mechanisms", earlier.release.mechanisms, release.mechanisms),
    ):
        if old != new:
            raise ExtensionError("E617", receipt=resumes[:12], reason=f"it is about other {name}: {old} and {new}")


def _related(entries: Sequence[Entry], table: str, fingerprint: Optional[str]) -> List[Entry]:
    """Entries about the same records, by name or by content, and by what these have in common with others."""
    tables: Set[str] = {table}
    contents: Set[Optional[str]] = {fingerprint}
    related: List[Entry] = []
    while True:
        grown = [one for one in entries if one.data.table in tables or one.data.fingerprint in contents]
        if len(grown) == len(related):
            return grown
        related = grown
        tables.update(one.data.table for one in related)
        contents.update(one.data.fingerprint for one in related)


def _mechanisms(entries: Sequence[Entry]) -> Tuple[Mechanism, ...]:
    return tuple(mechanism for one in entries if one.resumes is None for mechanism in one.release.mechanisms)


def _over_budget(
    data: DataSet,
    release: Release,
    budget: Budget,
    accountant: Accountant,
    spent: Sequence[Mechanism],
    releases: int,
    alone: float,
    composed: float,
) -> ExtensionError:
    before = epsilon(spent, budget.delta, accountant)
    left = left_over(spent, budget, accountant)
    advice = "Nothing is left: the owner of the table may raise its budget in the site file"
    if left > 0:
        most = f"ε = {show_epsilon(left, down=True)} at δ = {budget.delta:g}"
        advice = f"Ask for {most} at most, or let the owner of the table raise its budget in the site file"
    if math.isinf(before):
        advice = "It has left without differential privacy before; no budget can hold any more"
    return ExtensionError(
        "E610",
        what=release.what,
        table=data.table,
        alone=f"{alone:.4g}",
        spent=f"{before:.4g}",
        releases=releases,
        composed=f"{composed:.4g}",
        budget=f"{budget.epsilon:g}",
        delta=f"{budget.delta:g}",
        accountant=accountant,
        advice=advice,
    )


def left_over(spent: Sequence[Mechanism], budget: Budget, accountant: Accountant = "prv") -> float:
    """ε, at the budget's δ, of the largest Gaussian release that still fits; of DP-SGD about as much fits."""
    low, high = 1e-3, 2e-3  # sensitivity / σ

    def fits(mu: float) -> bool:
        return epsilon([*spent, Gaussian(1 / mu)], budget.delta, accountant) <= budget.epsilon

    if not fits(low):
        return 0.0
    while high < 1e3 and fits(high):  # from below: accountants do not like absurdly little noise
        low, high = high, 2 * high
    while high > low * 1.005:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return epsilon([Gaussian(1 / low)], budget.delta, accountant)


def _content(data: DataSet, release: Release, resumes: Optional[str]) -> Mapping[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "data": dataclasses.asdict(data),
        "release": {
            "algorithm": release.algorithm,
            "job": release.job,
            "what": release.what,
            "recipients": list(release.recipients),
            "mechanisms": [mechanism_to_dict(one) for one in release.mechanisms],
        },
        "resumes": resumes,
    }


def _parse(line: Mapping[str, Any]) -> Entry:
    release = line["release"]
    return Entry(
        sequence=int(line["sequence"]),
        time=str(line["time"]),
        data=DataSet(**line["data"]),
        release=Release(
            algorithm=str(release["algorithm"]),
            job=str(release["job"]),
            what=str(release["what"]),
            recipients=tuple(map(str, release["recipients"])),
            mechanisms=tuple(mechanism_from_dict(one) for one in release["mechanisms"]),
        ),
        resumes=line["resumes"],
        hash=str(line["hash"]),
    )


def _unknown(chain: Chain, found: Sequence[Chain]) -> List[Problem]:
    """Entries that are whole but cannot be understood: fields or mechanisms of another version."""
    hashes = {line["hash"] for one in found for line in one.entries}
    problems = []
    for line in chain.entries:
        reason = None
        try:
            entry = _parse(line)
            if entry.data.fingerprint != chain.name:
                reason = "belongs to another data set"
            elif entry.resumes is not None and entry.resumes not in hashes:
                reason = "resumes a release that is not there"
        except ExtensionError as error:
            reason = f"cannot be classified ({error.problem})"
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks a field or has one too many ({error})"
        if reason is not None:
            where = f"{chain.name}.jsonl"
            problems.append(Problem(where, ExtensionError("E613", line=line.get("sequence"), reason=reason)))
    return problems
