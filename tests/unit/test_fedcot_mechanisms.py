"""Mechanisms that replace words: probabilities against formulas by loops, samples against probabilities, ratios."""

from __future__ import annotations

import math
from typing import Any, List, Sequence

import numpy as np
import pytest
from scipy.stats import chisquare

from fate_llm_ext.algo.fedcot.config import PerturbationConfig
from fate_llm_ext.algo.fedcot.perturbation import mechanisms
from fate_llm_ext.algo.fedcot.perturbation.bounds import word_bound
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import (
    Exponential,
    FixedVocabulary,
    Mechanism,
    Metric,
    make_mechanism,
)
from fate_llm_ext.algo.fedcot.perturbation.radius import radius_law, rantext_scales
from fate_llm_ext.algo.fedcot.perturbation.ratios import Ratios, ratio_test

STRATEGIES = ("exponential", "fixed_vocabulary", "metric")
EPSILONS = (0.5, 3.0, 8.0)


def table(words: int = 30, size: int = 6, seed: int = 0) -> np.ndarray:
    """Random directions around a common one, as embeddings have it; float32 [words, size] of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((words, size)) + 0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make(strategy: str, epsilon: float, vectors: np.ndarray, **more: Any) -> Any:
    return make_mechanism(PerturbationConfig(strategy=strategy, epsilon=epsilon, **more), vectors)


def all_inputs(vectors: np.ndarray) -> np.ndarray:
    return np.arange(-1, len(vectors), dtype=np.int32)


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(unit(first), unit(second))))


def unit(vector: Sequence[float]) -> List[float]:
    length = math.sqrt(sum(float(a) ** 2 for a in vector))
    return [float(a) / length for a in vector]


def normalised(weights: Sequence[float]) -> List[float]:
    return [weight / math.fsum(weights) for weight in weights]


def reference(mechanism: Any, x: int) -> List[float]:
    """P(·|x) as the papers write it, one number after the other."""
    vectors, epsilon = mechanism.vectors, mechanism.epsilon
    words = range(len(vectors))
    if x < 0:
        return [1 / len(vectors)] * len(vectors)
    apart = [distance(vectors[x], vectors[y]) for y in words]
    if isinstance(mechanism, Metric):
        return normalised([math.exp(-epsilon * d / 2) for d in apart])
    if isinstance(mechanism, FixedVocabulary):
        cosines = [sum(a * b for a, b in zip(unit(vectors[x]), unit(vectors[y]))) for y in words]
        return normalised([math.exp(mechanism.scale * ((1 + c) / 2) ** mechanism.sharpness) for c in cosines])
    radii, counts = radius_law(rantext_scales(epsilon, vectors, np.linalg.norm(vectors, axis=1)))
    found = [0.0] * len(vectors)
    for radius, count in zip(radii, counts):
        near = normalised([math.exp(epsilon * (1 - d / radius) / 2) if d <= radius else 0.0 for d in apart])
        found = [sum_ + count / 2**36 * one for sum_, one in zip(found, near)]
    return found


# ---- probabilities


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("strategy", [*STRATEGIES, "adaptive_exponential"])
def test_probabilities_are_those_of_the_formula(strategy: str, epsilon: float) -> None:
    mechanism = make(strategy, epsilon, table())
    expected = [reference(mechanism, x) for x in all_inputs(mechanism.vectors)]
    found = mechanism.log_probabilities(all_inputs(mechanism.vectors))
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)


def test_sharpness_is_an_exponent() -> None:
    mechanism = make("fixed_vocabulary", 3.0, table(), sharpness=7.5)
    assert mechanism.sharpness == 7.5
    np.testing.assert_allclose(
        np.exp(mechanism.log_probabilities(np.array([4])))[0], reference(mechanism, 4), rtol=1e-6
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parts_of_any_size_give_the_same_probabilities(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = make(strategy, 3.0, table())
    ids = np.array([3, -1, 3, 29, 0, -1, 7])
    whole = mechanism.log_probabilities(ids)
    for name, size in (("_BLOCK", 70), ("_CACHED", 40), ("_COLUMNS", 7)):
        monkeypatch.setattr(mechanisms, name, size)
    # a word's distance to itself is 0 but for rounding, of which it is the square root
    np.testing.assert_allclose(mechanism.log_probabilities(ids), whole, rtol=1e-6)
    np.testing.assert_array_equal(whole[0], whole[2])
    assert mechanism.log_probabilities(np.array([], np.int32)).shape == (0, 30)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_radius_in_steps_is_as_good_as_noise(epsilon: float) -> None:
    """Noise as in the paper, drawn anew for each output, gives nearly the probabilities that are computed."""
    mechanism = make("exponential", epsilon, table(size=16))
    vectors = mechanism.vectors.astype(np.float64)
    draw = np.random.default_rng(1)
    scales = np.ptp(vectors, axis=0) / (
        epsilon if epsilon < 2 else 0.0165 * math.log(19.0648 * epsilon - 38.1294) + 9.3111
    )
    radii = np.linalg.norm(draw.laplace(0.0, scales, (200_000, 16)), axis=1)
    for x in (0, 11):
        apart = np.linalg.norm(vectors - vectors[x], axis=1)
        weights = np.where(apart <= radii[:, None], np.exp(-epsilon / 2 * apart / radii[:, None]), 0.0)
        expected = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
        found = np.exp(mechanism.log_probabilities(np.array([x])))[0]
        assert np.abs(found - expected).sum() / 2 < 0.003


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_law_of_the_radius(size: int) -> None:
    draw = np.random.default_rng(size)
    scales = draw.uniform(0.2, 2.0, size)
    radii, counts = radius_law(scales)
    assert counts.sum() == 2**36
    assert (np.diff(radii) >= 0).all()
    noise = np.linalg.norm(draw.laplace(0.0, scales, (200_000, size)), axis=1)
    shares = [(noise <= radius).mean() for radius in radii]
    middles = (np.cumsum(counts) - counts / 2) / 2**36
    coarse = noise.mean() / 10  # near 0 the lattice of squares is wide
    told = radii > coarse
    assert told.sum() > 75
    np.testing.assert_allclose(np.array(shares)[told], middles[told], atol=0.005)
    assert radii[-1] >= 2


def test_the_law_of_one_dimension_far_out() -> None:
    """P(|noise| > r) = exp(-r / scale), down to 1e-11."""
    radii, counts = radius_law(np.array([0.7]))
    beyond = 1 - (np.cumsum(counts) - counts / 2) / 2**36
    np.testing.assert_allclose(np.exp(-radii / 0.7)[40:], beyond[40:], rtol=0.05)


# ---- samples


def p_value(mechanism: Mechanism, exact: Mechanism, x: int, seed: int, draws: int = 40_000) -> float:
    """Of the samples of one input against the probabilities of another mechanism; rare outputs are joined."""
    found = mechanism.sample(np.full(draws, x, np.int32), np.random.default_rng(seed))
    assert found.dtype == np.int32
    expected = np.exp(exact.log_probabilities(np.array([x])))[0] * draws
    seen = np.bincount(found, minlength=len(expected)).astype(float)
    often = expected >= 8
    if (~often).any():
        seen, expected = np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum())
    return float(chisquare(seen, expected * draws / expected.sum()).pvalue)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_samples_follow_the_probabilities(strategy: str, epsilon: float) -> None:
    mechanism = make(strategy, epsilon, table())
    for x in (-1, 0, 13, 29):
        assert p_value(mechanism, mechanism, x, seed=x + 5) > 1e-4, x


@pytest.mark.parametrize("block", [100, 1_000_000])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_samples_of_many_inputs_in_one_call(strategy: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several parts or in one, and by cumulative sums alone."""
    mechanism = make(strategy, 3.0, table())
    monkeypatch.setattr(mechanisms, "_BLOCK", block)
    monkeypatch.setattr(mechanisms, "_ATTEMPTS", 0)
    ids = np.random.default_rng(0).integers(-1, 30, 90_000)
    found = mechanism.sample(ids, np.random.default_rng(2))
    exact = np.exp(mechanism.log_probabilities(all_inputs(mechanism.vectors)))
    p_values = []
    for x in range(-1, 30):
        expected = exact[x + 1] * (ids == x).sum()
        seen = np.bincount(found[ids == x], minlength=30)
        often = expected >= 5
        if not often.all():
            seen = np.append(seen[often], seen[~often].sum())
            expected = np.append(expected[often], expected[~often].sum())
        p_values.append(chisquare(seen, expected).pvalue)
    assert min(p_values) > 1e-4


class Hotter(FixedVocabulary):
    def _log_rows(self, words: np.ndarray) -> np.ndarray:
        self.scale *= 1.2
        found = super()._log_rows(words)
        self.scale /= 1.2
        return found


class OneRadius(Exponential):
    def __init__(self, epsilon: float, vectors: np.ndarray) -> None:
        super().__init__(epsilon, vectors)
        self._counts = np.where(np.arange(len(self.radii)) == 32, 2**36, 0)


class Neighbour(Metric):
    def _draw(self, words: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (super()._draw(words, counts, generator) + (generator.random(counts.sum()) < 0.05)) % len(self.vectors)


@pytest.mark.parametrize(("wrong", "right"), [(Hotter, FixedVocabulary), (OneRadius, Exponential), (Neighbour, Metric)])
def test_the_test_of_samples_sees_a_wrong_mechanism(wrong: Any, right: Any) -> None:
    vectors = table()
    assert min(p_value(wrong(3.0, vectors), right(3.0, vectors), x, seed=x) for x in (0, 13, 29)) < 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_generator_alone_decides(strategy: str) -> None:
    mechanism = make(strategy, 3.0, table())
    ids = np.random.default_rng(0).integers(-1, 30, 500)
    first, second, other = (mechanism.sample(ids, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert mechanism.sample(np.array([], np.int32), np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize("strategy", ["fixed_vocabulary", "metric"])
def test_parts_of_any_size_draw_the_same(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = make(strategy, 3.0, table())
    ids = np.random.default_rng(0).integers(-1, 30, 500)
    whole = mechanism.sample(ids, np.random.default_rng(1))
    monkeypatch.setattr(mechanisms, "_BLOCK", 100)
    np.testing.assert_array_equal(mechanism.sample(ids, np.random.default_rng(1)), whole)


# ---- bounds and ratios


def slow_ratios(mechanism: Mechanism) -> List[float]:
    """Largest log-ratio and largest δ at the nominal ε, by loops over all pairs of inputs."""
    rows = [reference(mechanism, x) for x in all_inputs(mechanism.vectors)]
    largest = max(math.log(a / b) for first in rows for second in rows for a, b in zip(first, second))
    factor = math.exp(mechanism.epsilon)
    delta = max(sum(max(0.0, a - factor * b) for a, b in zip(one, two)) for one in rows for two in rows)
    known = [
        sum(max(0.0, a - factor * b) for a, b in zip(rows[i], rows[j]))
        for i in range(1, len(rows))
        for j in range(1, len(rows))
        if i != j
    ]
    kept = sum(row[x] for x, row in enumerate(rows[1:])) / (len(rows) - 1)
    return [largest, delta, sum(known) / len(known), kept]


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ratio_test_finds_what_loops_find(strategy: str, epsilon: float) -> None:
    mechanism = make(strategy, epsilon, table(words=20))
    found = ratio_test(mechanism)
    assert found.nominal == epsilon
    assert [found.words, found.inputs, found.pairs] == [20, 20, 20 * 21]
    expected = slow_ratios(mechanism)
    assert [found.largest, found.delta, found.delta_mean, found.kept] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_ratio_test_of_many_words_looks_at_some() -> None:
    mechanism = make("exponential", 3.0, table(words=60))
    whole = ratio_test(mechanism)
    steps: List[Any] = []
    some = ratio_test(mechanism, lambda done, total: steps.append((done, total)), inputs=40, paired=10)
    assert [some.words, some.inputs, some.pairs] == [60, 40, 110]
    assert 3 < some.largest <= whole.largest
    assert some.delta <= whole.delta
    assert steps[-1] == (40, 40)
    assert ratio_test(mechanism, inputs=40, paired=10) == some


@pytest.mark.parametrize("epsilon", [1e-3, *EPSILONS, 30.0])
@pytest.mark.parametrize(("words", "size", "sharpness"), [(2, 1, 1.0), (2, 3, 1.0), (40, 6, 1.0), (40, 6, 50.0)])
def test_bounds_hold(words: int, size: int, sharpness: float, epsilon: float) -> None:
    vectors = table(words, size)
    fixed = make("fixed_vocabulary", epsilon, vectors, sharpness=sharpness)
    found = ratio_test(fixed)
    assert fixed.word_epsilon == epsilon
    assert found.largest <= epsilon
    assert found.delta == 0
    metric = make("metric", epsilon, vectors)
    assert metric.word_epsilon == 2 * epsilon
    assert ratio_test(metric).largest <= 2 * epsilon


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_calibration_is_tight_and_better_than_the_textbook(epsilon: float) -> None:
    vectors = table(40)
    calibrated = FixedVocabulary(epsilon, vectors)
    assert ratio_test(calibrated).largest == pytest.approx(epsilon, rel=1e-5)
    assert calibrated.scale > epsilon / 2 * 1.2


def test_many_words_take_the_proven_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms, "CALIBRATED_WORDS", 39)
    mechanism = FixedVocabulary(3.0, table(40))
    assert mechanism.scale == 1.5
    assert ratio_test(mechanism).largest < 3


def test_opposite_vectors_come_near_the_bound_of_the_metric() -> None:
    """Many words at one end and two apart: log-ratios beyond ε, so that 2ε is not idle; and never beyond it."""
    vectors = np.array([[1.0]] * 500 + [[-1.0]], np.float32)
    found = ratio_test(make("metric", 3.0, vectors)).largest
    assert 5.5 < found <= 6


def test_near_words_are_harder_to_tell_apart_under_the_metric() -> None:
    mechanism = make("metric", 8.0, table(40))
    rows = mechanism.log_probabilities(np.arange(40))
    for x in range(40):
        for other in range(40):
            bound = 8.0 * distance(mechanism.vectors[x], mechanism.vectors[other])
            assert np.abs(rows[x] - rows[other]).max() <= bound + 1e-6


def test_the_exponential_strategy_keeps_no_promise() -> None:
    for epsilon in (3.0, 8.0):
        mechanism = make("exponential", epsilon, table(100, 16))
        found = ratio_test(mechanism)
        assert mechanism.word_epsilon == math.inf
        assert epsilon < found.largest < math.inf
        assert found.delta > 0.5


def test_the_parameters_alone_tell_the_bound() -> None:
    for strategy, bound in (
        ("fixed_vocabulary", 3.0),
        ("metric", 6.0),
        ("exponential", math.inf),
        ("adaptive_exponential", math.inf),
    ):
        config = PerturbationConfig(strategy=strategy, epsilon=3.0)
        assert word_bound(config.strategy, config.epsilon) == make_mechanism(config, table()).word_epsilon == bound
    with pytest.raises(ValueError, match="replaces no words"):
        make_mechanism(PerturbationConfig(strategy="dp_generator"), table())


# ---- tables of any kind


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((5, 4), np.float32),
        np.array([[1.0], [-1.0]], np.float32),
        np.array([[1.0], [1.0]], np.float32),
        np.array([[2.0, 0.0], [0.0, 1e-3], [1.0, 1.0], [1.0, 1.0]], np.float32),
        table(3, 200),
    ],
)
@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 1.0, 2.0, 1e4])
def test_any_table_gives_probabilities(strategy: str, vectors: np.ndarray, epsilon: float) -> None:
    mechanism = make(strategy, epsilon, vectors)
    found = mechanism.log_probabilities(all_inputs(vectors))
    assert not np.isnan(found).any()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-9)
    same = (vectors[:, None] == vectors[None]).all(axis=2)
    for x, y in zip(*np.nonzero(same)):
        np.testing.assert_allclose(np.exp(found[x + 1]), np.exp(found[y + 1]), rtol=1e-4, atol=1e-12)
    assert (np.exp(np.diag(found[1:])) >= 1 / len(vectors) - 1e-9).all()
    if epsilon >= 1e-3:
        assert ratio_test(mechanism).largest <= mechanism.word_epsilon * (1 + 1e-6)
    drawn = mechanism.sample(np.repeat(all_inputs(vectors), 50), np.random.default_rng(0))
    assert ((drawn >= 0) & (drawn < len(vectors))).all()


def test_much_epsilon_keeps_a_word_and_little_makes_all_alike() -> None:
    ids = np.repeat(np.arange(30), 20).astype(np.int32)
    for strategy in STRATEGIES:
        assert (make(strategy, 1e5, table()).sample(ids, np.random.default_rng(0)) == ids).mean() > 0.5, strategy
        found = make(strategy, 1e-4, table()).log_probabilities(ids)
        np.testing.assert_allclose(found, -math.log(30), atol=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_directions_count(strategy: str) -> None:
    vectors = table()
    lengths = np.random.default_rng(0).uniform(0.1, 10, (30, 1)).astype(np.float32)
    found = [make(strategy, 3.0, one).log_probabilities(np.arange(30)) for one in (vectors, vectors * lengths)]
    np.testing.assert_allclose(*np.exp(found), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.zeros((3, 4)), np.full((3, 4), np.nan)])
def test_what_is_no_vocabulary_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no vocabulary"):
        make("metric", 3.0, vectors)


def test_ratios_are_a_plain_record() -> None:
    assert isinstance(ratio_test(make("metric", 1.0, table(3))), Ratios)
