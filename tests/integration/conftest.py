"""A small world made once per session: a corpus, two clients, a public set, tiny models; and jobs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import CLIENTS, KEYS, PARTIES, JobFiles, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tickets.jsonl``, ``data/{guest_9999,host_10000,public}``, ``models/{gpt2,llama,neox}``."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def job(world: Path, tmp_path: Path) -> JobFiles:
    """One round of FedMKT between guest, host and arbiter."""
    table = {"namespace": "llm", "name": "tickets", "parties": CLIENTS}
    parameters = {
        "rounds": 1,
        "task": {"template": "tickets", "max_length": 160},
        "public": {"name": "tickets"},
        "model": {"name": "slm"},
        "lora": {"r": 2, "alpha": 4},
        "train": {"learning_rate": 1.0e-3, "batch_size": 8},
        "distill": {"supervised_weight": 0.5, "top_k": 8, "margin": 0.0},
        "evaluation": {"batch_size": 8},
        "network": {"silence_seconds": 60.0, "heartbeat_seconds": 2.0},
        "compare": ["zero_shot"],
    }
    task = {
        "component_ref": "fedmkt",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    arbiter = {"parties": [PARTIES[2]], "tasks": {"fedmkt_0": {"parameters": {"model": {"name": "llm"}}}}}
    dag = {"parties": PARTIES, "stage": "train", "tasks": {"fedmkt_0": task}, "party_tasks": {"arbiter_9998": arbiter}}
    public = {"public": {"tickets": "data/public"}, "device": "cpu"}
    sites: dict[str, Any] = {"root": str(world)}
    for key, arch in zip(KEYS, ("gpt2", "llama", "neox")):
        name = "llm" if key.startswith("arbiter") else "slm"
        sites[key] = {**public, "public": dict(public["public"]), "models": {name: f"models/{arch}"}}
        if name == "slm":
            sites[key]["tables"] = {"llm/tickets": f"data/{key}"}
    return JobFiles(
        tmp_path, yaml.safe_load(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"})), sites
    )
