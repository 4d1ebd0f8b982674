"""Two components in one DAG: FDKT trains a DP generator, FedCoT asks an LLM about what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fdkt_jobs import RECORDS, FDKTFiles, marker, one_client
from jobs import program

from fate_llm_ext.privacy.events import PoissonGaussian, PostProcessing

pytestmark = pytest.mark.integration

GUEST = "guest_9999"
LINK = {"producer_task": "fdkt_0", "output_artifact_key": "generator_model"}
FEDCOT = {
    "task": {"template": "tickets", "max_length": 96},
    "perturbation": {"strategy": "dp_generator", "samples": 15},
    "student": {"name": "slm"},
    "llm": {"name": "llm"},
    "rationale": {"max_new_tokens": 12},
    "quality": {"consistent": False, "min_words": 1},
    "train": {"learning_rate": 3.0e-3, "batch_size": 8, "epochs": 1},
    "compare": ["standalone"],
    "network": {"silence_seconds": 60.0, "heartbeat_seconds": 1.0},
}


def linked(job: FDKTFiles) -> FDKTFiles:
    """``fdkt_0``, and behind it ``fedcot_0``, which has the same table and samples from its generator."""
    tasks = job.dag["dag"]["tasks"]
    tasks["fedcot_0"] = {
        "component_ref": "fedcot",
        "parameters": json.loads(json.dumps(FEDCOT)),
        "inputs": {
            "data": json.loads(json.dumps(tasks["fdkt_0"]["inputs"]["data"])),
            "model": {
                "generator": {
                    "task_output_artifact": {**LINK, "parties": [{"role": "guest", "party_id": ["9999"]}]},
                }
            },
        },
    }
    return job


def events(directory: Path, task: str, kind: str) -> list[dict[str, Any]]:
    lines = (directory / task / GUEST / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["type"] == kind]


def test_a_generator_goes_from_one_component_to_the_other(world: Path, tmp_path: Path) -> None:
    job = linked(one_client(world, tmp_path))
    job.sites[GUEST]["budgets"]["llm/private"]["epsilon"] = 8.0  # as much as the generator costs
    _, *files = job.write()
    planned = program("privacy", "plan", *files[:3])
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "fedcot_0 guest 9999: no further ε: all that leaves is computed from what fdkt_0 has paid" in planned.stdout

    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()
    first, second = job.ledger(GUEST)
    (cost,) = second.release.mechanisms
    made, said = (events(directory, task, "privacy")[-1] for task in ("fdkt_0", "fedcot_0"))
    assert any(isinstance(one, PoissonGaussian) for one in first.release.mechanisms)
    assert isinstance(cost, PostProcessing)
    assert (cost.epsilon, cost.delta) == (made["guarantee"]["epsilon"], made["guarantee"]["delta"])
    assert said["ledger"]["releases"] == 2
    assert said["ledger"]["epsilon"] == pytest.approx(made["ledger"]["epsilon"]), "the second task costs nothing"

    counted = {event["name"]: event["value"] for event in events(directory, "fedcot_0", "metric")}
    assert 0 < counted["texts"] <= 15
    assert counted["questions"] == counted["texts"]
    assert 0 < counted["rationales_kept"] <= counted["rationales"] <= counted["questions"]
    assert {event["arm"] for event in events(directory, "fedcot_0", "result")} == {"fedcot", "standalone"}
    inputs = json.loads((directory / "fedcot_0" / GUEST / "task.yaml").read_text())["input_artifacts"]
    assert inputs["generator"]["uri"].endswith("fdkt_0/guest_9999/model/generator_model")
    for path in (directory / "fedcot_0").rglob("*"):
        if path.is_file() and path.suffix not in (".safetensors", ".bin"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(marker(GUEST, row) in text for row in range(RECORDS)), path
    assert not job.alive()
