"""Guessing a word from the one that left in its place, by an attacker who knows mechanism, vocabulary and vectors.

Dimensions: n words under attack, Y different ones among those that left, V words of the vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Optional, Tuple

import numpy as np

from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.algo.fedcot.perturbation.words import split

PAIRS = 25_000_000  # of true word and word that left, all of which are computed
PROBABLE = 1000  # words that are considered beside those that left, where there are more pairs
_FLOATS = 1 << 22  # of a block of probabilities: 32 MB, and a few times that for what they are made of
_SHIFT = 2.7  # Zipf's law as Mandelbrot shifted it


def word_prior(vocabulary: Vocabulary, texts: Optional[Iterable[str]] = None) -> np.ndarray:
    """How probable each word is before anything is seen: float64 [V], sums to 1.

    Args:
        texts: public; their word counts, each with one added. Without any: Zipf's law, p ∝ 1 / (rank + 2.7), for the
            words of the list stand in about the order of their frequency.
    """
    if texts is None:
        weights = 1.0 / (np.arange(1, len(vocabulary.words) + 1) + _SHIFT)
    else:
        weights = np.ones(len(vocabulary.words))
        for text in texts:
            ids = vocabulary.ids(split(text))
            np.add.at(weights, ids[ids >= 0], 1.0)
    prior: np.ndarray = weights / weights.sum()
    return prior


@dataclass(frozen=True, eq=False)
class Candidates:
    """The K most probable private words behind each of Y words that left, best first.

    Attributes:
        words: int32 [Y, K].
        log_likelihood: log P(the word that left | candidate), float64 [Y, K].
    """

    words: np.ndarray
    log_likelihood: np.ndarray


def posterior(
    mechanism: Mechanism,
    prior: np.ndarray,
    seen: np.ndarray,
    counts: np.ndarray,
    most: int,
    heartbeat: Callable[[], None] = lambda: None,
) -> Candidates:
    """The words x of largest p(x) P(y|x) for each word y that left; the first is the Bayes-optimal guess.

    Exact up to 5,000 words; of a larger vocabulary 25,000,000 / V are considered, at least those that left and the
    1,000 most probable others. Memory: blocks of 32 MB times what the mechanism needs for one.

    Args:
        prior: float64 [V].
        seen: the words y, int32 [Y], each once.
        counts: how often each left, int [Y].
        most: K at most.
    """
    inputs = considered(prior, seen, counts, max(len(seen) + PROBABLE, PAIRS // len(prior)))
    kept = min(most, len(inputs))
    block = max(1, _FLOATS // len(prior))
    words = np.zeros((0, len(seen)), dtype=np.int32)
    likelihood = np.zeros((0, len(seen)))
    for start in range(0, len(inputs), block):
        part = inputs[start : start + block]
        fresh = mechanism.log_probabilities(part)[:, seen]
        words = np.concatenate([words, np.repeat(part[:, None], len(seen), axis=1)])
        likelihood = np.concatenate([likelihood, fresh])
        order = np.argsort(-(likelihood + np.log(prior)[words]), axis=0, kind="stable")[:kept]
        words, likelihood = np.take_along_axis(words, order, 0), np.take_along_axis(likelihood, order, 0)
        heartbeat()
    return Candidates(words.T.copy(), likelihood.T.copy())


def considered(prior: np.ndarray, seen: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the V words, those that left most often first, then the most probable ones; int32."""
    often = np.zeros(len(prior), dtype=np.int64)
    often[seen] = counts
    return np.lexsort((-prior, -often))[:most].astype(np.int32)


def nearest_words(vectors: np.ndarray, seen: np.ndarray, most: int) -> np.ndarray:
    """The words nearest to each that left, itself first: int32 [Y, min(most, V)]; vectors of length 1, [V, d]."""
    kept = min(most, len(vectors))
    found = np.zeros((len(seen), kept), dtype=np.int32)
    block = max(1, _FLOATS // len(vectors))
    for start in range(0, len(seen), block):
        part = seen[start : start + block]
        likeness = vectors[part] @ vectors.T
        likeness[np.arange(len(part)), part] = np.inf
        rows = np.argpartition(-likeness, kept - 1, axis=1)[:, :kept]
        order = np.argsort(-np.take_along_axis(likeness, rows, 1), axis=1, kind="stable")
        found[start : start + len(part)] = np.take_along_axis(rows, order, 1)
    return found


def different(seen: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different words (int32 [Y]), the place of each of the n among them, and how often each is there."""
    words, places, counts = np.unique(seen, return_inverse=True, return_counts=True)
    return words.astype(np.int32), places.reshape(-1), counts
