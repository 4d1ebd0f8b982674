"""Which rationales a client learns from, and what of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.algo.fedcot.config import QualityConfig, RationaleConfig
from fate_llm_ext.algo.fedcot.quality import REASONS, Kept, same_answer, select

RATIONALE = RationaleConfig()
PROMPT = "Question: What falls?\nA. math problem\nB. gravity\nC. bridge\nD. bridge\nAnswer:"
LETTERS = (" A", " B", " C", " D")
TOPICS = (" World", " Sports", " Sports news")


def chosen(
    texts: Sequence[str],
    labels: Sequence[str | None] | None = None,
    choices: Sequence[str] = LETTERS,
    prompt: str = PROMPT,
    written: Sequence[str] | None = None,
    unfinished: Sequence[bool] | None = None,
    **config: Any,
) -> Kept:
    count = len(texts)
    return select(
        texts,
        [prompt] * count,
        labels or [" B"] * count,
        QualityConfig(**config),
        rationale=RATIONALE,
        choices=[choices] * count,
        unfinished=np.array(unfinished or [False] * count, dtype=bool),
        written=written,
    )


def reason(text: str, **options: Any) -> str | None:
    """Why one text is dropped, None if it is kept."""
    unfinished = options.pop("unfinished", None)
    label = options.pop("label", " B")
    got = chosen([text], [label], unfinished=None if unfinished is None else [unfinished], **options)
    assert sum(got.dropped.values()) + len(got.rows) == 1
    return next((name for name, count in got.dropped.items() if count), None)


def test_what_is_learned_are_the_reasons() -> None:
    got = chosen(["Apples are heavy things. So the answer is (b).", "short", "Stones are heavy, too."])
    assert got.rows.tolist() == [0, 2]
    assert got.texts == ["Apples are heavy things.", "Stones are heavy, too."]
    assert got.dropped == {**dict.fromkeys(REASONS, 0), "too_short": 1}


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Apples are heavy things.", {}, None),
        ("", {"min_words": 0}, "too_short"),  # nothing to learn
        ("So the answer is (b).", {"min_words": 0}, "too_short"),  # no reason
        ("one two three", {"min_words": 4}, "too_short"),
        ("one two three four", {"min_words": 4, "max_words": 4}, None),
        ("one two three four five", {"min_words": 4, "max_words": 4}, "too_long"),
        ("w " * 300, {}, "too_long"),
        ("x" * (1 << 20), {"min_words": 1}, "too_long"),
        ("Apples are heavy things. So the answer is (a).", {}, "inconsistent"),
        ("Apples are heavy things. So the answer is (a).", {"consistent": False}, None),
        ("Apples are heavy things. So the answer is (a).", {"label": None}, None),
        ("Apples are heavy things.", {"answered": True}, "unanswered"),
        ("Apples are heavy things. So the answer is (b).", {"answered": True}, None),
        ("Apples are heavy things.", {"unfinished": True}, None),
        ("Apples are heavy things.", {"unfinished": True, "finished": True}, "unfinished"),
        ("Question: what falls? A math problem, B gravity, C bridge.", {}, "copy"),
        ("Question: what falls? A math problem, B gravity, C bridge.", {"max_copy": 1.0}, None),
        ("What falls", {"min_words": 1}, "copy"),
        ("Gravity", {"min_words": 1}, None),  # no pair
    ],
)
def test_reasons(text: str, options: dict[str, Any], expected: str | None) -> None:
    assert reason(text, **options) == expected


def test_each_has_the_first_reason_that_applies() -> None:
    text = "So the answer is (a)."
    options: dict[str, Any] = {"unfinished": True, "answered": True}
    assert reason(text, finished=True, **options) == "unfinished"
    assert reason(text, **options) == "inconsistent"
    assert reason(text, **options, consistent=False) == "too_short"
    assert reason("x", **options) == "unanswered"


def test_an_answer_that_decoding_lost_is_looked_for_in_what_was_written() -> None:
    texts = ["Apples are heavy things."] * 3
    written = ["Trees. So the answer is (a).", "Trees. So the answer is (b).", "Trees."]
    got = chosen(texts, written=written, answered=True)
    assert got.rows.tolist() == [1]
    assert (got.dropped["inconsistent"], got.dropped["unanswered"]) == (1, 1)


def test_nothing_to_choose_from() -> None:
    got = chosen([])
    assert (got.rows.tolist(), got.texts, set(got.dropped)) == ([], [], set(REASONS))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("b", "B"),
        ("B", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("b) gravity", "B"),
        ("B. gravity", "B"),
        ("(b) math problem", "B"),  # the letter decides
        ("option b", "B"),
        ("Answer: (B)", "B"),
        ("gravity", "B"),
        ("Gravity, of course", "B"),
        ("math problem", "A"),
        ("a math problem", "A"),
        ("a bridge", "CD"),  # not the letter a; two options are alike
        ("e", ""),
        ("b or c", ""),
        ("gravity or bridge", ""),
        ("none of them", ""),
        ("grav", ""),
        ("", ""),
    ],
)
def test_letters_and_options(answer: str, right: str) -> None:
    got = "".join(name.strip() for name in LETTERS if same_answer(answer, name, LETTERS, PROMPT))
    assert got == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("sports", " Sports"),
        ("WORLD.", " World"),
        ("Sports news", " Sports news"),
        ("clearly World, not Sports", " World"),
        ("not World", None),
        ("the world", " World"),
        ("worldly", None),
        ("Sports and World", None),
        ("x", None),
    ],
)
def test_closed_lists(answer: str, right: str | None) -> None:
    got = [name for name in TOPICS if same_answer(answer, name, TOPICS, "p")]
    assert got == ([] if right is None else [right])


def test_free_answers_are_the_same_words() -> None:
    assert same_answer("forty-two", " Forty two", (), "")
    assert not same_answer("42.5", " 42", (), "")


def test_an_empty_option_is_not_the_next_one() -> None:
    assert same_answer("tall tree", " B", LETTERS, "Where?\nA.\nB. tall tree")
    assert not same_answer("tall tree", " A", LETTERS, "Where?\nA.\nB. tall tree")


def test_options_are_found_in_forms_of_all_kinds() -> None:
    for form in ("(a) sea\n(b) tall tree", "a) sea\nb) tall tree", "A: sea\nB: tall tree"):
        assert same_answer("tall tree", " B", LETTERS, f"Where?\n{form}")
        assert not same_answer("tall tree", " A", LETTERS, f"Where?\n{form}")


words = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


@given(words, words, st.floats(0.05, 1.0))
def test_copies_against_the_slow_way(text: str, prompt: str, most: float) -> None:
    mine, theirs = text.split(), prompt.split()
    pairs = [(a, b) for a, b in zip(mine, mine[1:])]
    hits = sum(any(pair == other for other in zip(theirs, theirs[1:])) for pair in pairs)
    expected = "too_short" if not mine else "copy" if pairs and hits / len(pairs) > most else None
    assert reason(text, prompt=prompt, min_words=0, max_copy=most) == expected


@given(st.text(), st.text(), st.text())
def test_any_text_is_judged(text: str, prompt: str, label: str) -> None:
    for choices in ((), LETTERS, TOPICS):
        reason(f"{text}. The answer is {text}", prompt=prompt, label=label, choices=choices)


def test_long_texts_are_judged_in_time() -> None:
    start = time.perf_counter()
    chosen(["the answer is a " * 16_000, "a. " * 80_000, "A" * 260_000], prompt="a. b\n" * 50_000)
    assert time.perf_counter() - start < 5
