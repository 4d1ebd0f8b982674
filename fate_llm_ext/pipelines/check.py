"""Every problem of a job at once, before anything runs.

FATE (Flow) does not look at component names, parameters or links when a job is submitted: mistakes show
at run time, at one party, or never (unknown parameters are ignored). Here the job is judged by the same
component objects and types that FATE uses when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Tuple

from fate_llm_ext.config import LLMConfig, ModelConfig, PublicConfig
from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.hints import near
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Dag, Input, Party, Source, Task
from fate_llm_ext.pipelines.parameters import check_parameters, input_problems, looked_up
from fate_llm_ext.site import Site, load_sites

# Parties that a component's stage cannot do without: each entry is a choice of roles.
NEEDED_ROLES: Dict[Tuple[str, str], Tuple[Tuple[str, ...], ...]] = {
    ("fedmkt", "train"): (("arbiter",), ("guest", "host")),
    ("dpkd", "train"): (("arbiter",), ("guest",)),
    ("fdkt", "train"): (("arbiter",), ("guest", "host")),
    ("fedcot", "train"): (("arbiter",), ("guest", "host")),
    ("site_check", "default"): (("arbiter",), ("guest", "host")),
}

# Stages that release something differentially private about each owner's table, so that a site must allow it.
NEEDS_BUDGET = {("dpkd", "train"), ("fdkt", "train")}
# And stages that release something else about it: at a site that sets budgets every table needs one.
RELEASES = {*NEEDS_BUDGET, ("fedmkt", "train"), ("fedcot", "train")}
_KINDS = {ModelConfig: "models", PublicConfig: "public", LLMConfig: "llm"}


def check(
    dag: Dag,
    sites_path: Optional[Path] = None,
    root: Optional[str] = None,
    own: Optional[Collection[Party]] = None,
) -> List[Problem]:
    """All problems of a job, each once.

    Args:
        dag: the job.
        sites_path: also look up the names of tables, models and public sets in this site file.
        root: folder that the site file's relative paths start at.
        own: for a job between sites, those that the site file is about: the names of others are not looked up, and no
            tables, which each site's FATE Flow knows.
    """
    sites: Optional[Dict[str, Site]] = None
    problems = list(dag.problems)
    if sites_path is not None:
        try:
            sites = load_sites(sites_path, root)
        except ExtensionError as error:
            problems.append(Problem(str(sites_path), error))
    checker = _Checker(dag, sites, sites_path, own)
    for task in dag.tasks.values():
        problems += checker.task(task)
    try:
        dag.order()
    except ExtensionError as error:
        problems.append(Problem("tasks", error))
    unique = {(one.where, str(one.error)): one for one in problems}
    return list(unique.values())


class _Checker:
    """Checks of one job; ``parts`` remembers each task's component."""

    def __init__(
        self,
        dag: Dag,
        sites: Optional[Dict[str, Site]],
        sites_path: Optional[Path],
        own: Optional[Collection[Party]],
    ) -> None:
        self.dag = dag
        self.own = own
        self.sites = sites
        self.sites_path = sites_path

    def task(self, task: Task) -> List[Problem]:
        """Problems of one task; without its component nothing more can be said."""
        if not task.component:
            return []
        where = f"tasks.{task.name}"
        try:
            whole = catalog.component(task.component)
        except ExtensionError as error:
            return [Problem(f"{where}.component_ref", error)]
        try:
            part = catalog.stage_of(whole, task.stage)
        except ExtensionError as error:
            return [Problem(f"{where}.stage", error)]
        parties = catalog.parties_of(task, self.dag.parties, whole)
        problems = self._roles(task, whole, parties) + self._unknown_inputs(task, whole, part)
        for party in parties:
            if party.role in whole.roles:
                values, found = check_parameters(task, party, whole, part)
                problems += found + self._inputs(task, party, whole, part)
                problems += input_problems(task, party, whole.name, values)
                problems += self._site(task, party, values) + self._budgets(task, party)
        return problems

    def _roles(self, task: Task, whole: Any, parties: Tuple[Party, ...]) -> List[Problem]:
        problems: List[Problem] = []
        known = ", ".join(role.name for role in whole.roles)
        wrong = [(party, f"tasks.{task.name}.parties") for party in parties if party.role not in whole.roles]
        for party, given in task.overrides.items():
            if party not in parties and given:
                wrong.append((party, next(iter(given.values()))[1].rsplit(".parameters", 1)[0]))
        for party, where in wrong:
            problems.append(Problem(where, ExtensionError("E117", component=whole.name, party=party, known=known)))
        for choice in NEEDED_ROLES.get((whole.name, task.stage), (tuple(whole.roles),)):
            if not any(party.role in choice for party in parties):
                facts = {
                    "component": whole.name,
                    "stage": task.stage,
                    "needed": "a party of role " + " or ".join(choice),
                }
                have = ", ".join(map(str, parties)) or "none"
                problems.append(Problem(f"tasks.{task.name}", ExtensionError("E118", **facts, have=have)))
        return problems

    def _unknown_inputs(self, task: Task, whole: Any, part: Any) -> List[Problem]:
        problems: List[Problem] = []
        for given in task.inputs:
            declared = set(getattr(part.artifacts, f"{given.kind}_inputs"))
            other_stages = {n for one in whole.stage_components for n in getattr(one.artifacts, f"{given.kind}_inputs")}
            if given.name not in declared | other_stages:
                facts = {"component": whole.name, "stage": task.stage, "kind": given.kind, "name": given.name}
                known = ", ".join(sorted(declared)) or "none"
                error = ExtensionError("E122", **facts, known=known, hint=near(given.name, declared))
                problems.append(Problem(given.where, error))
        return problems

    def _inputs(self, task: Task, party: Party, whole: Any, part: Any) -> List[Problem]:
        """Whether the party gets what its part needs, from outputs that exist."""
        problems: List[Problem] = []
        for kind in ("data", "model"):
            declared = catalog.artifacts(part, kind, "inputs", task.stage, party.role)
            for name, artifact in declared.items():
                given = next((one for one in task.inputs if one.kind == kind and one.name == name), None)
                sources = given.sources_of(party) if given else []
                if not sources and not artifact.optional:
                    facts = {"component": whole.name, "stage": task.stage, "kind": kind, "name": name}
                    where = given.where if given else f"tasks.{task.name}.inputs.{kind}.{name}"
                    problems.append(Problem(where, ExtensionError("E123", **facts, party=party)))
                if given and len(sources) > 1 and not artifact.is_multi:
                    problems.append(Problem(given.where, ExtensionError("E130", party=party, name=name)))
                for source in sources:
                    problems += self._source(given, source, artifact, party)
        return problems

    def _source(self, given: Optional[Input], source: Source, artifact: Any, party: Party) -> List[Problem]:
        if given is None or (source.kind != "data_warehouse" and source.fields.get("producer_task") is None):
            return []
        if source.kind == "task_output_artifact":
            return self._link(given, source, artifact, party)
        if self.own is not None:
            return []
        if source.kind == "data_warehouse" and source.fields.get("namespace") and source.fields.get("name"):
            table = f"{source.fields['namespace']}/{source.fields['name']}"
            return self._lookup("tables", table, source.where, party)
        return []

    def _link(self, given: Input, source: Source, artifact: Any, party: Party) -> List[Problem]:
        """Whether the linked task gives that output to this party, in a type the input takes."""
        producer = self.dag.tasks.get(str(source.fields["producer_task"]))
        if producer is None:
            name = str(source.fields["producer_task"])
            facts = {"name": name, "hint": near(name, self.dag.tasks), "known": ", ".join(self.dag.tasks)}
            return [Problem(f"{source.where}.producer_task", ExtensionError("E124", **facts))]
        try:
            whole = catalog.component(producer.component)
            part = catalog.stage_of(whole, producer.stage)
        except ExtensionError:
            return []  # reported with the producing task
        runs = party in catalog.parties_of(producer, self.dag.parties, whole)
        outputs = catalog.artifacts(part, given.kind, "outputs", producer.stage, party.role) if runs else {}
        key = str(source.fields["output_artifact_key"])
        where = f"{source.where}.output_artifact_key"
        if key not in outputs:
            facts = {"task": producer.name, "stage": producer.stage, "name": key, "party": str(party)}
            known = ", ".join(outputs) or "nothing"
            return [Problem(where, ExtensionError("E125", **facts, known=known, hint=near(key, outputs)))]
        expected, got = catalog.type_names(artifact), catalog.type_names(outputs[key])
        unresolved = any(name.endswith("_unresolved") for name in got)  # FATE's reader: known at run time only
        if not unresolved and not set(expected) & set(got):
            facts = {"name": given.name, "expected": " or ".join(expected), "got": " or ".join(got)}
            return [Problem(where, ExtensionError("E126", **facts))]
        return []

    def _site(self, task: Task, party: Party, values: Dict[str, Any]) -> List[Problem]:
        """Names that the party's site file has to resolve."""
        problems: List[Problem] = []
        if self._is_here(party) and self.sites is not None and not (self.sites.keys() & {party.key, ""}):
            facts = {"path": self.sites_path, "party": party.key, "known": ", ".join(sorted(self.sites))}
            return [Problem(str(party), ExtensionError("E114", **facts))]
        located = task.located(party)
        needed = looked_up(task, party, task.component, values)
        for dotted in sorted(needed):
            name, _, field = dotted.partition(".")
            value = getattr(values.get(name), field, None) if field else values.get(name)
            where = located[name][1] + (field and f".{field}") if value is not None else ""
            kind = next((kind for type, kind in _KINDS.items() if isinstance(value, type)), None)
            if kind and value is not None:
                recorded = getattr(values.get("rationale"), "recorded", False)
                problems += self._lookup(kind, value.name, f"{where}.name", party, recorded)
            if field and isinstance(value, str):
                problems += self._lookup("public", value, where, party)
            if isinstance(value, LLMConfig) and value.adapter is not None:
                where = f"{where}.adapter"
                site = self._site_of(party)
                if site is not None and value.name in (*site.endpoints, *site.recordings):
                    error = ExtensionError("E410", adapter=value.adapter, name=value.name)
                    problems.append(Problem(f"{where} ({party})", error))
                else:
                    problems += self._lookup("models", value.adapter, where, party)
        return problems

    def _budgets(self, task: Task, party: Party) -> List[Problem]:
        """Tables about which the party's site allows no release."""
        site = self._site_of(party)
        if site is None or (task.component, task.stage) not in (RELEASES if site.budgets else NEEDS_BUDGET):
            return []
        problems: List[Problem] = []
        sources = [source for one in task.inputs if one.kind == "data" for source in one.sources_of(party)]
        for source in sources:
            if source.kind == "data_warehouse" and source.fields.get("name"):
                try:
                    site.budget(f"{source.fields.get('namespace')}/{source.fields['name']}")
                except ExtensionError as error:
                    problems.append(Problem(f"{source.where} ({party})", error))
        return problems

    def _is_here(self, party: Party) -> bool:
        return self.own is None or party in self.own

    def _site_of(self, party: Party) -> Optional[Site]:
        if not self._is_here(party):
            return None
        return (self.sites or {}).get(party.key) or (self.sites or {}).get("")

    def _lookup(self, kind: str, name: str, where: str, party: Party, recorded: bool = False) -> List[Problem]:
        site = self._site_of(party)
        if site is None:
            return []
        try:
            if kind == "llm":
                site.lookup_llm(name, recorded)
            else:
                site.lookup(kind, name)
        except ExtensionError as error:
            return [Problem(f"{where} ({party})", error)]
        return []
