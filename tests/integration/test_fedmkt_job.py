"""One whole FedMKT job in real processes over FATE's federation, and what can be done with its outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jobs import KEYS, JobFiles

pytestmark = pytest.mark.integration

ARMS = {"zero_shot", "standalone", "standalone_public", "paper", "fedmkt"}


def events(directory: Path, task: str, party: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / task / party / "events.jsonl").read_text().splitlines()]


@pytest.mark.smoke
def test_train_then_predict_then_evaluate(job: JobFiles, world: Path) -> None:
    """Labelled and unlabelled rows, all arms; the adapters serve the following tasks and plain peft."""
    job.parameters["compare"] = sorted(ARMS - {"fedmkt"})
    add_tasks_behind(job)
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    directory = job.directory()

    for party in KEYS:
        check_results(directory, party)
        check_adapter(directory, party, world)
    for party in KEYS[:2]:
        found = list((directory / "predict_0" / party).rglob("predictions.jsonl"))
        assert len(found) == 1
        rows = [json.loads(line) for line in found[0].read_text().splitlines()]
        assert len(rows) == 10
        measured = {e["metric"]: e["value"] for e in events(directory, "evaluation_0", party) if e["type"] == "result"}
        trained = {
            e["metric"]: e["value"]
            for e in events(directory, "fedmkt_0", party)
            if e["type"] == "result" and e["arm"] == "fedmkt"
        }
        assert measured == pytest.approx(trained, rel=1e-4), "the saved adapter is the evaluated one"
    check_bytes(directory)
    check_signs_of_life(directory)
    page = (directory / "report.html").read_text()
    assert "fedmkt" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not job.alive()
    check_no_text(directory, world)


def check_signs_of_life(directory: Path) -> None:
    """How far a client is would tell how many private rows it has."""
    heard = {e["doing"] for e in events(directory, "fedmkt_0", "arbiter_9998") if e["type"] == "waiting"}
    assert not [text for text in heard if re.search(r"\d", text.replace("9998", ""))], heard


def add_tasks_behind(job: JobFiles) -> None:
    common = {name: job.parameters[name] for name in ("task", "model", "evaluation")}
    table = job.dag["dag"]["tasks"]["fedmkt_0"]["inputs"]["data"]["train_data"]
    link = {"task_output_artifact": {"producer_task": "fedmkt_0", "output_artifact_key": "output_model"}}
    for name, component, stage in (("predict_0", "fedmkt", "predict"), ("evaluation_0", "text_evaluation", "default")):
        job.dag["dag"]["tasks"][name] = {
            "component_ref": component,
            "stage": stage,
            "parameters": common,
            "inputs": {"data": {"test_data": table}, "model": {"input_model": link}},
        }
    arbiter = job.dag["dag"]["party_tasks"]["arbiter_9998"]["tasks"]
    arbiter["predict_0"] = {"parameters": {"model": {"name": "llm"}}}


def check_results(directory: Path, party: str) -> None:
    found = events(directory, "fedmkt_0", party)
    results = {(e["arm"], e["metric"]): e["value"] for e in found if e["type"] == "result"}
    arms = ARMS - ({"standalone"} if party.startswith("arbiter") else set())
    assert {arm for arm, _ in results} == arms
    for arm in arms:
        assert 0.0 <= results[arm, "accuracy"] <= 1.0
        assert 0.0 < results[arm, "nll_per_byte"] < 10.0
        if arm != "zero_shot":
            curves = {e["name"]: e["value"] for e in found if e["type"] == "metric" and e["arm"] == arm}
            assert curves["accuracy"] == results[arm, "accuracy"]
            assert curves["seconds"] > 0
    assert found[-1]["type"] == "done"
    times = [e["time"] for e in found]
    assert times == sorted(times)


def check_adapter(directory: Path, party: str, world: Path) -> None:
    """Loads with nothing but transformers and peft, and is no untrained one."""
    import peft
    import transformers

    folder = directory / "fedmkt_0" / party / "model" / "output_model"
    assert {"adapter_config.json", "README.md"} <= {path.name for path in folder.iterdir()}
    arch = dict(zip(KEYS, ("gpt2", "llama", "neox")))[party]
    base = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / arch))
    model = peft.PeftModel.from_pretrained(base, str(folder))
    moved = [float(p.detach().abs().sum()) for name, p in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(value > 0 for value in moved)
    assert str(world) not in (folder / "adapter_config.json").read_text(), "no path of this machine travels"
    assert "ε = ∞" in (folder / "README.md").read_text()


def check_bytes(directory: Path) -> None:
    """What the clients say they sent is what the arbiter says it received, message by message."""

    def messages(party: str, direction: str) -> list[tuple[str, int]]:
        found = [e for e in events(directory, "fedmkt_0", party) if e["type"] == "message"]
        return sorted((e["name"], e["bytes"]) for e in found if e["direction"] == direction)

    clients = [messages(party, "sent") for party in KEYS[:2]]
    assert sorted(clients[0] + clients[1]) == messages("arbiter_9998", "received")
    assert {name for name, _ in clients[0]} == {"hello", "scores", "signals"}


def check_no_text(directory: Path, world: Path) -> None:
    """No sample text in anything but the predictions that were asked for."""
    rows = [row for file in (world / "data").rglob("*.jsonl") for row in map(json.loads, file.read_text().splitlines())]
    rare = {word for row in rows for word in re.findall(r"\b[A-F]\d{5}\b", row["text"])}
    begins = {row["text"][:40] for row in rows}
    assert len(rare) > 10
    looked_at = 0
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".txt", ".json", ".yaml", ".html") and path.name not in (
            "predictions.jsonl", "tokenizer.json", "vocab.json", "merges.txt"
        ):  # fmt: skip
            looked_at += 1
            text = path.read_text(errors="replace")
            assert not [word for word in rare if word in text], path
            assert not [start for start in begins if start in text], path
    assert looked_at > 20
