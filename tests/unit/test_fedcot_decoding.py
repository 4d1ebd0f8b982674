"""From a rationale for the perturbed prompt to one for the own prompt."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.algo.fedcot.config import DecodingConfig, RationaleConfig
from fate_llm_ext.algo.fedcot.decoding import decode, substitute
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.config import GenerationConfig

CONFIG = RationaleConfig()
WORDS = ("tree", "house", "the", "answer", "b", "must", "bear", "naïve", "木")
VOCABULARY = Vocabulary(WORDS, np.eye(len(WORDS), dtype=np.float32))


class Scribe:
    """Writes what it is told to."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.asked: list[str] = []
        self.how: dict[str, Any] = {}

    def write(self, prompts: Sequence[str], config: GenerationConfig, **how: Any) -> list[str]:
        self.asked, self.how = list(prompts), how
        return self.texts


def decoded(method: str, rationales: list[str], scribe: Scribe | None = None, seed: int = 1) -> list[str]:
    count = len(rationales)
    return decode(
        DecodingConfig(method=method),
        rationales,
        questions=["tree house"] * count,
        prompts=["Question: Anna 4711?\nAnswer:"] * count,
        perturbed=[(["Anna", "4711"], np.array([0, 1], dtype=np.int32))] * count,
        vocabulary=VOCABULARY,
        model=scribe or Scribe([]),
        templates=Prompts(CONFIG, DecodingConfig()),
        seed=seed,
    )


def test_none_leaves_them_as_they_are() -> None:
    assert decoded("none", ["The tree.", ""]) == ["The tree.", ""]


def test_substitution_puts_the_units_back() -> None:
    assert decoded("substitution", ["The tree has a house.", "Nothing.", ""]) == [
        "The Anna has a 4711.",
        "Nothing.",
        "",
    ]


def test_the_model_reads_both_questions_and_the_rationale() -> None:
    scribe = Scribe([" Anna has one.\x00 ", ""])
    assert decoded("model", ["The tree\nhas.", "x"], scribe) == ["Anna has one.", ""]
    assert scribe.asked[0] == ("Question: tree house\nReason: The tree has.\n\nQuestion: Anna 4711?\nAnswer:\nReason:")
    assert scribe.how["stop"] == ("\n\n", "\nQuestion:", "\nReason:")
    other = Scribe(["", ""])
    decoded("model", ["a", "b"], other, seed=2)
    assert other.how["seed"] != scribe.how["seed"]


def put_back(text: str, *pairs: tuple[str, str]) -> str:
    return substitute(text, [unit for unit, _ in pairs], [word for _, word in pairs], CONFIG)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A tree.", "A Anna's."),
        ("TREE, Tree tree", "Anna's, Anna's Anna's"),
        ("trees tree2 treehouse xtree", "trees tree2 treehouse xtree"),
        ("_tree_ *tree*", "_Anna's_ *Anna's*"),
        ("(tree) tree-tree 'tree' “tree”…tree", "(Anna's) Anna's-Anna's 'Anna's' “Anna's”…Anna's"),
        ("tree\ntree", "Anna's\nAnna's"),
    ],
)
def test_whole_words_whatever_their_case(text: str, expected: str) -> None:
    assert put_back(text, ("Anna's", "tree")) == expected


def test_a_capital_at_the_beginning_stays() -> None:
    assert put_back("Tree and tree", ("dog", "tree")) == "Dog and dog"


def test_marks_belong_to_words() -> None:
    assert put_back("naïve nai\u0308ve naive 木。", ("x", "naïve"), ("y", "木")) == "x x naive y。"
    assert put_back("हिन्दी हिन्द", ("x", "हिन्दी")) == "x हिन्द"


def test_words_that_an_llm_writes_of_its_own_accord_stay() -> None:
    assert put_back("The b must (b)", ("Anna", "the"), ("x", "b"), ("y", "must")) == "The b must (b)"


def test_what_announces_the_answer_stays_and_the_answer_does_not() -> None:
    got = put_back("An answer. So the answer is (b) answer.", ("Anna", "answer"))
    assert got == "An Anna. So the answer is (b) Anna."


def test_a_text_without_units_leaves_words_alone() -> None:
    assert put_back("A tree", ("", "tree")) == "A tree"


def test_of_several_units_the_one_with_these_neighbours() -> None:
    pairs = (
        ("Anna", "tree"),
        ("eats", "house"),
        ("Berta", "bear"),
        ("Carl", "tree"),
        ("and", "bear"),
        ("Carl", "tree"),
    )
    assert put_back("tree house", *pairs) == "Anna eats"
    assert put_back("bear tree bear", *pairs) == "Berta Carl and"
    assert put_back("a tree", *pairs) == "a Carl"  # the most frequent one
    assert put_back("tree", ("Anna", "tree"), ("Berta", "tree")) == "Anna"  # the first one


word = st.sampled_from(["tree", "house", "bear", "dog", "the", "b"])


@given(st.lists(word, max_size=12), st.lists(st.tuples(st.sampled_from(["Anna", "4711", "x@y"]), word), max_size=6))
def test_against_the_slow_way(text: list[str], pairs: list[tuple[str, str]]) -> None:
    once = {word: unit for unit, word in reversed(pairs)}
    pairs = [(unit, word) for word, unit in once.items()]  # each word stands for one unit
    expected = " ".join(once.get(one, one) if one not in ("the", "b") else one for one in text)
    assert put_back(" ".join(text), *pairs) == expected


@given(st.text(), st.lists(st.tuples(st.text(min_size=1), word), max_size=4))
def test_any_text_survives(text: str, pairs: list[tuple[str, str]]) -> None:
    got = put_back(text, *pairs)
    assert got == text or any(word in text.lower() for _, word in pairs)


def test_a_hundred_thousand_words_take_no_time() -> None:
    random = np.random.default_rng(0)
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(600)]
    texts = [" ".join(random.choice(words, 100)) for _ in range(1000)]
    drawn = [list(random.choice(words, 64)) for _ in range(1000)]
    start = time.perf_counter()
    got = [substitute(text, ["U"] * 64, one, CONFIG) for text, one in zip(texts, drawn)]
    assert time.perf_counter() - start < 5
    assert all(len(re.findall(r"\bU\b", one)) > 0 for one in got)
