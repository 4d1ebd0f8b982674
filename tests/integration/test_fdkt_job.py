"""Whole FDKT jobs in real processes over FATE's federation: what they give, and what crosses the wire."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fdkt_jobs import RECORDS, FDKTFiles, events, marker, metrics, one_client, results, two_domains

from fate_llm_ext.algo.fdkt.generator import load_generator, read_generator
from fate_llm_ext.algo.fdkt.protocol import MESSAGES
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.corpus import DEPARTMENTS
from fate_llm_ext.data.reviews import SENTIMENTS
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian

pytestmark = pytest.mark.integration

CLIENTS = {"guest_9999": list(DEPARTMENTS), "host_10000": list(SENTIMENTS)}
ARBITER = "arbiter_9998"
Finished = tuple[FDKTFiles, Path]


# --- two clients of different domains ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Tickets and reviews, label histogram and votes, heads of both kinds, all comparisons."""
    job = two_domains(world, tmp_path_factory.mktemp("two_domains"))
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    assert not job.alive()
    return job, job.directory()


@pytest.mark.smoke
def test_each_client_judges_its_own_models(finished: Finished) -> None:
    _, directory = finished
    for client in CLIENTS:
        found = results(directory, client)
        assert set(found) == {"fdkt", "local", "local_synthetic", "non_private"}
        for arm in found.values():
            assert 0.0 <= arm["macro_f1"] <= arm["accuracy"] + 0.5 <= 1.5
        samples = {arm: metrics(directory, client, arm)["student_samples"] for arm in found}
        assert samples["local"] == RECORDS < min(samples["fdkt"], samples["local_synthetic"], samples["non_private"])
        losses = {metrics(directory, client, arm)["student_loss"] for arm in found}
        assert len(losses) == 4, "no two of them have learned the same"
        assert events(directory, client)[-1]["type"] == "done"
    assert not results(directory, ARBITER)
    page = (directory / "report.html").read_text()
    for words in ("Local + synthetic", "FDKT", "Non-private", "DP-SGD: 9 steps", "noisy votes for augmented texts"):
        assert words in page


def test_the_arbiter_gets_nothing_but_dp_outputs(finished: Finished) -> None:
    """Every message is one of the table, and every byte is one of a message."""
    _, directory = finished
    table = {(row.sender, row.receiver, row.name) for row in MESSAGES}
    for party in (*CLIENTS, ARBITER):
        me = "arbiter" if party == ARBITER else "client"
        messages = [event for event in events(directory, party) if event["type"] == "message"]
        for event in messages:
            peer = "arbiter" if event["peer"].startswith("arbiter") else "client"
            pair = (me, peer) if event["direction"] == "sent" else (peer, me)
            assert (*pair, event["name"]) in table, event
        for direction in ("sent", "received"):
            total = sum(event["bytes"] for event in messages if event["direction"] == direction)
            assert total == metrics(directory, party, "fdkt")[f"bytes_{direction}"]
    received = per_name(directory, ARBITER, "received")
    sent = [per_name(directory, client, "sent") for client in CLIENTS]
    assert received == {name: sum(one.get(name, 0) for one in sent) for name in set().union(*sent)}
    assert set(received) == {"hello", "synthetic", "votes"}


def per_name(directory: Path, party: str, direction: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in events(directory, party):
        if event["type"] == "message" and event["direction"] == direction:
            found[event["name"]] = found.get(event["name"], 0) + event["bytes"]
    return found


def test_what_derives_from_private_data_was_charged_before_it_left(finished: Finished) -> None:
    job, directory = finished
    rows = {row.name: row for row in MESSAGES if row.sender == "client"}
    for client in CLIENTS:
        (entry,) = job.ledger(client)
        charged = {one.kind for one in entry.release.mechanisms}
        when = datetime.datetime.fromisoformat(entry.time).timestamp()
        private = [
            event
            for event in events(directory, client)
            if event["type"] == "message" and event["direction"] == "sent" and rows[event["name"]].derives_from
        ]
        assert {event["name"] for event in private} == {"synthetic", "votes"}
        for event in private:
            assert set(rows[event["name"]].covered_by) <= charged
            assert when <= event["time"] + 0.001
        training = [event for event in events(directory, client) if event.get("phase") == "training the generator"]
        assert when <= training[0]["time"] + 0.001, "before the first step"


def test_generator_histogram_and_votes_together_cost_what_was_asked_for(finished: Finished) -> None:
    job, directory = finished
    for client, asked, others in (
        ("guest_9999", 8.0, [Gaussian(10.0, 1), Gaussian(20.0, 1)]),
        ("host_10000", 4.0, [Gaussian(20.0, 1)]),
    ):
        (entry,) = job.ledger(client)
        training, *rest = entry.release.mechanisms
        assert isinstance(training, PoissonGaussian)
        assert (training.sampling_rate, training.steps) == (8 / RECORDS, 9)
        assert rest == others
        together = epsilon(entry.release.mechanisms, 0.01)
        assert 0.99 * asked <= together <= asked
        assert epsilon([training], 0.01) < together
        (said,) = [event for event in events(directory, client) if event["type"] == "privacy"]
        assert said["guarantee"]["epsilon"] == pytest.approx(together)
        assert said["data"] == {"table": "llm/private", "records": RECORDS}
        assert [one["kind"] for one in said["releases"][0]["mechanisms"]] == [
            one.kind for one in entry.release.mechanisms
        ]
        artefacts = {one["name"]: one["private"] for one in said["artefacts"]}
        assert artefacts["DP generator"]
        assert artefacts["augmented texts"]
        assert not artefacts["task model"]
    (said,) = [event for event in events(directory, ARBITER) if event["type"] == "privacy"]
    assert said["data"] is None


def test_no_private_word_reaches_a_log_or_the_arbiter(finished: Finished) -> None:
    """Each private row holds a word of its own: none of them stands in any file of the run, whatever it is."""
    job, directory = finished
    markers = [marker(client, row) for client in CLIENTS for row in range(RECORDS)]
    private = (job.folder / "data" / "guest_9999" / "train.jsonl").read_text()
    assert all(word in private for word in markers[:RECORDS])
    begins = [json.loads(line)["text"][:40] for line in private.splitlines()]
    looked_at = 0
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            looked_at += 1
            text = path.read_text(errors="replace")
            assert not [word for word in markers if word in text], path
            assert not [begin for begin in begins if begin in text], path
    assert looked_at > 30


def test_no_text_of_a_client_is_kept_by_the_arbiter(finished: Finished) -> None:
    """Neither the client's texts nor the LLM's: the arbiter ends with counts."""
    _, directory = finished
    own = [path for path in (directory / "fdkt_0" / ARBITER).rglob("*") if path.is_file()]
    kept = "\n".join(path.read_text() for path in own)
    for client in CLIENTS:
        texts = [row["text"] for row in made(directory, client)]
        assert len(texts) > 25
        assert not [text for text in texts if len(text) > 12 and text in kept]
    assert {path.name for path in own if path.parent.name == "output_model"} == {"README.md", "privacy.json"}
    assert metrics(directory, ARBITER, "fdkt")["demonstrations_guest_9999"] > 0


def made(directory: Path, client: str) -> list[dict[str, Any]]:
    file = directory / "fdkt_0" / client / "data" / "augmented_data" / "train.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_texts_are_an_output_of_their_own(finished: Finished) -> None:
    _, directory = finished
    names = set()
    for client, labels in CLIENTS.items():
        rows = made(directory, client)
        assert all(set(row) == {"label", "text", "source", "demonstration"} for row in rows)
        assert {row["label"] for row in rows} <= set(labels)
        found = {source: [row for row in rows if row["source"] == source] for source in ("synthetic", "augmented")}
        assert len(rows) == sum(map(len, found.values()))
        assert len(found["augmented"]) > 10, "of two rounds of 10"
        measured = metrics(directory, client, "local_synthetic")
        dropped = sum(value for name, value in measured.items() if name.startswith("texts_dropped"))
        assert len(found["synthetic"]) == measured["texts"] == 20 - dropped
        chosen = sum(row["demonstration"] for row in rows)
        assert chosen == metrics(directory, ARBITER, "fdkt")[f"demonstrations_{client}"]
        assert not [row for row in found["augmented"] if row["demonstration"]]
        assert len({row["text"] for row in found["augmented"]}) == len(found["augmented"])
    for party in (*CLIENTS, ARBITER):
        meta = json.loads((directory / "fdkt_0" / party / "meta.json").read_text())
        names.add(json.dumps(meta["io_meta"]["outputs"]["data"]["augmented_data"]["metadata"]["name"]))
    assert len(names) == 3, "FATE would mix them up"


def test_the_texts_of_each_stage_are_measured(finished: Finished) -> None:
    _, directory = finished
    for client in CLIENTS:
        found = metrics(directory, client, "fdkt")
        for stage in ("synthetic", "kept", "augmented"):
            assert [name for name in found if name.startswith(f"{stage}_")], stage


def test_the_models_load_anywhere(finished: Finished, world: Path) -> None:
    import peft
    import transformers

    _, directory = finished
    base = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / "gpt2"))
    start = [weight.clone() for weight in base.parameters()]
    guest, host = (directory / "fdkt_0" / client / "model" for client in CLIENTS)
    adapted = peft.PeftModel.from_pretrained(base, str(guest / "generator_model"))
    assert any(value.abs().sum() > 0 for name, value in adapted.named_parameters() if "lora_B" in name)
    for folder in (guest / "output_model", host / "generator_model"):
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start))
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(str(host / "output_model"))
    assert [classifier.config.id2label[place] for place in range(3)] == list(SENTIMENTS)
    for folder in (guest, host):
        assert "**This model is not differentially private**" in (folder / "output_model" / "README.md").read_text()
        for name in ("output_model", "generator_model"):
            assert "## Privacy" in (folder / name / "README.md").read_text()
            assert str(world) not in "".join(path.read_text() for path in (folder / name).glob("*.json"))


def test_a_generator_can_be_used_again(finished: Finished, world: Path) -> None:
    """All that another component needs is there: base, labels, prompt, guarantee."""
    _, directory = finished
    for client, labels in CLIENTS.items():
        folder = directory / "fdkt_0" / client / "model" / "generator_model"
        saved = read_generator(folder)
        assert saved.base_model == "slm"
        assert saved.control.values == labels
        assert saved.epsilon == pytest.approx({"guest_9999": 8.0, "host_10000": 4.0}[client], rel=0.01)
        network, tokenizer = load_generator(
            folder, world / "models" / "gpt2", ModelConfig(name="slm"), torch.device("cpu")
        )
        prompt = tokenizer(f"{labels[0]}\n\n", return_tensors="pt", add_special_tokens=False)
        assert network(input_ids=prompt.input_ids).logits.shape[-1] >= len(tokenizer)


def test_signs_of_life_say_nothing_about_records(finished: Finished) -> None:
    _, directory = finished
    for party in (*CLIENTS, ARBITER):
        for event in events(directory, party):
            if event["type"] == "waiting":
                assert not re.search(r"\d", event["doing"].replace("9998", "").replace("9999", "").replace("10000", ""))


def test_the_clients_own_work_holds_up_nobody(finished: Finished) -> None:
    """All messages are through, and the guarantee is said, before a task model is trained."""
    _, directory = finished
    for client in CLIENTS:
        found = events(directory, client)
        first = min(event["time"] for event in found if event.get("phase") == "training the task model")
        assert max(event["time"] for event in found if event["type"] in ("message", "privacy")) <= first
        told = [event["message"] for event in found if event["type"] == "warning"]
        assert all("labels without a demonstration" in message for message in told), "the noisy histogram may say none"


# --- answers that cannot be read, no noise ----------------------------------------------------------------


@pytest.fixture(scope="module")
def unread(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An LLM that never says a label; ε is infinite and so is the budget; one label has no records."""
    job = one_client(world, tmp_path_factory.mktemp("unread"))
    job.parameters["control"]["code"] = "Qzx{{ label }}"
    job.parameters["control"]["values"] = [f"Qzx{label}" for label in DEPARTMENTS] + ["Qznothing"]
    job.parameters["privacy"]["epsilon"] = float("inf")
    job.parameters["augmentation"]["label_by"] = "answer"
    job.parameters["embedder"] = {"name": "encoder"}
    job.parameters["compare"] = ["local"]
    job.sites["guest_9999"]["budgets"]["llm/private"]["epsilon"] = float("inf")
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    return job, job.directory()


def test_without_readable_answers_the_model_is_the_local_one(unread: Finished) -> None:
    _, directory = unread
    found = metrics(directory, "guest_9999", "fdkt")
    local = metrics(directory, "guest_9999", "local")
    assert found["augmented"] == 0
    for name in ("student_samples", "student_loss", "accuracy", "macro_f1"):
        assert found[name] == local[name]
    assert not [row for row in made(directory, "guest_9999") if row["source"] == "augmented"]
    (told,) = [event for event in events(directory, "guest_9999") if event["type"] == "warning"]
    assert told["code"] == "E740"
    assert re.search(r"0 of 10 augmented texts .* answers about a text's label, 0 could be read", told["message"])
    asked = metrics(directory, ARBITER, "fdkt")["asked_guest_9999"]
    dropped = sum(value for name, value in found.items() if name.startswith("augmented_dropped_"))
    demonstrations = metrics(directory, ARBITER, "fdkt")["demonstrations_guest_9999"]
    sent = metrics(directory, "guest_9999", "local_synthetic")["texts"]
    assert dropped == asked + sent - demonstrations, "each prompt and each text has its reason"


def test_without_noise_it_is_said_to_be_no_privacy(unread: Finished) -> None:
    job, directory = unread
    (entry,) = job.ledger("guest_9999")
    assert [one.kind for one in entry.release.mechanisms] == ["non_private"]
    (said,) = [event for event in events(directory, "guest_9999") if event["type"] == "privacy"]
    assert said["guarantee"]["epsilon"] == "infinity"
    assert not [one for one in said["artefacts"] if one["private"]]
    folder = directory / "fdkt_0" / "guest_9999" / "model" / "generator_model"
    card = (folder / "README.md").read_text()
    assert "Not differentially private: ε = ∞" in card
    assert "differential-privacy" not in card.split("---")[1], "no tag that promises it"
    assert read_generator(folder).epsilon == "infinity"
