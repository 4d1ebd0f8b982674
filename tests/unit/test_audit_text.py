"""Text canaries: insertion, exposure, and what synthetic texts give away."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.audit_text import (
    chance_exposure,
    exposure,
    insert_canaries,
    longest_runs,
    random_texts,
    split_words,
    synthetic_text_scores,
    vocabulary_words,
)

WORDS = [f"w{number}" for number in range(50)]


def insert(seed: int, **changes: int) -> tuple[list[str], np.ndarray, object]:
    settings = {"canaries": 40, "length": 5, "repeats": 3, "values": 4, **changes}
    coins = np.random.default_rng(seed)
    return insert_canaries(["a", "b"], np.array([1, 0]), words=WORDS, coins=coins, **settings)


def test_canaries_are_appended_as_often_as_said() -> None:
    texts, codes, canaries = insert(0)
    assert texts[:2] == ["a", "b"]
    assert codes.dtype == np.int32
    assert list(codes[:2]) == [1, 0]
    assert len(texts) == len(codes) == 2 + 3 * canaries.included.sum()
    for text, code, included in zip(canaries.texts, canaries.codes, canaries.included):
        assert texts.count(text) == 3 * included
        assert all(codes[place] == code for place, one in enumerate(texts) if one == text)
    assert len(set(canaries.texts)) == 40
    assert {len(text.split()) for text in canaries.texts} == {5}
    assert set(canaries.codes) == {0, 1, 2, 3}


def test_canaries_join_with_probability_one_half_independently_of_all_else() -> None:
    joined = np.stack([insert(seed)[2].included for seed in range(300)])
    assert abs(joined.mean() - 0.5) < 4 * 0.5 / math.sqrt(joined.size)
    assert np.abs(joined.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / math.sqrt(300)
    sizes = joined.sum(axis=1)
    assert sizes.var() == pytest.approx(40 / 4, rel=0.35)  # a fixed number of joining canaries would have 0


def test_too_few_words() -> None:
    with pytest.raises(ExtensionError, match=r"E652 100 canaries of 3 words each .* there are 4 words"):
        random_texts(["a", "b", "c", "d", "d"], 100, 3, np.random.default_rng(0))


def test_exposure_is_bits_of_rank() -> None:
    candidates = np.arange(1.0, 1024.0)  # R + 1 = 1024
    assert exposure(np.array([0.5, 1.5, 3.5, 5000.0]), candidates) == pytest.approx([10, 9, 8, 0])
    assert exposure(np.array([1.0]), candidates) == pytest.approx([9])  # a tie counts against the canary


def test_exposure_of_what_was_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    bits = np.concatenate([exposure(rng.random(50), rng.random(511)) for _ in range(200)])
    assert chance_exposure(511) == pytest.approx(math.log2(math.e), abs=0.02)
    assert bits.mean() == pytest.approx(chance_exposure(511), abs=0.08)


def slow_run(canary: list[str], corpus: list[list[str]]) -> int:
    best = 0
    for text in corpus:
        for i in range(len(canary)):
            for j in range(len(text)):
                size = 0
                while i + size < len(canary) and j + size < len(text) and canary[i + size] == text[j + size]:
                    size += 1
                best = max(best, size)
    return best


def test_longest_runs_against_a_slow_search() -> None:
    rng = np.random.default_rng(3)
    corpus = [[f"{n}" for n in rng.integers(12, size=rng.integers(1, 20))] for _ in range(30)]
    canaries = [[f"{n}" for n in rng.integers(14, size=rng.integers(1, 9))] for _ in range(60)]
    runs, shares = longest_runs(canaries, corpus)
    assert list(runs) == [slow_run(canary, corpus) for canary in canaries]
    assert len(set(runs)) > 3
    pairs = {pair for text in corpus for pair in zip(text, text[1:])}
    expected = [np.mean([p in pairs for p in zip(c, c[1:])]) if len(c) > 1 else 0.0 for c in canaries]
    assert shares == pytest.approx(np.array(expected))


def test_scores_rank_what_comes_through_first() -> None:
    canaries = ["red fox jumps high", "cold tea never helps", "blue moon over sand", "grey stone under water"]
    synthetic = ["He said: Red fox jumps, high!", "tea never was so cold", "a moon", "nothing", "of this"]
    runs, likelihood = synthetic_text_scores(canaries, synthetic)
    assert runs == pytest.approx([4.5, 2 + 0.5 / 3, 1, 0])
    assert list(np.argsort(-likelihood)[:2]) == [0, 1]
    assert synthetic_text_scores(canaries, []).shape == (2, 4)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert split_words("Don't STOP -- it's 5pm.") == ["don", "t", "stop", "it", "s", "5pm"]


def test_vocabulary_words_are_single_tokens() -> None:
    from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["some plain words about horses and houses"] * 50, 400)
    words = vocabulary_words(tokenizer)
    assert {"plain", "words", "about"} <= set(words)
    assert all(len(tokenizer.encode(" " + word)) == 1 for word in words)
