"""The same job with another seed."""

from __future__ import annotations

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.dag import edit_dag
from fate_llm_ext.pipelines.job import Dag


def with_seed(dag: Dag, seed: int) -> Dag:
    """Set the parameter ``seed`` of each task whose component has one.

    Raises:
        ExtensionError: E105 if no task has a seed.
    """
    changes = {}
    for task in dag.tasks.values():
        part = catalog.stage_of(catalog.component(task.component), task.stage)
        if "seed" in part.parameters.mapping:
            changes[f"tasks.{task.name}.parameters.seed"] = seed
    if not changes:
        raise ExtensionError("E105", text=f"--seed {seed}", reason="no task has a parameter `seed`")
    return edit_dag(dag, changes)
