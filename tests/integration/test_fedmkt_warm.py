"""A second FedMKT task goes on from the adapters of the first."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jobs import KEYS, JobFiles, failed

pytestmark = pytest.mark.integration

LINK = {"task_output_artifact": {"producer_task": "fedmkt_0", "output_artifact_key": "output_model"}}


def add_second(job: JobFiles, **parameters: Any) -> None:
    tasks = job.dag["dag"]["tasks"]
    tasks["fedmkt_1"] = copy.deepcopy(tasks["fedmkt_0"])
    tasks["fedmkt_1"]["inputs"]["model"] = {"warm_start_model": copy.deepcopy(LINK)}
    tasks["fedmkt_1"]["parameters"].update(seed=7, **parameters)
    own = job.dag["dag"]["party_tasks"]["arbiter_9998"]["tasks"]
    own["fedmkt_1"] = copy.deepcopy(own["fedmkt_0"])


def events(directory: Path, task: str, party: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / task / party / "events.jsonl").read_text().splitlines()]


def results(directory: Path, task: str, party: str, arm: str) -> dict[str, float]:
    found = events(directory, task, party)
    return {e["metric"]: e["value"] for e in found if e["type"] == "result" and e["arm"] == arm}


def test_every_column_starts_from_the_earlier_adapters(job: JobFiles) -> None:
    add_second(job, compare=["zero_shot", "standalone_public"])
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()
    for party in KEYS:
        trained = results(directory, "fedmkt_0", party, "fedmkt")
        assert results(directory, "fedmkt_1", party, "zero_shot") == pytest.approx(trained, rel=1e-6)
        for arm in ("standalone_public", "fedmkt"):
            after = results(directory, "fedmkt_1", party, arm)
            assert after["nll_per_byte"] < trained["nll_per_byte"], "it learns on"
        folder = directory / "fedmkt_1" / party / "model" / "output_model"
        card = (folder / "README.md").read_text()
        assert "It began with the adapter of an earlier job." in card
        statement = json.loads((folder / "privacy.json").read_text())
        assert len(statement["notes"]) == 1
        client = not party.startswith("arbiter")
        assert ("llm/tickets (16 records)" in statement["notes"][0]) == client
        if client:
            first = directory / "fedmkt_0" / party / "model" / "output_model" / "privacy.json"
            before = json.loads(first.read_text())["ledger"]["releases"]  # other tests share this ledger
            assert statement["ledger"]["releases"] == before + 1, "a second job is a second release"
        assert not json.loads((directory / "fedmkt_0" / party / "model/output_model/privacy.json").read_text())["notes"]
    page = (directory / "report.html").read_text()
    assert "from an adapter that an earlier job has trained on llm/tickets" in page


def test_one_party_may_go_on_and_the_others_begin(job: JobFiles) -> None:
    add_second(job)
    source = job.dag["dag"]["tasks"]["fedmkt_1"]["inputs"]["model"]["warm_start_model"]["task_output_artifact"]
    source["parties"] = [{"role": "host", "party_id": ["10000"]}]
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()
    for party in KEYS:
        goes_on = results(directory, "fedmkt_1", party, "zero_shot") == pytest.approx(
            results(directory, "fedmkt_0", party, "fedmkt"), rel=1e-6
        )
        assert goes_on == (party == "host_10000")


def test_another_rank_is_refused_before_anything_is_trained(job: JobFiles) -> None:
    add_second(job, lora={"r": 4, "alpha": 4})
    job.soon *= 2  # two tasks
    line = failed(job, "E850", "LoRA rank: 4 here, 2 there")
    assert "alpha" not in line
    directory = job.directory()
    for party in KEYS:
        assert not list((directory / "fedmkt_1" / party).rglob("adapter_model.safetensors"))
        assert not [e for e in events(directory, "fedmkt_1", party) if e["type"] in ("metric", "result")]
