"""Figures on made texts: against slow formulas, and on texts whose flaws are known."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt import quality
from fate_llm_ext.algo.fdkt.quality import distinct_share, frontier_area, self_overlap, stage_quality, two_sample_auc
from fate_llm_ext.data.corpus import generate_tickets

NAMES = {"fidelity_auc", "mauve", "label_agreement", "judge_accuracy", "distinct_2", "self_overlap"}


def topics(count: int, seed: int, shift: int = 0) -> Records:
    """Texts of 12 words; two thirds of them are a topic's own 40 words, Zipf; the topic is the label."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(count) % 3).astype(np.int32)
    share = 1.0 / np.arange(1, 41)
    texts = []
    for code in codes:
        own = rng.choice(40, 12, p=share / share.sum())
        kind = np.where(rng.random(12) < 0.67, code, 3) + shift
        texts.append(" ".join(f"w{place}x{word}" for place, word in zip(kind, own)))
    return Records(codes, texts)


REAL, MADE = topics(600, 0), topics(600, 1)


def measured(real: Records = REAL, made: Records = MADE, seed: int = 5) -> dict[str, float]:
    return stage_quality(real, made, seed)


def test_texts_of_the_same_kind() -> None:
    found = measured()
    assert set(found) == NAMES
    assert found["fidelity_auc"] == pytest.approx(0.5, abs=0.08)
    assert found["mauve"] > 0.9
    assert found["label_agreement"] > 0.9
    assert found["judge_accuracy"] == pytest.approx(found["label_agreement"], abs=0.05)
    assert found == measured()  # the seed decides everything


def test_shuffled_labels_agree_by_chance() -> None:
    codes = np.random.default_rng(2).permutation(MADE.codes)
    found = measured(made=Records(codes, MADE.texts))
    assert found["label_agreement"] == pytest.approx(1 / 3, abs=0.08)
    assert {**found, "label_agreement": 0.0} == {**measured(), "label_agreement": 0.0}


def test_half_of_the_labels_shuffled() -> None:
    codes = MADE.codes.copy()
    codes[:300] = (codes[:300] + 1) % 3
    assert measured(made=Records(codes, MADE.texts))["label_agreement"] == pytest.approx(0.5, abs=0.05)


def test_labels_of_pure_noise_show_in_the_judge() -> None:
    noise = Records(np.random.default_rng(3).permutation(REAL.codes), REAL.texts)
    assert measured(real=noise)["judge_accuracy"] == pytest.approx(1 / 3, abs=0.08)


def test_copies() -> None:
    rows = np.arange(600) % 20
    found = measured(made=Records(MADE.codes[rows], [MADE.texts[row] for row in rows]))
    assert found["distinct_2"] < 0.1 * measured()["distinct_2"]
    assert found["self_overlap"] == 1.0
    assert found["mauve"] < 0.5


def test_other_words_are_told_apart() -> None:
    found = measured(made=topics(600, 1, shift=10))
    assert found["fidelity_auc"] > 0.99
    assert found["mauve"] < 0.02


def test_a_missing_mode_lowers_mauve() -> None:
    rows = np.flatnonzero(MADE.codes < 2)
    found = measured(made=Records(MADE.codes[rows], [MADE.texts[row] for row in rows]))
    assert 0.1 < found["mauve"] < 0.8


def test_fidelity_falls_with_the_share_of_foreign_texts() -> None:
    foreign = topics(600, 1, shift=10)
    aucs, mauves = [], []
    for share in (0, 150, 300, 600):
        texts = [*MADE.texts[share:], *foreign.texts[:share]]
        found = measured(made=Records(MADE.codes, texts))
        aucs.append(found["fidelity_auc"])
        mauves.append(found["mauve"])
    assert aucs == sorted(aucs)
    assert mauves == sorted(mauves, reverse=True)


def test_repetitions_do_not_help_to_tell_sides_apart() -> None:
    texts = [text for text in MADE.texts[:60] for _ in range(10)]
    assert two_sample_auc(REAL.texts, texts, 0) == pytest.approx(two_sample_auc(REAL.texts, MADE.texts[:60], 0))
    assert two_sample_auc(REAL.texts, texts, 0) < 0.65


# --- the frontier -------------------------------------------------------------------------------------


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def slow_area(p: list[float], q: list[float], steps: int) -> float:
    """Midpoint rule over the mixtures, one by one."""
    points = [(1.0, 0.0)]
    for step in range(1, steps):
        mixture = [step / steps * a + (1 - step / steps) * b for a, b in zip(p, q)]
        points.append((math.exp(-5 * kl(q, mixture)), math.exp(-5 * kl(p, mixture))))
    points.append((0.0, 1.0))
    return sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


@pytest.mark.parametrize(
    ("p", "q"), [([0.5, 0.5], [0.9, 0.1]), ([1.0, 0.0, 0.0], [0.2, 0.3, 0.5]), ([0.25] * 4, [0.1, 0.2, 0.3, 0.4])]
)
def test_frontier_area_is_that_of_the_paper(p: list[float], q: list[float]) -> None:
    assert frontier_area(np.array(p), np.array(q)) == pytest.approx(slow_area(p, q, 100), abs=1e-9)
    assert frontier_area(np.array(p), np.array(q)) == pytest.approx(slow_area(p, q, 5000), abs=2e-3)


def test_frontier_area_at_its_ends() -> None:
    same = np.array([0.2, 0.0, 0.8])
    assert frontier_area(same, same) == pytest.approx(1.0)
    # Of disjoint p and q the frontier is x = (1 - λ)^5, y = λ^5: its area is ∫ λ^5 5 (1 - λ)^4 dλ = 1/252.
    assert frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1 / 252, abs=1e-4)


histograms = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda values: sum(values) > 0.1)


@settings(max_examples=60, deadline=None)
@given(histograms, histograms)
def test_frontier_area_is_symmetric_and_bounded(one: list[float], other: list[float]) -> None:
    p, q = (np.array(values) / sum(values) for values in (one, other))
    assert 0.0 < frontier_area(p, q) <= 1.0 + 1e-9
    assert frontier_area(p, q) == pytest.approx(frontier_area(q, p), abs=1e-9)


# --- diversity ----------------------------------------------------------------------------------------


def slow_overlap(texts: list[str]) -> float:
    def grams(text: str) -> set[str]:
        words = text.lower().split()
        return {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}

    shares = []
    for i, text in enumerate(texts):
        others = set().union(*(grams(one) for j, one in enumerate(texts) if j != i))
        if grams(text):
            shares.append(len(grams(text) & others) / len(grams(text)))
    return sum(shares) / len(shares)


def test_overlap_is_the_slow_one() -> None:
    texts = [row["text"] for row in generate_tickets(60, seed=4)] + [
        "a b a b a b a b",
        "A B a b",
        "short one",
        "x y z w",
    ]
    assert self_overlap(texts) == pytest.approx(slow_overlap(texts))
    assert 0.0 < self_overlap(texts) < 1.0


def test_distinct_share_by_hand() -> None:
    assert distinct_share(["a b a b", "A b c"]) == 3 / 5  # ab ba ab, ab bc
    assert distinct_share(["a b c d", "e f g"]) == 1.0
    assert math.isnan(distinct_share(["one", ""]))
    assert math.isnan(self_overlap(["one two three"]))


# --- few, strange, many -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "made", "missing"),
    [
        (REAL, Records(np.zeros(0, np.int32), []), NAMES),
        (Records(np.zeros(0, np.int32), []), MADE, NAMES),
        (REAL, MADE.first(4), {"fidelity_auc", "mauve"}),
        (REAL, MADE.first(19), {"mauve"}),
        (REAL.first(1), MADE, {"fidelity_auc", "mauve", "label_agreement", "judge_accuracy"}),
        (Records(np.zeros(600, np.int32), REAL.texts), MADE, {"label_agreement", "judge_accuracy"}),
        (REAL, Records(np.full(600, 7, np.int32), MADE.texts), {"label_agreement", "judge_accuracy"}),
        (REAL, Records(MADE.codes, ["!!!"] * 600), {"fidelity_auc", "distinct_2", "self_overlap"}),
        (REAL, Records(MADE.codes, ["猫", "犬", "鳥"] * 200), {"fidelity_auc", "distinct_2", "self_overlap"}),
    ],
)
def test_what_cannot_be_said_is_left_out(real: Records, made: Records, missing: set[str]) -> None:
    found = measured(real, made)
    assert set(found) == NAMES - missing
    assert all(np.isfinite(value) for value in found.values())


def test_rare_labels() -> None:
    codes = REAL.codes.copy()
    codes[0], codes[1:3] = 8, 9
    found = measured(real=Records(codes, REAL.texts))
    assert found["judge_accuracy"] > 0.9
    two = measured(real=Records(np.array([0, 1], np.int32), REAL.texts[:2]))
    assert "label_agreement" in two
    assert "judge_accuracy" not in two


def test_many_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(quality, "MOST", 50)
    monkeypatch.setattr(quality, "mauve", lambda real, made, seed: seen.append((list(real), list(made))) or 1.0)
    for seed in (1, 1, 2):
        measured(seed=seed)
    assert [(len(real), len(set(made))) for real, made in seen] == [(50, 50)] * 3
    assert seen[0] == seen[1] != seen[2]
    assert set(seen[0][0]) <= set(REAL.texts)
    assert set(seen[0][1]) <= set(MADE.texts)


def test_a_thousand_on_either_side_in_seconds() -> None:
    real, made = topics(1000, 0), topics(1000, 1)
    started = time.process_time()
    measured(real, made)
    assert time.process_time() - started < 10.0
