"""Votes in FDKT: the nearest text, one vote per record, noise, and the texts with most votes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fate_llm_ext.algo.fdkt.feedback import best, count_votes, nearest, noisy_votes
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.models.embeddings import Embedder
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer


def unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, dtype=np.float32)


def slow_nearest(records: np.ndarray, texts: np.ndarray) -> list[int]:
    """Squared distances, one by one, in exact-rounded sums."""
    found = []
    for record in records.astype(float):
        distances = [math.fsum((record - text) ** 2) for text in texts.astype(float)]
        found.append(distances.index(min(distances)))
    return found


# --- the nearest text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
def test_the_nearest_text_is_that_of_the_slow_reference(scaled: bool) -> None:
    chance = np.random.default_rng(1)
    for size in (1, 2, 33):
        records, texts = chance.normal(size=(50, 12)), chance.normal(size=(size, 12))
        if scaled:
            records, texts = unit(records), unit(texts)
        found = nearest(records, texts)
        assert found.dtype == np.int64
        assert found.tolist() == slow_nearest(records, texts)


def test_of_equal_texts_the_first_is_voted_for() -> None:
    chance = np.random.default_rng(2)
    texts = unit(chance.normal(size=(40, 65)))
    doubled = np.concatenate([texts[::-1], texts, texts])
    records = unit(texts + 0.05 * chance.normal(size=texts.shape))
    assert nearest(records, doubled).tolist() == list(range(39, -1, -1))


def test_a_record_in_the_middle_votes_for_the_first() -> None:
    texts = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    assert nearest(np.zeros((1, 2), dtype=np.float32), texts).tolist() == [0]
    assert nearest(np.zeros((1, 2), dtype=np.float32), texts[::-1]).tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_neither_vote_nor_are_voted_for(bad: float) -> None:
    records, texts = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    records[1, 3] = bad
    texts[2, 0] = bad
    found = nearest(records, texts)
    assert found[[0, 1, 3]].tolist() == [0, -1, 3]
    assert found[2] in (0, 1, 3)
    assert count_votes(found, 4).sum() == 3
    assert count_votes(found, 4)[2] == 0


def test_no_records_no_texts() -> None:
    some = np.ones((3, 2), dtype=np.float32)
    none = np.zeros((0, 2), dtype=np.float32)
    assert nearest(none, some).tolist() == []
    assert nearest(some, none).tolist() == [-1, -1, -1]
    assert nearest(some, some * np.nan).tolist() == [-1, -1, -1]
    assert count_votes(nearest(none, some), 3).tolist() == [0, 0, 0]
    assert noisy_votes(nearest(some, none), 0, 1.0).shape == (0,)


# --- sensitivity --------------------------------------------------------------------------------------


def test_one_record_more_changes_one_count_by_one() -> None:
    """Also among texts that are as near as rounding can tell, and wherever the record stands in the table."""
    chance = np.random.default_rng(3)
    for _ in range(60):
        count, size, width = chance.integers(1, 40), chance.integers(1, 25), chance.integers(1, 70)
        texts = unit(np.ones((size, width)) + 1e-7 * chance.normal(size=(size, width)))
        records = unit(np.ones((count + 1, width)) + 1e-3 * chance.normal(size=(count + 1, width)))
        place = chance.integers(count + 1)
        without = count_votes(nearest(np.delete(records, place, axis=0), texts), size)
        change = count_votes(nearest(records, texts), size) - without
        assert np.sort(np.abs(change)).tolist() == [0.0] * (size - 1) + [1.0]
        assert change.sum() == 1.0


def test_a_vote_depends_on_its_own_record_alone() -> None:
    chance = np.random.default_rng(4)
    texts = unit(np.ones((200, 96)) + 1e-7 * chance.normal(size=(200, 96)))
    records = unit(np.ones((301, 96)) + 1e-4 * chance.normal(size=(301, 96)))
    together = nearest(records, texts)
    alone = [int(nearest(records[index : index + 1].copy(), texts)[0]) for index in range(len(records))]
    assert together.tolist() == alone


def test_records_that_are_embedded_one_by_one_know_nothing_of_each_other() -> None:
    """In a batch, padding and rounding would carry a record's length into the embeddings of the others."""
    texts = [row["text"][: 20 + 7 * index] for index, row in enumerate(generate_tickets(12, seed=1))]
    tokenizer = train_tokenizer(texts * 3, 300)
    config = TinyConfig(hidden=32, layers=2, context=256, batch_tokens=256, steps=1, seed=0)
    embedder = Embedder(build_model(config, tokenizer), tokenizer, batch_size=1)
    together = embedder.embed(texts)
    for place in (0, 5, 11):
        without = embedder.embed(texts[:place] + texts[place + 1 :])
        assert (without == np.delete(together, place, axis=0)).all(), "to the last bit"


def test_a_record_without_a_vote_changes_nothing() -> None:
    texts = np.eye(3, dtype=np.float32)
    records = np.array([[1, 0, 0], [np.nan, 0, 0]], dtype=np.float32)
    assert (count_votes(nearest(records, texts), 3) == count_votes(nearest(records[:1], texts), 3)).all()


# --- noise --------------------------------------------------------------------------------------------


def test_votes_are_counted_and_noise_is_added() -> None:
    votes = np.array([2, 0, 2, -1, 2])
    drawn = np.random.default_rng(5).normal(0.0, 3.0, 4)
    noisy = noisy_votes(votes, 4, 3.0, noise=np.random.default_rng(5))
    assert noisy.dtype == np.float64
    np.testing.assert_allclose(noisy, np.array([1, 0, 3, 0]) + drawn)


@pytest.mark.parametrize("sigma", [0.5, 10.0])
def test_noise_has_the_deviation_asked_for(sigma: float) -> None:
    """From the operating system's entropy, so with margins that one run in a million exceeds."""
    size = 50_000
    noise = noisy_votes(np.zeros(100, dtype=np.int64), size, sigma)
    assert abs(noise[0] - 100) < 6 * sigma
    noise = noise[1:] / sigma
    assert abs(noise.mean()) < 5 / math.sqrt(size)
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * size)
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert (noise < 0).any(), "counts may be negative"


def test_noise_is_no_public_seed_s() -> None:
    votes = np.array([0, 1, 1])
    np.random.seed(0)
    one = noisy_votes(votes, 1000, 1.0)
    np.random.seed(0)
    other = noisy_votes(votes, 1000, 1.0)
    assert (one != other).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.16


# --- the best -----------------------------------------------------------------------------------------


def slow_best(votes: list[float], codes: list[int], share: float) -> list[int]:
    chosen = []
    for code in set(codes):
        own = [index for index, other in enumerate(codes) if other == code]
        own.sort(key=lambda index: (-votes[index], index))
        size = 1
        while size < len(own) and size / len(own) < share:
            size += 1
        chosen += own[:size]
    return sorted(chosen)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_the_best_are_those_of_the_slow_reference(share: float) -> None:
    chance = np.random.default_rng(6)
    for size in (1, 7, 120):
        votes = np.round(chance.normal(0, 3, size))  # with ties and negative counts
        codes = chance.integers(0, 4, size).astype(np.int32)
        assert best(votes, codes, share).tolist() == slow_best(votes.tolist(), codes.tolist(), share)


def test_no_label_is_lost_however_low_its_votes() -> None:
    votes = np.array([100.0, 90.0, -50.0, -3.0, -40.0])
    assert best(votes, np.array([0, 0, 1, 1, 1]), 0.25).tolist() == [0, 3]


@pytest.mark.parametrize(("share", "size"), [(0.1, 3), (0.2, 6), (0.3, 9), (0.7, 21), (0.71, 22)])
def test_a_share_that_is_a_whole_number_is_not_rounded_up(share: float, size: int) -> None:
    assert len(best(np.arange(30.0), np.zeros(30, dtype=int), share)) == size


def test_votes_that_are_no_numbers_rank_last() -> None:
    votes = np.array([np.nan, -1e9, np.nan, -np.inf])
    assert best(votes, np.zeros(4, dtype=int), 0.25).tolist() == [1]
    assert best(np.zeros(0), np.zeros(0, dtype=int), 0.5).tolist() == []
