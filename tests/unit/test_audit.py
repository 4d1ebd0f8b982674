"""Audits: the bound of the one-run audit, on mechanisms whose ε is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.audit import AuditResult, default_ends, largest_refuted, lower_bound, p_value


def keep(epsilon: float) -> float:
    """Probability with which randomised response of ε tells the truth."""
    return 1.0 / (1.0 + math.exp(-epsilon))


def randomised_response(
    rng: np.random.Generator, canaries: int, epsilon: float, delta: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, included): every bit is told right with probability e^ε / (1 + e^ε), or shown as it is with δ."""
    included = rng.random(canaries) < 0.5
    right = rng.random(canaries) < delta + (1 - delta) * keep(epsilon)
    # a fraction breaks ties: which of the guessed ones are at the ends is chance
    return np.where(right, included, ~included) + 0.5 * rng.random(canaries), included


def accused(guesses: int, epsilon: float, right: float, delta: float = 0.0) -> float:
    """Exact probability that the bound exceeds ε, if each of as many guesses as canaries is right with ``right``."""
    low, high = 0, guesses + 1  # the fewest right guesses with which it does
    while low < high:
        middle = (low + high) // 2
        if largest_refuted(guesses, guesses, middle, delta, 0.05) > epsilon:
            high = middle
        else:
            low = middle + 1
    return float(stats.binom.sf(low - 1, guesses, right))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("guesses", [20, 200, 1000])
def test_randomised_response_is_accused_in_one_of_twenty_runs_and_not_more(epsilon: float, guesses: int) -> None:
    share = accused(guesses, epsilon, keep(epsilon))
    assert share <= 0.05
    if guesses >= 200 and epsilon <= 2:
        assert share > 0.03  # the bound is exact here, up to the steps of the binomial


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_end_to_end(epsilon: float) -> None:
    """Scores, ends and Bonferroni included: at most 5 % of 400 runs exceed ε (99.9 % quantile of the binomial)."""
    rng = np.random.default_rng(1)
    bounds = np.array([lower_bound(*randomised_response(rng, 500, epsilon), 1e-6).epsilon_lower for _ in range(400)])
    assert (bounds > epsilon).sum() <= stats.binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_the_bound_comes_near_epsilon(epsilon: float) -> None:
    scores, included = randomised_response(np.random.default_rng(2), 20_000, epsilon)
    assert 0.9 * epsilon < lower_bound(scores, included, 0.0, ends=(10_000,)).epsilon_lower < epsilon


def test_delta_is_charged() -> None:
    """A mechanism that shows each bit as it is with δ is (ε, δ)-DP: without the term for δ it would be accused."""
    canaries, epsilon, delta = 1000, 0.5, 0.02
    right = delta + (1 - delta) * keep(epsilon)
    assert accused(canaries, epsilon, right, delta) <= 0.05
    assert accused(canaries, epsilon, right, 0.0) > 0.1


def test_all_bits_shown_with_probability_delta() -> None:
    """A (0, δ)-DP mechanism has everything right with δ, so that is no proof against a δ of that size."""
    for delta in (0.001, 0.02, 0.3):
        assert p_value(100, 100, 100, 0.0, delta) >= delta
    assert p_value(100, 100, 100, 3.0, 1e-6) < 0.05


def slow_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The theorem word by word, i from 1 to m."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    p = [math.comb(r, w) * q**w * (1 - q) ** (r - w) for w in range(r + 1)]
    alpha = max(sum(p[w] for w in range(r + 1) if v > w >= v - i) / i for i in range(1, m + 1))
    return min(1.0, sum(p[v:]) + 2 * m * delta * alpha)


@pytest.mark.parametrize(("r", "v"), [(10, 0), (10, 1), (10, 7), (10, 10), (31, 25), (40, 40)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.01])
def test_p_value_is_the_theorem(r: int, v: int, epsilon: float, delta: float) -> None:
    assert p_value(50, r, v, epsilon, delta) == pytest.approx(slow_p_value(50, r, v, epsilon, delta), abs=1e-12)


def test_largest_refuted_is_refuted_and_nothing_above() -> None:
    for correct in (60, 75, 90, 100):
        epsilon = largest_refuted(500, 100, correct, 1e-5, 0.05)
        assert epsilon > 0
        assert p_value(500, 100, correct, epsilon, 1e-5) <= 0.05
        above = [p_value(500, 100, correct, epsilon + step, 1e-5) for step in (1e-4, 0.1, 1.0, 5.0)]
        assert min(above) > 0.05
    assert largest_refuted(500, 100, 50, 1e-5, 0.05) == 0.0


def test_all_right_is_the_known_number() -> None:
    """v = r: P[W >= r] = (e^ε / (1 + e^ε))^r."""
    chance = 0.05 ** (1 / 100)
    assert largest_refuted(100, 100, 100, 0.0, 0.05) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-5)


def test_bonferroni_over_scores_and_ends() -> None:
    included = np.arange(400) % 2 == 0
    useless = np.random.default_rng(0).random(400)
    one = lower_bound(included.astype(float), included, 0.0, ends=(80,))
    four = lower_bound(np.stack([useless, included]), included, 0.0, ends=(20, 80))
    assert (one.rules, four.rules) == (1, 4)
    assert one == AuditResult(largest_refuted(400, 160, 160, 0.0, 0.05), 0.0, 0.95, 400, 160, 160, 0, 1)
    assert four.epsilon_lower == pytest.approx(largest_refuted(400, 160, 160, 0.0, 0.05 / 4), abs=1e-9)
    assert (four.score, four.guesses, four.correct) == (1, 160, 160)
    assert four.contradicts(3.0)
    assert not four.contradicts(4.0)


def test_scores_of_the_wrong_sign_say_nothing() -> None:
    included = np.arange(100) % 2 == 0
    assert lower_bound(-included.astype(float), included, 0.0).epsilon_lower == 0.0


def test_default_ends() -> None:
    assert default_ends(1000) == (50, 200)
    assert default_ends(4) == (1,)


@pytest.mark.parametrize(
    ("scores", "code", "words"),
    [
        (np.zeros(9), "E650", r"\(1, 9\) for \(10,\)"),
        (np.zeros((2, 2, 10)), "E650", "scores"),
        (np.array([np.nan] * 3 + [0.0] * 7), "E650", "3 of them"),
        (np.zeros(10), "E651", "6 canaries at each end of 10; possible are 1 to 5"),
    ],
)
def test_bad_input(scores: np.ndarray, code: str, words: str) -> None:
    with pytest.raises(ExtensionError, match=words) as caught:
        lower_bound(scores, np.arange(10) % 2 == 0, 1e-5, ends=(6,))
    assert caught.value.code == code
