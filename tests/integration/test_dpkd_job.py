"""Whole DP-KD jobs in real processes over FATE's federation: what they give, and what crosses the wire."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from dpkd_jobs import CODES, DPKDFiles, events, one_owner, results, two_owners

from fate_llm_ext.algo.dpkd.protocol import MESSAGES
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian
from fate_llm_ext.privacy.ledger import Entry, Ledger

pytestmark = pytest.mark.integration

OWNERS = ("guest_9999", "host_10000")
ARBITER = "arbiter_9998"


# --- two owners, the student at the arbiter ---------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DPKDFiles, Path]:
    """One job of two owners with a histogram; the student has another tokenizer and writes, too."""
    job = two_owners(world, tmp_path_factory.mktemp("two_owners"))
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    assert not job.alive()
    return job, job.directory()


@pytest.mark.smoke
def test_the_student_is_judged_at_the_arbiter(finished: tuple[DPKDFiles, Path]) -> None:
    _, directory = finished
    found = results(directory, ARBITER)
    assert set(found) == {"synthetic_ce", "dp_kd", "on_policy"}
    for arm in found.values():
        assert 1.0 < arm["perplexity"] < 1000.0
        assert 0.0 <= arm["code_accuracy"] <= 1.0
    assert found["dp_kd"]["perplexity"] != found["synthetic_ce"]["perplexity"], "the teacher's distributions matter"
    assert found["dp_kd"]["perplexity"] != found["on_policy"]["perplexity"]
    for owner in OWNERS:
        assert not results(directory, owner)
        assert events(directory, owner)[-1]["type"] == "done"
    page = (directory / "report.html").read_text()
    assert "DP-KD on-policy" in page


def test_the_teachers_are_one_and_the_models_load_anywhere(finished: tuple[DPKDFiles, Path], world: Path) -> None:
    import peft
    import transformers
    from safetensors.torch import load_file

    _, directory = finished
    folders = [directory / "dpkd_0" / owner / "model" / "output_model" for owner in OWNERS]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-7)
    assert any(value.abs().sum() > 0 for name, value in one.items() if "lora_B" in name)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / "gpt2"))
    peft.PeftModel.from_pretrained(base, str(folders[0]))
    student = directory / "dpkd_0" / ARBITER / "model" / "output_model"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(student))
    untrained = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / "llama"))
    moved = [not torch.equal(a, b) for a, b in zip(loaded.parameters(), untrained.parameters())]
    assert all(moved)
    for folder in (*folders, student):
        assert "## Privacy" in (folder / "README.md").read_text()
        assert str(world) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_the_texts_are_an_output_of_their_own(finished: tuple[DPKDFiles, Path]) -> None:
    _, directory = finished
    texts = {}
    names = set()
    for party in (*OWNERS, ARBITER):
        folder = directory / "dpkd_0" / party
        lines = (folder / "data" / "synthetic_data" / "train.jsonl").read_text().splitlines()
        texts[party] = [json.loads(line) for line in lines]
        assert all(set(row) == {"code", "text"} and row["code"] in CODES for row in texts[party])
        meta = json.loads((folder / "meta.json").read_text())
        names.add(json.dumps(meta["io_meta"]["outputs"]["data"]["synthetic_data"]["metadata"]["name"]))
    assert len(names) == 3, "FATE would mix them up"
    sent = {(row["code"], row["text"]) for owner in OWNERS for row in texts[owner]}
    assert {(row["code"], row["text"]) for row in texts[ARBITER]} <= sent
    assert 20 <= len(texts[ARBITER]) <= 30


def test_the_arbiter_gets_nothing_but_dp_outputs(finished: tuple[DPKDFiles, Path]) -> None:
    """Every message is one of the table, and every byte is one of a message."""
    _, directory = finished
    table = {(row.sender, row.receiver, row.name) for row in MESSAGES}
    for party in (*OWNERS, ARBITER):
        me = party.split("_")[0].replace("guest", "owner").replace("host", "owner")
        messages = [event for event in events(directory, party) if event["type"] == "message"]
        for event in messages:
            peer = "arbiter" if event["peer"].startswith("arbiter") else "owner"
            pair = (me, peer) if event["direction"] == "sent" else (peer, me)
            assert (*pair, event["name"]) in table, event
        for direction in ("sent", "received"):
            total = sum(event["bytes"] for event in messages if event["direction"] == direction)
            (counted,) = [
                event["value"]
                for event in events(directory, party)
                if event["type"] == "metric" and event["name"] == f"bytes_{direction}"
            ]
            assert total == counted
    received = per_name(directory, ARBITER, "received")
    sent = [per_name(directory, owner, "sent", to="arbiter") for owner in OWNERS]
    assert received == {name: sum(one.get(name, 0) for one in sent) for name in set().union(*sent)}
    assert set(received) == {"hello", "aggregation", "histogram", "synthetic", "signals"}


def per_name(directory: Path, party: str, direction: str, to: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for event in events(directory, party):
        if event["type"] == "message" and event["direction"] == direction and event["peer"].startswith(to):
            found[event["name"]] = found.get(event["name"], 0) + event["bytes"]
    return found


def test_what_derives_from_private_data_was_charged_before_it_left(finished: tuple[DPKDFiles, Path]) -> None:
    job, directory = finished
    rows = {row.name: row for row in MESSAGES if row.sender == "owner"}
    for owner in OWNERS:
        (entry,) = ledger(job, owner)
        charged = {one.kind for one in entry.release.mechanisms}
        when = datetime.datetime.fromisoformat(entry.time).timestamp()
        private = [
            event
            for event in events(directory, owner)
            if event["type"] == "message" and event["direction"] == "sent" and rows[event["name"]].derives_from
        ]
        assert {event["name"] for event in private} == {"aggregation", "histogram", "synthetic", "signals"}
        for event in private:
            assert set(rows[event["name"]].covered_by) <= charged
            assert when <= event["time"] + 0.001
        training = [event for event in events(directory, owner) if event.get("phase") == "training the teacher"]
        assert when <= training[0]["time"] + 0.001, "before the first step"


def ledger(job: DPKDFiles, owner: str) -> list[Entry]:
    (folder,) = {path.parent for path in Path(job.sites[owner]["state"]).rglob("*.jsonl")}
    assert Ledger(folder).verify() == []
    return Ledger(folder).entries()


def test_what_was_charged_is_what_was_asked_for(finished: tuple[DPKDFiles, Path]) -> None:
    """DP-SGD and histogram together cost ε, not each of them."""
    job, directory = finished
    for owner in OWNERS:
        (entry,) = ledger(job, owner)
        training, histogram = entry.release.mechanisms
        assert isinstance(training, PoissonGaussian)
        assert (training.sampling_rate, training.steps) == (0.5, 6)
        assert histogram == Gaussian(10.0, 1)
        together = epsilon(entry.release.mechanisms, 0.01)
        assert 7.9 <= together <= 8.0
        assert epsilon([training], 0.01) < together
        assert set(entry.release.recipients) == {name.replace("_", " ") for name in (*OWNERS, ARBITER)} - {
            owner.replace("_", " ")
        }
        (said,) = [event for event in events(directory, owner) if event["type"] == "privacy"]
        assert said["guarantee"]["epsilon"] == pytest.approx(epsilon(entry.release.mechanisms, 0.01))
        assert said["data"] == {"table": "llm/tickets", "records": 16}
    (said,) = [event for event in events(directory, ARBITER) if event["type"] == "privacy"]
    assert said["data"] is None
    assert [one["private"] for one in said["artefacts"]] == [True, True]
    assert "(ε, δ) = (8.00, 0.01)" in said["artefacts"][0]["why"]


def test_signs_of_life_say_nothing_about_records(finished: tuple[DPKDFiles, Path]) -> None:
    """What others hear while an owner works holds no number: a step's sample size is secret."""
    _, directory = finished
    for party in (*OWNERS, ARBITER):
        for event in events(directory, party):
            if event["type"] == "waiting":
                assert not re.search(r"\d", event["doing"].replace("9998", "").replace("9999", "").replace("10000", ""))


def test_no_private_text_in_logs_and_reports(finished: tuple[DPKDFiles, Path], world: Path) -> None:
    _, directory = finished
    rows = [json.loads(line) for file in world.glob("data/*/*.jsonl") for line in file.read_text().splitlines()]
    rare = {word for row in rows for word in re.findall(r"\b[A-F]\d{5}\b", row["text"])}
    assert len(rare) > 10
    looked_at = 0
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".txt", ".json", ".yaml", ".html", ".md"):
            if path.name in ("tokenizer.json",) or path.parent.name == "synthetic_data":
                continue
            looked_at += 1
            text = path.read_text(errors="replace")
            assert not [word for word in rare if word in text], path
            assert not [row for row in rows if row["text"][:40] in text], path
    assert looked_at > 15


# --- one owner, the student beside the teacher --------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DPKDFiles, Path]:
    """All comparisons, hidden states, on-policy rounds."""
    job = one_owner(world, tmp_path_factory.mktemp("one_owner"))
    job.parameters["compare"] = ["dp_sgd_student", "dpkd", "synthetic_ce", "non_private"]
    job.parameters["distill"].update(on_policy_rounds=2, hidden_weight=0.1)
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    return job, job.directory()


def test_all_arms_beside_each_other(alone: tuple[DPKDFiles, Path]) -> None:
    _, directory = alone
    found = results(directory, "guest_9999")
    arms = {"dp_teacher", "dp_sgd_student", "dpkd", "synthetic_ce", "dp_kd", "on_policy", "non_private"}
    assert set(found) == arms
    values = [arm["perplexity"] for arm in found.values()]
    assert all(1.0 < value < 1000.0 for value in values)
    assert len(set(values)) == len(arms), "no two of them are the same model"
    assert not results(directory, ARBITER)


def test_the_arbiter_hears_nothing_of_a_single_owner(alone: tuple[DPKDFiles, Path]) -> None:
    _, directory = alone
    assert set(per_name(directory, ARBITER, "received")) == {"hello"}
    assert per_name(directory, ARBITER, "received")["hello"] < 2000, "not even the vocabulary"


def test_comparisons_are_not_charged_and_said_to_be_unprotected(alone: tuple[DPKDFiles, Path]) -> None:
    job, directory = alone
    (entry,) = ledger(job, "guest_9999")
    assert [one.kind for one in entry.release.mechanisms] == ["poisson_gaussian"]
    (said,) = [event for event in events(directory, "guest_9999") if event["type"] == "privacy"]
    artefacts: dict[str, Any] = {one["name"]: one for one in said["artefacts"]}
    assert not artefacts["results of dp_sgd_student, dpkd, non_private"]["private"]
    assert artefacts["student"]["private"]
    assert artefacts["DP teacher"]["private"]


def test_comparisons_run_when_all_is_over_for_the_others(alone: tuple[DPKDFiles, Path]) -> None:
    """Outputs and statement are there, the channel is closed; the arbiter is done before they end."""
    _, directory = alone
    found = events(directory, "guest_9999")
    first = min(event["time"] for event in found if event.get("arm") in ("dp_sgd_student", "dpkd", "non_private"))
    before = [event for event in found if event["type"] in ("message", "privacy")]
    before += [event for event in found if event.get("arm") in ("dp_kd", "on_policy", "synthetic_ce")]
    assert max(event["time"] for event in before) <= first
    model = directory / "dpkd_0" / "guest_9999" / "model" / "output_model"
    for file in (model / "model.safetensors", model / "teacher" / "model.safetensors"):
        assert file.stat().st_mtime <= first + 0.01
    assert [event["type"] for event in found].count("done") == 1
    assert found[-1]["type"] == "done"
    assert events(directory, ARBITER)[-1]["type"] == "done"
    assert events(directory, ARBITER)[-1]["time"] < found[-1]["time"] - 1.0


def test_student_and_teacher_are_kept(alone: tuple[DPKDFiles, Path], world: Path) -> None:
    import transformers

    _, directory = alone
    folder = directory / "dpkd_0" / "guest_9999" / "model" / "output_model"
    base = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / "gpt2"))
    student = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
    teacher = transformers.AutoModelForCausalLM.from_pretrained(str(folder / "teacher"))
    weights = [model.transformer.wte.weight for model in (base, student, teacher)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[1], weights[2])
    arbiter = directory / "dpkd_0" / ARBITER / "model" / "output_model"
    assert sorted(path.name for path in arbiter.iterdir()) == ["README.md", "privacy.json"]
