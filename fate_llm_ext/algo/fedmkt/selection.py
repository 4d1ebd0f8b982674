"""Who teaches which public sample.

DualMinCE (FedMKT, arXiv 2406.02224): the source with the smallest loss on the sample, and only if that loss
is below one's own. Its yardstick is the gold answer, so it is deceived by models that have memorised the
public set; the skill-based selection asks instead who was right on held-out samples of the same kind, and
works for samples without an answer. (ours)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fate_llm_ext.errors import ExtensionError

Array = np.ndarray[Any, Any]


def dual_min_ce(own_nll: Array, other_nll: Array) -> Array:
    """DualMinCE: ``k* = argmin_k other_nll[k]`` where ``other_nll[k*] < own_nll``, else -1. int32 [N].

    Losses of different tokenizers compare only per byte: pass the answer's total NLL over its bytes. A source's
    NaN or infinity never wins; ties go to the lowest index. An own NaN counts as infinity.

    Args:
        own_nll: [N], nats per byte.
        other_nll: [S, N], nats per byte.

    Raises:
        ExtensionError: E325 the shapes do not fit.
    """
    _check_shape("losses of the sources", other_nll, own_nll)
    running = RunningMinimum(own_nll)
    for source, nll in enumerate(other_nll):
        running.add(source, nll)
    return running.chosen


class RunningMinimum:
    """DualMinCE, one source at a time: memory [N] for any number of sources.

    Sources may come in any order; ties go to the lowest index all the same.

    Attributes:
        chosen: int32 [N], the best source so far, -1 where none is better than oneself.
        best: float64 [N], the loss to beat.
    """

    def __init__(self, own_nll: Array) -> None:
        own = np.asarray(own_nll, np.float64)
        self.best: Array = np.where(np.isnan(own), np.inf, own)
        self.chosen: Array = np.full(own.shape, -1, np.int32)

    def add(self, source: int, nll: Array) -> Array:
        """Take source ``source`` with ``nll`` [N] into account; bool [N], where it is the best so far."""
        _check_shape(f"losses of source {source}", np.asarray(nll)[None], self.best)
        loss = np.asarray(nll, np.float64)
        wins = np.isfinite(loss) & ((loss < self.best) | ((loss == self.best) & (source < self.chosen)))
        self.best[wins], self.chosen[wins] = loss[wins], source
        return wins


def region_skill(
    predicted: Array, correct: Array, n_regions: int, *, prior: float = 0.5, strength: float = 2.0
) -> Array:
    """How often a model is right when it says ``r``, on held-out samples: float64 [n_regions].

    ``(hits_r + prior * strength) / (count_r + strength)``; the defaults are Laplace's rule, (hits + 1) / (count + 2).

    Args:
        predicted: int [C], the region (answer) predicted; samples outside [0, n_regions) are left out.
        correct: bool [C].
        n_regions: number of regions.
        prior: skill of a model never seen there.
        strength: how many samples the prior is worth.

    Raises:
        ExtensionError: E325 the shapes do not fit.
    """
    _check_shape("correct", np.asarray(correct)[None], predicted)
    inside = (predicted >= 0) & (predicted < n_regions)
    region = np.asarray(predicted)[inside].astype(np.int64)
    count = np.bincount(region, minlength=n_regions)
    hits = np.bincount(region, weights=np.asarray(correct, np.float64)[inside], minlength=n_regions)
    return np.asarray((hits + prior * strength) / (count + strength))


def _check_shape(what: str, got: Array, like: Array) -> None:
    expected = np.shape(like)
    if np.ndim(got) != 2 or np.shape(got)[1:] != expected:
        raise ExtensionError("E325", what=what, got=np.shape(got), expected=("sources", *expected))
