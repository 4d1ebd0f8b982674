"""DP-KD jobs of the integration tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jobs import CLIENTS, PARTIES, JobFiles

CODES = ["billing", "technical", "shipping", "account", "sales"]
BUDGET = {"epsilon": 12.0, "delta": 0.01}


class DPKDFiles(JobFiles):
    """A DAG with the one task ``dpkd_0``."""

    soon: ClassVar[float] = 230.0

    @property
    def parameters(self) -> dict[str, Any]:
        return self.dag["dag"]["tasks"]["dpkd_0"]["parameters"]

    def directory(self) -> Path:
        return max(self.out.iterdir())


def two_owners(world: Path, folder: Path) -> DPKDFiles:
    """Guest and host train a GPT-2 teacher, the arbiter a Llama student with a tokenizer of its own."""
    parameters = {
        "rounds": 2,
        "control": {"code": "{{ label }}", "values": CODES, "max_length": 96, "frequencies": "histogram"},
        "privacy": {"epsilon": 8.0, "delta": 0.01, "batch_size": 8, "epochs": 3, "learning_rate": 3.0e-3},
        "teacher": {"name": "teacher"},
        "student": {"name": "student"},
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0},
        "synthesis": {"samples": 30, "top_k": 0, "top_p": 1.0, "max_new_tokens": 40},
        "distill": {"top_k": 8, "on_policy_rounds": 1, "on_policy_samples": 10},
        "train": {"learning_rate": 3.0e-3, "batch_size": 8, "epochs": 1},
        "public": {"name": "tickets"},
        "compare": ["synthetic_ce"],
        "network": {"silence_seconds": 60.0, "heartbeat_seconds": 1.0},
    }
    table = {"namespace": "llm", "name": "tickets", "parties": CLIENTS}
    task = {
        "component_ref": "dpkd",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    dag = {"parties": PARTIES, "stage": "train", "tasks": {"dpkd_0": task}}
    sites: dict[str, Any] = {"root": str(world)}
    for key in ("guest_9999", "host_10000"):
        sites[key] = {
            "tables": {"llm/tickets": f"data/{key}"},
            "models": {"teacher": "models/gpt2"},
            "budgets": {"llm/tickets": dict(BUDGET)},
            "state": str(folder / f"state_{key}"),
            "device": "cpu",
        }
    sites["arbiter_9998"] = {
        "models": {"student": "models/llama"},
        "public": {"tickets": "data/public"},
        "device": "cpu",
    }
    whole = {"dag": dag, "schema_version": "2.2.0", "kind": "fate"}
    return DPKDFiles(folder, yaml.safe_load(yaml.safe_dump(whole)), sites)


def one_owner(world: Path, folder: Path) -> DPKDFiles:
    """The guest has teacher and student; the arbiter only serves. Full weights, uniform codes, no comparisons."""
    job = two_owners(world, folder)
    job.dag["dag"]["parties"] = [party for party in job.dag["dag"]["parties"] if party["role"] != "host"]
    table = job.dag["dag"]["tasks"]["dpkd_0"]["inputs"]["data"]["train_data"]["data_warehouse"][0]
    table["parties"] = [party for party in table["parties"] if party["role"] != "host"]
    del job.sites["host_10000"]
    job.sites["arbiter_9998"] = {"device": "cpu"}
    guest = job.sites["guest_9999"]
    guest["models"]["student"] = "models/gpt2"
    guest["public"] = {"tickets": "data/public"}
    job.parameters.update(student_at="guest", teacher_weights="full", rounds=1, compare=[])
    job.parameters["control"]["frequencies"] = "uniform"
    job.parameters["distill"]["on_policy_rounds"] = 0
    return job


def events(directory: Path, party: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "dpkd_0" / party / "events.jsonl").read_text().splitlines()]


def results(directory: Path, party: str) -> dict[str, dict[str, float]]:
    """Arm -> metric -> value."""
    found: dict[str, dict[str, float]] = {}
    for event in events(directory, party):
        if event["type"] == "result":
            found.setdefault(event["arm"], {})[event["metric"]] = event["value"]
    return found
