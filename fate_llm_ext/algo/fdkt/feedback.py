"""Votes of a client's records for augmented texts (private evolution: arXiv 2305.15560, 2403.01749).

Each private record votes for the augmented text whose embedding is nearest to its own; the client adds Gaussian noise
to the counts, and the texts with most votes become the demonstrations of the next round.

    H[j] = |{i : j = argmin_k ||e(x_i) - e(y_k)||}| + N(0, σ²)

A record that is added or removed changes one count by one, so the L2 sensitivity is 1 and a round is one Gaussian
mechanism of noise multiplier σ. That holds only as long as a vote depends on the record and on public or released
things alone: the model that embeds must not have seen the private records except through DP-SGD, and records are
compared with the texts one by one, because in a product of whole matrices the rounding of a row, and with it a close
vote, can depend on the rows beside it.
"""

from __future__ import annotations

import math
from typing import Callable, Optional

import numpy as np

from fate_llm_ext.privacy.mechanisms import gaussian_noise

NOBODY = -1  # the vote of a record that has none


def nearest(
    records: np.ndarray, texts: np.ndarray, step: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """For each record the text nearest to it by Euclidean distance; of equally near ones the first.

    Embeddings with a value that is not finite are nobody's neighbours: such a text gets no votes, such a record has
    no vote. With no text left there are no votes at all.

    Args:
        records: embeddings of the private records, float [N, d].
        texts: of the augmented texts, float [S, d].
        step: called with (done, total) records after each.

    Returns:
        Index of a text, or -1 for a record without a vote (int64 [N]).
    """
    votes = np.full(len(records), NOBODY, dtype=np.int64)
    candidates = np.flatnonzero(np.isfinite(texts).all(axis=1))
    if not len(candidates):
        return votes
    # Equal texts are one candidate, or rounding might choose among them.
    distinct, first = np.unique(np.asarray(texts, dtype=np.float64)[candidates], axis=0, return_index=True)
    order = np.argsort(first)
    distinct, places = np.ascontiguousarray(distinct[order]), candidates[first[order]]
    half_squares = np.square(distinct).sum(axis=1) / 2
    for index, record in enumerate(records):
        if np.isfinite(record).all():
            # ||x - y||² = ||x||² - 2 (x·y - ||y||² / 2)
            votes[index] = places[int(np.argmax(distinct @ record.astype(np.float64) - half_squares))]
        step(index + 1, len(records))
    return votes


def count_votes(votes: np.ndarray, texts: int) -> np.ndarray:
    """How many records vote for each text, without noise: private (float64 [S]).

    Args:
        votes: from :func:`nearest` (int [N]).
        texts: S.
    """
    return np.bincount(votes[votes != NOBODY], minlength=texts).astype(np.float64)


def noisy_votes(
    nearest: np.ndarray, texts: int, sigma: float, *, noise: Optional[np.random.Generator] = None
) -> np.ndarray:
    """The votes' histogram with Gaussian noise: what a client may send once it is in the ledger (float64 [S]).

    Args:
        nearest: from :func:`nearest` (int [N]).
        texts: S.
        sigma: standard deviation of the noise, in votes; counts may become negative.
        noise: tests give one; by default it comes from the operating system's entropy, not from the job's seed.
    """
    counts = count_votes(nearest, texts)
    return counts + (gaussian_noise(sigma, texts) if noise is None else noise.normal(0.0, sigma, texts))


def best(votes: np.ndarray, codes: np.ndarray, share: float) -> np.ndarray:
    """The texts with most votes, so many of each label: post-processing of noisy votes.

    Args:
        votes: noisy counts (float [S]); what is no number ranks last.
        codes: label of each text (int [S]).
        share: of each label's texts, rounded up, so that no label is lost.

    Returns:
        Indices of texts in rising order (int64); among equal votes the earlier text is chosen.
    """
    ranked = np.where(np.isnan(votes), -np.inf, votes)
    chosen = []
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        # 0.1 * 30 is a little more than 3: what is above a whole number by rounding only is that number.
        size = min(len(own), max(1, math.ceil(share * len(own) - 1e-9)))
        chosen.append(own[np.argsort(-ranked[own], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
