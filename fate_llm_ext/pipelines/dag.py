"""FATE's job file (the YAML that `flow job submit -c` takes): load it, change it, write it.

Reading is lenient: what cannot be understood is left out and noted in ``Dag.problems``, so that
`check` can report everything at once. Parameters follow FATE: those under ``party_tasks`` replace the
common ones key by key, without a deep merge; tasks run in the order of their artifact links alone.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, List, Sequence

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.hints import near
from fate_llm_ext.pipelines.document import parse_value, read_document
from fate_llm_ext.pipelines.job import Dag, Input, Party, Source, Task
from fate_llm_ext.pipelines.reader import parse_dag

__all__ = ["Dag", "Input", "Party", "Source", "Task", "edit_dag", "load_dag", "near", "parse_dag"]


def load_dag(path: Path, overrides: Sequence[str] = ()) -> Dag:
    """Read a job file.

    Args:
        path: the YAML file.
        overrides: ``path=value`` texts as `--set` takes them; the path starts below ``dag``.

    Raises:
        ExtensionError: E100 if the file cannot be read, E105 if an override does not fit.
    """
    raw, duplicates = read_document(path)
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ExtensionError("E105", text=text, reason="there is no `=`")
        _change(raw, name.strip(), parse_value(value), text)
    dag = parse_dag(raw, path)
    dag.problems[:0] = [Problem(where, ExtensionError("E101", key=key)) for where, key in duplicates]
    return dag


def edit_dag(dag: Dag, changes: Dict[str, Any]) -> Dag:
    """A copy with values set at dotted paths (below ``dag``).

    Raises:
        ExtensionError: E105 if a path does not fit.
    """
    raw = copy.deepcopy(dag.raw)
    for path, value in changes.items():
        _change(raw, path, value, f"{path}={value}")
    return parse_dag(raw, dag.path)


def _change(raw: Dict[str, Any], path: str, value: Any, text: str) -> None:
    """Set a value; a party's own parameter that was a mere copy of the common one follows.

    FATE's Pipeline SDK copies all common parameters into ``party_tasks`` as soon as one of them differs.
    """
    steps = path.removeprefix("dag.").split(".")
    followers: List[Dict[str, Any]] = []
    if len(steps) > 3 and steps[0] == "tasks" and steps[2] == "parameters":
        task, key = steps[1], steps[3]
        common = _dig(raw, "dag", "tasks", task, "parameters")
        for entry in (_dig(raw, "dag", "party_tasks")).values():
            own = _dig(entry, "tasks", task, "parameters")
            if key in own and key in common and own[key] == common[key]:
                followers.append(own)
    _set(raw, path, value, text)
    for own in followers:
        own[steps[3]] = copy.deepcopy(raw["dag"]["tasks"][steps[1]]["parameters"][steps[3]])


def _dig(node: Any, *steps: str) -> Dict[str, Any]:
    """The mapping at a path, or an empty one."""
    for step in steps:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _set(raw: Dict[str, Any], path: str, value: Any, text: str) -> None:
    """Set a dotted path below ``dag``; new keys may appear below parameters and conf only."""
    steps = path.split(".")
    if steps[0] == "dag":
        steps = steps[1:]
    node: Any = raw.get("dag")
    for depth, step in enumerate(steps):
        free = any(parent in ("parameters", "conf") for parent in steps[:depth]) or step in ("parameters", "conf")
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            key: Any = int(step)
        elif isinstance(node, dict) and (step in node or free or depth == len(steps) - 1):
            key = step
        else:
            known = ", ".join(map(str, node)) if isinstance(node, dict) else type(node).__name__
            raise ExtensionError("E105", text=text, reason=f"there is no {step!r} (there: {known})")
        if depth == len(steps) - 1:
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]
