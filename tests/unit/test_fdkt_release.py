"""What an FDKT client releases: one ε for generator, histogram and votes, and the truth about it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.protocol import MESSAGES
from fate_llm_ext.algo.fdkt.release import other_mechanisms, plan
from fate_llm_ext.algo.private import charge, refuse_early, statement
from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.accountants import default_delta, epsilon
from fate_llm_ext.privacy.events import DataSet, Gaussian, NonPrivate, PoissonGaussian
from fate_llm_ext.privacy.ledger import Ledger
from fate_llm_ext.site import load_sites

DATA = DataSet("llm/mail", "ab" * 32, 2000)
OTHERS = ["host 10000", "arbiter 9998"]
PLAIN: dict[str, Any] = {}
HISTOGRAM = {"control": {"frequencies": "histogram", "histogram_noise": 12.0}}
VOTES = {"feedback": {"rounds": 3, "noise": 15.0}}


def settings(changes: dict[str, Any]) -> dict[str, Any]:
    control = {"code": "{{ label }}", "values": ["a", "b"], "max_length": 128, **changes.get("control", {})}
    privacy = {"epsilon": 3.0, "batch_size": 256, "epochs": 5, **changes.get("privacy", {})}
    return {**changes, "control": control, "privacy": privacy}


def config(*changes: dict[str, Any], **privacy: Any) -> FDKTConfig:
    merged: dict[str, Any] = {"privacy": privacy}
    for one in changes:
        merged.update(one)
    return FDKTConfig(**settings(merged))


# --- composition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accountant", ["prv", "pld", "rdp"])
@pytest.mark.parametrize("parts", [[], [VOTES], [HISTOGRAM, VOTES]])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_all_together_cost_at_most_what_was_asked_for(parts: list[Any], target: float, accountant: Any) -> None:
    planned = plan(config(*parts, epsilon=target, accountant=accountant), DATA, "job", OTHERS)
    mechanisms = planned.release.mechanisms
    assert planned.delta == default_delta(2000)
    assert 0.985 * target <= epsilon(mechanisms, planned.delta, accountant) <= target
    for other in ("prv", "pld"):
        assert epsilon(mechanisms, planned.delta, other) <= 1.01 * target
    kinds = [type(one) for one in mechanisms]
    assert kinds == [PoissonGaussian] + [Gaussian] * len(parts)


def test_what_is_released_besides_is_what_the_job_asks_for() -> None:
    assert other_mechanisms(config()) == []
    assert other_mechanisms(config(HISTOGRAM)) == [Gaussian(12.0)]
    assert other_mechanisms(config(VOTES)) == [Gaussian(15.0, 3)]
    assert other_mechanisms(config({"feedback": {"rounds": 0, "noise": 0.1}})) == []


def test_more_beside_the_training_is_more_noise_in_it() -> None:
    found = [plan(config(*parts), DATA, "job", OTHERS).training for parts in ([], [HISTOGRAM], [HISTOGRAM, VOTES])]
    noise = [one.noise_multiplier for one in found if one is not None]
    assert noise == sorted(noise)
    assert noise[2] > 1.005 * noise[0]


def test_a_known_plan() -> None:
    """N 2000, B 256, 10 epochs, ε 3, δ 1e-5: σ 1.860."""
    planned = plan(config(delta=1e-5, epochs=10), DATA, "job", OTHERS)
    assert planned.training is not None
    assert planned.training.steps == math.ceil(10 * 2000 / 256)
    assert planned.training.noise_multiplier == pytest.approx(1.860, rel=0.01)


def test_votes_that_cost_more_than_there_is() -> None:
    loud = {"feedback": {"rounds": 10, "noise": 1.0}}
    with pytest.raises(ExtensionError, match=r"E606 ε = 3 .*what else is released costs \d"):
        plan(config(loud), DATA, "job", OTHERS)


def test_every_message_with_private_data_behind_it_is_covered() -> None:
    """By a mechanism that a plan with all parts holds."""
    planned = plan(config(HISTOGRAM, VOTES), DATA, "job", OTHERS)
    kinds = {one.kind for one in planned.release.mechanisms}
    covered = [row for row in MESSAGES if row.derives_from]
    assert {row.name for row in covered} == {"synthetic", "augmented", "votes"}
    assert all(row.covered_by and kinds.issuperset(row.covered_by) for row in covered)


def test_what_leaves_is_said_in_words() -> None:
    planned = plan(config(HISTOGRAM, VOTES), DATA, "job 7", OTHERS)
    assert (planned.release.algorithm, planned.release.job) == ("fdkt", "job 7")
    assert planned.release.recipients == tuple(OTHERS)
    assert planned.release.what == (
        "texts of the DP generator with their labels, noisy counts of the labels, "
        "noisy votes for augmented texts (rounds: 3)"
    )
    assert plan(config(), DATA, "job", OTHERS).release.what == "texts of the DP generator with their labels"


# --- without privacy ----------------------------------------------------------------------------------


def site(folder: Path, allowed: Any) -> Any:
    path = folder / "sites.yaml"
    budgets = {} if allowed is None else {"budgets": {"llm/mail": {"epsilon": allowed, "delta": 1e-5}}}
    path.write_text(yaml.safe_dump({"guest_9999": {"tables": {"llm/mail": "mail.jsonl"}, **budgets}}))
    return load_sites(path)["guest_9999"]


@pytest.mark.parametrize("parts", [[], [HISTOGRAM, VOTES]])
def test_no_noise_is_no_privacy_whatever_else_is_noisy(parts: list[Any]) -> None:
    planned = plan(config(*parts, epsilon=math.inf), DATA, "job", OTHERS)
    assert planned.release.mechanisms == (NonPrivate(),)
    assert planned.delta is None
    assert not planned.release.private
    assert epsilon(planned.release.mechanisms, 1e-5) == math.inf


def test_no_privacy_is_refused_by_a_finite_budget(tmp_path: Path) -> None:
    planned = plan(config(epsilon=math.inf), DATA, "job", OTHERS)
    strict = site(tmp_path, 50.0)
    for ask in (refuse_early, charge):
        with pytest.raises(ExtensionError, match=r"E611 .*not differentially private"):
            ask(strict, DATA, planned)
    assert Ledger(strict.ledger()).entries() == []


def test_no_privacy_is_allowed_knowingly_and_said(tmp_path: Path) -> None:
    planned = plan(config(HISTOGRAM, epsilon=math.inf), DATA, "job", OTHERS)
    open_site = site(tmp_path, math.inf)
    refuse_early(open_site, DATA, planned)
    spent = charge(open_site, DATA, planned)
    assert spent.epsilon == math.inf
    said = statement("guest 9999", DATA, planned, spent)
    assert said["guarantee"]["epsilon"] == report.INFINITE
    assert said["guarantee"]["text"].startswith("Not differentially private")
    assert "no differential privacy" in report.headline(said)
    assert said["trust"] == report.TRUST_NON_PRIVATE
    json.dumps(said, allow_nan=False)


# --- statement ----------------------------------------------------------------------------------------


def test_the_statement_gives_all_parts_and_their_sum(tmp_path: Path) -> None:
    planned = plan(config(HISTOGRAM, VOTES), DATA, "job", OTHERS)
    said = statement("guest 9999", DATA, planned, charge(site(tmp_path, 4.0), DATA, planned))
    guarantee, (one,) = said["guarantee"], said["releases"]
    assert 2.9 < guarantee["epsilon"] <= 3.0
    assert guarantee["delta"] == default_delta(2000)
    assert guarantee["cross_check"]["epsilon"] == pytest.approx(guarantee["epsilon"], rel=0.01)
    assert [part["kind"] for part in one["mechanisms"]] == ["poisson_gaussian", "gaussian", "gaussian"]
    assert one["epsilon"] == guarantee["epsilon"]
    training = said["training"]
    assert (training["sampling_rate"], training["steps"]) == (256 / 2000, math.ceil(5 * 2000 / 256))
    assert "add" in guarantee["text"]
    card = report.card(said)
    assert "Gaussian noise of 15 sensitivities on all records, x 3" in card
    assert "number of records" in card


# --- before the job -----------------------------------------------------------------------------------


def planned_by_command(folder: Path, allowed: float, **privacy: Any) -> Any:
    rows = [json.dumps({"text": f"number {row}", "label": "ab"[row % 2]}) for row in range(400)]
    (folder / "mail.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "m").mkdir()
    guest, arbiter = {"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}
    section = {"tables": {"llm/mail": "mail.jsonl"}, "models": {"m": "m"}}
    section["budgets"] = {"llm/mail": {"epsilon": allowed, "delta": 1e-4}}
    sites = folder / "sites.yaml"
    sites.write_text(yaml.safe_dump({"guest_9999": section, "arbiter_9998": {"models": {"m": "m"}}}))
    parameters = settings({**HISTOGRAM, **VOTES, "privacy": {"delta": 1e-4, "batch_size": 50, **privacy}})
    parameters.update({name: {"name": "m"} for name in ("generator", "student", "llm")})
    table = {"data_warehouse": [{"namespace": "llm", "name": "mail", "parties": [guest]}]}
    task = {"component_ref": "fdkt", "parameters": parameters, "inputs": {"data": {"train_data": table}}}
    dag = {"parties": [guest, arbiter], "stage": "train", "tasks": {"fdkt_0": task}}
    path = folder / "dag.yaml"
    path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    return CliRunner().invoke(main, ["privacy", "plan", str(path), "--sites", str(sites)])


def test_privacy_plan_says_what_a_job_would_cost(tmp_path: Path) -> None:
    result = planned_by_command(tmp_path, 4.0)
    assert result.exit_code == 0, result.output
    assert "llm/mail" in result.output
    assert "-> arbiter 9998: texts of the DP generator" in result.output
    assert "noisy votes for augmented texts (rounds: 3)" in result.output


@pytest.mark.parametrize(("asked", "code"), [(5.0, "E610"), (math.inf, "E611")])
def test_privacy_plan_says_what_would_be_refused(tmp_path: Path, asked: float, code: str) -> None:
    result = planned_by_command(tmp_path, 4.0, epsilon=asked)
    assert result.exit_code == 1
    assert code in result.output
