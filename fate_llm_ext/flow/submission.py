"""What has to be true at this site's server before a job is submitted, and the job as it is submitted."""

from __future__ import annotations

import copy
from typing import Any, Dict, Iterator, List, Set, Tuple

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.flow.provider import PROVIDER
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Dag, Party, Task

_CONF = "conf.task.provider"


def own_parties(server: FlowServer, dag: Dag) -> Tuple[Party, ...]:
    """The parties of a job that the server's site plays."""
    site = server.party_id()
    return tuple(party for party in dag.parties if site is None or party.id == site)


def problems_at(server: FlowServer, dag: Dag, own: Tuple[Party, ...]) -> List[Problem]:
    """What the server lacks for the parties of its site: tables (E807) and providers (E808)."""
    problems: List[Problem] = []
    for where, provider in _providers(dag):
        name, _, rest = provider.partition(":")
        version = rest.partition("@")[0]
        if "*" in (name, version) or not version:  # the server's own default
            continue
        if server.query_provider(name, version) is None:
            error = ExtensionError("E808", address=server.address, provider=provider)
            problems.append(Problem(where, error))
    for where, party, namespace, name in _tables(dag, own):
        if server.query_table(namespace, name) is None:
            facts = {"table": f"{namespace}/{name}", "namespace": namespace, "name": name}
            problems.append(Problem(where, ExtensionError("E807", party=party, address=server.address, **facts)))
    return problems


def prepared(dag: Dag) -> Dict[str, Any]:
    """The job as it is submitted, with three settings where it says nothing about them.

    The provider is this package's: a server's own default is FATE's, which has no component of this package. The
    scheduler asks the sites how their tasks stand (`poll`): a report to a scheduler that is away is not repeated. A
    table that names no parties is for those that read it: FATE Flow would look for it at all sites.
    """
    raw = copy.deepcopy(dag.raw)
    conf = raw["dag"].get("conf") or {}
    task = conf.get("task") or {}
    conf = {**conf, "task": {**task, "provider": task.get("provider") or PROVIDER}}
    raw["dag"]["conf"] = {**conf, "sync_type": conf.get("sync_type") or "poll"}
    for name, given in dag.tasks.items():
        inputs = _mapping(_mapping(raw["dag"]["tasks"][name].get("inputs")).get("data"))
        for key, source in inputs.items():
            tables = _mapping(source).get("data_warehouse") or []
            for table in tables if isinstance(tables, list) else [tables]:
                if not table.get("parties"):
                    table["parties"] = _readers(dag, given, key)
    return raw


def _readers(dag: Dag, task: Task, name: str) -> List[Dict[str, Any]]:
    """The parties that take an input, as a job file lists them."""
    whole = catalog.component(task.component)
    part = catalog.stage_of(whole, task.stage)
    readers: Dict[str, List[str]] = {}
    for party in catalog.parties_of(task, dag.parties, whole):
        if name in catalog.artifacts(part, "data", "inputs", task.stage, party.role):
            readers.setdefault(party.role, []).append(party.id)
    return [{"role": role, "party_id": ids} for role, ids in readers.items()]


def _providers(dag: Dag) -> Iterator[Tuple[str, str]]:
    """(where, provider) of the job and of tasks that have their own."""
    yield _CONF, str(_mapping(dag.conf.get("task")).get("provider") or PROVIDER)
    for name, task in _mapping(_mapping(dag.raw.get("dag")).get("tasks")).items():
        own = _mapping(_mapping(task).get("conf")).get("provider")
        if own:
            yield f"tasks.{name}.conf.provider", str(own)


def _tables(dag: Dag, own: Tuple[Party, ...]) -> Iterator[Tuple[str, Party, str, str]]:
    """(where, party, namespace, name) of each table that a party of this site reads, each once."""
    seen: Set[Tuple[Party, str, str]] = set()
    for task in dag.tasks.values():
        try:
            whole = catalog.component(task.component)
        except ExtensionError:
            continue  # found by `check`
        runs = [party for party in catalog.parties_of(task, dag.parties, whole) if party in own]
        for given in task.inputs:
            for party in runs:
                for source in given.sources_of(party):
                    key = (party, str(source.fields.get("namespace")), str(source.fields.get("name")))
                    if source.kind == "data_warehouse" and source.fields.get("name") and key not in seen:
                        seen.add(key)
                        yield source.where, *key


def _mapping(node: Any) -> Dict[str, Any]:
    return node if isinstance(node, dict) else {}
