"""One-run audit: how much privacy a training run must have lost, from guesses about canaries.

Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run" (2023): each of m canaries joins the
records with probability 1/2, the mechanism runs once, and from everything that it shows an auditor guesses
which canaries were in. An (ε, δ)-DP mechanism does not let him be right too often, so too many right guesses
refute ε. The result is a lower bound: it can prove a guarantee wrong, never right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import numpy as np
from scipy import stats

from fate_llm_ext.errors import ExtensionError

# No number of right guesses that fits into memory says anything about an ε above this.
_LARGEST_EPSILON = 50.0


@dataclass(frozen=True)
class AuditResult:
    """What an audit has shown.

    Attributes:
        epsilon_lower: with the stated confidence the mechanism is not (ε, δ)-DP for any ε below this; 0 says nothing.
        delta: δ of that statement.
        confidence: probability that a statement made in this way is true.
        canaries: m, those that joined and those that did not.
        guesses: r, of the guess rule that gave the bound.
        correct: v, how many of them were right.
        score: index of the score that gave it.
        rules: guess rules tried (scores x numbers of guesses); each had an equal share of the permitted error.
    """

    epsilon_lower: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    score: int
    rules: int

    def contradicts(self, epsilon: float) -> bool:
        """Whether the claim that the mechanism is (``epsilon``, δ)-DP is refuted."""
        return self.epsilon_lower > epsilon


def lower_bound(
    scores: np.ndarray,
    included: np.ndarray,
    delta: float,
    *,
    confidence: float = 0.95,
    ends: Optional[Sequence[int]] = None,
) -> AuditResult:
    """The largest ε that the guesses refute.

    A guess rule says "in" for the k canaries of the highest score and "out" for the k of the lowest. Which
    scores and which k are tried must not depend on ``included``; each rule gets an equal share of the
    permitted error (Bonferroni), and the best one counts.

    Args:
        scores: float [m], or [S, m] for S scores; the higher, the more a canary seems to have joined. A function
            of what the mechanism shows, not of ``included``.
        included: bool [m], drawn independently with probability 1/2.
        delta: δ of the claim.
        ends: the k; default: 5 % and 20 % of the canaries.

    Raises:
        ExtensionError: E650 for scores that do not fit or are no numbers, E651 for a k that does not fit.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    joined = np.asarray(included, dtype=bool)
    count = joined.size
    if joined.ndim != 1 or table.ndim != 2 or table.shape[1] != count or not len(table):
        raise ExtensionError("E650", scores=table.shape, canaries=joined.shape, bad=0)
    if np.isnan(table).any():
        raise ExtensionError("E650", scores=table.shape, canaries=joined.shape, bad=int(np.isnan(table).sum()))
    sizes = tuple(ends) if ends is not None else default_ends(count)
    for size in sizes:
        if not 1 <= size <= count // 2:
            raise ExtensionError("E651", size=size, canaries=count, most=count // 2)
    rules = len(table) * len(sizes)
    best = AuditResult(0.0, delta, confidence, count, 0, 0, 0, rules)
    for number, row in enumerate(table):
        order = np.argsort(row, kind="stable")  # ties in the order of the canaries, which says nothing
        for size in sizes:
            correct = int(joined[order[-size:]].sum() + (~joined[order[:size]]).sum())
            epsilon = largest_refuted(count, 2 * size, correct, delta, (1.0 - confidence) / rules)
            if epsilon > best.epsilon_lower or best.guesses == 0:
                best = AuditResult(epsilon, delta, confidence, count, 2 * size, correct, number, rules)
    return best


def default_ends(canaries: int) -> Tuple[int, ...]:
    """5 % and 20 % of the canaries: few sure guesses find a weak leak, many find a strong one."""
    return tuple(sorted({max(1, canaries // 20), max(1, canaries // 5)}))


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely an (ε, δ)-DP mechanism allows so many right guesses, at most; theorem 5.2 of the paper.

    With W ~ Binomial(r, e^ε / (1 + e^ε)), for m canaries, r guesses and v right ones:

        P[V >= v]  <=  P[W >= v] + 2 m δ max_{1 <= i <= m} P[v > W >= v - i] / i

    The second term is what δ adds: m independent failures, each of which may turn any number of guesses.
    """
    if correct <= 0:
        return 1.0
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    # P[v > W >= v - i] for i = 1 .. v; beyond v it grows no more while i does.
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    failures = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, float(stats.binom.sf(correct - 1, guesses, chance)) + 2.0 * canaries * delta * failures)


def largest_refuted(canaries: int, guesses: int, correct: int, delta: float, error: float) -> float:
    """The largest ε with ``p_value(...) <= error``, to 1e-6 and never rounded up; 0 if there is none."""
    if p_value(canaries, guesses, correct, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        if p_value(canaries, guesses, correct, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low
