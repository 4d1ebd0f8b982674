"""Nothing of a name, number, date or identifier leaves: counted on thousands of sentences that hold them.

A leak is an item, or a part of it of three or more characters, in a text that leaves (without regard to case). Two
vocabularies: one from a tokenizer without any word that shares such a part with an item, where a leak could only be a
breach of the closed list; and the attacker's dream, in which every part of every item is a word of the list.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import chisquare

from fate_llm_ext.algo.fedcot.config import PerturbationConfig, VocabularyConfig
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism, make_mechanism
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed, Perturber
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary, build_vocabulary
from fate_llm_ext.algo.fedcot.perturbation.words import COMMON, is_word, split
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

SENTENCES = 3000
STRATEGIES = ("exponential", "adaptive_exponential", "fixed_vocabulary", "metric")
NAMES = [
    "Anna", "Mark", "May", "Grace", "Will", "Rose", "Frank", "Bill", "Hope", "Jack", "Joy", "Drew", "Rob", "Sue",
    "José", "Łukasz", "Müller", "Zoë", "Søren", "Nguyễn", "D'Angelo", "O'Neill", "McDonald", "van-Dyk",
    "Αλέξης", "Дмитрий",
]  # fmt: skip
SAFE = """we you they asked wrote about from with near when that this was but not then because before after
house water friend people number letter garden bridge report summer winter office doctor school market"""
FORMS: list[Callable[[str], str]] = [
    "{}".format, "{}'s".format, "{}\u2019s".format, "({}),".format, "\u201c{}\u201d".format, str.upper,
    "@{}".format, "#{}".format, "{}.".format, "Dr.{}".format,
    lambda name: f"{name}-{name}", lambda name: f"{name[:2]}\u200b{name[2:]}",
]  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    text: str
    items: tuple[str, ...]


def items(random: np.random.Generator) -> Iterator[str]:
    """Things that must not leave, each kind as often as the others."""

    def digits(count: int) -> str:
        return "".join(map(str, random.integers(0, 10, count)))

    def name() -> str:
        return str(random.choice(NAMES))

    def plain() -> str:
        return re.sub(r"\W", "", name()).lower()

    day, month, year = random.integers(1, 29), random.integers(1, 13), random.integers(1940, 2025)
    months = "January February March April May June July August September October November December"
    word = months.split()[month - 1]
    letters = "".join(random.choice(list("ABCDEFGHKLMNPRSTUVWXYZ"), 2))
    yield from (FORMS[random.integers(len(FORMS))](name()) for _ in range(6))
    yield f"{name()} {name()}"
    yield from (f"{day:02}.{month:02}.{year}", f"{year}-{month:02}-{day:02}", f"{month}/{day}/{year % 100:02}")
    yield from (f"{day} {word} {year}", f"{word} {day}th, {year}", f"{day}-{word[:3]}-{year % 100:02}")
    yield from (digits(4), digits(9), f"{digits(1)},{digits(3)}.{digits(2)}", f"${digits(3)}", f"{digits(2)}%")
    yield from (f"+49 {digits(3)} {digits(7)}", f"({digits(3)}) {digits(3)}-{digits(4)}", f"0049.{digits(8)}")
    yield from (f"DE{digits(20)}", f"GB{digits(2)} ABNK {digits(4)} {digits(4)} {digits(4)}")
    yield from (f"{plain()}.{plain()}@mail.example.org", f"<{plain()}{digits(2)}@mail.example.org>")
    yield from (f"https://www.{plain()}.example/{plain()}?id={digits(3)}", f"www.{plain()}.org", f"/home/{plain()}/")
    yield from (f"{letters}-{digits(4)}/x", f"x{digits(3)}", f"{letters}{digits(6)}", f"{plain()}_{digits(2)}")
    yield from (f"0x{random.integers(1 << 40):x}", f"{random.integers(1 << 30):08x}7", f"{letters}:{letters}:9")
    yield from ("😀", "👩\u200d👧", "🇩🇪", f"{plain()}😀", "№ 17", "Ⅻ")


@functools.cache
def sentences() -> list[Sentence]:
    random = np.random.default_rng(41)
    safe = SAFE.split()
    found = []
    while len(found) < SENTENCES:
        for item in items(random):
            others = list(items(random))
            second = others[random.integers(len(others))]
            parts = [list(random.choice(safe, random.integers(1, 5))) for _ in range(3)]
            text = " ".join([*parts[0], item, *parts[1], second, *parts[2]])
            found.append(Sentence(text, (item, second)))
    return found[:SENTENCES]


@functools.cache
def parts_of(item: str) -> frozenset[str]:
    """All pieces of three or more characters of an item, without regard to case."""
    runs = [run for run in re.split(r"\W+", item.casefold().replace("\u200b", "")) if len(run) >= 3]
    return frozenset(run[a:b] for run in runs for a in range(len(run)) for b in range(a + 3, len(run) + 1))


def all_parts() -> set[str]:
    return set().union(*(parts_of(item) for sentence in sentences() for item in sentence.items))


def leaks(sentence: Sentence, text: str) -> bool:
    return any(part in text.casefold().replace("\u200b", "") for item in sentence.items for part in parts_of(item))


@functools.cache
def disjoint() -> Vocabulary:
    """Of the whole words of a tokenizer those without any part of an item."""
    texts = [" ".join(split(sentence.text)) for sentence in sentences()]
    tokenizer = train_tokenizer([*texts, *([SAFE.replace("\n", " ")] * 200)], 3000)
    table = np.random.default_rng(3).normal(size=(len(tokenizer), 16)).astype(np.float32)
    whole = build_vocabulary(tokenizer, table, VocabularyConfig(size=3000))
    parts = all_parts()
    kept = [place for place, word in enumerate(whole.words) if not any(part in word for part in parts)]
    return Vocabulary(tuple(whole.words[place] for place in kept), whole.vectors[kept])


@functools.cache
def dream() -> Vocabulary:
    """The words around the items, and as many parts of these as are words."""
    safe = sorted({*SAFE.split(), *COMMON})
    whole = {part for part in all_parts() if is_word(part)} - set(safe)
    words = (*safe, *sorted(whole))
    vectors = np.random.default_rng(4).normal(size=(len(words), 16)).astype(np.float32)
    return Vocabulary(words, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def mechanism(vocabulary: Vocabulary, strategy: str, epsilon: float) -> Mechanism:
    config = PerturbationConfig(
        strategy=strategy, epsilon=epsilon, proxy="texts" if strategy == "adaptive_exponential" else None
    )
    return make_mechanism(config, vocabulary.vectors)


def perturb(vocabulary: Vocabulary, strategy: str, epsilon: float) -> Perturbed:
    perturber = Perturber(vocabulary, mechanism(vocabulary, strategy, epsilon))
    return perturber.draw([split(one.text) for one in sentences()], np.random.default_rng(17))


def test_the_sentences_hold_what_they_should() -> None:
    every = [item for one in sentences() for item in one.items]
    assert len(sentences()) == SENTENCES
    assert len(set(every)) > 2000
    assert all(leaks(one, one.text) for one in sentences() if any(map(parts_of, one.items)))
    assert {"mark", "may", "grace", "will", "rose", "anna", "org"} <= set(dream().words)
    assert len(disjoint()) > 30


@pytest.mark.parametrize("epsilon", [0.1, 8.0, 500.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_part_of_an_item_leaves(strategy: str, epsilon: float) -> None:
    vocabulary = disjoint()
    result = perturb(vocabulary, strategy, epsilon)
    assert sum(leaks(one, text) for one, text in zip(sentences(), result.texts)) == 0
    allowed = set(vocabulary.words)
    for one, text in zip(sentences(), result.texts):
        assert set(text.split(" ")) <= allowed
        assert len(text.split(" ")) == len(split(one.text))
    if epsilon == 500.0:  # the others do come through, so that there was something to see
        known = np.concatenate(result.ids) >= 0
        assert (np.concatenate(result.drawn) == np.concatenate(result.ids))[known].mean() > 0.9


def test_no_unit_of_an_item_is_known_even_if_all_its_parts_are_words() -> None:
    vocabulary = dream()
    units = {unit for one in sentences() for item in one.items for unit in split(item)}
    known = [unit for unit, place in zip(units, vocabulary.ids(list(units))) if place >= 0]
    assert set(known) <= {"No"}  # of "№ 17": a common word
    assert len(units) > 2000
    around = [unit for one in sentences() for unit in split(one.text) if unit in SAFE.split()]
    assert (vocabulary.ids(around) >= 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_name_is_drawn_for_as_any_other_unknown_unit(strategy: str) -> None:
    vocabulary = dream()
    once = mechanism(vocabulary, strategy, 500.0)
    units = ["Mark", "May", "4711", "Anna's", "anna@mail.org", "zzzz", ""]
    texts = [[unit] * 20 * len(vocabulary) for unit in units]
    result = Perturber(vocabulary, once).draw(texts, np.random.default_rng(23))
    for drawn in result.drawn:
        assert chisquare(np.bincount(drawn, minlength=len(vocabulary))).pvalue > 1e-4
    kept = Perturber(vocabulary, once).draw([["mark"] * 500], np.random.default_rng(23))
    assert kept.texts[0].split().count("mark") > 400  # what is known does pass, at such an ε


def test_units_that_were_cut_or_put_into_small_letters_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the figures above would be if units were made otherwise: the measure sees it."""
    vocabulary = dream()
    keeping = Perturber(vocabulary, mechanism(vocabulary, "fixed_vocabulary", 500.0))
    for naive in (lambda text: re.findall(r"[^\W\d_]+", text), lambda text: split(text.lower())):
        result = keeping.draw([naive(one.text.lower()) for one in sentences()], np.random.default_rng(17))
        assert sum(leaks(one, text) for one, text in zip(sentences(), result.texts)) > SENTENCES / 10
