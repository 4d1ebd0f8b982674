"""Mechanisms that put a word of a closed, public vocabulary in place of a word.

An input x is a word of the vocabulary or *unknown*, one single input for everything else; the output y is a word of
the vocabulary. Every mechanism is a matrix of probabilities P(y|x) that can be computed exactly, and the unknown
input's output is uniform. What a strategy guarantees is :attr:`Mechanism.word_epsilon`; docs/fedcot_mechanisms.md
has it in prose.

What is drawn, in floating point: ``fixed_vocabulary`` and ``metric`` draw from integer weights w(y) = floor(P(y|x)
2⁶⁰) + 1 with exact sums. Where all log-ratios of P are at most ε, P(y|x) >= exp(-ε) / V, for the unknown input is
uniform; so those of the integer weights are at most ε + 2V/2⁶⁰, and no word has probability zero. What remains is the
rounding of P itself, about 1e-14 of its value. ``exponential`` promises nothing and is drawn in float64.

Dimensions: V words, d numbers of a vector, n inputs to draw for, M inputs to compute.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Dict, Iterator, Tuple, Type

import numpy as np
from scipy.optimize import brentq

from fate_llm_ext.algo.fedcot.config import PerturbationConfig
from fate_llm_ext.algo.fedcot.perturbation.bounds import word_bound
from fate_llm_ext.algo.fedcot.perturbation.radius import FARTHEST, radius_law, rantext_scales

UNKNOWN = -1
CALIBRATED_WORDS = 6000  # up to here fixed_vocabulary computes all pairs: 288 MB and seconds

_BLOCK = 1 << 22  # numbers of a block of rows
_CACHED = 1 << 17  # numbers of a block that is gone over many times
_COLUMNS = 8192  # words whose vectors are at once in float64
_ATTEMPTS = 8  # of rejection sampling
_WEIGHT = 2.0**60
_SLACK = 1e-6  # relative; what a calibration stays below ε for the rounding of sums


class Mechanism(ABC):
    """P(y|x) over a closed vocabulary.

    Args:
        epsilon: the strategy's parameter; what it means is the strategy's business.
        vectors: [V, d], none of them zero, V >= 2; only their directions count.

    Attributes:
        strategy: its name in the parameters.
        word_epsilon: proven bound of |log P(y|x) - log P(y|x')| over all y and all inputs x and x', the unknown one
            among them; infinity: there is none.
    """

    strategy: ClassVar[str]

    def __init__(self, epsilon: float, vectors: np.ndarray) -> None:
        self.epsilon = epsilon
        self.vectors = vectors
        self._lengths = np.sqrt(np.einsum("vd,vd->v", vectors, vectors, dtype=np.float64))
        if len(vectors) < 2 or not (np.isfinite(self._lengths) & (self._lengths > 0)).all():
            raise ValueError(f"{len(vectors)} vectors, of which some may be zero or not finite: no vocabulary")

    @property
    def word_epsilon(self) -> float:
        """See the class; the parameters alone decide it."""
        return word_bound(self.strategy, self.epsilon)

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Log P(·|x) of every x in ``ids``, int [M] with -1 for the unknown input; float64 [M, V]."""
        ids = np.asarray(ids)
        found = np.full((len(ids), len(self.vectors)), -math.log(len(self.vectors)))
        known = np.flatnonzero(ids != UNKNOWN)
        for rows in self._blocks(known):
            found[rows] = self._log_rows(ids[rows])
        return found

    def sample(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw an output for every input of ``ids``, int [n]; int32 [n]. The same word is computed once.

        Args:
            generator: private data needs one whose seed nobody knows.
        """
        ids = np.asarray(ids)
        drawn = np.empty(len(ids), np.int32)
        order = np.argsort(ids, kind="stable")
        words, starts = np.unique(ids[order], return_index=True)
        ends = np.append(starts[1:], len(ids))
        if len(words) and words[0] == UNKNOWN:
            drawn[order[: ends[0]]] = generator.integers(0, len(self.vectors), ends[0], dtype=np.int32)
            words, starts, ends = words[1:], starts[1:], ends[1:]
        for some in self._blocks(np.arange(len(words))):
            counts = ends[some] - starts[some]
            drawn[order[starts[some[0]] : ends[some[-1]]]] = self._draw(words[some], counts, generator)
        return drawn

    @abstractmethod
    def _log_rows(self, words: np.ndarray) -> np.ndarray:
        """Log P(·|x), float64 [M, V], of words of the vocabulary."""

    def _draw(self, words: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``counts`` outputs for each of the different ``words``, one word after the other."""
        weights = np.exp(self._log_rows(words))
        weights *= _WEIGHT
        sums = weights.astype(np.int64)
        sums += 1
        np.cumsum(sums, axis=1, out=sums)
        numbers = generator.integers(0, np.repeat(sums[:, -1], counts))
        parts = np.split(numbers, np.cumsum(counts)[:-1])
        return np.concatenate([row.searchsorted(part, side="right") for row, part in zip(sums, parts)])

    def _cosines(self, words: np.ndarray) -> np.ndarray:
        """cos(x, ·) of words of the vocabulary, float64 [M, V] within [-1, 1]."""
        rows = self.vectors[words] / self._lengths[words, None]
        found = np.empty((len(words), len(self.vectors)))
        for start in range(0, len(self.vectors), _COLUMNS):
            there = slice(start, start + _COLUMNS)
            np.matmul(rows, self.vectors[there].astype(np.float64).T, out=found[:, there])
        found /= self._lengths
        return np.clip(found, -1.0, 1.0, out=found)

    def _distances(self, words: np.ndarray) -> np.ndarray:
        """Euclidean distances between vectors of length 1, float64 [M, V] within [0, 2]."""
        found = self._cosines(words)
        np.subtract(1.0, found, out=found)
        found *= 2.0
        return np.sqrt(found, out=found)

    def _blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Parts of ``rows`` small enough to hold V numbers for each."""
        size = max(1, _BLOCK // len(self.vectors))
        return (rows[start : start + size] for start in range(0, len(rows), size))


class FixedVocabulary(Mechanism):
    """ε-local differential privacy of a word: P(y|x) ∝ exp(s u(x, y)) over the whole vocabulary.

    The utility u = ((1 + cos(x, y)) / 2) ** sharpness lies in [0, 1]; the unknown input has a constant one.

    Proof for s = ε/2: numerators for two inputs differ by a factor of at most exp(s), and so do the normalising sums,
    together exp(2s) = exp(ε); a constant utility is in [0, 1], too. That bound is seldom reached. Up to
    :data:`CALIBRATED_WORDS` words s is the larger one at which the largest log-ratio over all pairs of inputs and all
    outputs, computed from the public table, is ε (less 1e-6 of it): the guarantee is then that computation.
    """

    strategy = "fixed_vocabulary"

    def __init__(self, epsilon: float, vectors: np.ndarray, sharpness: float = 1.0) -> None:
        super().__init__(epsilon, vectors)
        self.sharpness = sharpness
        self.scale = self._calibrate() if len(vectors) <= CALIBRATED_WORDS else epsilon / 2

    def _log_rows(self, words: np.ndarray) -> np.ndarray:
        return _log_softmax(self._utilities(words), self.scale)

    def _utilities(self, words: np.ndarray) -> np.ndarray:
        found = self._cosines(words)
        found += 1.0
        found /= 2.0
        return np.power(found, self.sharpness, out=found) if self.sharpness != 1.0 else found

    def _calibrate(self) -> float:
        utilities = self._utilities(np.arange(len(self.vectors)))
        target, proven = self.epsilon * (1 - _SLACK), self.epsilon / 2
        low = proven
        for high in (proven * 2**power for power in range(1, 11)):
            if self._largest(utilities, high) > target:
                break
            low = high
        else:
            return proven  # all vectors nearly the same: nothing to gain
        if self._largest(utilities, low) >= target:
            return low
        found = float(brentq(lambda s: self._largest(utilities, s) - target, low, high, rtol=_SLACK / 10))
        step = _SLACK
        while found > proven and self._largest(utilities, found) > target:
            found, step = found * (1 - step), 2 * step
        return max(found, proven)

    def _largest(self, utilities: np.ndarray, scale: float) -> float:
        """The largest log-ratio over all pairs of inputs and outputs at s = ``scale``; ``utilities`` of all words."""
        uniform = -math.log(len(utilities))
        most, least = np.full(len(utilities), uniform), np.full(len(utilities), uniform)
        for rows in self._blocks(np.arange(len(utilities))):
            found = _log_softmax(utilities[rows[0] : rows[-1] + 1].copy(), scale)
            np.maximum(most, found.max(axis=0), out=most)
            np.minimum(least, found.min(axis=0), out=least)
        return float((most - least).max())


class Metric(Mechanism):
    """The form of SanText: P(y|x) ∝ exp(-ε d(x, y) / 2) over the whole vocabulary, d Euclidean between unit vectors.

    Metric differential privacy: |log P(y|x) - log P(y|x')| <= ε d(x, x'), so near words are hard to tell apart and far
    ones are not. Proof: by the triangle inequality the numerators differ by a factor of at most exp(ε d(x, x') / 2),
    and so do the normalising sums.

    Over all pairs 2ε: d lies in [0, 2], so numerators differ by at most exp(ε), sums likewise. The unknown input is at
    distance 1 of every word, by definition: |d(x, y) - 1| <= 1 for every x, a factor of at most exp(ε / 2) in both.
    """

    strategy = "metric"

    def _log_rows(self, words: np.ndarray) -> np.ndarray:
        return _log_softmax(self._distances(words), -self.epsilon / 2)


class Exponential(Mechanism):
    """FedCoT-E's mechanism, RANTEXT of InferDPT: a random radius, then the exponential mechanism within it.

    r = |noise|, candidates are the words with d(x, y) <= r, and P(y|x, r) ∝ exp(ε u / (2 Δu)) among them with
    u = 1 - d(x, y)/r and Δu = 1; d is Euclidean between unit vectors. Laplace noise of a scale of its own in each
    dimension as in RANTEXT (:func:`~fate_llm_ext.algo.fedcot.perturbation.radius.rantext_scales`); the radius does not
    depend on x, its law is that of :func:`~fate_llm_ext.algo.fedcot.perturbation.radius.radius_law`, in steps, and
    sampling and probabilities use that same law, so that P is exact for what is drawn.

    There is no guarantee: the candidates depend on x, so a word far from x' and near x tells them apart almost surely.
    """

    strategy = "exponential"

    def __init__(self, epsilon: float, vectors: np.ndarray) -> None:
        super().__init__(epsilon, vectors)
        self.radii, self._counts = radius_law(rantext_scales(epsilon, vectors, self._lengths))

    def _log_rows(self, words: np.ndarray) -> np.ndarray:
        """The sum over all radii, nearest words first, so that candidates are the first columns."""
        distances = self._distances(words)
        nearest = np.argsort(distances, axis=1)
        found = np.empty_like(distances)
        size = max(1, _CACHED // len(self.vectors))
        for rows in (slice(start, start + size) for start in range(0, len(words), size)):
            summed = self._mix(np.take_along_axis(distances[rows], nearest[rows], axis=1))
            with np.errstate(divide="ignore"):  # an ε of some hundreds: nothing but -inf would be true
                np.put_along_axis(found[rows], nearest[rows], np.log(summed), axis=1)
        return found

    def _mix(self, distances: np.ndarray) -> np.ndarray:
        """P(·|x) of some words, for rising distances; float64 [M, V]."""
        found = np.zeros_like(distances)
        candidates = np.stack([near.searchsorted(self.radii, side="right") for near in distances])
        for radius, share, ends in zip(self.radii, self._counts / self._counts.sum(), candidates.T):
            weights = distances[:, : ends.max()] * (-self.epsilon / 2 / radius)
            np.exp(weights, out=weights)
            if ends.min() < ends.max():
                weights *= np.arange(ends.max()) < ends[:, None]
            weights *= share / weights.sum(axis=1, keepdims=True)
            found[:, : ends.max()] += weights
        return found

    def _draw(self, words: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A radius for each, then a candidate. Of a word only what is within its largest radius is put in order."""
        ends = np.cumsum(self._counts)
        rows = np.repeat(np.arange(len(words)), counts)
        radii = self.radii[ends.searchsorted(generator.integers(0, ends[-1], len(rows)), side="right")]
        distances = self._distances(words)
        if radii.min() >= FARTHEST:  # every word is a candidate
            candidates = np.full(len(rows), len(self.vectors))
            return self._choose(distances.ravel(), rows * len(self.vectors), candidates, radii, generator)
        reach = np.maximum.reduceat(radii, np.cumsum(counts) - counts)
        near = distances <= reach[:, None]
        found, outputs = np.nonzero(near)
        keys = found * (2 * FARTHEST) + distances[near]  # one word's distances behind the other's
        order = np.argsort(keys)
        starts = np.searchsorted(found, np.arange(len(words)))[rows]
        candidates = keys[order].searchsorted(rows * (2 * FARTHEST) + radii, side="right") - starts
        chosen = starts + self._choose(distances[near][order], starts, candidates, radii, generator)
        return outputs[order][chosen]

    def _choose(
        self,
        distances: np.ndarray,
        starts: np.ndarray,
        candidates: np.ndarray,
        radii: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """For each radius, int64 [n], one of ``candidates`` distances from ``starts`` on, with P ∝ exp(-ε d / (2r)).

        By rejection: any candidate, accepted with that number, which is at least exp(-ε/2). What is left after some
        attempts is drawn by cumulative sums, those with few candidates together; the law is the same.
        """
        factors = -self.epsilon / 2 / radii
        chosen = np.empty(len(radii), np.int64)
        left = np.arange(len(radii))
        for _ in range(_ATTEMPTS):
            proposed = generator.integers(0, candidates[left])
            accepted = generator.random(len(left)) < np.exp(distances[starts[left] + proposed] * factors[left])
            chosen[left[accepted]] = proposed[accepted]
            left = left[~accepted]
        for some in (left[part] for part in _narrow(candidates[left])):
            columns = np.arange(candidates[some[-1]])
            there = np.minimum(starts[some, None] + columns, len(distances) - 1)
            sums = np.exp(distances[there] * factors[some, None])
            sums[columns >= candidates[some, None]] = 0.0
            np.cumsum(sums, axis=1, out=sums)
            numbers = generator.random(len(some)) * sums[:, -1]
            chosen[some] = np.minimum((sums <= numbers[:, None]).sum(axis=1), candidates[some] - 1)
        return chosen


_KINDS: Dict[str, Type[Mechanism]] = {
    "exponential": Exponential,
    "adaptive_exponential": Exponential,
    "fixed_vocabulary": FixedVocabulary,
    "metric": Metric,
}


def make_mechanism(config: PerturbationConfig, vectors: np.ndarray) -> Mechanism:
    """The mechanism of a strategy that replaces words one by one, over words with these ``vectors`` [V, d]."""
    kind, epsilon = _kind(config)
    if issubclass(kind, FixedVocabulary):
        return kind(epsilon, vectors, config.sharpness)
    return kind(epsilon, vectors)


def _kind(config: PerturbationConfig) -> Tuple[Type[Mechanism], float]:
    if config.strategy not in _KINDS or config.epsilon is None:
        raise ValueError(f"strategy {config.strategy}, ε {config.epsilon}: it replaces no words")
    return _KINDS[config.strategy], config.epsilon


def _log_softmax(values: np.ndarray, scale: float) -> np.ndarray:
    """Log of exp(scale · values) over its row sums, in place; float64 [M, V]."""
    values *= scale
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def _narrow(candidates: np.ndarray) -> Iterator[np.ndarray]:
    """All places in the order of their number of candidates, in parts of a bounded size."""
    order = np.argsort(candidates, kind="stable")
    end = len(order)
    while end:
        start = max(0, end - max(1, _BLOCK // 4 // int(candidates[order[end - 1]])))
        yield order[start:end]
        end = start
