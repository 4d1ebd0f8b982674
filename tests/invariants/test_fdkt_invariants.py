"""What must hold of FDKT's pure parts whatever the labels, texts and answers are."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, List, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.augmentation import REASONS, augment, trim
from fate_llm_ext.algo.fdkt.config import AugmentationConfig, PromptsConfig
from fate_llm_ext.algo.fdkt.contamination import SIZE, Passage, overlap
from fate_llm_ext.algo.fdkt.labels import parse_label
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.algo.fdkt.shots import Shots, draw, fit
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.models.engines.base import Completion, Engine

WORD = st.text("abcdefg", min_size=1, max_size=3)
NAME = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
NAMES = st.lists(NAME, min_size=2, max_size=6, unique_by=lambda name: name.replace(" ", ""))
# around an answer: nothing that is a word
WRAP = st.sampled_from(["", " ", "**", '"', "\n", "\n\n", "- ", "(", ")", ".", "!", ": ", "`", "__", " -\n-"])


# ---- the label that an answer names


@settings(max_examples=300, deadline=None)
@given(NAMES, st.data())
def test_a_label_is_read_however_it_is_written(labels: List[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(labels) - 1))
    name = data.draw(st.sampled_from([str, str.upper, str.title]))(labels[index])
    name = data.draw(st.sampled_from([" ", "  ", "-", "/", "_", ". ", ""])).join(name.split())
    lead = data.draw(st.sampled_from(["", "Answer: ", "I think it is ", "XYZ, "]))
    assert parse_label(data.draw(WRAP) + lead + data.draw(WRAP) + name + data.draw(WRAP), labels) == index


@settings(max_examples=300, deadline=None)
@given(NAMES, st.data())
def test_two_labels_in_a_sentence_are_none_and_in_two_the_first(labels: List[str], data: st.DataObject) -> None:
    first, second = data.draw(st.permutations(range(len(labels))))[:2]
    between = data.draw(st.sampled_from([" or ", ", ", " / ", " (", "; "]))
    flat = [name.replace(" ", "") for name in labels]
    together = flat[first] + flat[second]
    assume(not any(one in together for index, one in enumerate(flat) if index not in (first, second)))
    assume(flat[first] not in flat[second])
    assume(flat[second] not in flat[first])
    got = parse_label(labels[first] + between + labels[second], labels)
    assert got == (first if between == "; " else None)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=2, unique=True))
def test_any_answer_gives_a_label_that_it_holds_or_none(answer: str, labels: List[str]) -> None:
    def flat(text: str) -> str:
        return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())

    got = parse_label(answer, labels)
    if got is not None:
        assert flat(labels[got]) in flat(answer)


# ---- copies


def slow_overlap(text: str, sources: Sequence[str]) -> float:
    """Each run of the text's words is looked for at each place of each source."""
    mine = re.findall(r"\w+", text.casefold())
    others = [re.findall(r"\w+", source.casefold()) for source in sources]
    size = min(SIZE, len(mine))
    runs = [mine[start : start + size] for start in range(len(mine) - size + 1)] if size else []
    found = [
        any(run == other[start : start + size] for other in others for start in range(len(other) - size + 1))
        for run in runs
    ]
    return sum(found) / len(found) if found else 0.0


SENTENCE = st.lists(st.sampled_from(["a", "B", "b.", "c", "c,", "!"]), max_size=30).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(SENTENCE, st.lists(SENTENCE, max_size=4))
def test_overlap_is_that_of_the_slow_reference(text: str, sources: List[str]) -> None:
    passages = [Passage(source) for source in sources]
    assert overlap(Passage(text), passages) == pytest.approx(slow_overlap(text, sources))
    if re.search(r"\w", text):
        assert overlap(Passage(text), [*passages, Passage("x " + text.upper() + "; x")]) == 1.0


# ---- few-shot prompts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 99), st.data())
def test_demonstrations_are_drawn_evenly(codes: List[int], shots: int, seed: int, data: st.DataObject) -> None:
    there = sorted(set(codes))
    asked = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=5))
    drawn = draw(np.array(codes), np.array(asked), shots, np.random.default_rng(seed))
    assert [one.label for one in drawn] == asked
    for one in drawn:
        ranked = one.ranked.tolist()
        assert len(set(ranked)) == len(ranked)
        for count in range(len(ranked) + 1):
            shown = one.shown(count)
            assert sorted(shown) == sorted(ranked[:count])
            held = {label: sum(codes[index] == label for index in shown) for label in there}
            for label in there:
                if held[label] < min(shots, codes.count(label)):
                    assert max(held.values()) <= held[label] + 1, "no label is ahead by two"
            if count:
                own = min(shots, codes.count(one.label))
                assert held[one.label] == max(min(own, held[label]) for label in there)
        assert {label: sum(codes[index] == label for index in ranked) for label in there} == {
            label: min(shots, codes.count(label)) for label in there
        }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=9), max_size=6), st.integers(0, 100))
def test_prompts_are_as_full_as_by_trying_all_sizes(sizes: List[List[int]], room: int) -> None:
    drawn = [Shots(index, np.arange(len(one)), np.arange(len(one))[::-1].copy()) for index, one in enumerate(sizes)]

    def render(shots: Shots, count: int) -> str:
        return "x" * sum(sizes[shots.label][index] for index in shots.shown(count))

    prompts, held = fit(drawn, render, lambda texts: np.array([len(text) <= room for text in texts], dtype=bool))
    for shots, prompt, count in zip(drawn, prompts, held.tolist()):
        fitting = [size for size in range(1, len(shots.ranked) + 1) if len(render(shots, size)) <= room]
        assert count == max(fitting, default=0)
        assert prompt == (render(shots, count) if count else "")


# ---- all of it, with an engine that writes and answers anything


class AnyEngine(Engine):
    """Writes some of a list of texts, answers some of a list of answers, has room for some prompts."""

    name = "any"

    def __init__(self, texts: List[str], answers: List[str], room: int) -> None:
        self.texts, self.answers, self.room = texts, answers, room

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Any = lambda done, total: None,
    ) -> List[Completion]:
        random = np.random.default_rng(seed)
        words = self.texts if stop else self.answers
        return [Completion(words[random.integers(len(words))], bool(random.integers(2))) for _ in prompts]

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        return np.array([len(prompt) <= self.room for prompt in prompts], dtype=bool)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=40),
    answers=st.lists(st.sampled_from(["red", " Green.", "blue\n", "red or blue", "?", ""]), min_size=1, max_size=4),
    room=st.integers(0, 300),
    codes=st.lists(st.integers(0, 2), max_size=8),
    label_by=st.sampled_from(["answer", "requested", "both"]),
    samples=st.integers(1, 90),
    attempts=st.floats(1.0, 4.0),
    seed=st.integers(0, 9),
)
def test_every_prompt_is_accounted_for(
    texts: List[str],
    answers: List[str],
    room: int,
    codes: List[int],
    label_by: str,
    samples: int,
    attempts: float,
    seed: int,
) -> None:
    labels = ["red", "green", "blue"]
    shown = Records(np.array(codes, dtype=np.int32), [f"demonstration {place}" for place in range(len(codes))])
    config = AugmentationConfig(samples=samples, attempts=attempts, label_by=label_by)
    prompts = Prompts(PromptsConfig())
    made = augment(shown, labels, AnyEngine(texts, answers, room), prompts, config, description="a colour", seed=seed)
    assert made.asked == len(made.records) + sum(made.dropped.values()) <= attempts * samples
    assert tuple(made.dropped) == REASONS
    assert len(made.records.codes) == len(made.records.texts) <= samples
    keys = [" ".join(text.split()).casefold() for text in made.records.texts]
    assert len(set(keys)) == len(keys)
    assert all(text == text.strip() and text.encode() for text in made.records.texts)
    counts = np.bincount(made.records.codes, minlength=3)
    there = sorted(set(codes))
    assert all(counts[label] <= -(-samples // max(len(there), 1)) * (label in there) for label in range(3))
    assert (made.note == "") == (len(made.records) == samples and len(there) == 3)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.booleans())
def test_trimming_is_settled_at_once(text: str, finished: bool) -> None:
    once = trim(Completion(text, finished), ["red", "green"])
    assert "\n\n" not in once
    assert once == once.strip()
    assert not once.startswith("red:") or text.count(":") > 1
