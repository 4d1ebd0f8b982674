"""What a mechanism really gives on its table: the exact ratios of its probabilities.

Nothing here touches private data; vocabulary, vectors and mechanism are public.

Dimensions: V words, M inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import numpy as np

from fate_llm_ext.algo.fedcot.perturbation.mechanisms import UNKNOWN, Mechanism

INPUTS = 4096  # words whose rows are computed
PAIRED = 300  # of which all pairs are computed

_ROWS = 256
_NUMBERS = 1 << 24  # that all rows of the pairs hold

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Ratios:
    """Exact figures of a mechanism.

    Attributes:
        nominal: ε as it stands in the parameters.
        largest: of |log P(y|x) - log P(y|x')| over all outputs and all pairs of ``inputs`` and the unknown one; at
            least that over all pairs if there are more words than inputs.
        delta: the largest δ that a pair needs: max of Σ_y max(0, P(y|x) - exp(nominal) P(y|x')).
        delta_mean: mean over the pairs of known words.
        kept: mean over the inputs of P(x|x).
        words: V.
        inputs: words whose rows were computed, the first of a public random order.
        pairs: ordered pairs behind ``delta``, the unknown input's among them.
    """

    nominal: float
    largest: float
    delta: float
    delta_mean: float
    kept: float
    words: int
    inputs: int
    pairs: int


def ratio_test(
    mechanism: Mechanism, step: Step = lambda done, total: None, *, inputs: int = INPUTS, paired: int = PAIRED
) -> Ratios:
    """Compute all rows (of a fixed random choice, where there are more words than ``inputs``) and compare them.

    Args:
        mechanism: any.
        step: called with (done, total) inputs after each block.
        inputs: most rows for ``largest`` and ``kept``.
        paired: most rows all pairs of which are compared for ``delta``; fewer for a large vocabulary.
    """
    words = len(mechanism.vectors)
    chosen = np.random.default_rng(0).permutation(words)[:inputs]
    compared = min(len(chosen), paired, max(2, _NUMBERS // words))
    uniform = -math.log(words)
    most, least = np.full(words, uniform), np.full(words, uniform)
    kept = 0.0
    rows = np.empty((compared, words))
    size = min(_ROWS, max(1, _NUMBERS // 4 // words))
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        found = mechanism.log_probabilities(some)
        np.maximum(most, found.max(axis=0), out=most)
        np.minimum(least, found.min(axis=0), out=least)
        kept += float(np.exp(found[np.arange(len(some)), some]).sum())
        if start < compared:
            rows[start : start + size] = np.exp(found[: compared - start])
        step(start + len(some), len(chosen))
    needed = np.stack([_excess(row, rows, mechanism.epsilon) for row in rows])
    unknown = np.exp(mechanism.log_probabilities(np.array([UNKNOWN])))
    worst = max(
        needed.max(),
        _excess(rows, unknown, mechanism.epsilon).max(),
        _excess(unknown, rows, mechanism.epsilon).max(),
    )
    return Ratios(
        nominal=mechanism.epsilon,
        largest=float((most - least).max()),
        delta=float(worst),
        delta_mean=float(needed.sum() / (compared * (compared - 1))),
        kept=kept / len(chosen),
        words=words,
        inputs=len(chosen),
        pairs=compared * (compared + 1),
    )


def _excess(first: np.ndarray, second: np.ndarray, epsilon: float) -> np.ndarray:
    """Σ_y max(0, P(y|x) - exp(ε) P(y|x')), float64 [M], of x against x', one of them or both [M, V]."""
    found = first - second * math.exp(min(epsilon, 700.0))
    excess: np.ndarray = np.maximum(found, 0.0, out=found).sum(axis=-1)
    return excess
