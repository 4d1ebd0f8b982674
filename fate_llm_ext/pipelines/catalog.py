"""The components installed here, as FATE sees them: built-in ones and the plug-ins of its entry point group.

FATE looks plug-ins up through pkg_resources and hides their import errors; here the standard library does
the look-up (faster, and an import error is shown).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
from typing import Any, Dict, List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.hints import near
from fate_llm_ext.pipelines.job import Party, Task

GROUP = "fate.ext.component_desc"


@functools.cache
def plugins() -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Component objects by name, and for each entry point that does not import: name -> reason."""
    found: Dict[str, Any] = {}
    broken: Dict[str, str] = {}
    for entry in _entry_points():
        try:
            component = entry.load()
            found.setdefault(component.name, component)
        except Exception as error:  # noqa: BLE001 - whatever a foreign plug-in raises is reported
            broken[entry.name] = f"{type(error).__name__}: {error}"
    for name, component in _own().items():
        found.setdefault(name, component)
    return found, broken


def builtin_names() -> List[str]:
    """Names of FATE's own components."""
    from fate.components.components import LazyBuildInComponentsLoader

    return list(LazyBuildInComponentsLoader.list())


def component(name: str) -> Any:
    """The component object (all stages).

    Raises:
        ExtensionError: E115 if there is none of that name, E128 if its plug-in cannot be imported.
    """
    found, broken = plugins()
    if name in found:
        return found[name]
    if name in builtin_names():
        from fate.components.core import load_component

        return load_component(name)
    if name in broken:
        raise ExtensionError("E128", name=name, reason=broken[name])
    raise ExtensionError("E115", name=name, hint=near(name, [*found, *builtin_names()]))


def stage_of(whole: Any, stage: str) -> Any:
    """The part of a component that runs in a stage.

    Raises:
        ExtensionError: E116 if it has no such stage.
    """
    stages = {one.name: one for one in whole.stage_components}
    if stage == "default" and not stages:
        return whole
    if stage in stages:
        return stages[stage]
    known = ", ".join(stages) or "default"
    raise ExtensionError("E116", component=whole.name, stage=stage, known=known)


def artifacts(part: Any, kind: str, direction: str, stage: str, role: str) -> Dict[str, Any]:
    """Declared artifacts for a role: ``kind`` data or model, ``direction`` inputs or outputs."""
    from fate.components.core import Role, Stage

    declared: Dict[str, Any] = getattr(part.artifacts, f"{kind}_{direction}")
    at = Stage.from_str(stage)
    return {name: one for name, one in declared.items() if one.is_active_for(at, Role.from_str(role))}


def type_names(artifact: Any) -> List[str]:
    """FATE type names an artifact accepts, e.g. ``data_directory``."""
    return [one.get_type().type_name for one in artifact.types]


def parties_of(task: Task, parties: Tuple[Party, ...], whole: Any) -> Tuple[Party, ...]:
    """The parties that run a task: those it names, else all whose role the component has."""
    return task.parties if task.parties is not None else tuple(p for p in parties if p.role in whole.roles)


def _entry_points() -> List[Any]:
    entries: Any = importlib.metadata.entry_points()
    if hasattr(entries, "select"):
        return list(entries.select(group=GROUP))
    return list(entries.get(GROUP, []))


def _own() -> Dict[str, Any]:
    """Our components without an installation: each module of the package holds one of its own name."""
    package = importlib.import_module("fate_llm_ext.components")
    found: Dict[str, Any] = {}
    for module in pkgutil.iter_modules(package.__path__):
        value: Optional[Any] = None
        try:
            value = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), module.name, None)
        except Exception:  # noqa: BLE001 - the entry point of the same name reports it
            continue
        if value is not None and hasattr(value, "stage_components"):
            found[value.name] = value
    return found
