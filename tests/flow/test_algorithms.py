"""Every algorithm between three servers of FATE Flow, in one job, beside the same job on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from algorithms import ARBITER, GUEST, HOST, PARTIES, SECOND_ROLE, AllAlgorithms
from jobs import make_world, program
from sites import Federation

from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.flow.fetch import fetch
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.privacy.events import LocalDP, PoissonGaussian, PostProcessing
from fate_llm_ext.privacy.ledger import Entry, Ledger

# Task and arm without any noise.
DECIDED_BY_THE_SEED = [("evaluation_0", "evaluation"), ("fdkt_0", "local"), ("fedcot_0", "standalone")]


@dataclass
class Ran:
    """The job over FATE Flow, and the same file run by the local engine.

    Attributes:
        job: its id.
        fetched: run directory of each party, as its own site gives it.
        local: run directory of the same job on this machine.
        state: party -> folder of what its site keeps.
    """

    federation: Federation
    jobs: AllAlgorithms
    job: str
    fetched: dict[str, Path]
    local: Path
    state: Path

    def ledger(self, party: str) -> list[Entry]:
        folder = self.state / party / "ledger"
        assert Ledger(folder).verify() == []
        return list(Ledger(folder).entries())

    def events(self, party: str, task: str) -> list[dict[str, Any]]:
        lines = (self.fetched[party] / task / party / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def model(self, party: str, task: str, output: str) -> Path:
        return self.fetched[party] / task / party / "model" / output

    def data(self, party: str, task: str, output: str) -> Path:
        return self.fetched[party] / task / party / "data" / output


@pytest.fixture(scope="module")
def ran(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    world = make_world(tmp_path_factory.mktemp("algorithms"))
    jobs = AllAlgorithms(world)
    before = federation.sites_file.read_text()
    try:
        known = {**yaml.safe_load(before), **jobs.sites(world / "state")}
        federation.sites_file.write_text(yaml.safe_dump(known))
        for party, name in {**PARTIES, "10001": SECOND_ROLE}.items():
            paths = known[name]["tables"].items()
            federation.site(party).tables(**{table.partition("/")[2]: world / path for table, path in paths})
        (world / "dag.yaml").write_text(yaml.safe_dump(jobs.dag()))
        (world / "sites.yaml").write_text(yaml.safe_dump(jobs.sites(world / "state_local")))
        files = [str(world / "dag.yaml"), "--sites", str(world / "sites.yaml"), "--out", str(world / "runs")]
        with ThreadPoolExecutor(1) as beside:  # FATE Flow waits a good part of its time
            here = beside.submit(program, "run", *files, timeout=1200)
            job = federation.succeeds(world / "dag.yaml", seconds=1800)
            done = here.result()
        assert done.returncode == 0, done.stdout + done.stderr
        (local,) = (world / "runs").iterdir()
        fetched = {
            name: fetch(FlowServer(federation.site(party).address), job, world / "fetched" / name)
            for party, name in PARTIES.items()
        }
        yield Ran(federation, jobs, job, fetched, local, world / "state")
    finally:
        federation.sites_file.write_text(before)


def results(directory: Path, party: str, task: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in (directory / task / party / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["type"] == "result":
            found.setdefault(event["arm"], {})[event["metric"]] = event["value"]
    return found


@pytest.mark.parametrize(("task", "arm"), DECIDED_BY_THE_SEED)
@pytest.mark.parametrize("party", [GUEST, HOST])
def test_what_the_seed_decides_is_the_same_here_and_there(ran: Ran, task: str, arm: str, party: str) -> None:
    flow, local = results(ran.fetched[party], party, task)[arm], results(ran.local, party, task)[arm]
    assert flow == pytest.approx(local, rel=1e-6)


def test_every_task_gives_the_same_kind_of_results(ran: Ran) -> None:
    for party in PARTIES.values():
        for task in sorted(path.name for path in ran.local.glob("*_[01]")):
            if (ran.local / task / party).exists():
                flow, local = results(ran.fetched[party], party, task), results(ran.local, party, task)
                assert {arm: set(values) for arm, values in flow.items()} == {
                    arm: set(values) for arm, values in local.items()
                }, (party, task)


@pytest.mark.parametrize("party", [GUEST, HOST])
def test_the_site_has_charged_each_release_to_its_table(ran: Ran, party: str) -> None:
    entries = {entry.release.job.partition("_")[2]: entry for entry in ran.ledger(party)}
    assert set(entries) == {"dpkd_0_0", "fdkt_0_0", "fedcot_0_0", "linked_0_0"}
    assert all(entry.release.job.startswith(ran.job) for entry in entries.values())
    tables = {name: entry.data.table for name, entry in entries.items()}
    assert tables == {
        "dpkd_0_0": "llm/tickets",
        "fdkt_0_0": "llm/fdkt",
        "fedcot_0_0": "llm/fedcot",
        "linked_0_0": "llm/fdkt",
    }
    kinds = {name: type(entry.release.mechanisms[0]) for name, entry in entries.items()}
    noisy, words, free = PoissonGaussian, LocalDP, PostProcessing
    assert kinds == {"dpkd_0_0": noisy, "fdkt_0_0": noisy, "fedcot_0_0": words, "linked_0_0": free}
    assert not (ran.state / ARBITER / "ledger").exists()


def test_a_generator_goes_from_one_task_to_the_next(ran: Ran) -> None:
    for party in (GUEST, HOST):
        made = [one for one in ran.events(party, "fdkt_0") if one["type"] == "privacy"][-1]
        (linked,) = [entry for entry in ran.ledger(party) if "linked_0" in entry.release.job]
        (cost,) = linked.release.mechanisms
        assert isinstance(cost, PostProcessing)
        assert (cost.epsilon, cost.delta) == (made["guarantee"]["epsilon"], made["guarantee"]["delta"])
        counted = {one["name"]: one["value"] for one in ran.events(party, "linked_0") if one["type"] == "metric"}
        assert 0 < counted["questions"] <= 15


def test_predictions_come_from_the_model_of_the_task_before(ran: Ran) -> None:
    for task, trained, arm in (("fdkt_1", "fdkt_0", "fdkt"), ("fedcot_1", "fedcot_0", "fedcot")):
        for party in (GUEST, HOST):
            lines = (ran.data(party, task, "test_output_data") / "predictions.jsonl").read_text().splitlines()
            answers = [json.loads(line)["prediction"] for line in lines]
            table = Path(ran.jobs.sites(ran.state)[party]["tables"][f"llm/{arm}"])
            truth = [row["label"] for row in read_rows(table, "test")]
            right = sum(one == other for one, other in zip(answers, truth)) / len(truth)
            assert len(answers) == len(truth)
            assert right == pytest.approx(results(ran.fetched[party], party, trained)[arm]["accuracy"]), (task, party)
    assert any("rationale" in json.loads(line) for line in lines), "the host was asked for them"


def test_every_folder_of_data_has_a_name_of_its_own(ran: Ran) -> None:
    """FATE Flow would give the folder of one party or job to another."""
    names = set()
    outputs = {"dpkd_0": "synthetic_data", "fdkt_0": "augmented_data", "fdkt_1": "test_output_data"}
    count = 0
    for party, name in PARTIES.items():
        site, role = ran.federation.site(party), name.split("_")[0]
        for task, output in {**outputs, "fedcot_1": "test_output_data"}.items():
            keys = {"job_id": ran.job, "role": role, "party_id": party, "task_name": task}
            answer = requests.get(f"{site.url}/v2/output/data/table", params=keys, timeout=20).json()
            for one in answer.get(output, []):
                count += 1
                names.add((one["namespace"], one["name"]))
                assert one["namespace"] == "fate_llm_ext"
                assert name in one["name"]
                assert f"{ran.job}_{task}" in one["name"]
                path = site.get("table/query", namespace=one["namespace"], name=one["name"])["path"]
                assert f"/{ran.job}/{role}/{party}/{task}/" in path
    assert len(names) == count == 10  # the arbiter predicts nothing


def test_models_load_without_us(ran: Ran) -> None:
    """Each by the library that made its layout; what is loaded is whole."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    base = Path(ran.jobs.dpkd.sites["root"]) / "models/gpt2"

    def adapter(folder: Path) -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))

    found = {
        (ARBITER, "dpkd_0", "output_model"): AutoModelForCausalLM.from_pretrained,
        (GUEST, "dpkd_0", "output_model"): adapter,
        (GUEST, "fdkt_0", "output_model"): adapter,
        (GUEST, "fdkt_0", "generator_model"): adapter,
        (HOST, "fdkt_0", "output_model"): AutoModelForSequenceClassification.from_pretrained,
        (HOST, "fdkt_0", "generator_model"): AutoModelForCausalLM.from_pretrained,
        (GUEST, "fedcot_0", "output_model"): AutoModelForCausalLM.from_pretrained,
        (HOST, "fedcot_0", "output_model"): adapter,
        (GUEST, "linked_0", "output_model"): AutoModelForCausalLM.from_pretrained,
    }
    for where, load in found.items():
        folder = ran.model(*where)
        model = load(folder)
        encoded = AutoTokenizer.from_pretrained(folder)("where is my order", return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=encoded["input_ids"]).logits
        assert torch.isfinite(logits).all(), where
        assert "fate-llm-ext" in (folder / "README.md").read_text(), where
        assert json.loads((folder / "privacy.json").read_text())["party"] == where[0].replace("_", " ")


def test_the_model_that_fates_client_downloads_is_the_task_model(ran: Ran, tmp_path: Path) -> None:
    """`flow output download-model` gives a task's first model only."""
    where = ("-j", ran.job, "-r", "guest", "-p", "9999", "-tn", "fdkt_0")
    answer = ran.federation.site("9999").flow("output", "download-model", *where, "-o", tmp_path / "model")
    assert answer["code"] == 0, answer
    (card,) = tmp_path.rglob("README.md")
    assert "FDKT: Task model" in card.read_text()


def test_one_site_can_be_two_parties(ran: Ran, tmp_path: Path) -> None:
    """Host and arbiter at site 10001, each with outputs, reports and a ledger of its own."""
    job = ran.federation.succeeds(ran.jobs.two_parties_at_one_site(), seconds=600)
    found = {party: fetch(FlowServer(ran.federation.site(party).address), job, tmp_path / party) for party in PARTIES}
    owners = {"9999": GUEST, "10000": HOST, "10001": SECOND_ROLE}
    texts = {}
    for party, name in owners.items():
        trained, answered = found[party] / "fedmkt_0" / name, found[party] / "fedmkt_1" / name
        texts[name] = (answered / "data/test_output_data/predictions.jsonl").read_text()
        rows = [json.loads(line)["probabilities"] for line in texts[name].splitlines()]
        assert len(rows) == 10
        assert (trained / "model/output_model/adapter_model.safetensors").exists()
        assert [entry.release.job for entry in ran.ledger(name)][-1] == f"{job}_fedmkt_0_0"
    assert (found["10001"] / "fedmkt_0" / ARBITER / "model/output_model/adapter_model.safetensors").exists()
    assert not (found["10001"] / "fedmkt_1" / ARBITER / "data").exists()
    heard = [
        json.loads(line) for line in (found["10001"] / "fedmkt_0" / ARBITER / "events.jsonl").read_text().splitlines()
    ]
    peers = {event["peer"] for event in heard if event["type"] == "message"}
    assert peers == {"guest 9999", "host 10000", "host 10001"}


def test_a_job_beyond_the_budget_is_refused_and_each_site_says_why(ran: Ran) -> None:
    before = {party: len(ran.ledger(party)) for party in (GUEST, HOST)}
    job = ran.federation.submit(ran.jobs.only("dpkd_0"))
    assert ran.federation.wait(job, 240) == "failed"
    reports = {party: ran.federation.tasks(job, party)[0]["error_report"] for party in PARTIES}
    own = [report for report in (reports["9999"], reports["10000"]) if "E610" in report and "allowed are 12" in report]
    assert own, reports
    assert all("E610" in report for report in reports.values()), reports
    assert "llm/tickets" not in reports["10001"], "what a table is called stays at its site"
    assert {party: len(ran.ledger(party)) for party in (GUEST, HOST)} == before
