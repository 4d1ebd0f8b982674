"""A task's private table, what the task releases about it, and the way into its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence

from fate_llm_ext import worker
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.events import DataSet, Release, fingerprint_records
from fate_llm_ext.privacy.report import LedgerTotal, TrainingFacts
from fate_llm_ext.site import Budget, Site

if TYPE_CHECKING:
    from fate_llm_ext.privacy.accountants import Accountant
    from fate_llm_ext.privacy.ledger import Ledger


@dataclass(frozen=True)
class Planned:
    """What a task would release at one owner, before anything runs.

    Attributes:
        release: as the task charges it.
        delta: δ of the job; None where nothing is differentially private.
        accountant: who composes.
        training: parameters of DP-SGD, if it runs.
    """

    release: Release
    delta: Optional[float] = None
    accountant: Accountant = "prv"
    training: Optional[TrainingFacts] = None


def data_set(reader: Any, rows: Sequence[Mapping[str, Any]]) -> DataSet:
    """The private table as the ledger knows it.

    Args:
        reader: FATE's reader of the data input; it knows namespace and name.
        rows: all of its records, columns as in the file.
    """
    return DataSet(table_name(reader), fingerprint_records(rows), len(rows))


def table_name(reader: Any) -> str:
    """``<namespace>/<name>`` of a data input; of what another task wrote, the name of its folder.

    Raises:
        ExtensionError: E313 as :func:`fate_llm_ext.worker.table`.
    """
    metadata = reader.artifact.metadata
    folder = str(reader.get_directory())
    known = None if metadata.name else worker.table(folder)
    return known or f"{metadata.namespace or 'unnamed'}/{metadata.name or Path(folder).name}"


def job_id(ctx: Any) -> str:
    """What the ledger calls the job: FATE's federation id of this task, the same at every party."""
    return str(ctx.federation.session_id)


def refuse_early(site: Site, data: DataSet, planned: Planned) -> None:
    """Refuse before hours of training what :func:`charge` would refuse after them; nothing is written.

    Raises:
        ExtensionError: as :func:`charge`.
    """
    _ledger(site).quote(data, planned.release, site.all_budgets(), planned.accountant)


def charge(site: Site, data: DataSet, planned: Planned) -> LedgerTotal:
    """Write a release into the ledger of its table. To be called before anything computed from the table leaves.

    Returns:
        What the ledger then says about the table.

    Raises:
        ExtensionError: the refusals and failures of :meth:`fate_llm_ext.privacy.ledger.Ledger.charge`.
    """
    ledger = _ledger(site)
    ledger.charge(data, planned.release, site.all_budgets(), planned.accountant)
    return total(ledger, data, site.budget_if_any(data.table), planned)


def total(ledger: Ledger, data: DataSet, budget: Optional[Budget], planned: Planned) -> LedgerTotal:
    """What the ledger says about a table, at the budget's δ (without one, at the job's or the default)."""
    from fate_llm_ext.privacy.accountants import default_delta

    delta = budget.delta if budget else planned.delta or default_delta(max(2, data.records))
    return LedgerTotal(ledger.spent(data, delta, planned.accountant), delta, len(ledger.about(data)), budget)


def statement(party: str, data: DataSet, planned: Planned, ledger: LedgerTotal, **more: Any) -> Dict[str, Any]:
    """The statement of a data owner about one release; ``more`` as :func:`fate_llm_ext.privacy.report.statement`."""
    return report.statement(
        party,
        planned.release.algorithm,
        data=data,
        releases=[planned.release],
        delta=planned.delta,
        accountant=planned.accountant,
        training=planned.training,
        ledger=ledger,
        **more,
    )


def _ledger(site: Site) -> Ledger:
    from fate_llm_ext.privacy.ledger import Ledger

    return Ledger(site.ledger())
