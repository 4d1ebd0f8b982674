"""What is said about each strategy's guarantee follows from its mechanism."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.guarantees import guarantee_text, not_covered, public_facts
from fate_llm_ext.algo.fedcot.perturbation.bounds import word_bound


def config(strategy: str, epsilon: float | None = 3.0, **changes: Any) -> FedCoTConfig:
    how: dict[str, Any] = {"strategy": strategy}
    if epsilon is not None:
        how["epsilon"] = epsilon
    if strategy == "adaptive_exponential":
        how["proxy"] = "set"
    return FedCoTConfig(task={"template": "tickets"}, perturbation=how, **changes)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 40.0])
def test_the_bound_of_a_word(epsilon: float) -> None:
    assert word_bound("fixed_vocabulary", epsilon) == epsilon
    assert word_bound("metric", epsilon) == 2 * epsilon
    for strategy in ("exponential", "adaptive_exponential"):
        assert word_bound(strategy, epsilon) == math.inf
    for strategy in ("none", "dp_generator"):
        assert word_bound(strategy, None) == math.inf


@pytest.mark.parametrize("strategy", ["fixed_vocabulary", "metric"])
@pytest.mark.parametrize("epsilon", [0.5, 6.0])
def test_the_bound_holds_for_the_mechanism_itself(strategy: str, epsilon: float) -> None:
    """On vectors that are opposite to each other, which is the worst that unit vectors can do."""
    from fate_llm_ext.algo.fedcot.perturbation.mechanisms import make_mechanism

    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    vectors[1] = -vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    job = config(strategy, epsilon)
    mechanism = make_mechanism(job.perturbation, vectors)
    logs = mechanism.log_probabilities(np.arange(-1, 40, dtype=np.int32))
    measured = float((logs.max(axis=0) - logs.min(axis=0)).max())
    assert measured <= word_bound(strategy, epsilon) + 1e-6
    assert mechanism.word_epsilon <= word_bound(strategy, epsilon) + 1e-9
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "epsilon", "words", "absent"),
    [
        ("fixed_vocabulary", 3.0, ["ε-local DP per word", "e^3.00", "32 x 3.00"], ["heuristic"]),
        ("metric", 3.0, ["Metric DP per word", "at most 3.00 d", "32 x 6.00"], ["heuristic"]),
        ("exponential", 3.0, ["A heuristic", "nominal ε = 3", "no bound"], ["local DP", "x 3"]),
        ("adaptive_exponential", 3.0, ["A heuristic", "nothing bounds"], ["local DP", "x 3"]),
        ("dp_generator", None, ["No private prompt is sent"], ["heuristic"]),
        ("none", None, ["in clear"], ["DP", "heuristic"]),
    ],
)
def test_what_is_said(strategy: str, epsilon: float | None, words: list[str], absent: list[str]) -> None:
    said = " ".join(guarantee_text(config(strategy, epsilon, question={"max_words": 32})))
    assert all(word in said for word in words), said
    assert not [word for word in absent if word in said], said


@pytest.mark.parametrize("strategy", ["fixed_vocabulary", "none"])
def test_counts_of_records_and_words_are_said_to_be_public(strategy: str) -> None:
    (said,) = not_covered(config(strategy, None if strategy == "none" else 3.0))
    assert "how many records" in said
    assert "how many words" in said


def test_a_generators_texts_show_nothing_of_the_records_and_need_no_vocabulary() -> None:
    generated = config("dp_generator", None)
    assert not not_covered(generated)
    assert not [one for one in public_facts(generated) if "vocabulary" in one]
    assert [one for one in public_facts(config("metric", 3.0)) if "vocabulary" in one]


def test_a_generators_guarantee_is_said_as_its_file_states_it() -> None:
    job = config("dp_generator", None)
    assert "ε = 4.20" in guarantee_text(job, (4.2, 1e-3))[0]
    assert "no guarantee" in guarantee_text(job, (math.inf, None))[0]


def test_what_the_ratio_test_found_is_said_beside_the_nominal_figure() -> None:
    said = guarantee_text(config("exponential", 3.0), largest=17.345)
    assert "17.4" in said[-1]
    assert "3" in said[-1]
    assert "∞" in guarantee_text(config("exponential", 3.0), largest=math.inf)[-1]
    assert len(guarantee_text(config("exponential", 3.0))) == 1


def test_a_recording_needs_positions_and_that_is_said() -> None:
    said = not_covered(config("metric", 3.0, rationale={"recorded": True}))
    assert [one for one in said if "position" in one or "stands in its table" in one]
