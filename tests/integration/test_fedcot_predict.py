"""The models that FedCoT leaves behind answer in a later task as they did in the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedcot_jobs import ARBITER, GUEST, HOST, RECORDS, FedCoTFiles, llm, results, two_clients

from fate_llm_ext.data.datasets import read_rows

pytestmark = pytest.mark.integration

CHOICES = {
    GUEST: ["billing", "technical", "shipping", "account", "sales"],
    HOST: ["negative", "mixed", "positive"],
}
NAMES = ("task", "student", "student_weights", "learning")


def with_prediction(job: FedCoTFiles) -> None:
    """A second task that answers the clients' tables; the host writes rationales as well."""
    tasks, own = job.dag["dag"]["tasks"], job.dag["dag"]["party_tasks"][HOST]["tasks"]
    link = {"task_output_artifact": {"producer_task": "fedcot_0", "output_artifact_key": "output_model"}}
    tasks["predict_0"] = {
        "component_ref": "fedcot",
        "stage": "predict",
        "parameters": {name: job.parameters[name] for name in NAMES if name in job.parameters},
        "inputs": {
            "data": {"test_data": tasks["fedcot_0"]["inputs"]["data"]["train_data"]},
            "model": {"input_model": link},
        },
    }
    mine: dict[str, Any] = {name: value for name, value in job.own(HOST).items() if name in NAMES}
    own["predict_0"] = {"parameters": {**mine, "explain": True, "decoding": {"max_new_tokens": 8}}}


def test_train_then_predict(world: Path, tmp_path: Path) -> None:
    """The guest's model is whole, the host's an adapter; the test split of a table is what is answered."""
    with llm() as server:
        job = two_clients(world, tmp_path, server.url)
        job.parameters.update(compare=[], attack={"methods": []})
        with_prediction(job)
        done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()
    for client, choices in CHOICES.items():
        (found,) = (directory / "predict_0" / client).rglob("predictions.jsonl")
        rows = [json.loads(line) for line in found.read_text().splitlines()]
        assert [row["row"] for row in rows] == list(range(RECORDS))
        assert {row["prediction"] for row in rows} <= set(choices)
        assert all(("rationale" in row) == (client == HOST) for row in rows)
        truth = [row["label"] for row in read_rows(tmp_path / "data" / client, "test")]
        right = sum(row["prediction"] == label for row, label in zip(rows, truth)) / RECORDS
        assert right == pytest.approx(results(directory, client)["fedcot"]["accuracy"])
    assert not list((directory / "predict_0" / ARBITER).rglob("predictions.jsonl"))
    assert not job.alive()
