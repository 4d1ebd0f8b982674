"""The privacy ledger: what a site has released about its tables, and what it still may.

One hash-chained file per content of a table (its fingerprint) in the site's state folder, see
:mod:`~fate_llm_ext.privacy.chain`. A release is charged before it happens: a crash in between costs budget,
never the reverse. What counts against a budget is everything released about the table of this name or about
these records under any name, and so on from there: a table that gains a row keeps its history. The budgets of
all these tables must hold, because a job chooses the name under which it reads.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.privacy import chain as chains
from fate_llm_ext.privacy.accountants import Accountant, epsilon
from fate_llm_ext.privacy.chain import Chain
from fate_llm_ext.privacy.events import (
    DataSet,
    Mechanism,
    Release,
    check_mechanism,
    mechanism_from_dict,
    mechanism_to_dict,
)
from fate_llm_ext.privacy.limits import (
    Charge,
    check_allowed,
    compose,
    first_over,
    limits,
    mechanisms,
    over_budget,
    related,
)
from fate_llm_ext.site import Budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry(Charge):
    """A charge in the ledger.

    Attributes:
        sequence: its place in the file of its data set.
        time: UTC, ISO 8601.
        hash: of this entry.
    """

    sequence: int
    time: str
    hash: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a release is charged; without one nothing may leave.

    Attributes:
        hash: of the entry.
        entry: what was written.
        alone: ε of this release at the budget's δ; inf without a budget.
        composed: ε of everything released about the table, this one included.
        budget: what is allowed for the table, None if the site sets nothing.
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
        self, data: DataSet, release: Release, budgets: Mapping[str, Budget], accountant: Accountant = "prv"
    ) -> Receipt:
        """Write a release down, durably, if the budgets allow it; call before anything leaves.

        Args:
            data: the table.
            release: all that is about to leave; charged twice it costs twice.
            budgets: all of the site's, by table. The one of this table and those of all tables that the ledger
                relates to it must hold, each at its own δ. An empty map allows only what is not private anyway,
                with a warning.
            accountant: how to compose.

        Raises:
            ExtensionError: E610 over budget, E611 not private under a finite budget, E616 no budget, E608 if a
                budget's δ is no privacy for so many records, E612 if the ledger is damaged, E618 if the disk
                refuses, E601, E602 or E619 for what cannot be classified. Nothing is written then.
        """
        _check(data, release)
        check_allowed(data, release, budgets)
        with chains.locked(self.folder):
            found = chains.read_all(self.folder)
            before = related(self._entries(found), data)
            allowed = limits(data, release, budgets, before)
            over = first_over(allowed, before, release, accountant)
            if over is None:
                chain = next((one for one in found if one.name == data.fingerprint), Chain(data.fingerprint))
                entry = _parse(chains.append(self.folder, chain, _content(data, release)))
        if over is not None:
            raise over_budget(data, release, allowed, over, accountant, before)
        if not release.private:
            logger.warning("%s of %s leaves without differential privacy (epsilon = inf)", release.what, data.table)
        budget = budgets.get(data.table)
        alone, composed = (compose(of, release, budget, accountant) for of in ((), before))
        return Receipt(entry.hash, entry, alone, composed, budget, accountant)

    def quote(
        self,
        data: DataSet,
        release: Release,
        budgets: Mapping[str, Budget],
        accountant: Accountant = "prv",
        pending: Sequence[Charge] = (),
    ) -> float:
        """ε of everything released about the table if this were charged now; nothing is written.

        Args:
            data: the table.
            release: what would leave.
            budgets: all of the site's, by table.
            accountant: how to compose.
            pending: what else will have been charged by then, about whatever table.

        Raises:
            ExtensionError: E608, E610, E611, E612 or E616, as :meth:`charge` would.
        """
        check_allowed(data, release, budgets)
        before = related([*self.entries(), *pending], data)
        allowed = limits(data, release, budgets, before)
        over = first_over(allowed, before, release, accountant)
        if over is not None:
            raise over_budget(data, release, allowed, over, accountant, before)
        return compose(before, release, budgets.get(data.table), accountant)

    def entries(self) -> List[Entry]:
        """All releases, by time.

        Raises:
            ExtensionError: E612 if the ledger is damaged.
        """
        return self._entries(self._read())

    def about(self, data: Union[DataSet, str]) -> List[Entry]:
        """The releases that count against the budget of a table (or data set), by time."""
        return related(self.entries(), data)

    def mechanisms(self, data: Union[DataSet, str], pending: Sequence[Charge] = ()) -> Tuple[Mechanism, ...]:
        """What has touched a table (or data set) so far, for :func:`~.accountants.noise_multiplier`.

        Args:
            data: the table.
            pending: what else will have been charged by then, about whatever table.
        """
        return mechanisms(related([*self.entries(), *pending], data))

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
        problems = [problem for chain in found for problem in chain.problems + _unknown(chain)]
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
        problems = [problem for chain in found for problem in chain.problems + _unknown(chain)]
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


def _content(data: DataSet, release: Release) -> Mapping[str, Any]:
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
        hash=str(line["hash"]),
    )


def _unknown(chain: Chain) -> List[Problem]:
    """Entries that are whole but cannot be understood: fields or mechanisms of another version."""
    problems = []
    for line in chain.entries:
        reason = None
        try:
            if _parse(line).data.fingerprint != chain.name:
                reason = "belongs to another data set"
        except ExtensionError as error:
            reason = f"cannot be classified ({error.problem})"
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks a field or has one too many ({error})"
        if reason is not None:
            where = f"{chain.name}.jsonl"
            problems.append(Problem(where, ExtensionError("E613", line=line.get("sequence"), reason=reason)))
    return problems
