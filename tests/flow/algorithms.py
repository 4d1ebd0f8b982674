"""All algorithms in one job for three sites: the jobs of the integration tests, with the arbiter at site 10001."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "integration"))

import dpkd_jobs
import fdkt_jobs
import fedcot_jobs
from jobs import JobFiles

from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl

GUEST, HOST, ARBITER = "guest_9999", "host_10000", "arbiter_10001"
OPEN = "open"  # a table whose owners allow releases without a guarantee, as FedMKT's are
SECOND_ROLE = "host_10001"  # at the arbiter's site
PARTIES = {"9999": GUEST, "10000": HOST, "10001": ARBITER}
CLIENTS = [{"role": "guest", "party_id": ["9999"]}, {"role": "host", "party_id": ["10000"]}]
EVERYONE = [*CLIENTS, {"role": "arbiter", "party_id": ["10001"]}]
_GROUPS = ("tables", "models", "public", "budgets")
_FDKT = ("control", "student", "student_weights", "head")  # what prediction shares with training
_FEDCOT = ("task", "student", "student_weights", "learning")


def _table(name: str, parties: list[dict[str, Any]] = CLIENTS) -> dict[str, Any]:
    return {"data_warehouse": [{"namespace": "llm", "name": name, "parties": parties}]}


def _link(task: str, output: str, parties: list[dict[str, Any]]) -> dict[str, Any]:
    return {"task_output_artifact": {"producer_task": task, "output_artifact_key": output, "parties": parties}}


def _predict(
    component: str,
    table: str,
    producer: str,
    parameters: dict[str, Any],
    parties: list[dict[str, Any]] = EVERYONE,
) -> dict[str, Any]:
    owners = [party for party in parties if party["role"] != "arbiter"]
    return {
        "component_ref": component,
        "stage": "predict",
        "parameters": parameters,
        "inputs": {
            "data": {"test_data": _table(table, owners)},
            "model": {"input_model": _link(producer, "output_model", parties)},
        },
    }


def _some(parameters: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: parameters[name] for name in names if name in parameters}


def _renamed(job: JobFiles, table: str) -> JobFiles:
    """With the arbiter at its site, and a private table of its own: each pays from its own budget."""
    text = json.dumps([job.dag, job.sites]).replace("9998", "10001")
    job.dag, job.sites = json.loads(text.replace('"private"', f'"{table}"').replace("llm/private", f"llm/{table}"))
    return job


class AllAlgorithms:
    """One DAG, and what the three sites know of it.

    Tasks: ``evaluation_0``, ``dpkd_0`` (two owners), ``fdkt_0`` and ``fdkt_1`` (its prediction), ``fedcot_0`` and
    ``fedcot_1`` (its prediction), ``linked_0`` (FedCoT with the generator of ``fdkt_0``).

    Args:
        world: as :func:`jobs.make_world` makes it.
    """

    def __init__(self, world: Path) -> None:
        self._world = world
        self.dpkd = _renamed(dpkd_jobs.two_owners(world, world / "dpkd"), "dpkd")
        self.fdkt = _renamed(fdkt_jobs.two_domains(world, world / "fdkt"), "fdkt")
        self.fedcot = _renamed(fedcot_jobs.two_clients(world, world / "fedcot"), "fedcot")
        # Other records: the ledger knows those that stand in a table with a budget under whatever name.
        for seed, party in enumerate((GUEST, HOST, SECOND_ROLE), 21):
            rows = generate_tickets(26, seed)
            write_jsonl(world / OPEN / party / "train.jsonl", rows[:16])
            write_jsonl(world / OPEN / party / "test.jsonl", rows[16:])

    def sites(self, state: Path) -> dict[str, Any]:
        """The site file; each party keeps its ledger below ``state``."""
        found: dict[str, Any] = {"root": str(self._world)}
        for party in (*PARTIES.values(), SECOND_ROLE):
            section: dict[str, Any] = {group: {} for group in _GROUPS}
            for job in (self.dpkd, self.fdkt, self.fedcot):
                for group in _GROUPS:
                    section[group].update(job.sites.get(party, {}).get(group, {}))
            section["models"].setdefault("slm", "models/gpt2")
            section["public"]["tickets"] = "data/public"
            if party != ARBITER:
                section["tables"][f"llm/{OPEN}"] = f"{OPEN}/{party}"
                section["budgets"][f"llm/{OPEN}"] = {"epsilon": float("inf"), "delta": 0.01}
            found[party] = {**section, "device": "cpu", "threads": 1, "state": str(state / party)}
        return found

    def only(self, *tasks: str) -> dict[str, Any]:
        """The DAG with these tasks alone."""
        dag = self.dag()
        for part in (dag["dag"], *dag["dag"]["party_tasks"].values()):
            part["tasks"] = {name: task for name, task in part["tasks"].items() if name in tasks}
        if not dag["dag"]["party_tasks"]["host_10000"]["tasks"]:
            del dag["dag"]["party_tasks"]
        return dag

    def two_parties_at_one_site(self) -> dict[str, Any]:
        """FedMKT of four parties between three sites, and its prediction: 10001 is host and arbiter."""
        clients = [CLIENTS[0], {"role": "host", "party_id": ["10000", "10001"]}]
        everyone = [*clients, EVERYONE[2]]
        same = {"task": {"template": "tickets", "max_length": 160}, "model": {"name": "slm"}}
        parameters = {
            **same,
            "rounds": 1,
            "public": {"name": "tickets"},
            "lora": {"r": 2, "alpha": 4},
            "train": {"learning_rate": 1.0e-3, "batch_size": 8},
            "distill": {"supervised_weight": 0.5, "top_k": 8},
        }
        train = {
            "component_ref": "fedmkt",
            "parameters": parameters,
            "inputs": {"data": {"train_data": _table(OPEN, clients)}},
        }
        predict = _predict("fedmkt", OPEN, "fedmkt_0", same, everyone)
        own = {"parties": [EVERYONE[2]], "tasks": {"fedmkt_0": {"parameters": {"model": {"name": "llm"}}}}}
        dag = {
            "conf": {"task": {"timeout": 1800}},
            "parties": everyone,
            "stage": "train",
            "tasks": {"fedmkt_0": train, "fedmkt_1": predict},
            "party_tasks": {"arbiter_10001": own},
        }
        return json.loads(json.dumps({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))  # type: ignore[no-any-return]

    def dag(self) -> dict[str, Any]:
        """The whole job."""
        tickets = {"template": "tickets", "max_length": 160}
        evaluation = {
            "component_ref": "text_evaluation",
            "stage": "default",
            "parties": CLIENTS,
            "parameters": {"task": tickets, "model": {"name": "slm"}},
            "inputs": {"data": {"test_data": _table("tickets")}},
        }
        fdkt, own_fdkt = self._task(self.fdkt, "fdkt_0")
        fdkt["parameters"].update(student_weights="lora", compare=["local"], quality=False)
        own_fdkt.update(student_weights="full")
        fedcot, own_fedcot = self._task(self.fedcot, "fedcot_0")
        fedcot["parameters"].update(attack={"methods": []})
        linked, own_linked = self._task(self.fedcot, "fedcot_0")
        linked["inputs"] = {
            "data": {"train_data": _table("fdkt")},
            "model": {"generator": _link("fdkt_0", "generator_model", CLIENTS)},
        }
        generated = {"strategy": "dp_generator", "samples": 15}
        for parameters in (linked["parameters"], own_linked):
            parameters.update(perturbation=generated)
        linked["parameters"].update(compare=[], attack={"methods": []})
        tasks = {
            "evaluation_0": evaluation,
            "dpkd_0": self._task(self.dpkd, "dpkd_0")[0],
            "fdkt_0": fdkt,
            "fdkt_1": _predict("fdkt", "fdkt", "fdkt_0", _some(fdkt["parameters"], _FDKT)),
            "fedcot_0": fedcot,
            "fedcot_1": _predict("fedcot", "fedcot", "fedcot_0", _some(fedcot["parameters"], _FEDCOT)),
            "linked_0": linked,
        }
        for task in tasks.values():
            if "network" in task["parameters"]:
                task["parameters"]["network"] = {"silence_seconds": 240.0, "heartbeat_seconds": 2.0}
        explain = {"explain": True, "decoding": {"max_new_tokens": 8}}
        own = {
            "fdkt_0": own_fdkt,
            "fdkt_1": _some(own_fdkt, _FDKT),
            "fedcot_0": own_fedcot,
            "fedcot_1": {**_some(own_fedcot, _FEDCOT), **explain},
            "linked_0": own_linked,
        }
        host = {"parties": [CLIENTS[1]], "tasks": {name: {"parameters": value} for name, value in own.items()}}
        content = {
            "dag": {
                "conf": {"task": {"timeout": 1800}},
                "parties": EVERYONE,
                "stage": "train",
                "tasks": tasks,
                "party_tasks": {"host_10000": host},
            },
            "schema_version": "2.2.0",
            "kind": "fate",
        }
        return json.loads(json.dumps(content))  # type: ignore[no-any-return]

    @staticmethod
    def _task(job: JobFiles, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A task and the host's own parameters of it."""
        dag = json.loads(json.dumps(job.dag["dag"]))
        own = dag.get("party_tasks", {}).get("host_10000", {"tasks": {}})["tasks"]
        return dag["tasks"][name], own.get(name, {"parameters": {}})["parameters"]
