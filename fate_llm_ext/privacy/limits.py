"""Which releases are about the same records, which budgets must hold for them, and what a refusal says.

Pure functions of charges and budgets; :mod:`~fate_llm_ext.privacy.ledger` keeps the charges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar, Union

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.accountants import Accountant, default_delta, epsilon
from fate_llm_ext.privacy.events import DataSet, Gaussian, Mechanism, Release
from fate_llm_ext.privacy.report import show_epsilon
from fate_llm_ext.site import Budget


@dataclass(frozen=True)
class Charge:
    """A release about a data set, in the ledger or not yet."""

    data: DataSet
    release: Release


AnyCharge = TypeVar("AnyCharge", bound=Charge)


def related(charges: Sequence[AnyCharge], data: Union[DataSet, str]) -> List[AnyCharge]:
    """Charges about the same records, by name or by content, and by what these have in common with others."""
    table, fingerprint = (data, None) if isinstance(data, str) else (data.table, data.fingerprint)
    tables: Set[str] = {table}
    contents: Set[Optional[str]] = {fingerprint}
    found: List[AnyCharge] = []
    while True:
        grown = [one for one in charges if one.data.table in tables or one.data.fingerprint in contents]
        if len(grown) == len(found):
            return grown
        found = grown
        tables.update(one.data.table for one in found)
        contents.update(one.data.fingerprint for one in found)


def mechanisms(charges: Sequence[Charge]) -> Tuple[Mechanism, ...]:
    """All that was released, to be composed."""
    return tuple(mechanism for one in charges for mechanism in one.release.mechanisms)


def check_allowed(data: DataSet, release: Release, budgets: Mapping[str, Budget]) -> None:
    """Whether a table of this name may be released from: as soon as a site sets budgets, every table needs one.

    A job names its table; without this rule a copy without budget would be a way around the budget.

    Raises:
        ExtensionError: E616 if the table has no budget; without any, what is not private is allowed.
    """
    if data.table not in budgets and (budgets or release.private):
        raise ExtensionError("E616", table=data.table, known=", ".join(sorted(budgets)) or "nothing")


def limits(
    data: DataSet, release: Release, budgets: Mapping[str, Budget], before: Sequence[Charge]
) -> Dict[str, Budget]:
    """The budgets that must hold: the table's own first, then those of the tables that earlier charges relate to it.

    Raises:
        ExtensionError: E608 if δ of a finite one is not below 1 / records, E611 if it is finite and the release not
            private.
    """
    others = {one.data.table for one in before} - {data.table}
    found = {table: budgets[table] for table in (data.table, *sorted(others)) if table in budgets}
    for table, budget in found.items():
        if math.isinf(budget.epsilon):
            continue
        if budget.delta * data.records >= 1:
            raise ExtensionError(
                "E608",
                table=table,
                delta=f"{budget.delta:g}",
                records=f"{data.records:,}",
                limit=f"{1 / data.records:.3g}",
                default=f"{default_delta(max(data.records, 2)):.2g}",
            )
        if not release.private:
            raise ExtensionError(
                "E611",
                what=release.what,
                table=data.table,
                budget=_allowed(data, table, budget),
                delta=f"{budget.delta:g}",
            )
    return found


def first_over(
    held: Mapping[str, Budget], before: Sequence[Charge], release: Release, accountant: Accountant
) -> Optional[str]:
    """The table whose budget would not hold; None if all of :func:`limits` do."""
    for table, budget in held.items():
        if compose(before, release, budget, accountant) > budget.epsilon:
            return table
    return None


def compose(before: Sequence[Charge], release: Release, budget: Optional[Budget], accountant: Accountant) -> float:
    """ε of earlier releases and this one at the budget's δ; inf without a budget."""
    if budget is None:
        return math.inf
    return epsilon([*mechanisms(before), *release.mechanisms], budget.delta, accountant)


def over_budget(
    data: DataSet,
    release: Release,
    held: Mapping[str, Budget],
    over: str,
    accountant: Accountant,
    earlier: Sequence[Charge],
) -> ExtensionError:
    """The refusal (E610) by the budget of table ``over``, with what would fit into all of ``held``."""
    budget, spent = held[over], mechanisms(earlier)
    before = epsilon(spent, budget.delta, accountant)
    left = left_over(spent, budget, accountant, others=list(held.values()))
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
        alone=f"{epsilon(release.mechanisms, budget.delta, accountant):.4g}",
        spent=f"{before:.4g}",
        releases=len(earlier),
        composed=f"{compose(earlier, release, budget, accountant):.4g}",
        budget=_allowed(data, over, budget),
        delta=f"{budget.delta:g}",
        accountant=accountant,
        advice=advice,
    )


def left_over(
    spent: Sequence[Mechanism], budget: Budget, accountant: Accountant = "prv", others: Sequence[Budget] = ()
) -> float:
    """ε, at the budget's δ, of the largest Gaussian release that still fits; of DP-SGD about as much fits.

    Args:
        spent: what was released before.
        budget: of the table.
        accountant: how to compose.
        others: more budgets that must hold.
    """
    low, high = 1e-3, 2e-3  # sensitivity / σ

    def fits(mu: float) -> bool:
        together = [*spent, Gaussian(1 / mu)]
        return all(epsilon(together, one.delta, accountant) <= one.epsilon for one in (budget, *others))

    if not fits(low):
        return 0.0
    while high < 1e3 and fits(high):  # from below: accountants do not like absurdly little noise
        low, high = high, 2 * high
    while high > low * 1.005:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return epsilon([Gaussian(1 / low)], budget.delta, accountant)


def _allowed(data: DataSet, table: str, budget: Budget) -> str:
    """A budget's ε for people, with the table that has it if it is another one."""
    related = "" if table == data.table else f" for {table}, which the ledger relates to it"
    return f"{budget.epsilon:g}{related}"
