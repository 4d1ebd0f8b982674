"""The task models that FDKT leaves behind answer in a later task as they did in the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fdkt_jobs import RECORDS, results, two_domains

from fate_llm_ext.data.corpus import DEPARTMENTS
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.reviews import SENTIMENTS

pytestmark = pytest.mark.integration

CLIENTS = {"guest_9999": list(DEPARTMENTS), "host_10000": list(SENTIMENTS)}


def test_train_then_predict(world: Path, tmp_path: Path) -> None:
    """The guest's model is an adapter that writes labels, the host's a whole classifier."""
    job = two_domains(world, tmp_path)
    job.parameters.update(student_weights="lora", compare=[], feedback={"rounds": 0}, quality=False)
    job.own("host_10000")["student_weights"] = "full"
    tasks, own = job.dag["dag"]["tasks"], job.dag["dag"]["party_tasks"]["host_10000"]["tasks"]
    names = ("control", "student", "student_weights", "head")
    link = {"task_output_artifact": {"producer_task": "fdkt_0", "output_artifact_key": "output_model"}}
    tasks["predict_0"] = {
        "component_ref": "fdkt",
        "stage": "predict",
        "parameters": {name: job.parameters[name] for name in names if name in job.parameters},
        "inputs": {"data": {"test_data": job.dag["dag"]["tasks"]["fdkt_0"]["inputs"]["data"]["train_data"]}},
    }
    tasks["predict_0"]["inputs"]["model"] = {"input_model": link}
    own["predict_0"] = {"parameters": {name: value for name, value in job.own("host_10000").items() if name in names}}
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()
    for client, labels in CLIENTS.items():
        (found,) = (directory / "predict_0" / client).rglob("predictions.jsonl")
        rows = [json.loads(line) for line in found.read_text().splitlines()]
        assert [row["row"] for row in rows] == list(range(RECORDS))
        for row in rows:
            assert list(row["probabilities"]) == labels
            assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)
            assert row["probabilities"][row["prediction"]] == max(row["probabilities"].values())
        truth = [row["label"] for row in read_rows(tmp_path / "data" / client, "test")]
        right = sum(row["prediction"] == label for row, label in zip(rows, truth)) / RECORDS
        assert right == pytest.approx(results(directory, client)["fdkt"]["accuracy"])
    saved = [directory / "fdkt_0" / client / "model" / "output_model" for client in CLIENTS]
    assert [(folder / "adapter_config.json").exists() for folder in saved] == [True, False]
    assert [(folder / "model.safetensors").exists() for folder in saved] == [False, True]
    assert not list((directory / "predict_0" / "arbiter_9998").rglob("predictions.jsonl"))
    assert not job.alive()
