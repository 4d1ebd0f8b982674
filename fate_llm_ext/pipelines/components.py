"""Our components for FATE's Pipeline SDK (package fate-client, which is optional).

The classes are made from the definitions in ``definitions/`` when they are first asked for; these files
are generated from the components themselves (``python -m fate_llm_ext.pipelines.generate``).
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, Dict, List

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.hints import near

DEFINITIONS = Path(__file__).resolve().parent / "definitions"
CLASSES = {
    "DPKD": "dpkd",
    "FDKT": "fdkt",
    "FedCoT": "fedcot",
    "FedMKT": "fedmkt",
    "SiteCheck": "site_check",
    "TextEvaluation": "text_evaluation",
}

__all__ = ["DPKD", "FDKT", "FedCoT", "FedMKT", "SiteCheck", "TextEvaluation"]  # noqa: F822 - made on demand


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _make(name, DEFINITIONS / f"{CLASSES[name]}.yaml")
    return globals()[name]


def _make(name: str, definition: Path) -> Any:
    """A subclass of the SDK's Component with one keyword per parameter and input."""
    try:
        sdk = importlib.import_module("fate_client.pipeline")
        base = importlib.import_module(f"{sdk.__name__}.components.component_base").Component
        load_spec = importlib.import_module(f"{sdk.__name__}.entity.component_structures").load_component_spec
        absent = importlib.import_module(f"{sdk.__name__}.conf.types").PlaceHolder
        channels = importlib.import_module(f"{sdk.__name__}.interface")
    except ImportError as error:
        raise ExtensionError("E525", reason=error) from error
    spec = load_spec(str(definition))
    inputs = {**spec.input_artifacts.data, **spec.input_artifacts.model}

    def __init__(self: Any, _name: str, runtime_parties: Any = None, **given: Any) -> None:
        _refuse_unknown(spec.name, given, [*spec.parameters, *inputs])
        for key, value in given.items():
            if key in inputs and isinstance(value, str):
                make = _table if key in spec.input_artifacts.data else _model
                given[key] = make(channels, spec.name, key, value)
            else:
                given[key] = _plain(value)
        self._process_init_inputs({"_name": _name, "runtime_parties": runtime_parties, **given})
        base.__init__(self)
        self._name = _name
        self.runtime_parties = runtime_parties
        for key in (*spec.parameters, *inputs):
            setattr(self, key, given.get(key, absent()))

    methods = {"__init__": __init__, "__doc__": _doc(spec), "__module__": __name__, "yaml_define_path": str(definition)}
    made: Any = type(name, (base,), methods)
    made.__signature__ = _signature([*spec.parameters, *inputs])
    return made


def _refuse_unknown(component: str, given: Dict[str, Any], known: List[str]) -> None:
    for key in given:
        if key not in known:
            raise ExtensionError("E119", name=key, component=component, hint=near(key, known))


def _table(channels: Any, component: str, key: str, text: str) -> Any:
    """A bound table from ``namespace/name``."""
    namespace, _, name = text.partition("/")
    if not namespace or not name:
        raise ExtensionError("E854", component=component, name=key, value=text, expected="<namespace>/<name>")
    return channels.DataWarehouseChannel(name=name, namespace=namespace)


def _model(channels: Any, component: str, key: str, text: str) -> Any:
    """A model of an earlier job from ``job/task`` or ``job/task/output``; FATE Flow keeps it under the job's id."""
    parts = text.split("/")
    parts += ["output_model"] if len(parts) == 2 else []
    if len(parts) != 3 or not all(parts):
        expected = "<job id>/<task>, or <job id>/<task>/<output>"
        raise ExtensionError("E854", component=component, name=key, value=text, expected=expected)
    job, task, output = parts
    return channels.ModelWarehouseChannel(
        model_id=job, model_version="0", producer_task=task, output_artifact_key=output, parties=None
    )


def _plain(value: Any) -> Any:
    """A parameter group (pydantic model of `fate_llm_ext.config`) as the mapping that YAML holds."""
    return value.dict(exclude_unset=True) if hasattr(value, "__fields__") else value


def _signature(names: List[str]) -> inspect.Signature:
    first = [inspect.Parameter("_name", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    first.append(inspect.Parameter("runtime_parties", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None))
    rest = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    return inspect.Signature([*first, *rest])


def _doc(spec: Any) -> str:
    """The description and one line per keyword."""
    inputs = {**spec.input_artifacts.data, **spec.input_artifacts.model}
    lines = [spec.description, "", "Inputs (a channel, or a text: `namespace/name` for data, `job/task` for a model):"]
    lines += [f"    {name}: {one.description}" for name, one in inputs.items()]
    lines += ["", "Parameters (groups are mappings, see `fate-llm-ext desc`):"]
    lines += [f"    {name}: {one.description}" for name, one in spec.parameters.items()]
    return "\n".join(lines)
