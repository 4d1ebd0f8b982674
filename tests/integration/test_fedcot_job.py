"""Whole FedCoT jobs in real processes over FATE's federation: what they give, and what crosses the wire."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from fdkt_jobs import marker
from fedcot_jobs import (
    ARBITER,
    GUEST,
    HOST,
    RECORDS,
    SAYS,
    FedCoTFiles,
    events,
    llm,
    metrics,
    phrases,
    private_rows,
    question,
    results,
    two_clients,
    warnings,
)
from jobs import failed, nothing_started, program

from fate_llm_ext.algo.fedcot.config import VocabularyConfig
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import build_vocabulary, embedding_table
from fate_llm_ext.algo.fedcot.perturbation.words import split
from fate_llm_ext.algo.fedcot.protocol import MESSAGES
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.events import LocalDP, NonPrivate

pytestmark = pytest.mark.integration

CLIENTS = (GUEST, HOST)
CHARGED = {GUEST: LocalDP(8.0, 12), HOST: LocalDP(8.0, 12)}  # metric: 2ε
Finished = tuple[FedCoTFiles, Path, list[str]]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two clients, two mechanisms, whole weights and adapters; the LLM is behind HTTP, so that one sees what it reads.

    The host keeps only rationales that give its own label; the LLM always gives the first choice.
    """
    with llm() as server:
        job = two_clients(world, tmp_path_factory.mktemp("two_clients"), server.url)
        job.own(HOST)["quality"] = {"min_words": 1, "consistent": True, "max_copy": 1.0}
        done = job.run()
        assert done.returncode == 0, done.stderr + done.stdout
        assert not job.alive()
        return job, job.directory(), [prompt for prompt in server.attempts if "Answer choices" in prompt]


@pytest.mark.smoke
def test_each_client_judges_its_own_models(finished: Finished) -> None:
    _, directory, _ = finished
    for client in CLIENTS:
        found = results(directory, client)
        assert set(found) == {"fedcot", "standalone"}
        for arm in found.values():
            assert 0.0 <= arm["accuracy"] <= 1.0
        assert 0.0 <= found["fedcot"]["attack_success"] <= 1.0
        assert found["standalone"]["attack_success"] == 0.0, "nothing leaves"
        assert found["fedcot"]["nll_per_byte"] != found["standalone"]["nll_per_byte"]
        assert events(directory, client)[-1]["type"] == "done"
        assert not warnings(directory, client)
    assert not results(directory, ARBITER)
    page = (directory / "report.html").read_text()
    for words in ("Standalone", "FedCoT", "attack success", "ε = 8.00, x 12 words", "ε-local DP per word"):
        assert words in page, words


def test_rationales_are_kept_by_the_clients_own_labels(finished: Finished) -> None:
    job, directory, _ = finished
    guest, host = (metrics(directory, client) for client in CLIENTS)
    first = [row for row in private_rows(job, HOST) if row["label"] == "negative"]
    assert 0 < len(first) < RECORDS
    assert (guest["rationales"], guest["rationales_kept"]) == (RECORDS, RECORDS)
    assert (host["rationales_kept"], host["rationales_inconsistent"]) == (len(first), RECORDS - len(first))
    told = "".join(json.dumps(event) for event in events(directory, ARBITER))
    assert "kept" not in told
    assert "inconsistent" not in told
    assert metrics(directory, ARBITER)["rationales_host_10000"] == RECORDS


# --- what leaves ----------------------------------------------------------------------------------------


def test_only_words_of_the_public_vocabulary_leave(finished: Finished, world: Path) -> None:
    """Of 16 questions each; neither the marker of a row nor any other word of a prompt that is not in the list."""
    import transformers

    job, _, prompts = finished
    assert len(prompts) == 2 * RECORDS
    folder = str(world / "models" / "gpt2")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = build_vocabulary(tokenizer, embedding_table(network), VocabularyConfig(size=150))
    allowed = set(vocabulary.words)
    seen, expected = [], []
    for prompt in prompts:
        text, _, choices = question(prompt).partition(" Answer choices: ")
        assert choices in ("billing, technical, shipping, account, sales", "negative, mixed, positive")
        assert set(text.split()) <= allowed
        seen.append(len(text.split()))
    for client in CLIENTS:
        expected += [min(12, len(split(row["text"]))) for row in private_rows(job, client)]
    assert sorted(seen) == sorted(expected)
    rows = [row["text"] for client in CLIENTS for row in private_rows(job, client)]
    assert any(set(split(text)) - allowed for text in rows)
    assert any(set(split(text)[:12]) & allowed for text in rows), "some words had a chance to pass"


def test_the_arbiter_gets_nothing_but_questions(finished: Finished) -> None:
    """Every message is one of the table, and every byte is one of a message."""
    _, directory, _ = finished
    table = {(row.sender, row.receiver, row.name) for row in MESSAGES}
    names: Counter[str] = Counter()
    for party in (*CLIENTS, ARBITER):
        me = "arbiter" if party == ARBITER else "client"
        messages = [event for event in events(directory, party) if event["type"] == "message"]
        for event in messages:
            peer = "arbiter" if event["peer"].startswith("arbiter") else "client"
            pair = (me, peer) if event["direction"] == "sent" else (peer, me)
            assert (*pair, event["name"]) in table, event
        for direction in ("sent", "received"):
            total = sum(event["bytes"] for event in messages if event["direction"] == direction)
            assert total == metrics(directory, party)[f"bytes_{direction}"]
        if party != ARBITER:
            names.update(event["name"] for event in messages)
    assert names == {"hello": 2, "welcome": 2, "questions": 2, "rationales": 2}


def test_no_private_word_and_no_text_of_the_llm_is_in_any_file(finished: Finished) -> None:
    """Logs, events, pages, cards, job files of all parties: neither prompts, nor questions, nor rationales."""
    job, directory, prompts = finished
    rows = [row["text"] for client in CLIENTS for row in private_rows(job, client)]
    markers = [marker(client, number) for client in CLIENTS for number in range(RECORDS)]
    runs = set().union(*map(phrases, rows))
    asked = set().union(*(phrases(question(prompt).partition(" Answer choices")[0]) for prompt in prompts))
    looked_at = 0
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            looked_at += 1
            text = path.read_text(errors="replace")
            assert not [word for word in (*markers, SAYS) if word in text], path
            if path.name != "tokenizer.json":
                found = phrases(text)
                assert not found & runs, path
                assert not found & asked, path
    assert looked_at > 30
    kept = {path.name for path in (directory / "fedcot_0" / ARBITER / "model" / "output_model").iterdir()}
    assert kept == {"README.md", "privacy.json"}


def test_signs_of_life_say_nothing_about_records(finished: Finished) -> None:
    _, directory, _ = finished
    for party in (*CLIENTS, ARBITER):
        for event in events(directory, party):
            if event["type"] == "waiting":
                assert not re.search(r"\d", re.sub(r"9998|9999|10000", "", event["doing"])), event


def test_the_clients_own_work_holds_up_nobody(finished: Finished) -> None:
    """All messages are through before a rationale is decoded: the time it takes tells nobody how many are kept."""
    _, directory, _ = finished
    for client in CLIENTS:
        found = events(directory, client)
        first = min(event["time"] for event in found if event.get("phase") == "decoding rationales")
        assert max(event["time"] for event in found if event["type"] == "message") <= first


# --- what it costs --------------------------------------------------------------------------------------


def test_what_leaves_was_charged_before(finished: Finished) -> None:
    job, directory, _ = finished
    for client in CLIENTS:
        (entry,) = job.ledger(client)
        assert entry.release.mechanisms == (CHARGED[client],)
        when = datetime.datetime.fromisoformat(entry.time).timestamp()
        found = events(directory, client)
        (sent,) = [event for event in found if event.get("name") == "questions" and event["type"] == "message"]
        (drawn,) = [event for event in found if event.get("phase") == "perturbing prompts"]
        assert when <= drawn["time"] + 0.001 <= sent["time"] + 0.002


def test_the_statement_is_what_was_charged(finished: Finished) -> None:
    job, directory, _ = finished
    for client in CLIENTS:
        (entry,) = job.ledger(client)
        said = [event for event in events(directory, client) if event["type"] == "privacy"]
        assert len(said) == 2, "when it is charged, and with what the attacks found"
        for one in said:
            delta = one["guarantee"]["delta"]
            assert one["guarantee"]["epsilon"] == pytest.approx(epsilon(entry.release.mechanisms, delta))
            assert 0 < one["guarantee"]["epsilon"] <= 12 * 8.0
            assert one["data"] == {"table": "llm/private", "records": RECORDS}
            assert one["ledger"]["epsilon"] == pytest.approx(epsilon(entry.release.mechanisms, 0.01))
            (release,) = one["releases"]
            assert release["mechanisms"] == [{"kind": "local", "epsilon": 8.0, "words": 12}]
            artefacts = {artefact["name"]: artefact["private"] for artefact in one["artefacts"]}
            assert artefacts["questions"]
            assert artefacts["rationales as they came"]
            assert not artefacts["model"]
            assert any("how many words each has" in text for text in one["not_covered"])
        assert said[0]["audit"] is None
        assert said[1]["audit"]["attack_success"] == results(directory, client)["fedcot"]["attack_success"]
        assert said[1]["audit"]["ratio_largest"] <= 8.0 + 1e-6, "measured on the job's own table"
        saved = json.loads((directory / "fedcot_0" / client / "model" / "output_model" / "privacy.json").read_text())
        assert saved["guarantee"] == said[1]["guarantee"]
    names = {client: events(directory, client) for client in CLIENTS}
    strategies = {
        client: {event["perturbation"]["strategy"] for event in found if event["type"] == "privacy"}
        for client, found in names.items()
    }
    assert strategies == {GUEST: {"fixed_vocabulary"}, HOST: {"metric"}}
    (arbiter,) = [event for event in events(directory, ARBITER) if event["type"] == "privacy"]
    assert arbiter["data"] is None


# --- what is left ---------------------------------------------------------------------------------------


def test_the_models_load_anywhere(finished: Finished, world: Path) -> None:
    import peft
    import transformers

    _, directory, _ = finished
    guest, host = (directory / "fedcot_0" / client / "model" / "output_model" for client in CLIENTS)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(world / "models" / "gpt2"))
    start = [weight.clone() for weight in base.parameters()]
    whole = transformers.AutoModelForCausalLM.from_pretrained(str(guest))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), start))
    adapted = peft.PeftModel.from_pretrained(base, str(host))
    assert any(value.abs().sum() > 0 for name, value in adapted.named_parameters() if "lora_B" in name)
    for folder in (guest, host):
        assert "**This model is not differentially private**" in (folder / "README.md").read_text()
        assert str(world) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_the_charts_of_the_report_show_what_privacy_costs(finished: Finished) -> None:
    _, directory, _ = finished
    page = (directory / "report.html").read_text()
    assert page.count("<svg") >= 1
    assert "fixed_vocabulary" in page


# --- no guarantee ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_clear(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FedCoTFiles, list[Path]]:
    """The guest shows its prompts, the host's mechanism has no bound; a local LLM; twice."""
    job = two_clients(world, tmp_path_factory.mktemp("in_clear"))
    job.parameters["perturbation"] = {"strategy": "none"}
    job.own(HOST)["perturbation"] = {"strategy": "exponential", "epsilon": 3.0}
    job.own(HOST)["decoding"] = {"method": "model", "max_new_tokens": 12}
    job.parameters["attack"] = {"methods": ["inversion"], "words": 50}
    for client in CLIENTS:
        job.sites[client]["budgets"]["llm/private"]["epsilon"] = float("inf")
    for _ in range(2):
        done = job.run()
        assert done.returncode == 0, done.stderr + done.stdout
    return job, sorted(job.out.iterdir())


def test_without_perturbation_it_is_distilling_step_by_step(in_clear: tuple[FedCoTFiles, list[Path]]) -> None:
    _, (directory, _) = in_clear
    found = results(directory, GUEST)
    assert set(found) == {"distilling", "standalone"}
    assert found["distilling"]["attack_success"] == 1.0, "all can be read"
    assert set(results(directory, HOST)) == {"fedcot", "standalone"}
    page = (directory / "report.html").read_text()
    assert "Distilling step-by-step" in page
    assert "in clear" in page


def test_it_is_said_to_be_no_privacy(in_clear: tuple[FedCoTFiles, list[Path]]) -> None:
    job, (directory, _) = in_clear
    for client in CLIENTS:
        for entry in job.ledger(client):
            assert entry.release.mechanisms == (NonPrivate(),)
        said = [event for event in events(directory, client) if event["type"] == "privacy"]
        for one in said:
            assert one["guarantee"]["epsilon"] == "infinity"
            assert one["ledger"]["epsilon"] == "infinity"
            assert not [artefact for artefact in one["artefacts"] if artefact["private"]]
        card = (directory / "fedcot_0" / client / "model" / "output_model" / "README.md").read_text()
        assert "Not differentially private: ε = ∞" in card
    assert "A heuristic" in card


def test_the_same_seed_gives_the_same_again(in_clear: tuple[FedCoTFiles, list[Path]]) -> None:
    """Where nothing is drawn from the operating system's entropy: neither order nor batches depend on chance."""
    _, (first, second) = in_clear
    assert results(first, GUEST) == results(second, GUEST)
    one, other = (metrics(run, GUEST, "distilling") for run in (first, second))
    assert one == other
    assert one["rationale_loss"] > 0
    assert results(first, HOST)["standalone"] == results(second, HOST)["standalone"]
    losses = {metrics(run, HOST).get("rationale_loss") for run in (first, second)}
    assert len(losses) == 2, "another draw"


# --- before the job --------------------------------------------------------------------------------------


def test_what_would_be_asked_is_shown(world: Path, tmp_path: Path) -> None:
    job = two_clients(world, tmp_path)
    job.write()
    shown = program("check", tmp_path / "dag.yaml", "--sites", tmp_path / "sites.yaml", "--show-prompts")
    assert shown.returncode == 0, shown.stderr
    for words in ("<text, perturbed>", "Answer choices: negative, mixed, positive", "Predict: Ticket:", "rationale"):
        assert words in shown.stdout, words
    assert not [row["text"][:30] for row in private_rows(job, GUEST) if row["text"][:30] in shown.stdout]
    planned = program("privacy", "plan", tmp_path / "dag.yaml", "--sites", tmp_path / "sites.yaml")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("prompts with perturbed words") == 2
    nothing_started(job)


def test_a_budget_stops_a_job_before_anything_leaves(world: Path, tmp_path: Path) -> None:
    """The host's budget: the guest has charged nothing either."""
    with llm() as server:
        job = two_clients(world, tmp_path, server.url)
        job.own(HOST)["perturbation"] = {"strategy": "fixed_vocabulary", "epsilon": 40.0}
        failed(job, "E521 host 10000", "E610", "200")
        assert not [prompt for prompt in server.attempts if "Answer choices" in prompt]
    assert job.ledger(GUEST) == job.ledger(HOST) == []
    (told,) = [one for one in events(job.directory(), ARBITER) if one["type"] == "error"]
    assert "llm/private" not in told["message"]
