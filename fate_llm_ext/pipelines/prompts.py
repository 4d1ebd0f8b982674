"""All that the models of a job read, with made-up texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

from fate_llm_ext.data.prompts import Shown, shown_control
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Dag, Party
from fate_llm_ext.pipelines.parameters import check_parameters, shown_prompts


@dataclass
class Rendered:
    """One prompt.

    Attributes:
        task: its name.
        parties: whose models read it.
        field: the parameter that holds its template.
        title: whom it is for.
        text: what is read, with the white space around it, which the model reads too.
    """

    task: str
    parties: List[Party]
    field: str
    title: str
    text: str


def render(dag: Dag) -> List[Rendered]:
    """Every prompt of a job without problems, by task; what several parties read alike comes once."""
    found: Dict[Tuple[str, ...], Rendered] = {}
    for task in dag.tasks.values():
        whole = catalog.component(task.component)
        part = catalog.stage_of(whole, task.stage)
        parties = catalog.parties_of(task, dag.parties, whole)
        parsed = {party: check_parameters(task, party, whole, part)[0] for party in parties}
        for party in parties:
            peers = {str(other): parsed[other] for other in parties if other != party}
            for one in shown_prompts(task, party, whole.name, parsed[party], peers):
                key = (task.name, one.field, one.title, one.render())
                found.setdefault(key, Rendered(key[0], [], *key[1:])).parties.append(party)
    return list(found.values())


def of_generator(parameters: Mapping[str, Any], role: str, peers: Mapping[str, Mapping[str, Any]]) -> List[Shown]:
    """The prompts of control codes, where they are all that a model reads."""
    return shown_control(parameters["control"]) if "control" in parameters else []
