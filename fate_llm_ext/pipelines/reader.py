"""From a job's plain YAML content to typed objects, noting everything that is wrong on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.hints import near
from fate_llm_ext.pipelines.job import Dag, Input, Party, Source, Task

SCHEMA_VERSION = "2.2.0"
ROLES = ("guest", "host", "arbiter", "local")
STAGES = ("train", "predict", "default", "cross_validation")
SOURCES = ("data_warehouse", "task_output_artifact", "model_warehouse")
WAREHOUSES = {"data": "data_warehouse", "model": "model_warehouse"}

_MODEL = ("model_id", "model_version")  # under which FATE Flow keeps all models of a job
_TOP_KEYS = ("dag", "schema_version", "kind")
_DAG_KEYS = ("parties", "conf", "stage", "tasks", "party_tasks")
_TASK_KEYS = ("component_ref", "dependent_tasks", "parameters", "inputs", "outputs", "parties", "conf", "stage")
_SOURCE_KEYS = {
    "data_warehouse": ("namespace", "name", "dataset_id", "parties"),
    "task_output_artifact": ("producer_task", "output_artifact_key", "output_artifact_type_alias", "parties"),
    "model_warehouse": ("model_id", "model_version", "producer_task", "output_artifact_key", "parties"),
}


def parse_dag(raw: Dict[str, Any], path: Path = Path("job")) -> Dag:
    """Typed view of a job that is already read; what is wrong is noted in ``problems``."""
    reader = _Reader()
    reader.known("", raw, _TOP_KEYS)
    for key, expected, default in (("schema_version", SCHEMA_VERSION, None), ("kind", "fate", "fate")):
        if raw.get(key, default) != expected:  # FATE's Pipeline SDK leaves `kind` out
            reader.note(key, "E104", key=key, got=raw.get(key), expected=expected)
    body = reader.mapping("dag", raw.get("dag"), required=True)
    reader.known("dag", body, _DAG_KEYS)
    parties = reader.parties("parties", body.get("parties"), required=True) or ()
    reader.members = parties
    stage = reader.stage("stage", body.get("stage"), "train")
    tasks: Dict[str, Task] = {}
    for name, value in reader.mapping("tasks", body.get("tasks"), required=True).items():
        tasks[str(name)] = reader.task(str(name), value, stage)
    for name, value in reader.mapping("party_tasks", body.get("party_tasks")).items():
        reader.party_tasks(f"party_tasks.{name}", value, tasks)
    conf = reader.mapping("conf", body.get("conf"))
    reader.models(conf, [source for task in tasks.values() for one in task.inputs for source in one.sources])
    return Dag(path, raw, parties, stage, tasks, conf, reader.problems)


class _Reader:
    """Reads the parts of a job and notes what is wrong with them."""

    def __init__(self) -> None:
        self.problems: List[Problem] = []
        self.members: Optional[Tuple[Party, ...]] = None

    def note(self, where: str, code: str, **facts: Any) -> None:
        self.problems.append(Problem(where, ExtensionError(code, **facts)))

    def mapping(self, where: str, value: Any, required: bool = False) -> Dict[str, Any]:
        if isinstance(value, dict) and (value or not required):
            return value
        if value is not None or required:
            self.note(where, "E103", expected="a mapping", got=_kind(value))
        return {}

    def known(self, where: str, value: Dict[str, Any], keys: Sequence[str]) -> None:
        for key in value:
            if key not in keys:
                at = f"{where}.{key}" if where and where != "dag" else str(key)
                self.note(at, "E102", key=key, known=", ".join(keys), hint=near(key, keys))

    def stage(self, where: str, value: Any, default: str) -> str:
        if value is None:
            return default
        if value not in STAGES:
            self.note(where, "E103", expected="one of " + ", ".join(STAGES), got=repr(value))
            return default
        return str(value)

    def parties(self, where: str, value: Any, required: bool = False) -> Optional[Tuple[Party, ...]]:
        """None if nothing is given; ids may be texts, numbers or a list of them."""
        if value is None and not required:
            return None
        if not isinstance(value, list) or not value:
            self.note(where, "E103", expected="a list of {role, party_id}", got=_kind(value))
            return ()
        found: List[Party] = []
        for index, entry in enumerate(value):
            at = f"{where}.{index}"
            if not isinstance(entry, dict) or entry.get("role") not in ROLES:
                got = f"the role {entry.get('role')!r}" if isinstance(entry, dict) else _kind(entry)
                self.note(at, "E103", expected=f"a role ({', '.join(ROLES)}) with its party_id", got=got)
                continue
            self.known(at, entry, ("role", "party_id"))
            ids = entry.get("party_id") or []
            ids = ids if isinstance(ids, list) else [ids]
            if not ids:
                self.note(at, "E108", role=entry["role"])
            found += [Party(entry["role"], str(one)) for one in ids]
        return self._distinct(where, found)

    def _distinct(self, where: str, found: List[Party]) -> Tuple[Party, ...]:
        members = self.members
        for party in dict.fromkeys(found):
            if found.count(party) > 1:
                self.note(where, "E107", party=party, count=found.count(party))
            if members is not None and party not in members:
                self.note(where, "E106", party=party, known=", ".join(map(str, members)) or "none")
        return tuple(party for party in dict.fromkeys(found) if members is None or party in members)

    def task(self, name: str, value: Any, stage: str) -> Task:
        where = f"tasks.{name}"
        body = self.mapping(where, value, required=True)
        self.known(where, body, _TASK_KEYS)
        component = body.get("component_ref")
        if body and not isinstance(component, str):
            self.note(f"{where}.component_ref", "E103", expected="the name of a component", got=_kind(component))
        return Task(
            name=name,
            component=str(component or ""),
            stage=self.stage(f"{where}.stage", body.get("stage"), stage),
            parties=self.parties(f"{where}.parties", body.get("parties")),
            parameters=self.mapping(f"{where}.parameters", body.get("parameters")),
            inputs=self._inputs(f"{where}.inputs", body.get("inputs")),
        )

    def _inputs(self, where: str, value: Any) -> List[Input]:
        body = self.mapping(where, value)
        self.known(where, body, ("data", "model"))
        inputs: List[Input] = []
        for kind in ("data", "model"):
            for name, by_source in self.mapping(f"{where}.{kind}", body.get(kind)).items():
                at = f"{where}.{kind}.{name}"
                given = self.mapping(at, by_source, required=True)
                self.known(at, given, SOURCES)
                for source in set(given) & (set(WAREHOUSES.values()) - {WAREHOUSES[kind]}):
                    self.note(f"{at}.{source}", "E852", source=source, kind=kind, expected=WAREHOUSES[kind])
                sources = [s for key in SOURCES if key in given for s in self._sources(f"{at}.{key}", key, given[key])]
                inputs.append(Input(kind, str(name), tuple(sources), at))
        return inputs

    def _sources(self, where: str, kind: str, value: Any) -> List[Source]:
        many = isinstance(value, list)
        sources: List[Source] = []
        for index, entry in enumerate(value if many else [value]):
            at = f"{where}.{index}" if many else where
            body = self.mapping(at, entry, required=True)
            self.known(at, body, _SOURCE_KEYS[kind])
            needed = () if kind == "data_warehouse" else ("producer_task", "output_artifact_key")
            if kind == "data_warehouse" and body and not body.get("dataset_id"):
                needed = ("namespace", "name")
            for key in needed:
                if not isinstance(body.get(key), (str, int)):
                    self.note(f"{at}.{key}", "E103", expected="a name", got=_kind(body.get(key)))
            fields = {key: body.get(key) for key in _SOURCE_KEYS[kind] if key != "parties"}
            sources.append(Source(kind, fields, self.parties(f"{at}.parties", body.get("parties")), at))
        return sources

    def models(self, conf: Dict[str, Any], sources: Sequence[Source]) -> None:
        """Whether each model of an earlier job is named: at the source, or for all of them under ``conf``."""
        given = self.mapping("conf.model_warehouse", conf.get("model_warehouse"))
        self.known("conf.model_warehouse", given, _MODEL)
        if given:
            self._model("conf.model_warehouse", given)
        for source in sources:
            if source.kind == "model_warehouse" and (
                any(source.fields[key] is not None for key in _MODEL) or not given
            ):
                self._model(source.where, source.fields)

    def _model(self, where: str, given: Dict[str, Any]) -> None:
        missing = [key for key in _MODEL if given.get(key) in (None, "")]
        if missing:
            self.note(where, "E853", missing=" and ".join(missing))
        for key in _MODEL:
            if key not in missing and not isinstance(given[key], (str, int)):
                self.note(f"{where}.{key}", "E103", expected="a name", got=_kind(given[key]))

    def party_tasks(self, where: str, value: Any, tasks: Dict[str, Task]) -> None:
        body = self.mapping(where, value, required=True)
        self.known(where, body, ("parties", "tasks", "conf"))
        parties = self.parties(f"{where}.parties", body.get("parties"), required=True) or ()
        for name, ref in self.mapping(f"{where}.tasks", body.get("tasks")).items():
            at = f"{where}.tasks.{name}"
            entry = self.mapping(at, ref)
            self.known(at, entry, ("parameters", "conf"))
            if name not in tasks:
                self.note(at, "E124", name=name, hint=near(name, tasks), known=", ".join(tasks) or "none")
                continue
            for key, given in self.mapping(f"{at}.parameters", entry.get("parameters")).items():
                for party in parties:
                    tasks[name].overrides.setdefault(party, {})[key] = (given, f"{at}.parameters.{key}")


def _kind(value: Any) -> str:
    return "nothing" if value is None or value in ({}, []) else type(value).__name__
