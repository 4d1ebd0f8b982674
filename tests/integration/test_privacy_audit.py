"""Audits of the real training: planted faults are caught, correct code is not accused; text canaries."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from fate_llm_ext.config import LoraConfig
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy.audit_text import chance_exposure

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ["noise off", "noise at a quarter", "clipping off", "clipping layer by layer", "noise drawn once"]
CHANCE = chance_exposure(1000)


def benchmark(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def audit() -> Any:
    """benchmarks/audit.py: it plants the faults and prints the figures of the docs."""
    return benchmark("audit")


def llama(adapter: bool) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=48, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **sizes)
    )
    return add_lora(model, LoraConfig(dropout=0.0), seed=0) if adapter else model


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_in_one_run(audit: Any, fault: str) -> None:
    found = audit.gradient_audit(audit.FAULTS[fault], seed=0)
    assert found.claimed == pytest.approx(1.28, abs=0.02)
    assert found.caught
    assert found.result.confidence == 0.95


def test_correct_code_is_not_accused_however_gradients_are_clipped(audit: Any) -> None:
    """All ways of clipping show the auditor the same sums, so the same bound."""
    runs = [
        audit.gradient_audit(audit.DPTrainer, 0, per_sample, canaries=200) for per_sample in ("hooks", "ghost", "loop")
    ]
    assert not any(run.caught for run in runs)
    for run in runs[1:]:
        np.testing.assert_allclose(run.sums, runs[0].sums, atol=2e-3)


@pytest.mark.parametrize("adapter", [False, True])
def test_other_models(audit: Any, adapter: bool) -> None:
    settings = {"canaries": 600, "seed": 1}
    assert not audit.gradient_audit(audit.DPTrainer, model=llama(adapter), **settings).caught
    assert audit.gradient_audit(audit.NoiseOff, model=llama(adapter), **settings).caught


def test_without_noise_each_canary_counts_exactly_once(audit: Any) -> None:
    """What the auditor reads off the gradients is 0 or C, and C only for canaries that joined."""
    found = audit.gradient_audit(audit.NoiseOff, 0, canaries=300)
    taken = found.sums > 0.5
    np.testing.assert_allclose(found.sums, taken, atol=1e-3)
    assert not taken[:, ~found.included].any()
    assert taken[:, found.included].mean() == pytest.approx(0.25, abs=0.03)


def test_a_shuffled_sampler_is_caught_in_one_run(audit: Any) -> None:
    assert audit.sampling_audit(audit.Shuffled, seed=0) < 1e-3
    assert audit.sampling_audit(audit.DPTrainer, seed=0) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught_in_five_of_five_runs(audit: Any, fault: str) -> None:
    assert all(audit.gradient_audit(audit.FAULTS[fault], seed).caught for seed in range(5))


@pytest.mark.slow
def test_correct_code_is_not_accused_in_five_of_five_runs(audit: Any) -> None:
    bounds = [audit.gradient_audit(audit.DPTrainer, seed) for seed in range(5)]
    assert not any(one.caught for one in bounds)


@pytest.mark.slow
def test_samplers_in_five_of_five_runs(audit: Any) -> None:
    assert all(audit.sampling_audit(audit.Shuffled, seed) < 1e-3 for seed in range(5))
    assert all(audit.sampling_audit(audit.DPTrainer, seed) > 1e-3 for seed in range(5))


@pytest.fixture(scope="module")
def world(audit: Any) -> Any:
    return audit.text_world()


@pytest.fixture(scope="module")
def base_perplexity(audit: Any, world: Any) -> float:
    """Of held-out news under the base model, which has never seen news."""
    return audit.perplexity(world.model(), world)


@pytest.mark.slow
def test_training_without_privacy_gives_text_canaries_away(audit: Any, world: Any, base_perplexity: float) -> None:
    once, four, sixteen = audit.text_audit(world, None, seed=0)
    assert once.perplexity < base_perplexity / 3
    assert min(once.exposure, four.exposure, sixteen.exposure) > CHANCE + 5
    assert once.bound_model > 2  # a claim of ε 2 would be refuted by this black-box audit
    assert four.bound_texts > 0.5  # by the texts alone; of canaries that came once they show nothing
    assert sixteen.longest == 8  # whole canaries are written
    assert sixteen.run_in > sixteen.run_out + 3


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [2.0, 8.0])
def test_private_training_learns_news_and_keeps_text_canaries(
    audit: Any, world: Any, base_perplexity: float, epsilon: float
) -> None:
    """One without the other would be worth nothing."""
    once, _, sixteen = audit.text_audit(world, epsilon, seed=0)
    assert once.perplexity < 0.6 * base_perplexity
    assert once.exposure < CHANCE + 0.5
    assert once.bound_model < epsilon
    assert once.bound_texts < epsilon
    assert once.run_in < once.run_out + 0.2
    assert sixteen.longest < 8


@pytest.mark.slow
def test_a_generator_without_privacy_sends_canaries(world: Any) -> None:
    """Also those that are there once: of a small table, all that the generator was told comes through."""
    once, eight = benchmark("audit_fdkt").audit(world, "inf", seed=0)
    assert once.exposure > CHANCE + 5
    assert once.bound > 2
    assert once.sent > CHANCE + 1
    assert eight.longest == 8
    assert eight.bound_sent > 0.5


@pytest.mark.slow
def test_the_dp_generator_writes_news_and_sends_no_canaries(world: Any, base_perplexity: float) -> None:
    once, eight = benchmark("audit_fdkt").audit(world, "8", seed=0)
    assert once.perplexity < 0.6 * base_perplexity
    assert once.exposure < CHANCE + 0.6
    assert max(once.bound, once.bound_sent) < 8
    assert once.sent < CHANCE + 0.6
    assert eight.longest < 4
