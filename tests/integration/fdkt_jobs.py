"""FDKT jobs of the integration tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jobs import CLIENTS, PARTIES, JobFiles

from fate_llm_ext.data.corpus import DEPARTMENTS, generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.data.reviews import SENTIMENTS, generate_reviews
from fate_llm_ext.privacy.ledger import Entry, Ledger

RECORDS = 24
TICKETS = {"code": "{{ label }}", "values": list(DEPARTMENTS), "max_length": 96, "frequencies": "histogram"}
REVIEWS = {"code": "{{ label }}", "values": list(SENTIMENTS), "max_length": 96}


class FDKTFiles(JobFiles):
    """A DAG with the one task ``fdkt_0``."""

    soon: ClassVar[float] = 230.0

    @property
    def parameters(self) -> dict[str, Any]:
        return self.dag["dag"]["tasks"]["fdkt_0"]["parameters"]

    def own(self, party: str) -> dict[str, Any]:
        """Parameters of one party alone."""
        return self.dag["dag"]["party_tasks"][party]["tasks"]["fdkt_0"]["parameters"]

    def directory(self) -> Path:
        return max(self.out.iterdir())

    def ledger(self, party: str) -> list[Entry]:
        found = {path.parent for path in Path(self.sites[party]["state"]).rglob("*.jsonl")}
        for folder in found:
            assert Ledger(folder).verify() == []
        return [entry for folder in found for entry in Ledger(folder).entries()]


def marker(party: str, row: int) -> str:
    """A word that stands in one private row and nowhere else."""
    return f"{party[:1]}q{'bcdfghjklmnpqrstvwxz'[row % 20]}xv{row}"


def tables(folder: Path) -> None:
    """Private tables of both clients, a marker in each row; their test splits have none."""
    for party, rows in (
        ("guest_9999", generate_tickets(2 * RECORDS, 11)),
        ("host_10000", generate_reviews(2 * RECORDS, 12)),
    ):
        private = [
            {**row, "text": f"{row['text'][:60]} {marker(party, number)} {row['text'][60:]}"}
            for number, row in enumerate(rows[:RECORDS])
        ]
        write_jsonl(folder / party / "train.jsonl", private)
        write_jsonl(folder / party / "test.jsonl", rows[RECORDS:])


def two_domains(world: Path, folder: Path) -> FDKTFiles:
    """Guest with tickets, host with reviews, an arbiter with a Llama that has learned next to nothing."""
    tables(folder / "data")
    parameters = {
        "control": TICKETS,
        "description": "a ticket of a shop",
        "privacy": {"epsilon": 8.0, "delta": 0.01, "batch_size": 8, "epochs": 3, "learning_rate": 3.0e-3},
        "generator": {"name": "slm"},
        "student": {"name": "slm"},
        "llm": {"name": "llm"},
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0},
        "synthesis": {"samples": 20, "max_new_tokens": 20},
        "augmentation": {"samples": 10, "max_new_tokens": 20, "label_by": "requested"},
        "filter": {"samples_per_cluster": 4},
        "train": {"learning_rate": 3.0e-3, "batch_size": 8, "epochs": 1},
        "feedback": {"rounds": 1, "noise": 20.0},
        "compare": ["local", "local_synthetic", "non_private"],
        "network": {"silence_seconds": 60.0, "heartbeat_seconds": 1.0},
    }
    host = {
        "control": REVIEWS,
        "description": "a review of a restaurant",
        "privacy": {**parameters["privacy"], "epsilon": 4.0},  # type: ignore[dict-item]
        "generator_weights": "full",
        "head": "classification",
    }
    table = {"namespace": "llm", "name": "private", "parties": CLIENTS}
    task = {
        "component_ref": "fdkt",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    own = {"host_10000": {"parties": [PARTIES[1]], "tasks": {"fdkt_0": {"parameters": host}}}}
    dag = {"parties": PARTIES, "stage": "train", "tasks": {"fdkt_0": task}, "party_tasks": own}
    sites: dict[str, Any] = {"root": str(world)}
    for key in ("guest_9999", "host_10000"):
        sites[key] = {
            "tables": {"llm/private": str(folder / "data" / key)},
            "models": {"slm": "models/gpt2"},
            "budgets": {"llm/private": {"epsilon": 12.0, "delta": 0.01}},
            "state": str(folder / f"state_{key}"),
            "device": "cpu",
        }
    sites["arbiter_9998"] = {"models": {"llm": "models/llama", "encoder": "models/neox"}, "device": "cpu"}
    whole = {"dag": dag, "schema_version": "2.2.0", "kind": "fate"}
    return FDKTFiles(folder, yaml.safe_load(yaml.safe_dump(whole)), sites)


def one_client(world: Path, folder: Path) -> FDKTFiles:
    """The guest alone with the arbiter; no comparison, no feedback."""
    job = two_domains(world, folder)
    del job.dag["dag"]["party_tasks"], job.sites["host_10000"]
    job.dag["dag"]["parties"] = [party for party in job.dag["dag"]["parties"] if party["role"] != "host"]
    table = job.dag["dag"]["tasks"]["fdkt_0"]["inputs"]["data"]["train_data"]["data_warehouse"][0]
    table["parties"] = [party for party in table["parties"] if party["role"] != "host"]
    job.parameters.update(compare=[], feedback={"rounds": 0}, quality=False)
    job.parameters["control"]["frequencies"] = "uniform"
    return job


def events(directory: Path, party: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "fdkt_0" / party / "events.jsonl").read_text().splitlines()]


def results(directory: Path, party: str) -> dict[str, dict[str, float]]:
    """Arm -> metric -> value."""
    found: dict[str, dict[str, float]] = {}
    for event in events(directory, party):
        if event["type"] == "result":
            found.setdefault(event["arm"], {})[event["metric"]] = event["value"]
    return found


def metrics(directory: Path, party: str, arm: str) -> dict[str, float]:
    """Measurement -> value, of an arm."""
    return {
        event["name"]: event["value"]
        for event in events(directory, party)
        if event["type"] == "metric" and event["arm"] == arm
    }
