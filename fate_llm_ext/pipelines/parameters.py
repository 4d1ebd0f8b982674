"""Parameters of one party's task, judged by the very types FATE will apply at run time."""

from __future__ import annotations

import importlib
import typing
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Tuple

import pydantic

from fate_llm_ext.config import ControlConfig, TaskConfig
from fate_llm_ext.data.prompts import Shown
from fate_llm_ext.data.templates import Template, get_template
from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.hints import near
from fate_llm_ext.pipelines.job import Party, Task

# Classes that check the parameters of a component's stage together, beyond FATE's one-by-one types.
CONFIGS = {
    ("fedmkt", "train"): "fate_llm_ext.algo.fedmkt.config:FedMKTConfig",
    ("dpkd", "train"): "fate_llm_ext.algo.dpkd.config:DPKDConfig",
    ("fdkt", "train"): "fate_llm_ext.algo.fdkt.config:FDKTConfig",
    ("fdkt", "predict"): "fate_llm_ext.algo.fdkt.config:PredictConfig",
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.config:FedCoTConfig",
    ("fedcot", "predict"): "fate_llm_ext.algo.fedcot.config:PredictConfig",
    ("site_check", "default"): "fate_llm_ext.algo.site_check.config:SiteCheckConfig",
}
# What a role needs beyond that: functions of (configuration, role) that give all errors ...
ROLE_PROBLEMS = {
    ("dpkd", "train"): "fate_llm_ext.algo.dpkd.checks:role_problems",
    ("fdkt", "train"): "fate_llm_ext.algo.fdkt.checks:role_problems",
    ("fdkt", "predict"): "fate_llm_ext.algo.fdkt.checks:predict_problems",
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.checks:role_problems",
    ("fedcot", "predict"): "fate_llm_ext.algo.fedcot.checks:predict_problems",
}
# ... or of (configuration, role, names of the inputs that the task gives it) ...
INPUT_PROBLEMS = {
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.inputs:input_problems",
}
# ... and those that say which models and public sets it looks up in its site file; without one: all it is given.
LOOKED_UP = {
    ("dpkd", "train"): "fate_llm_ext.algo.dpkd.checks:looked_up",
    ("fdkt", "train"): "fate_llm_ext.algo.fdkt.checks:looked_up",
    ("fdkt", "predict"): "fate_llm_ext.algo.fdkt.checks:predict_looked_up",
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.checks:looked_up",
    ("fedcot", "predict"): "fate_llm_ext.algo.fedcot.checks:predict_looked_up",
}
# What the models of a stage read: functions of (a party's valid parameters, role, those of
# the other parties by name) that give prompts to show.
PROMPTS = {
    ("dpkd", "train"): "fate_llm_ext.pipelines.prompts:of_generator",
    ("fdkt", "train"): "fate_llm_ext.algo.fdkt.prompts:shown",
    ("fdkt", "predict"): "fate_llm_ext.algo.fdkt.prompts:shown_in_predict",
    ("fedcot", "train"): "fate_llm_ext.algo.fedcot.prompts:shown",
    ("fedcot", "predict"): "fate_llm_ext.algo.fedcot.prompts:shown_in_predict",
}


def check_parameters(task: Task, party: Party, whole: Any, part: Any) -> Tuple[Dict[str, Any], List[Problem]]:
    """Parse the parameters a party gets.

    Args:
        task: the task.
        party: who runs it.
        whole: the component, whose other stages' parameters are tolerated (FATE's `deploy` copies them all).
        part: the component's stage that will run.

    Returns:
        The values as the component will receive them (only those that are given and valid), the problems.
    """
    located = task.located(party)
    mapping = part.parameters.mapping
    known = set(mapping).union(*(stage.parameters.mapping for stage in whole.stage_components))
    problems: List[Problem] = []
    parsed: Dict[str, Any] = {}
    for name, (value, where) in located.items():
        if name not in known:
            hint = near(name, mapping) + " FATE would ignore it without a word."
            problems.append(Problem(where, ExtensionError("E119", name=name, component=whole.name, hint=hint)))
        elif name in mapping and value is not None:
            problems += _parse(mapping[name].type, value, where, whole.name, parsed, name)
            problems += _check_template(parsed.get(name), where)
    for name, declared in mapping.items():
        if not declared.optional and located.get(name, (None, ""))[0] is None:
            where = f"tasks.{task.name}.parameters.{name}"
            problems.append(Problem(where, ExtensionError("E121", party=party, component=whole.name)))
    seen = {problem.where for problem in problems}
    problems += [one for one in _check_together(task, party, whole.name, mapping) if one.where not in seen]
    said = {str(problem.error) for problem in problems}
    problems += [one for one in _check_prompts(task, party, whole.name, parsed) if str(one.error) not in said]
    return parsed, problems


def _parse(kind: Any, value: Any, where: str, component: str, parsed: Dict[str, Any], name: str) -> List[Problem]:
    from fate.components.core import params

    try:
        parsed[name] = params.parse(kind, value)
    except pydantic.ValidationError as error:
        return [_problem(one, value, where, component, kind) for one in error.errors()]
    except Exception as error:  # noqa: BLE001 - FATE's own validators may raise anything
        reason = str(error) or type(error).__name__
        return [Problem(where, ExtensionError("E120", value=_brief(value), reason=reason, component=component))]
    return []


def _problem(error: Any, value: Any, where: str, component: str, kind: Any) -> Problem:
    """One pydantic error as a problem at its own dotted path."""
    loc = [step for step in error["loc"] if step != "__root__"]
    if loc[:1] == ["p"]:  # the field in which FATE wraps the value
        loc = loc[1:]
    at = ".".join([where, *map(str, loc)])
    if error["type"] == "value_error.extra":
        hint = near(str(loc[-1]), _fields(kind, loc[:-1]))
        return Problem(at, ExtensionError("E119", name=loc[-1], component=component, hint=hint))
    reason = error["msg"]
    if error["type"] == "value_error.missing":
        reason = "this field is required"
    return Problem(at, ExtensionError("E120", value=_brief(_value_at(value, loc)), reason=reason, component=component))


def _check_template(value: Any, where: str) -> List[Problem]:
    """Whether the template of a task exists and is valid Jinja."""
    if isinstance(value, (TaskConfig, ControlConfig)):
        try:
            if isinstance(value, TaskConfig):
                get_template(value)
            else:
                Template("control", value.code, value.text, None)
        except ExtensionError as error:
            return [Problem(where, error)]
    return []


def shown_prompts(
    task: Task, party: Party, component: str, parsed: Dict[str, Any], peers: Mapping[str, Dict[str, Any]]
) -> List[Shown]:
    """What a party's models read in a task.

    Args:
        parsed: as :func:`check_parameters` returns it.
        peers: the same of the other parties, by name; may be empty.
    """
    path = PROMPTS.get((component, task.stage))
    return _load(path)(parsed, party.role, peers) if path else []


def _check_prompts(task: Task, party: Party, component: str, parsed: Dict[str, Any]) -> List[Problem]:
    """Whether all prompts can be rendered."""
    problems: List[Problem] = []
    located = task.located(party)
    for one in shown_prompts(task, party, component, parsed, {}):
        try:
            one.render()
        except ExtensionError as error:
            name, _, rest = one.field.partition(".")
            where = located[name][1] if name in located else f"tasks.{task.name}.parameters.{name}"
            problems.append(Problem(f"{where}.{rest}", error))
    return problems


def _check_together(task: Task, party: Party, component: str, mapping: Dict[str, Any]) -> List[Problem]:
    """Rules between parameters, from the configuration class of the algorithm."""
    path = CONFIGS.get((component, task.stage))
    if path is None:
        return []
    located = {key: item for key, item in task.located(party).items() if key in mapping and item[0] is not None}
    try:
        config = _load(path)(**{key: value for key, (value, _) in located.items()})
    except pydantic.ValidationError as error:
        return [_together(one, task, component, located) for one in error.errors()]
    of_role = ROLE_PROBLEMS.get((component, task.stage))
    where = f"tasks.{task.name}.parameters ({party})"
    return [Problem(where, error) for error in _load(of_role)(config, party.role)] if of_role else []


def looked_up(task: Task, party: Party, component: str, values: Dict[str, Any]) -> FrozenSet[str]:
    """Which of a party's (valid) parameters name something that its site file has to hold.

    ``group.field`` stands for a model in a group, or for a text that names a public set.

    Args:
        values: as :func:`check_parameters` returns them.
    """
    path = LOOKED_UP.get((component, task.stage))
    if path is not None:
        config = _config(task, component, values)
        return frozenset() if config is None else frozenset(_load(path)(config, party.role))
    return frozenset(values)


def input_problems(task: Task, party: Party, component: str, values: Dict[str, Any]) -> List[Problem]:
    """Whether a party's parameters and the optional inputs of its task fit together.

    Args:
        values: as :func:`check_parameters` returns them.
    """
    path = INPUT_PROBLEMS.get((component, task.stage))
    config = _config(task, component, values) if path else None
    if path is None or config is None:
        return []
    given = [one.name for one in task.inputs if one.sources_of(party)]
    return [Problem(f"tasks.{task.name}.inputs ({party})", error) for error in _load(path)(config, party.role, given)]


def _config(task: Task, component: str, values: Dict[str, Any]) -> Any:
    """The algorithm's configuration of a party's (valid) parameters; None if they do not fit together."""
    try:
        return _load(CONFIGS[component, task.stage])(**values)
    except pydantic.ValidationError:  # reported with the parameters
        return None


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _together(error: Any, task: Task, component: str, located: Dict[str, Tuple[Any, str]]) -> Problem:
    loc = [str(step) for step in error["loc"] if step != "__root__"]
    base = f"tasks.{task.name}.parameters"
    where = ".".join([located[loc[0]][1], *loc[1:]]) if loc and loc[0] in located else ".".join([base, *loc])
    return Problem(where, ExtensionError("E129", reason=error["msg"], component=component))


def _fields(kind: Any, loc: List[Any]) -> List[str]:
    """Field names of the pydantic model at a location inside a type."""
    for step in loc:
        kind = _inner(kind)
        if isinstance(step, str) and _is_model(kind):
            field = kind.__fields__.get(step)
            kind = field.outer_type_ if field is not None else None
    kind = _inner(kind)
    return list(kind.__fields__) if _is_model(kind) else []


def _inner(kind: Any) -> Any:
    """The model inside Optional[...], List[...] or a Union."""
    for one in typing.get_args(kind):
        inner = _inner(one)
        if _is_model(inner):
            return inner
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _value_at(value: Any, loc: List[Any]) -> Any:
    node: Optional[Any] = value
    for step in loc:
        try:
            node = node[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return None if isinstance(node, dict) else node
    return node


def _brief(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= 60 else text[:57] + "..."
