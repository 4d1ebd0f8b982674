"""FedMKT and the ledger: the release is on record before the first message that derives from private rows."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jobs import KEYS, JobFiles, program

pytestmark = pytest.mark.integration

TABLE = "llm/tickets"


def own_state(job: JobFiles) -> None:
    """Ledgers of this test alone."""
    for party in KEYS:
        job.sites[party]["state"] = str(job.folder / "state" / party)


def ledger(job: JobFiles, party: str) -> list[dict[str, Any]]:
    files = sorted((job.folder / "state" / party).rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def events(job: JobFiles, party: str) -> list[dict[str, Any]]:
    lines = (job.directory() / "fedmkt_0" / party / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_table_without_a_budget_is_recorded_and_stated(job: JobFiles, world: Path) -> None:
    own_state(job)
    done = job.run()
    assert done.returncode == 0, done.stderr
    for party, name in zip(KEYS[:2], ("guest 9999", "host 10000")):
        (entry,) = ledger(job, party)
        assert entry["release"]["mechanisms"] == [{"kind": "non_private"}]
        assert entry["release"]["recipients"] == ["arbiter 9998"]
        assert (entry["data"]["table"], entry["data"]["records"]) == (TABLE, 16)
        found = events(job, party)
        first = next(e["time"] for e in found if e["type"] == "message" and e["name"] == "scores")
        assert datetime.fromisoformat(entry["time"]).timestamp() < first, "charged before anything leaves"
        trained = next(e["time"] for e in found if e["type"] == "phase" and e["phase"] == "private training")
        assert datetime.fromisoformat(entry["time"]).timestamp() < trained
        (said,) = [e for e in found if e["type"] == "privacy"]
        assert said["guarantee"]["epsilon"] == said["ledger"]["epsilon"] == "infinity"
        assert f"{name}: ε = ∞ (no differential privacy) for {TABLE}; ledger: ∞ spent, no budget" in done.stdout
        assert "leaves without differential privacy" in (job.directory() / "fedmkt_0" / party / "log.txt").read_text()
        assert entry["data"]["fingerprint"] not in json.dumps(found)
    assert ledger(job, "arbiter_9998") == []
    (said,) = [e for e in events(job, "arbiter_9998") if e["type"] == "privacy"]
    assert said["data"] is None
    for party in KEYS:
        folder = job.directory() / "fedmkt_0" / party / "model" / "output_model"
        (said,) = [e for e in events(job, party) if e["type"] == "privacy"]
        assert json.loads((folder / "privacy.json").read_text()).items() <= said.items()
        card = (folder / "README.md").read_text()
        assert "## Privacy" in card
        assert "ε = ∞" in card
    page = (job.directory() / "report.html").read_text()
    assert "What left a party" in page
    assert "top-k log-probabilities" in page
    check_commands(job)


def check_commands(job: JobFiles) -> None:
    """The operator's commands see the same."""
    sites = ["--sites", job.folder / "sites.yaml"]
    verified = program("privacy", "verify", *sites)
    assert verified.returncode == 0, verified.stderr
    tables = json.loads(program("privacy", "ledger", *sites, "--json").stdout)
    assert [(one["party"], one["table"], one["epsilon"]) for one in tables] == [
        (party, TABLE, "infinity") for party in KEYS[:2]
    ]


def test_a_finite_budget_refuses_before_anything_is_trained_or_sent(job: JobFiles) -> None:
    own_state(job)
    job.sites["host_10000"]["budgets"] = {TABLE: {"epsilon": 8.0, "delta": 1.0e-4}}
    files = job.write()[1:4]
    planned = program("privacy", "plan", *files)
    assert planned.returncode == 1
    assert "fedmkt_0 host 10000 would be refused: E611" in planned.stderr
    done = job.run()
    assert done.returncode == 1
    assert "E521 host 10000" in done.stderr
    assert "E611" in done.stderr
    assert ledger(job, "host_10000") == []
    host = events(job, "host_10000")
    assert not [e for e in host if e["type"] == "message"]
    assert {e["phase"] for e in host if e["type"] == "phase"} == {"loading"}
    told = json.dumps(events(job, "arbiter_9998"))
    assert "host 10000 stopped the job: E611" in told
    assert TABLE not in told
    assert not job.alive()


def test_an_infinite_budget_allows_it(job: JobFiles) -> None:
    own_state(job)
    for party in KEYS[:2]:
        job.sites[party]["budgets"] = {TABLE: {"epsilon": float("inf"), "delta": 1.0e-4}}
    assert program("privacy", "plan", *job.write()[1:4]).returncode == 0
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert f"guest 9999: ε = ∞ (no differential privacy) for {TABLE}; ledger: ∞ of ∞" in done.stdout


def test_predictions_and_evaluation_release_nothing(job: JobFiles) -> None:
    """They stay at the party, so the ledger is not asked."""
    own_state(job)
    common = {name: job.parameters[name] for name in ("task", "model", "evaluation")}
    table = job.dag["dag"]["tasks"]["fedmkt_0"]["inputs"]["data"]["train_data"]
    parties = job.dag["dag"]["parties"][:2]
    job.dag["dag"]["tasks"] = {
        "fedmkt_0": {
            "component_ref": "text_evaluation",
            "stage": "default",
            "parameters": common,
            "parties": parties,
            "inputs": {"data": {"test_data": table}},
        }
    }
    job.dag["dag"]["party_tasks"] = {}
    for party in KEYS[:2]:
        job.sites[party]["budgets"] = {TABLE: {"epsilon": 1.0, "delta": 1.0e-4}}
    planned = program("privacy", "plan", *job.write()[1:4])
    assert planned.returncode == 0, planned.stderr
    assert "nothing leaves" in planned.stdout
    done = job.run()
    assert done.returncode == 0, done.stderr
    for party in KEYS[:2]:
        assert not (job.folder / "state" / party).exists()
        (said,) = [e for e in events(job, party) if e["type"] == "privacy"]
        assert (said["guarantee"]["epsilon"], said["releases"]) == (0.0, [])
