"""What must hold of FedCoT's mechanisms whatever the vocabulary, its vectors and ε are."""

from __future__ import annotations

import math
from typing import Any, Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_llm_ext.algo.fedcot.config import PerturbationConfig
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism, make_mechanism
from fate_llm_ext.algo.fedcot.perturbation.ratios import ratio_test

STRATEGIES = ("exponential", "fixed_vocabulary", "metric")
PROMISING = ("fixed_vocabulary", "metric")


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Vectors of 2 to 40 words, float32 [V, d]: spread, in bundles, or along one direction; some of them twice."""
    words, size, seed = draw(st.integers(2, 40)), draw(st.integers(1, 12)), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((words, size))
    bundles = draw(st.integers(1, words))
    vectors = vectors[np.arange(words) % bundles] + vectors * draw(st.sampled_from([0.0, 1e-4, 0.3, 3.0]))
    vectors += draw(st.sampled_from([0.0, 1.0, 30.0]))
    vectors[np.linalg.norm(vectors, axis=1) < 1e-3] = 1.0
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


EPSILONS = st.floats(1e-3, 20.0)
MANY = settings(max_examples=60, deadline=None)


def make(strategy: str, epsilon: float, vectors: np.ndarray, sharpness: float = 1.0) -> Mechanism:
    return make_mechanism(PerturbationConfig(strategy=strategy, epsilon=epsilon, sharpness=sharpness), vectors)


def rows(mechanism: Mechanism) -> np.ndarray:
    return mechanism.log_probabilities(np.arange(-1, len(mechanism.vectors)))


@pytest.mark.parametrize("strategy", PROMISING)
@MANY
@given(vectors=tables(), epsilon=EPSILONS, sharpness=st.floats(1.0, 200.0))
def test_no_pair_of_inputs_exceeds_the_bound(
    strategy: str, vectors: np.ndarray, epsilon: float, sharpness: float
) -> None:
    mechanism = make(strategy, epsilon, vectors, sharpness)
    found = rows(mechanism)
    largest = float(np.ptp(found, axis=0).max())
    assert largest <= mechanism.word_epsilon
    assert ratio_test(mechanism).largest == pytest.approx(largest, abs=1e-6)  # a distance of 0 is one of about 1e-8


@pytest.mark.parametrize("strategy", PROMISING)
@MANY
@given(vectors=tables(), epsilon=EPSILONS, data=st.data())
def test_what_is_drawn_keeps_the_bound_too(
    strategy: str, vectors: np.ndarray, epsilon: float, data: st.DataObject
) -> None:
    """The integers that a sample is drawn from: the largest that a generator gives, the sizes of all steps."""
    mechanism = make(strategy, epsilon, vectors)
    first, second = (weights(mechanism, data.draw(st.integers(0, len(vectors) - 1))) for _ in range(2))
    logs = [np.log(one.astype(np.float64)) - math.log(one.sum()) for one in (first, second)]
    assert np.abs(logs[0] - logs[1]).max() <= mechanism.word_epsilon
    assert np.abs(logs[0] + math.log(len(vectors))).max() <= mechanism.word_epsilon


class Edges:
    """A generator whose integers are those between two outputs, so that the outputs tell the size of each."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = numbers
        self.total = 0

    def integers(self, low: int, high: Any) -> np.ndarray:
        assert low == 0
        self.total = int(high[0])
        return np.minimum(self._numbers, self.total - 1)


def weights(mechanism: Mechanism, word: int) -> np.ndarray:
    """How many of the integers give each output, int64 [V], by bisection on :meth:`Mechanism.sample` alone."""
    words = len(mechanism.vectors)
    probe = Edges(np.zeros(1, np.int64))
    mechanism.sample(np.array([word]), probe)  # type: ignore[arg-type]
    low, high = np.full(words, -1, np.int64), np.full(words, probe.total - 1, np.int64)
    while (high - low > 1).any():  # the last integer that gives an output up to each
        middle = low + (high - low) // 2
        drawn = mechanism.sample(np.full(words, word), Edges(middle))  # type: ignore[arg-type]
        small = drawn <= np.arange(words)
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    last = np.append(low[:-1], probe.total - 1)
    return np.diff(last, prepend=-1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@MANY
@given(vectors=tables(), epsilon=EPSILONS)
def test_rows_are_probabilities_and_the_unknown_is_uniform(strategy: str, vectors: np.ndarray, epsilon: float) -> None:
    found = rows(make(strategy, epsilon, vectors))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(found[0], -math.log(len(vectors)), rtol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@MANY
@given(vectors=tables(), epsilon=EPSILONS, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_words_does_not_matter(strategy: str, vectors: np.ndarray, epsilon: float, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(vectors))
    found = np.exp(rows(make(strategy, epsilon, vectors)))[1:]
    again = np.exp(rows(make(strategy, epsilon, vectors[order])))[1:]
    # what is a candidate at a small distance hangs on rounding
    atol = 1e-4 if strategy == "exponential" else 1e-9
    np.testing.assert_allclose(again, found[np.ix_(order, order)], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("strategy", STRATEGIES)
@MANY
@given(vectors=tables(), epsilon=EPSILONS)
def test_nearer_words_are_at_least_as_probable(strategy: str, vectors: np.ndarray, epsilon: float) -> None:
    found = np.exp(rows(make(strategy, epsilon, vectors)))[1:]
    exact = vectors.astype(np.float64)
    for x in range(len(vectors)):
        order = np.argsort(np.linalg.norm(exact - exact[x], axis=1), kind="stable")
        steps = np.diff(found[x][order])
        assert (steps <= found[x][order][:-1] * 1e-5 + 1e-12).all()


@pytest.mark.parametrize("strategy", PROMISING)
@MANY
@given(vectors=tables(), epsilons=st.tuples(EPSILONS, EPSILONS))
def test_more_epsilon_keeps_more(strategy: str, vectors: np.ndarray, epsilons: Tuple[float, float]) -> None:
    less, more = (ratio_test(make(strategy, epsilon, vectors)).kept for epsilon in sorted(epsilons))
    assert less <= more * (1 + 1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@MANY
@given(vectors=tables(), epsilon=EPSILONS, data=st.data())
def test_every_input_gives_one_word_of_the_list(
    strategy: str, vectors: np.ndarray, epsilon: float, data: st.DataObject
) -> None:
    ids = np.array(data.draw(st.lists(st.integers(-1, len(vectors) - 1), max_size=80)), np.int32)
    found = make(strategy, epsilon, vectors).sample(ids, np.random.default_rng(0))
    assert found.dtype == np.int32
    assert found.shape == ids.shape
    assert ((found >= 0) & (found < len(vectors))).all()
