"""What a job would cost each data owner, before it runs: releases, ε, and what the ledgers would say.

Each algorithm tells, by the very function with which it charges, what it would release; the ledgers are read
and nothing is written.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Dag, Party, Task
from fate_llm_ext.pipelines.parameters import CONFIGS
from fate_llm_ext.privacy.events import DataSet, PostProcessing, fingerprint_records
from fate_llm_ext.privacy.report import show_delta, show_epsilon
from fate_llm_ext.site import Budget, Site, load_sites

if TYPE_CHECKING:
    from fate_llm_ext.algo.private import Planned
    from fate_llm_ext.privacy.limits import Charge

# What a component's stage releases: function of (config, data set, job, other parties) -> algo.private.Planned.
PLANS: Dict[Tuple[str, str], str] = {
    ("fedmkt", "train"): "fate_llm_ext.algo.fedmkt.release:plan",
    ("dpkd", "train"): "fate_llm_ext.algo.dpkd.release:plan",
    ("fdkt", "train"): "fate_llm_ext.algo.fdkt.release:plan",
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.release:plan",
}
# Stages whose release depends on the guarantee of an input model: its name. Their plan functions take (ε, δ) of the
# task that makes it as well; δ is None without privacy.
GUARANTEED_BY: Dict[Tuple[str, str], str] = {("fedcot", "train"): "generator"}
# Stages whose outputs stay at the party.
STAYS_HERE = frozenset(
    {("fedmkt", "predict"), ("fdkt", "predict"), ("fedcot", "predict"), ("text_evaluation", "default")}
)
JOB = "planned"  # in place of the id of a job that has none yet


@dataclass
class Line:
    """One task at one data owner.

    Attributes:
        table: ``<namespace>/<name>``, "" if it is known at run time only.
        data: the table's fingerprint and size, once it was read.
        planned: what would be released (:class:`~fate_llm_ext.algo.private.Planned`), None if nothing.
        epsilon: of this task at ``delta``, None if nothing is released.
        delta: of the budget; without one, of the job.
        spent: ε that the ledger would say before the task.
        after: and behind it.
        budget: what the site allows.
        stays: nothing leaves the party.
        refused: why the site would refuse the task.
        note: what else there is to say.
    """

    task: str
    party: Party
    table: str
    data: Optional[DataSet] = None
    planned: Optional[Any] = None
    epsilon: Optional[float] = None
    delta: Optional[float] = None
    spent: Optional[float] = None
    after: Optional[float] = None
    budget: Optional[Budget] = None
    stays: bool = False
    refused: Optional[ExtensionError] = None
    note: str = ""


def plan(dag: Dag, sites_path: Path, root: Optional[str] = None) -> List[Line]:
    """A line per task and data owner, in the order in which the tasks run.

    Args:
        dag: the job; run `check` on it first.
        sites_path: site file with the parties' tables, budgets and ledgers.
        root: folder that the site file's relative paths start at.
    """
    planner = _Planner(dag, load_sites(sites_path, root))
    return [line for task in dag.order() for line in planner.task(task)]


class _Planner:
    """Goes through the tasks; a later task finds what the earlier ones would have spent."""

    def __init__(self, dag: Dag, sites: Dict[str, Site]) -> None:
        self._dag = dag
        self._sites = sites
        self._pending: Dict[Path, List[Charge]] = {}
        self._planned: Dict[Tuple[str, Party], Planned] = {}

    def task(self, task: Task) -> List[Line]:
        """The lines of one task."""
        whole = catalog.component(task.component)
        part = catalog.stage_of(whole, task.stage)
        parties = catalog.parties_of(task, self._dag.parties, whole)
        lines = []
        for party in parties:
            for table in _tables(task, party, part):
                line = Line(task.name, party, table)
                lines.append(line)
                others = [str(one) for one in parties if one != party]
                try:
                    self._fill(line, task, part, others)
                except ExtensionError as error:
                    line.refused = error
        return lines

    def _fill(self, line: Line, task: Task, part: Any, others: List[str]) -> None:
        key = (task.component, task.stage)
        if key in STAYS_HERE:
            line.stays = True
        elif key not in PLANS:
            line.note = f"not known: {task.component} is no component of this package and writes no ledger"
        elif not line.table:
            line.note = "the table is known at run time only, when another task has written it"
        else:
            site = self._sites.get(line.party.key) or self._sites[""]
            line.data = _data_set(site, line.table)
            given = {name: value for name, value in task.parameters_of(line.party).items() if value is not None}
            config = _load(CONFIGS[key])(**{name: given[name] for name in part.parameters.mapping if name in given})
            source = _producer(task, line.party, GUARANTEED_BY.get(key))
            made = self._planned.get((source, line.party)) if source else None
            known = () if made is None else (_guarantee(made),)
            line.planned = _load(PLANS[key])(config, line.data, JOB, others, *known)
            self._planned[line.task, line.party] = line.planned
            self._ask(line, site)
            if not known and any(isinstance(one, PostProcessing) for one in line.planned.release.mechanisms):
                line.note = "the generator's guarantee is known when it is read: without one this costs ε = ∞"
            if made is not None and all(isinstance(one, PostProcessing) for one in line.planned.release.mechanisms):
                said = f"no further ε: all that leaves is computed from what {source} has paid for"
                line.note = "; ".join(filter(None, (said, line.note)))

    def _ask(self, line: Line, site: Site) -> None:
        """What the ledger has, would have, and whether the site would let it happen."""
        from fate_llm_ext.privacy.accountants import default_delta, epsilon
        from fate_llm_ext.privacy.ledger import Ledger
        from fate_llm_ext.privacy.limits import Charge

        data, planned, ledger = line.data, line.planned, Ledger(site.ledger())
        if data is None or planned is None:
            return
        line.budget = site.budget_if_any(line.table)
        line.delta = line.budget.delta if line.budget else planned.delta or default_delta(max(2, data.records))
        pending = self._pending.setdefault(site.ledger(), [])
        before = ledger.mechanisms(data, pending)
        line.epsilon = epsilon(planned.release.mechanisms, line.delta, planned.accountant)
        line.spent = epsilon(before, line.delta, planned.accountant)
        line.after = epsilon([*before, *planned.release.mechanisms], line.delta, planned.accountant)
        ledger.quote(data, planned.release, site.all_budgets(), planned.accountant, pending)
        pending.append(Charge(data, planned.release))
        if line.budget is None:
            line.note = f"no budget is set for {line.table}: the release is recorded, and nothing limits it"
        elif planned.delta not in (None, line.delta):
            asked = show_epsilon(epsilon(planned.release.mechanisms, planned.delta, planned.accountant))
            line.note = (
                f"ε = {asked} at the job's δ = {show_delta(planned.delta)} is {show_epsilon(line.epsilon)} at "
                f"δ = {show_delta(line.delta)}, which the table's budget counts"
            )


def _producer(task: Task, party: Party, model: Optional[str]) -> Optional[str]:
    """The task whose output a party gets as that input model."""
    sources = [source for one in task.inputs if one.name == model for source in one.sources_of(party)]
    linked = [source for source in sources if source.kind == "task_output_artifact"]
    return str(linked[0].fields["producer_task"]) if linked else None


def _guarantee(planned: Planned) -> Tuple[float, Optional[float]]:
    """(ε, δ) of a task as its own statement will give it; (inf, None) without privacy."""
    from fate_llm_ext.privacy.accountants import epsilon

    if planned.delta is None or not planned.release.private:
        return math.inf, None
    return epsilon(planned.release.mechanisms, planned.delta, planned.accountant), planned.delta


def _tables(task: Task, party: Party, part: Any) -> List[str]:
    """The tables that a task reads at a party; "" for one that another task writes."""
    declared = catalog.artifacts(part, "data", "inputs", task.stage, party.role)
    sources = [source for one in task.inputs if one.name in declared for source in one.sources_of(party)]
    return [
        f"{one.fields['namespace']}/{one.fields['name']}" if one.kind == "data_warehouse" else "" for one in sources
    ]


def _data_set(site: Site, table: str) -> DataSet:
    from fate_llm_ext.data.datasets import read_rows

    rows = read_rows(site.lookup("tables", table), "train")
    return DataSet(table, fingerprint_records(rows), len(rows))


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
