"""The parts of a job - parties, tasks, inputs and their sources - as typed objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from fate_llm_ext.errors import ExtensionError, Problem


@dataclass(frozen=True, order=True)
class Party:
    """One party of a job."""

    role: str
    id: str

    @property
    def key(self) -> str:
        """Name in files, e.g. ``guest_9999``."""
        return f"{self.role}_{self.id}"

    def __str__(self) -> str:
        return f"{self.role} {self.id}"


@dataclass(frozen=True)
class Source:
    """Where one input of a task comes from; ``parties`` is None if it holds for all of them."""

    kind: str
    fields: Dict[str, Any]
    parties: Optional[Tuple[Party, ...]]
    where: str

    def serves(self, party: Party) -> bool:
        """Whether this source gives the input to that party."""
        return self.parties is None or party in self.parties


@dataclass(frozen=True)
class Input:
    """One input of a task: ``kind`` is data or model."""

    kind: str
    name: str
    sources: Tuple[Source, ...]
    where: str

    def sources_of(self, party: Party) -> List[Source]:
        """The sources that serve a party."""
        return [source for source in self.sources if source.serves(party)]


@dataclass
class Task:
    """One task; ``overrides`` holds each party's own parameters and where they were written."""

    name: str
    component: str
    stage: str
    parties: Optional[Tuple[Party, ...]]
    parameters: Dict[str, Any]
    inputs: List[Input]
    overrides: Dict[Party, Dict[str, Tuple[Any, str]]] = field(default_factory=dict)

    def parameters_of(self, party: Party) -> Dict[str, Any]:
        """The parameters FATE hands to a party."""
        return {name: value for name, (value, _) in self.located(party).items()}

    def producers(self) -> Set[str]:
        """Names of the tasks this one takes artifacts from."""
        sources = [source for one in self.inputs for source in one.sources if source.kind == "task_output_artifact"]
        return {str(source.fields["producer_task"]) for source in sources}

    def located(self, party: Party) -> Dict[str, Tuple[Any, str]]:
        """The party's parameters, each with its dotted path in the job file."""
        base = {name: (value, f"tasks.{self.name}.parameters.{name}") for name, value in self.parameters.items()}
        return {**base, **self.overrides.get(party, {})}


@dataclass
class Dag:
    """A job."""

    path: Path
    raw: Dict[str, Any]
    parties: Tuple[Party, ...]
    stage: str
    tasks: Dict[str, Task]
    conf: Dict[str, Any]
    problems: List[Problem]

    def order(self) -> List[Task]:
        """The tasks, each after those it takes artifacts from.

        Raises:
            ExtensionError: E127 if tasks wait for each other.
        """
        waits = {name: task.producers() & set(self.tasks) for name, task in self.tasks.items()}
        done: List[str] = []
        while len(done) < len(waits):
            ready = [name for name in waits if name not in done and waits[name] <= set(done)]
            if not ready:
                left = [name for name in waits if name not in done]
                raise ExtensionError("E127", cycle=" -> ".join([*left, left[0]]))
            done += ready
        return [self.tasks[name] for name in done]

    def needs_flow(self) -> List[Source]:
        """Sources that FATE Flow alone can serve: models of earlier jobs, and tables known by their id only."""
        sources = [source for task in self.tasks.values() for one in task.inputs for source in one.sources]
        return [
            source
            for source in sources
            if source.kind == "model_warehouse" or (source.kind == "data_warehouse" and not source.fields.get("name"))
        ]

    def to_yaml(self) -> str:
        """The job as FATE reads it, overrides applied."""
        import yaml

        return str(yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True))
