"""One party's task as FATE's own entry takes it: configuration, inputs and outputs, environment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.job import Input, Party, Source, Task
from fate_llm_ext.progress import EVENTS_VARIABLE
from fate_llm_ext.site import OFFLINE, ROOT_VARIABLE, SITE_FILE_VARIABLE, Site, cuda_environment

_LOG_FORMAT = "[%(levelname)s] [%(asctime)s] [%(process)d] %(name)s:%(lineno)d %(message)s"


@dataclass
class Job:
    """What all tasks of a run share."""

    id: str
    directory: Path
    sites: Dict[str, Site]
    sites_path: Optional[Path]
    root: Optional[str]
    produced: Dict[Tuple[str, Party], Dict[str, Any]] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """FATE's standalone data folder, shared by all parties, deleted at the end."""
        return self.directory / ".scratch"

    def folder(self, task: Task, party: Party) -> Path:
        """The party's folder of a task."""
        return self.directory / task.name / party.key

    def site(self, party: Party) -> Site:
        """The party's site; an empty one where no site file was given.

        Raises:
            ExtensionError: E114 if the site file has no section for it.
        """
        if self.sites_path is None:
            return Site.parse_obj({})
        site = self.sites.get(party.key) or self.sites.get("")
        if site is None:
            known = ", ".join(sorted(self.sites))
            raise ExtensionError("E114", path=self.sites_path, party=party.key, known=known)
        return site


def write_task(job: Job, task: Task, party: Party, parties: Tuple[Party, ...], part: Any) -> Path:
    """Write ``task.yaml`` (JSON, which is YAML) into the party's folder.

    Raises:
        ExtensionError: E110/E111/E114 for the site file, E520 for sources that need FATE Flow.
    """
    folder = job.folder(task, party)
    folder.mkdir(parents=True)
    config = {
        "task_id": f"{job.id}_{task.name}",
        "party_task_id": f"{job.id}_{task.name}_{party.key}",
        "task_name": task.name,
        "component": task.component,
        "role": party.role,
        "party_id": party.id,
        "stage": task.stage,
        "parameters": task.parameters_of(party),
        "input_artifacts": _inputs(job, task, party, part),
        "output_artifacts": _outputs(job, task, party, part, folder),
        "conf": _conf(job, task, party, parties, folder),
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def environment(job: Job, party: Party, parties: Tuple[Party, ...], folder: Path) -> Dict[str, str]:
    """The environment of a party's process. A site with ``cuda:<index>`` shows it this device alone."""
    values = dict(os.environ)
    values.update(dict.fromkeys(OFFLINE, "1"))
    values.update(TOKENIZERS_PARALLELISM="false", OMP_WAIT_POLICY="PASSIVE", PYTHONUTF8="1", PYTHONUNBUFFERED="1")
    values["OMP_NUM_THREADS"] = str(threads(job.site(party), party, parties))
    values[EVENTS_VARIABLE] = str(folder / "events.jsonl")
    if job.sites_path is not None:
        values[SITE_FILE_VARIABLE] = str(job.sites_path)
    if job.root is not None:
        values[ROOT_VARIABLE] = job.root
    values.update(cuda_environment(job.site(party).device, values.get("CUDA_VISIBLE_DEVICES")))
    if "PYTHONPATH" in values:
        entries = [entry for entry in values["PYTHONPATH"].split(os.pathsep) if entry]
        values["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in entries)
    return values


def threads(site: Site, party: Party, parties: Tuple[Party, ...]) -> int:
    """CPU threads: the site's, else all cores for the arbiter (it works while the others wait), else a share."""
    if site.threads is not None:
        return site.threads
    cores = available_cores()
    if party.role == "arbiter":
        return cores
    return max(1, cores // max(1, sum(one.role != "arbiter" for one in parties)))


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _conf(job: Job, task: Task, party: Party, parties: Tuple[Party, ...], folder: Path) -> Dict[str, Any]:
    everyone = [{"role": one.role, "partyid": one.id} for one in parties]
    handler = {
        "class": "logging.FileHandler",
        "level": "DEBUG",
        "formatter": "line",
        "filename": str(folder / "log.txt"),
        "encoding": "utf-8",
    }
    return {
        "device": {"type": "CPU", "metadata": {}},
        "computing": {
            "type": "standalone",
            "metadata": {
                "computing_id": f"{job.id}_{task.name}_{party.key}",
                "options": {"data_dir": str(job.scratch)},
            },
        },
        "federation": {
            "type": "standalone",
            "metadata": {
                "federation_id": f"{job.id}_{task.name}",
                "parties": {"local": {"role": party.role, "partyid": party.id}, "parties": everyone},
            },
        },
        "logger": {
            "config": {
                "version": 1,
                "formatters": {"line": {"format": _LOG_FORMAT}},
                "handlers": {"file": handler},
                "root": {"handlers": ["file"], "level": "INFO"},
                "disable_existing_loggers": False,
            }
        },
    }


def _inputs(job: Job, task: Task, party: Party, part: Any) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for kind in ("data", "model"):
        declared = catalog.artifacts(part, kind, "inputs", task.stage, party.role)
        for given in task.inputs:
            sources = given.sources_of(party)
            if given.kind == kind and given.name in declared and sources:
                artifact = declared[given.name]
                items = [one for source in sources for one in _resolve(job, given, source, party, artifact)]
                found[given.name] = items if artifact.is_multi else items[0]
    return found


def _resolve(job: Job, given: Input, source: Source, party: Party, artifact: Any) -> List[Dict[str, Any]]:
    """Uri, metadata and type of what a source gives to the party."""
    if source.kind == "task_output_artifact":
        item = job.produced[source.fields["producer_task"], party][given.kind][source.fields["output_artifact_key"]]
        items = item if isinstance(item, list) else [item]
        if not any(str(one["type_name"]).endswith("_unresolved") for one in items):
            return [{key: one[key] for key in ("uri", "metadata", "type_name")} for one in items]
        return [_table(job, one["metadata"], source, party, artifact) for one in items]  # FATE's reader
    return [_table(job, source.fields, source, party, artifact)]


def _table(job: Job, fields: Dict[str, Any], source: Source, party: Party, artifact: Any) -> Dict[str, Any]:
    """A table of the party's site file as a directory input."""
    directory = next((name for name in catalog.type_names(artifact) if name == "data_directory"), None)
    namespace, name = fields.get("namespace"), fields.get("name")
    if source.kind == "model_warehouse" or directory is None or not name:
        raise ExtensionError("E520", where=source.where, source=source.kind)
    path = job.site(party).lookup("tables", f"{namespace}/{name}")
    metadata = {"metadata": {}, "namespace": str(namespace), "name": str(name)}
    return {"uri": f"file://{path}", "metadata": metadata, "type_name": directory}


def _outputs(job: Job, task: Task, party: Party, part: Any, folder: Path) -> Dict[str, Any]:
    found = {"metric": {"uri": f"file://{folder / 'metric.json'}", "type_name": "json_metric"}}
    for kind in ("data", "model"):
        for name, artifact in catalog.artifacts(part, kind, "outputs", task.stage, party.role).items():
            type_name = catalog.type_names(artifact)[0]
            index = "_{index}" if artifact.is_multi else ""
            if type_name in ("dataframe", "table"):
                table = f"{job.id}_{task.name}_{party.key}/{name}{index}"
                uri = f"standalone://{job.scratch}/{table}"
            else:
                uri = f"file://{folder / kind / (name + index)}" + (".json" if type_name == "json_model" else "")
            found[name] = {"uri": uri, "type_name": type_name}
    return found
