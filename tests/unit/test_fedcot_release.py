"""What a FedCoT client releases: an event of the ledger per strategy, and the truth about it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.guarantees import guarantee_text
from fate_llm_ext.algo.fedcot.release import guarantee, plan
from fate_llm_ext.algo.private import Planned, charge, refuse_early, statement
from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.accountants import default_delta, epsilon
from fate_llm_ext.privacy.events import DataSet, LocalDP, NonPrivate, PoissonGaussian, PostProcessing, Release
from fate_llm_ext.privacy.ledger import Ledger
from fate_llm_ext.site import load_sites

DATA = DataSet("llm/mail", "ab" * 32, 2000)
OTHERS = ["host 10000", "arbiter 9998"]
OPEN = ("exponential", "adaptive_exponential", "none")


def settings(strategy: str, word: float = 3.0, words: int = 10, **changes: Any) -> dict[str, Any]:
    how: dict[str, Any] = {"strategy": strategy}
    if strategy not in ("none", "dp_generator"):
        how["epsilon"] = word
    if strategy == "adaptive_exponential":
        how["proxy"] = "prompts"
    return {"task": {"template": "tickets"}, "perturbation": how, "question": {"max_words": words}, **changes}


def planned(strategy: str, generator: Any = None, **changes: Any) -> Planned:
    return plan(FedCoTConfig(**settings(strategy, **changes)), DATA, "job 7", OTHERS, generator)


def site(folder: Path, allowed: Any, delta: float = 1e-5) -> Any:
    path = folder / "sites.yaml"
    budgets = {} if allowed is None else {"budgets": {"llm/mail": {"epsilon": allowed, "delta": delta}}}
    path.write_text(yaml.safe_dump({"guest_9999": {"tables": {"llm/mail": "mail.jsonl"}, **budgets}}))
    return load_sites(path)["guest_9999"]


# --- the event ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("fixed_vocabulary", LocalDP(3.0, 10)), ("metric", LocalDP(6.0, 10))]
    + [(strategy, NonPrivate()) for strategy in OPEN],
)
def test_what_each_strategy_charges(strategy: str, expected: Any) -> None:
    found = planned(strategy)
    assert found.release.mechanisms == (expected,)
    assert (found.release.algorithm, found.release.job) == ("fedcot", "job 7")
    assert found.release.recipients == tuple(OTHERS)
    assert found.delta == (default_delta(2000) if isinstance(expected, LocalDP) else None)
    assert found.release.private is isinstance(expected, LocalDP)
    if found.delta is None:
        assert guarantee(found) == (math.inf, 1.0)
    else:
        assert guarantee(found) == (epsilon((expected,), found.delta), found.delta)


@pytest.mark.parametrize(("words", "word"), [(1, 3.0), (10, 0.1), (64, 0.5), (64, 4.0)])
def test_the_cost_of_a_record_is_that_of_all_its_words(words: int, word: float) -> None:
    """Never above the sum; never below what independent words must cost at this δ."""
    found = planned("fixed_vocabulary", words=words, word=word)
    delta = found.delta or 0.0
    cost = epsilon(found.release.mechanisms, delta)
    assert cost <= words * word * (1 + 1e-9)
    assert cost >= exact_epsilon(word, words, delta) * (1 - 1e-6)
    if words == 1:
        assert cost > 0.999 * word - delta


def exact_epsilon(word: float, words: int, delta: float) -> float:
    """Randomised response over two words, ``words`` times, is ε-LDP each: its exact δ(ε), inverted by bisection."""
    p = 1 / (1 + math.exp(-word))
    losses = [((2 * k - words) * word, math.comb(words, k) * p**k * (1 - p) ** (words - k)) for k in range(words + 1)]

    def needed(target: float) -> float:
        return sum(mass * -math.expm1(target - loss) for loss, mass in losses if loss > target)

    low, high = 0.0, words * word
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) > delta else (low, middle)
    return low


def test_a_generator_was_paid_for_when_it_was_made(tmp_path: Path) -> None:
    found = planned("dp_generator", (8.0, 1e-5))
    assert found.release.mechanisms == (PostProcessing(8.0, 1e-5),)
    assert found.release.private
    assert found.delta == 1e-5
    assert epsilon(found.release.mechanisms, 1e-5) == 0.0
    assert guarantee(found) == (8.0, 1e-5), "what is said of the texts is what the generator has"
    paid = Planned(Release("fdkt", "1", "texts", tuple(OTHERS), (PoissonGaussian(0.1, 1.0, 20),)), 1e-5)
    room = site(tmp_path, 8.0)
    before = charge(room, DATA, paid)
    after = charge(room, DATA, found)
    assert after.epsilon == before.epsilon > 0.5
    assert after.releases == before.releases + 1


@pytest.mark.parametrize("generator", [(math.inf, None), (math.inf, 1e-5)])
def test_a_generator_without_privacy_gives_none(generator: Any, tmp_path: Path) -> None:
    found = planned("dp_generator", generator)
    assert epsilon(found.release.mechanisms, 1e-5) == math.inf
    assert not found.release.private
    with pytest.raises(ExtensionError, match=r"E611"):
        charge(site(tmp_path, 50.0), DATA, found)


def test_what_leaves_is_said_in_words() -> None:
    assert planned("fixed_vocabulary").release.what == "prompts with perturbed words"
    assert planned("exponential").release.what == "prompts with perturbed words (no guarantee)"
    assert planned("none").release.what == "prompts in clear"
    assert planned("none", rationale={"recorded": True}).release.what == "prompts in clear, by position"
    assert planned("dp_generator", (1.0, 1e-5)).release.what.startswith("texts of a DP generator")


def test_a_table_of_one_record() -> None:
    one = DataSet("llm/mail", "ab" * 32, 1)
    found = plan(FedCoTConfig(**settings("fixed_vocabulary")), one, "job", OTHERS)
    assert 0 < (found.delta or 0.0) < 1


# --- budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", OPEN)
def test_no_guarantee_is_refused_by_a_finite_budget(strategy: str, tmp_path: Path) -> None:
    strict = site(tmp_path, 50.0)
    for ask in (refuse_early, charge):
        with pytest.raises(ExtensionError, match=r"E611 .*not differentially private"):
            ask(strict, DATA, planned(strategy))
    assert Ledger(strict.ledger()).entries() == []


@pytest.mark.parametrize("strategy", OPEN)
def test_no_guarantee_is_allowed_knowingly_and_said(strategy: str, tmp_path: Path) -> None:
    open_site, found = site(tmp_path, math.inf), planned(strategy)
    refuse_early(open_site, DATA, found)
    said = statement("guest 9999", DATA, found, charge(open_site, DATA, found))
    assert said["guarantee"]["epsilon"] == report.INFINITE
    assert said["guarantee"]["text"].startswith("Not differentially private")
    assert "no differential privacy" in report.headline(said)
    assert said["trust"] == report.TRUST_NON_PRIVATE
    json.dumps(said, allow_nan=False)


def test_a_budget_for_some_of_the_words_is_none_for_all(tmp_path: Path) -> None:
    tight = site(tmp_path, 29.0, delta=1e-5)
    charge(tight, DATA, planned("fixed_vocabulary", words=1))
    with pytest.raises(ExtensionError, match=r"E610"):
        charge(tight, DATA, planned("fixed_vocabulary", words=20))
    assert len(Ledger(tight.ledger()).entries()) == 1


def test_questions_add_up_over_jobs(tmp_path: Path) -> None:
    """Asking again is another release of the same records."""
    room = site(tmp_path, 1000.0)
    first, second = (charge(room, DATA, planned("fixed_vocabulary", word=0.5)).epsilon for _ in range(2))
    assert first < second <= 2 * first


# --- statement ----------------------------------------------------------------------------------------


def test_the_statement_says_what_local_means(tmp_path: Path) -> None:
    config = FedCoTConfig(**settings("fixed_vocabulary"))
    found = planned("fixed_vocabulary")
    more = {"notes": guarantee_text(config), "perturbation": {"strategy": "fixed_vocabulary", "epsilon": 3.0}}
    said = statement("guest 9999", DATA, found, charge(site(tmp_path, 40.0), DATA, found), **more)
    guarantee, (one,) = said["guarantee"], said["releases"]
    assert 0 < guarantee["epsilon"] <= 30.0
    assert guarantee["adjacency"] == report.ADJACENCY_LOCAL
    assert "placeholders" in guarantee["text"]
    assert [part["kind"] for part in one["mechanisms"]] == ["local"]
    assert one["epsilon"] == guarantee["epsilon"]
    assert said["perturbation"]["strategy"] == "fixed_vocabulary"
    card = report.card(said)
    assert "local differential privacy of each word, ε = 3.00, x 10 words" in card
    assert "ε-local DP per word" in card


def test_the_statement_about_a_generators_texts(tmp_path: Path) -> None:
    found = planned("dp_generator", (8.0, 1e-5))
    said = statement("guest 9999", DATA, found, charge(site(tmp_path, 8.0), DATA, found))
    assert said["guarantee"]["epsilon"] == 8.0, "the records have the generator's guarantee, not a better one"
    assert "no further cost" in said["guarantee"]["text"]
    assert said["ledger"]["epsilon"] == 0.0
    assert "post-processing of a release whose own statement says (ε, δ) = (8.00, 1e-05)" in report.card(said)


# --- before the job -----------------------------------------------------------------------------------


def planned_by_command(folder: Path, allowed: float, parameters: dict[str, Any]) -> Any:
    rows = [json.dumps({"text": f"number {row}", "label": ("billing", "sales")[row % 2]}) for row in range(400)]
    (folder / "mail.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "m").mkdir()
    guest, arbiter = {"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}
    section: dict[str, Any] = {"tables": {"llm/mail": "mail.jsonl"}, "models": {"m": "m"}}
    section["budgets"] = {"llm/mail": {"epsilon": allowed, "delta": 1e-4}}
    sites = folder / "sites.yaml"
    sites.write_text(yaml.safe_dump({"guest_9999": section, "arbiter_9998": {"models": {"m": "m"}}}))
    table = {"data_warehouse": [{"namespace": "llm", "name": "mail", "parties": [guest]}]}
    parameters = {**parameters, "student": {"name": "m"}, "llm": {"name": "m"}}
    task = {"component_ref": "fedcot", "parameters": parameters, "inputs": {"data": {"train_data": table}}}
    dag = {"parties": [guest, arbiter], "stage": "train", "tasks": {"fedcot_0": task}}
    path = folder / "dag.yaml"
    path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    return CliRunner().invoke(main, ["privacy", "plan", str(path), "--sites", str(sites)])


def test_privacy_plan_says_what_a_job_would_cost(tmp_path: Path) -> None:
    result = planned_by_command(tmp_path, 31.0, settings("fixed_vocabulary"))
    assert result.exit_code == 0, result.output
    assert "llm/mail" in result.output
    assert "-> arbiter 9998: prompts with perturbed words" in result.output


@pytest.mark.parametrize(
    ("allowed", "strategy", "code"),
    [(5.0, "fixed_vocabulary", "E610"), (31.0, "metric", "E610"), (31.0, "exponential", "E611"), (5.0, "none", "E611")],
)
def test_privacy_plan_says_what_would_be_refused(tmp_path: Path, allowed: float, strategy: str, code: str) -> None:
    result = planned_by_command(tmp_path, allowed, settings(strategy))
    assert result.exit_code == 1
    assert code in result.output
