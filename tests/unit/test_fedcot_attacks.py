"""Attacks on perturbed words and on synthetic texts, against loops over the definitions."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from fate_llm_ext.algo.fedcot.attacks import attack, check_attack, inversion
from fate_llm_ext.algo.fedcot.attacks.copies import copy_figures
from fate_llm_ext.algo.fedcot.attacks.inversion import considered, different, nearest_words, posterior, word_prior
from fate_llm_ext.algo.fedcot.attacks.measure import attack_words
from fate_llm_ext.algo.fedcot.attacks.sample import draw_sample, record_figures, unknown_guesses, words_that_occur
from fate_llm_ext.algo.fedcot.attacks.shares import share
from fate_llm_ext.algo.fedcot.config import AttackConfig, PerturbationConfig, VocabularyConfig
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism, make_mechanism
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed, Perturber
from fate_llm_ext.algo.fedcot.perturbation.ratios import ratio_test
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.algo.fedcot.strategies import Asked
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.site import Site

SIZE = 40
STRATEGIES = ("exponential", "fixed_vocabulary", "metric")
INVERSION = AttackConfig(methods=["inversion"])


def spelt(number: int) -> str:
    return "w" + chr(97 + number // 26) + chr(97 + number % 26)


def vocabulary(size: int = SIZE, width: int = 5) -> Vocabulary:
    vectors = np.random.default_rng(1).normal(size=(size, width)).astype(np.float32)
    return Vocabulary(
        tuple(spelt(number) for number in range(size)), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    )


def mechanism(strategy: str, epsilon: float, words: Vocabulary) -> Mechanism:
    return make_mechanism(PerturbationConfig(strategy=strategy, epsilon=epsilon), words.vectors)


def drawn(how: Any, words: Vocabulary, units: list[list[str]], seed: int = 0) -> Perturbed:
    return Perturber(words, how).draw(units, np.random.default_rng(seed))


def written(words: Vocabulary, prior: np.ndarray, records: int, length: int) -> list[list[str]]:
    """Private records whose words follow the prior, each with a name."""
    ids = np.random.default_rng(2).choice(len(prior), p=prior, size=(records, length))
    return [[*(words.words[index] for index in row), "Anna"] for row in ids]


class Table:
    """A mechanism given as probabilities [V, V]; an unknown word is drawn uniformly."""

    epsilon, strategy, word_epsilon = 1.0, "test", math.inf

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.vectors = np.eye(len(table), dtype=np.float32)

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        uniform = np.full(len(self.table), 1 / len(self.table))
        with np.errstate(divide="ignore"):
            return np.log(np.stack([self.table[index] if index >= 0 else uniform for index in ids]))

    def sample(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        rows = np.exp(self.log_probabilities(ids))
        return np.array([generator.choice(len(row), p=row / row.sum()) for row in rows], dtype=np.int32)


# -- shares and samples -----------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "attempts"), [(0, 10), (3, 10), (10, 10), (70, 2000), (1, 1)])
def test_intervals_are_those_of_clopper_and_pearson(hits, attempts):
    found = share("x", hits, attempts)
    low = 0.0 if not hits else beta.ppf(0.025, hits, attempts - hits + 1)
    high = 1.0 if hits == attempts else beta.ppf(0.975, hits + 1, attempts - hits)
    assert found == pytest.approx({"x": hits / attempts, "x_low": low, "x_high": high})


def test_a_share_of_nothing_is_left_out():
    assert share("x", 0, 0) == {}


def numbered(lengths: list[int]) -> Perturbed:
    """Texts of so many units, all different; a text without any has the empty unit."""
    ids, units, start = [], [], 0
    for length in lengths:
        ids.append(np.arange(start, start + length, dtype=np.int32) if length else np.array([-1], dtype=np.int32))
        units.append([spelt(number) for number in range(start, start + length)] or [""])
        start += length
    return Perturbed(units, ids, [one + 1 for one in ids], ["" for _ in lengths])


def test_a_sample_takes_whole_records_until_there_are_enough_words():
    everything = draw_sample(numbered([3, 0, 4]), 100, np.random.default_rng(0))
    assert sorted(everything.true.tolist()) == list(range(7)), "the empty record has no word"
    assert everything.units == [spelt(index) for index in everything.true]
    for owner in (0, 1, 2):
        own = everything.owners == owner
        assert everything.seen[own].tolist() == everything.records[owner][everything.places[own]].tolist()
    some = draw_sample(numbered([3] * 50), 10, np.random.default_rng(0))
    assert Counter(Counter(some.owners.tolist()).values()) == {3: 3, 1: 1}, "the last one is cut"
    assert draw_sample(numbered([3] * 50), 10, np.random.default_rng(1)).true.tolist() != some.true.tolist()


def test_words_that_occur_count_as_often_as_they_left():
    ids = [np.array([5, 5, 7, -1], dtype=np.int32), np.array([1, 2], dtype=np.int32)]
    left = [np.array([9, 5, 7, 5], dtype=np.int32), np.array([5, 1], dtype=np.int32)]
    two = draw_sample(Perturbed([["a"] * 4, ["b"] * 2], ids, left, ["", ""]), 99, np.random.default_rng(0))
    assert words_that_occur(two) == 4, "5 twice, 7 and 1"
    assert words_that_occur(two, 1) == 1, "5 once in the other one; -1 and 2 nowhere"
    less = Perturbed([["a"] * 2], [np.array([5, 5], dtype=np.int32)], [np.array([5, 6], dtype=np.int32)], [""])
    assert words_that_occur(draw_sample(less, 9, np.random.default_rng(0))) == 1, "it left once"


def test_figures_of_whole_records():
    words = ("aa", "bb", "cc", "dd")
    ids = [np.array([0, 1, 2, -1], dtype=np.int32), np.array([3, 3], dtype=np.int32), np.array([-1], dtype=np.int32)]
    units = [["aa", "bb", "cc", "Anna"], ["dd", "dd"], ["4711"]]
    sample = draw_sample(Perturbed(units, ids, [one.clip(0) for one in ids], [""] * 3), 99, np.random.default_rng(0))
    guesses = sample.true.clip(0)
    guesses[(sample.true == 2) | ((sample.true == 3) & (sample.places == 0))] = 1
    figures = record_figures(sample, (sample.true >= 0) & (guesses == sample.true), guesses, words)
    assert figures["attack_documents"] == 0.5, "2 of 3 is more than half, 1 of 2 is not; one record has no known word"
    assert figures["attack_overlap"] == pytest.approx(np.mean([2 / 4, 1 / 2, 0]))


def test_an_unknown_unit_is_guessed_where_only_its_capital_hid_it():
    units = [["Bb", "4711", "anna@mail.org", "bb2"]]
    ids, left = np.full(4, -1, dtype=np.int32), np.ones(4, dtype=np.int32)
    sample = draw_sample(Perturbed(units, [ids], [left], [""]), 9, np.random.default_rng(0))
    assert unknown_guesses(sample, sample.seen, ("aa", "bb")) == 1


# -- inversion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("floats", [1 << 22, 90])
def test_nearest_words_are_those_of_a_loop(floats, monkeypatch):
    monkeypatch.setattr(inversion, "_FLOATS", floats)
    words = vocabulary()
    seen = np.array([7, 0, 39], dtype=np.int32)
    for row, word in zip(nearest_words(words.vectors, seen, 10), seen):
        likeness = [float(words.vectors[word] @ other) for other in words.vectors]
        assert row.tolist() == sorted(range(SIZE), key=lambda other: -likeness[other])[:10]
    assert nearest_words(words.vectors, seen, 99).shape == (3, SIZE)


def test_a_word_is_nearest_to_itself_even_beside_its_twins():
    vectors = np.ones((6, 2), dtype=np.float32) / np.float32(math.sqrt(2))
    assert nearest_words(vectors, np.arange(6, dtype=np.int32), 2)[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("floats", [1 << 22, 3 * SIZE])
def test_the_posterior_is_that_of_a_loop(strategy, floats, monkeypatch):
    monkeypatch.setattr(inversion, "_FLOATS", floats)
    words = vocabulary()
    how, prior = mechanism(strategy, 3.0, words), word_prior(words)
    seen = np.array([3, 11, 38], dtype=np.int32)
    found = posterior(how, prior, seen, np.ones(3), 4)
    for y, word in enumerate(seen):
        joint = []
        for x in range(SIZE):
            likelihood = how.log_probabilities(np.array([x], dtype=np.int32))[0, word]
            joint.append((math.log(prior[x]) + likelihood, likelihood, x))
        best = sorted(joint, reverse=True)[:4]
        assert found.words[y].tolist() == [x for _, _, x in best]
        assert found.log_likelihood[y] == pytest.approx([likelihood for _, likelihood, _ in best], rel=1e-6)


def test_of_a_large_vocabulary_those_are_considered_that_left_and_then_the_probable_ones(monkeypatch):
    prior = np.array([0.1, 0.4, 0.3, 0.15, 0.05])
    assert considered(prior, np.array([4, 0]), np.array([2, 9]), 4).tolist() == [0, 4, 1, 2]
    monkeypatch.setattr(inversion, "PAIRS", 0)
    monkeypatch.setattr(inversion, "PROBABLE", 4)
    words = vocabulary()
    found = posterior(mechanism("metric", 2.0, words), word_prior(words), np.array([30, 31]), np.array([1, 1]), 99)
    assert sorted(found.words[0].tolist()) == [0, 1, 2, 3, 30, 31]


def test_a_prior_of_texts_counts_words_and_one_without_falls():
    words = Vocabulary(("red", "green"), np.eye(2, dtype=np.float32))
    assert word_prior(words, ["A red, red door.", "green Red x"]) == pytest.approx([3 / 5, 2 / 5])
    zipf = word_prior(vocabulary())
    assert zipf.sum() == pytest.approx(1)
    assert zipf[0] / zipf[9] == pytest.approx(12.7 / 3.7)
    assert (np.diff(zipf) < 0).all()


def test_the_bayes_guess_does_as_well_as_theory_says_and_no_other_does_better():
    words = vocabulary()
    prior = word_prior(words)
    records = written(words, prior, 800, 10)
    for strategy, epsilon in (("fixed_vocabulary", 6.0), ("metric", 4.0), ("exponential", 8.0)):
        how = mechanism(strategy, epsilon, words)
        joint = prior[:, None] * np.exp(how.log_probabilities(np.arange(SIZE, dtype=np.int32)))
        config = AttackConfig(methods=["inversion"], words=10**6)
        figures = attack_words(config, drawn(how, words, records), words, how, prior=prior)
        assert figures["attack_words"] == 8000
        assert figures["attack_bayes"] == pytest.approx(joint.max(axis=0).sum(), abs=0.02), strategy
        assert figures["attack_nearest"] == pytest.approx(np.trace(joint), abs=0.02), strategy
        assert figures["attack_bayes"] >= figures["attack_nearest"] - 0.01
        assert figures["attack_prior"] == pytest.approx(prior[0], abs=0.02)
        assert figures["attack_success"] == max(figures["attack_bayes"], figures["attack_nearest"])
        assert figures["attack_success_low"] < figures["attack_success"] < figures["attack_success_high"]


def test_what_is_kept_is_read_and_what_is_uniform_is_not():
    words = vocabulary()
    records = written(words, np.full(SIZE, 1 / SIZE), 400, 5)
    kept = Table(np.eye(SIZE))
    figures = attack_words(INVERSION, drawn(kept, words, records), words, kept)
    assert figures["attack_success"] == figures["attack_bayes"] == figures["attack_nearest"] == 1
    assert figures["attack_documents"] == 1
    assert figures["attack_overlap"] == pytest.approx(5 / 6), "the name stays hidden"
    assert (figures["attack_unknown"], figures["attack_unknown_success"]) == (400, 0)
    lost = Table(np.full((SIZE, SIZE), 1 / SIZE))
    figures = attack_words(INVERSION, drawn(lost, words, records), words, lost)
    assert figures["attack_success"] == pytest.approx(1 / SIZE, abs=0.02)
    assert figures["attack_nearest_10"] == pytest.approx(10 / SIZE, abs=0.05)
    assert (figures["attack_documents"], figures["attack_unknown_success"]) == (0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_privacy_is_less_success(strategy):
    words = vocabulary()
    records = written(words, word_prior(words), 200, 10)
    found = []
    for epsilon in (0.1, 5.0, 50.0):
        how = mechanism(strategy, epsilon, words)
        found.append(attack_words(INVERSION, drawn(how, words, records), words, how)["attack_success"])
    assert found[0] < found[1] < found[2]


def test_a_model_that_moves_words_is_no_channel_word_by_word():
    words = vocabulary()
    ids = [np.array([n, n + 1, n + 2], dtype=np.int32) for n in range(30)]
    left = [np.roll(one, 1).astype(np.int32) for one in ids]
    units = [[words.words[index] for index in one] for one in ids]
    figures = attack_words(
        INVERSION, Perturbed(units, ids, left, [""] * 30), words, Table(np.eye(SIZE)), closed_form=False
    )
    assert figures["attack_nearest"] == 0
    assert figures["attack_bag"] == 1
    assert 0 < figures["attack_bag_prior"] < 0.3, "some records have a word in common"
    assert figures["attack_success"] == pytest.approx(1 - figures["attack_bag_prior"])
    assert "attack_bayes" not in figures
    same = Perturbed(units[:1] * 20, ids[:1] * 20, left[:1] * 20, [""] * 20)
    figures = attack_words(INVERSION, same, words, Table(np.eye(SIZE)), closed_form=False)
    assert (figures["attack_bag"], figures["attack_success"]) == (1, 0), "what all records have says nothing about one"


def test_the_ratio_test_joins_where_it_is_asked_for():
    words = vocabulary()
    how = mechanism("metric", 2.0, words)
    text = drawn(how, words, [[spelt(1)]])
    both = attack_words(AttackConfig(methods=["inversion", "ratio"]), text, words, how)
    assert both["ratio_largest"] == pytest.approx(ratio_test(how).largest)
    assert "attack_success" in both
    alone = attack_words(AttackConfig(methods=["ratio"]), text, words, how)
    assert set(alone) == {"ratio_largest", "ratio_delta"}
    assert attack_words(AttackConfig(methods=[]), text, words, how) == {}
    assert attack_words(AttackConfig(methods=["ratio"]), text, words, how, closed_form=False) == {}


class Neighbour:
    """Stands for a language model: a word fits if it follows the one that was seen before it."""

    def scores(self, records, owners, places, candidates, heartbeat):
        found = np.full(candidates.shape, -50.0)
        for row, (owner, place) in enumerate(zip(owners, places)):
            before = records[owner][place - 1] if place else -1
            found[row, candidates[row] == before + 1] = 0.0
        return found

    scan = scores


def test_infill_weighs_what_was_seen_against_what_fits():
    words = vocabulary(12)
    uniform = Table(np.full((12, 12), 1 / 12))
    ids, left = np.array([4, 5, 9], dtype=np.int32), np.array([4, 8, 2], dtype=np.int32)
    one = Perturbed([[words.words[index] for index in ids]], [ids], [left], [""])
    config = AttackConfig(methods=["infill"])
    figures = attack_words(config, one, words, uniform, prior=np.full(12, 1 / 12), infiller=Neighbour())
    assert figures["attack_infill"] == pytest.approx(2 / 3), "5 follows the 4 that was seen, 9 the 8"
    assert figures["attack_success"] == figures["attack_infill"]
    assert "attack_nearest" not in figures
    sure = attack_words(config, one, words, Table(np.eye(12)), prior=np.full(12, 1 / 12), infiller=Neighbour())
    assert sure["attack_infill"] == pytest.approx(1 / 3), "what cannot have become the word that left is no guess"


# -- texts of a generator, texts in clear, and the job ------------------------------------------------


def test_copies_count_beyond_what_texts_have_in_common():
    private = ["one two three four five six", "a b c d e f g", "seven eight nine ten eleven"]
    made = ["Zero one, two three FOUR five!", "h i j k l"]
    figures = copy_figures(private, made, ["h i j k l m n o p q", "nothing of it is there at all"])
    assert figures["attack_copied"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert figures["attack_prior"] == pytest.approx((1 / 6 + 0) / 2)
    assert figures["attack_success"] == pytest.approx(1 / 6 - 1 / 12)
    assert figures["attack_success_low"] == 0 < figures["attack_success"] < figures["attack_success_high"] < 1
    less = copy_figures(["a b c d e"], made, ["h i j k l"])
    assert less["attack_success"] == 0, "the base rate is above"
    alone = copy_figures(private, made, [])
    assert alone["attack_success"] == alone["attack_copied"]
    assert "attack_prior" not in alone
    assert copy_figures([], made, []) == copy_figures(private, [], []) == {}


def scene(texts: list[str], public: Any = None) -> Any:
    party = SimpleNamespace(
        saying=lambda doing: lambda said: None,
        site=SimpleNamespace(lookup=lambda kind, name: public),
        config=SimpleNamespace(seed=3, vocabulary=VocabularyConfig(public=None if public is None else "wiki")),
        device=None,
    )
    return party, SimpleNamespace(records=SimpleNamespace(fields=[{"question": text} for text in texts]))


def asked(texts: list[str], perturbed: Any = None) -> Asked:
    return Asked(texts, texts, [None] * len(texts), None, perturbed)


def test_the_job_attacks_each_strategy_in_its_own_way(tmp_path):
    words = vocabulary()
    how = mechanism("metric", 8.0, words)
    records = written(words, word_prior(words), 30, 8)
    texts = [" ".join(units) for units in records]
    party, private = scene(texts)
    strategy: Any = SimpleNamespace(vocabulary=words, mechanism=how, scene=private)
    figures = attack(INVERSION, "metric", asked(texts, drawn(how, words, records)), strategy, party)
    assert figures == attack(INVERSION, "metric", asked(texts, drawn(how, words, records)), strategy, party)
    assert figures["attack_words"] == 240
    path = tmp_path / "wiki.jsonl"
    path.write_text(f'{{"text": "{(spelt(39) + " ") * 900}"}}\n')
    party, _ = scene(texts, path)
    known = attack(INVERSION, "metric", asked(texts, drawn(how, words, records)), strategy, party)
    share_of_last = np.mean([unit == spelt(39) for units in records for unit in units[:-1]])
    assert known["attack_prior"] == pytest.approx(share_of_last), "the public set says that this word is frequent"
    moved = attack(INVERSION, "adaptive_exponential", asked(texts, drawn(how, words, records)), strategy, party)
    assert "attack_bag" in moved
    strategy = SimpleNamespace(vocabulary=None, mechanism=None, scene=private)
    clear = attack(INVERSION, "none", asked(texts), strategy, party)
    assert (clear["attack_success"], clear["attack_words"], clear["attack_records"]) == (1, 270, 30)
    assert clear["attack_success_low"] < 1
    copied = attack(INVERSION, "dp_generator", asked(texts[:15]), strategy, party, [{"question": "x y z"}])
    assert copied["attack_success"] == pytest.approx(0.5, abs=0.1)
    assert copied["attack_prior"] == 0
    for name in ("none", "dp_generator"):
        assert attack(AttackConfig(methods=["ratio"]), name, asked(texts), strategy, party) == {}
    some = attack(AttackConfig(methods=["inversion"], words=20), "none", asked(texts), strategy, party)
    assert some["attack_records"] == 3


def test_a_student_that_cannot_guess_is_refused_before_anything_is_spent(tmp_path):
    student: Any = SimpleNamespace(network=SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)))
    site = Site(models={"other": str(tmp_path)})
    infill = AttackConfig(methods=["infill"])
    with pytest.raises(ExtensionError, match="E758"):
        check_attack(infill, student, site)
    check_attack(INVERSION, student, site)
    check_attack(AttackConfig(methods=["infill"], model={"name": "other"}), student, site)
    with pytest.raises(ExtensionError, match="E110"):
        check_attack(AttackConfig(methods=["infill"], model={"name": "nowhere"}), student, site)
    student.network.config.is_encoder_decoder = False
    check_attack(infill, student, site)


def test_different_words_can_be_put_back():
    seen = np.array([5, 2, 5, 5], dtype=np.int32)
    words, places, counts = different(seen)
    assert words[places].tolist() == seen.tolist()
    assert dict(zip(words.tolist(), counts.tolist())) == {2: 1, 5: 3}
