"""FedCoT jobs of the integration tests."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from fdkt_jobs import FDKTFiles, marker
from jobs import CLIENTS, PARTIES

from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.data.reviews import generate_reviews

sys.path.append(str(Path(__file__).parents[1] / "unit"))

RECORDS = 16
GUEST, HOST, ARBITER = "guest_9999", "host_10000", "arbiter_9998"
SAYS = "zzrationale"  # a word that the LLM of the tests says in each rationale, and nobody else


class FedCoTFiles(FDKTFiles):
    """A DAG with the one task ``fedcot_0``."""

    soon: ClassVar[float] = 150.0
    task: ClassVar[str] = "fedcot_0"

    @property
    def parameters(self) -> dict[str, Any]:
        return self.dag["dag"]["tasks"][self.task]["parameters"]

    def own(self, party: str) -> dict[str, Any]:
        """Parameters of one party alone; made if there are none yet."""
        role, _, number = party.partition("_")
        entry = {"parties": [{"role": role, "party_id": [number]}], "tasks": {self.task: {"parameters": {}}}}
        parameters: dict[str, Any] = (
            self.dag["dag"].setdefault("party_tasks", {}).setdefault(party, entry)["tasks"][self.task]["parameters"]
        )
        return parameters


def tables(folder: Path) -> None:
    """Private tables of both clients, a marker in each row; their test splits have none."""
    for party, rows in ((GUEST, generate_tickets(2 * RECORDS, 11)), (HOST, generate_reviews(2 * RECORDS, 12))):
        private = [
            {**row, "text": f"{row['text'][:60]} {marker(party, number)} {row['text'][60:]}"}
            for number, row in enumerate(rows[:RECORDS])
        ]
        write_jsonl(folder / party / "train.jsonl", private)
        write_jsonl(folder / party / "test.jsonl", rows[RECORDS:])


def private_rows(job: FedCoTFiles, party: str) -> list[dict[str, Any]]:
    lines = (Path(job.sites[party]["tables"]["llm/private"]) / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def two_clients(world: Path, folder: Path, url: str | None = None) -> FedCoTFiles:
    """Guest with tickets, host with reviews; each has a strategy of its own.

    Args:
        url: of the LLM's server; default: a local Llama that has learned next to nothing.
    """
    tables(folder / "data")
    parameters = {
        "task": {"template": "tickets", "max_length": 128},
        "perturbation": {"strategy": "fixed_vocabulary", "epsilon": 8.0},
        "question": {"max_words": 12},
        "vocabulary": {"size": 150},
        "student": {"name": "slm"},
        "llm": {"name": "llm"},
        "rationale": {"max_new_tokens": 12, "batch_size": 16},
        "quality": {"min_words": 1, "consistent": False, "max_copy": 1.0},
        "student_weights": "full",
        "train": {"learning_rate": 3.0e-3, "batch_size": 8, "epochs": 1},
        "compare": ["standalone"],
        "attack": {"words": 200},
        "network": {"silence_seconds": 60.0, "heartbeat_seconds": 1.0},
    }
    host = {
        "task": {"template": "reviews", "max_length": 128},
        "perturbation": {"strategy": "metric", "epsilon": 4.0},
        "student_weights": "lora",
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0},
    }
    table = {"namespace": "llm", "name": "private", "parties": CLIENTS}
    task = {
        "component_ref": "fedcot",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    own = {HOST: {"parties": [PARTIES[1]], "tasks": {"fedcot_0": {"parameters": host}}}}
    dag = {"parties": PARTIES, "stage": "train", "tasks": {"fedcot_0": task}, "party_tasks": own}
    sites: dict[str, Any] = {"root": str(world)}
    for key in (GUEST, HOST):
        sites[key] = {
            "tables": {"llm/private": str(folder / "data" / key)},
            "models": {"slm": "models/gpt2"},
            "budgets": {"llm/private": {"epsilon": 200.0, "delta": 0.01}},
            "state": str(folder / f"state_{key}"),
            "device": "cpu",
        }
    sites[ARBITER] = {"models": {"llm": "models/llama"}, "device": "cpu"}
    if url is not None:
        sites[ARBITER] = {"endpoints": {"llm": {"url": url, "deadline_seconds": 60.0}}, "device": "cpu"}
    whole = {"dag": dag, "schema_version": "2.2.0", "kind": "fate"}
    return FedCoTFiles(folder, yaml.safe_load(yaml.safe_dump(whole)), sites)


def one_client(world: Path, folder: Path, url: str | None = None) -> FedCoTFiles:
    """The guest alone with the arbiter; no comparison, no attack."""
    job = two_clients(world, folder, url)
    del job.dag["dag"]["party_tasks"], job.sites[HOST]
    job.dag["dag"]["parties"] = [party for party in job.dag["dag"]["parties"] if party["role"] != "host"]
    table = job.dag["dag"]["tasks"]["fedcot_0"]["inputs"]["data"]["train_data"]["data_warehouse"][0]
    table["parties"] = [party for party in table["parties"] if party["role"] != "host"]
    job.parameters.update(compare=[], attack={"methods": []})
    return job


def question(prompt: str) -> str:
    """What a prompt of the LLM asks about."""
    return prompt.rpartition("Q: ")[2].rpartition("\nA:")[0]


def answer(prompt: str) -> str:
    """A rationale with the words of its question, and the first choice that it names."""
    choices = question(prompt).partition("Answer choices:")[2].split(",")
    return f"{SAYS} because of it. So the answer is {choices[0].strip() or 'unknown'}."


@contextlib.contextmanager
def llm(reply: Any = answer) -> Iterator[Any]:
    """An LLM behind HTTP that answers a prompt by ``reply``; ``.attempts`` holds what it was asked."""
    from faulty_server import serving

    with serving(lambda handler, prompt, attempt: handler.answer(handler.text(reply(prompt)))) as server:
        yield server


def events(directory: Path, party: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "fedcot_0" / party / "events.jsonl").read_text().splitlines()]


def results(directory: Path, party: str) -> dict[str, dict[str, float]]:
    """Arm -> metric -> value."""
    found: dict[str, dict[str, float]] = {}
    for event in events(directory, party):
        if event["type"] == "result":
            found.setdefault(event["arm"], {})[event["metric"]] = event["value"]
    return found


def metrics(directory: Path, party: str, arm: str = "fedcot") -> dict[str, float]:
    """Measurement -> value, of an arm."""
    return {
        event["name"]: event["value"]
        for event in events(directory, party)
        if event["type"] == "metric" and event["arm"] == arm
    }


def warnings(directory: Path, party: str) -> list[str]:
    """Codes."""
    return [event["code"] for event in events(directory, party) if event["type"] == "warning"]


def phrases(text: str, words: int = 4) -> set[str]:
    """All runs of so many words."""
    units = re.findall(r"\w+", text.lower())
    return {" ".join(units[start : start + words]) for start in range(len(units) - words + 1)}
