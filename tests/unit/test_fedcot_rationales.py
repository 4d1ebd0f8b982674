"""What the arbiter's LLM writes, however bad it is; reading and leaving out the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.algo.fedcot.config import DecodingConfig, RationaleConfig
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.protocol import Rationales
from fate_llm_ext.algo.fedcot.rationales import (
    REASONS,
    Explanations,
    clean,
    explain,
    phrases,
    read_answer,
    without_answer,
)
from fate_llm_ext.algo.messages import LONGEST_TEXT, pack_texts
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.models.engines.base import Completion, Engine, cut
from fate_llm_ext.models.engines.local import LocalEngine
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

SHOTS = [{"question": f"shot {n}", "rationale": "one two three", "answer": "(a)"} for n in range(4)]
CONFIG = RationaleConfig(demonstrations=SHOTS, max_new_tokens=16)
GOOD = " Trees bear apples. So the answer is (b)."


Rule = Callable[[str], Completion]


class RuleEngine(Engine):
    """Writes by rule; its context is counted in words."""

    name = "by rule"

    def __init__(self, rule: Rule, context: int = 10**6) -> None:
        self.rule, self.context = rule, context
        self.prompts: list[str] = []
        self.keys: list[str] = []

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Any = lambda done, total: None,
        keys: Sequence[str] | None = None,
    ) -> list[Completion]:
        assert self.fits(prompts, config).all()
        assert list(stop) == ["\n\n", "\nQ:"]
        self.prompts, self.keys = list(prompts), list(keys or ())
        results = []
        for number, prompt in enumerate(prompts, 1):
            one = self.rule(prompt)
            text, stopped = cut(one.text, stop)
            results.append(Completion(text, stopped or one.finished, one.refused))
            step(number, len(prompts))
        return results

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        return np.array([len(prompt.split()) <= self.context for prompt in prompts], dtype=bool)


def asked(
    rule: Callable[[str], Completion], questions: Sequence[str], **options: Any
) -> tuple[Explanations, RuleEngine]:
    engine = RuleEngine(rule, options.pop("context", 10**6))
    prompts = Prompts(CONFIG, DecodingConfig())
    keys = [f"guest 9999/{row}" for row in range(len(questions))]
    return explain(questions, (), keys, engine, prompts, CONFIG, seed=3, **options), engine


def about(prompt: str) -> str:
    """The question that a prompt ends with."""
    return prompt.rpartition("Q: ")[2].removesuffix("\nA:")


def test_each_question_has_its_rationale() -> None:
    beats: list[str] = []
    questions = [f"what {row}" for row in range(5)]
    made, engine = asked(
        lambda p: Completion(f" {about(p)}{GOOD}\n\nQ: run on", True), questions, heartbeat=beats.append
    )
    assert made.codes.tolist() == [0, 1, 2, 3, 4]
    assert made.codes.dtype == np.int32
    assert made.texts == [f"what {row}{GOOD}" for row in range(5)]
    assert made.unfinished.tolist() == [False] * 5
    assert (made.note, made.shortened, sum(made.dropped.values())) == ("", 0, 0)
    assert all(prompt.count("Q: shot") == 4 for prompt in engine.prompts)
    assert beats[0] == "writing rationales"
    assert beats[-1].endswith("5 of 5")


def test_keys_go_with_their_prompts_even_if_some_have_no_room() -> None:
    questions = ["short", "far " * 50, "also short"]
    made, engine = asked(lambda p: Completion(about(p), True), questions, context=40)
    assert engine.keys == ["guest 9999/0", "guest 9999/2"]
    assert made.codes.tolist() == [0, 2]
    assert made.texts == ["short", "also short"]
    assert made.dropped["no_room"] == 1


@pytest.mark.parametrize("context", range(2, 70, 3))
def test_as_many_demonstrations_as_there_is_room_for(context: int) -> None:
    lengths = [1, 2, 5, 9, 17, 33]
    made, engine = asked(lambda p: Completion(GOOD, True), ["word " * n for n in lengths], context=context)
    prompts = Prompts(CONFIG, DecodingConfig())
    expected = []
    for n in lengths:  # the slow way
        fitting = [k for k in range(5) if len(prompts.llm("word " * n, (), k).split()) <= context]
        expected.append(max(fitting, default=-1))
    assert [prompt.count("Q: shot") for prompt in engine.prompts] == [k for k in expected if k >= 0]
    assert made.dropped["no_room"] == expected.count(-1)
    assert made.shortened == sum(0 <= k < 4 for k in expected)
    if set(expected) == {-1}:
        assert made.note == "not one of 6 questions fits into the LLM's context, even without demonstrations"


NONSENSE = {
    "": "empty",
    " \n ": "empty",
    "...!?": "empty",
    "\x00\x1b[2J\x07": None,  # what is left of a terminal's sequence is text
    "\x00\x07\u200b": "empty",
    "word " * 250_000: "too_long",
    "x" * (1 << 20): "too_long",
    "\n\nonly after a stop": "empty",
    "日本語で答えます。": None,
    "\ud800 half a pair": None,
    "\ud83d": "empty",
    "{{ question }}": None,
    "Q: Q: Q:": None,
    "<think> for ever": None,
}


def test_nonsense_costs_only_itself() -> None:
    answers = list(NONSENSE)
    made, _ = asked(lambda p: Completion(answers[int(about(p))], True), [str(row) for row in range(len(answers))])
    fine = [row for row, reason in enumerate(NONSENSE.values()) if reason is None]
    assert made.codes.tolist() == fine
    for reason in REASONS:
        assert made.dropped[reason] == list(NONSENSE.values()).count(reason)
    assert made.note.startswith(f"the LLM gave {len(fine)} rationales for {len(answers)} questions (dropped: ")
    counts = {reason: str(count) for reason, count in made.dropped.items()}
    fields = pack_texts(made.codes.astype(np.uint32), made.texts)
    Rationales(**fields, dropped=counts, note=made.note, unfinished=made.unfinished.astype(np.uint8)).validate()


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=6))
def test_whatever_it_writes_can_be_sent(answers: list[str]) -> None:
    made, _ = asked(lambda p: Completion(answers[int(about(p))], False), [str(row) for row in range(len(answers))])
    assert sum(made.dropped.values()) + len(made.texts) == len(answers)
    counts = {reason: str(count) for reason, count in made.dropped.items()}
    fields = pack_texts(made.codes.astype(np.uint32), made.texts)
    Rationales(**fields, dropped=counts, note=made.note, unfinished=made.unfinished.astype(np.uint8)).validate()
    assert all(one == clean(one) for one in made.texts)


def test_refused_and_unfinished_ones_are_told_apart() -> None:
    rule = {
        "a": Completion("", True, refused=True),
        "b": Completion("one two", False),
        "c": Completion("one two", True),
    }
    made, _ = asked(lambda p: rule[about(p)], ["a", "b", "c"])
    assert made.codes.tolist() == [1, 2]
    assert made.unfinished.tolist() == [True, False]
    assert {reason: n for reason, n in made.dropped.items() if n} == {"refused": 1}
    assert made.note == "the LLM gave 2 rationales for 3 questions (dropped: 1 refused)"


def test_no_rationale_at_all() -> None:
    made, _ = asked(lambda p: Completion("", True), ["a", "b"])
    assert (len(made.codes), made.texts, len(made.unfinished)) == (0, [], 0)
    assert made.note == "the LLM gave 0 rationales for 2 questions (dropped: 2 empty)"


def test_no_question_at_all() -> None:
    made, _ = asked(lambda p: Completion("", True), [])
    assert (len(made.codes), made.note) == (0, "")


def test_a_text_may_be_as_long_as_its_tokens_can_be() -> None:
    made, _ = asked(lambda p: Completion("x" * int(about(p)), True), [str(128 * 16), str(128 * 16 + 1)])
    assert made.codes.tolist() == [0]
    assert min(len(one) for one in made.texts) < LONGEST_TEXT


def test_nothing_of_a_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        asked(lambda p: Completion("xylophone", True), ["marmalade", "zeppelin"])
    assert caplog.records
    assert not any(word in caplog.text for word in ("xylophone", "marmalade", "zeppelin"))


def test_a_model_in_this_process() -> None:
    """Its context has room for two of four demonstrations before a short question, and for no long one."""
    texts = ["Q: shot one two three answer", "far away word"] * 30
    tokenizer = train_tokenizer(texts, 280)
    model = build_model(TinyConfig(arch="gpt2", hidden=32, layers=1, context=128, steps=1), tokenizer)
    engine = LocalEngine(model.eval(), tokenizer, "llm")
    prompts = Prompts(CONFIG, DecodingConfig())
    questions, keys = ["shot", "far away word " * 60], ["guest 9999/0", "guest 9999/1"]
    made = explain(questions, (), keys, engine, prompts, CONFIG, seed=3)
    again = explain(questions[:1], (), keys[:1], engine, prompts, CONFIG, seed=3)
    assert made.dropped["no_room"] == 1
    assert made.shortened == 1
    assert (made.texts, made.dropped["empty"]) == (again.texts, again.dropped["empty"])


# --- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "reasons"),
    [
        ("Only math fits. So the answer is (d) math problem.", "d", "Only math fits."),
        ("Only math fits.\nSo the answer is (d) math problem.", "d", "Only math fits."),
        ("Dogs bark. The answer is: dog", "dog", "Dogs bark."),
        ("THE ANSWER IS B. Dogs bark at 3.5 m.", "B", "Dogs bark at 3.5 m."),
        ("Dogs bark, so the answer is (a).", "a", "Dogs bark."),
        ("Dogs bark; therefore, the answer is (a)!", "a", "Dogs bark."),
        ("Dogs bark. Therefore, the answer is (a)", "a", "Dogs bark."),
        ("The answer is not easy. Dogs bark. So the answer is (a).", "a", "The answer is not easy. Dogs bark."),
        ("The answer is (a). Dogs bark. So the answer is (a).", "a", "Dogs bark."),
        ("So the answer is (a).", "a", ""),
        ("They cost 3.5 each. So the answer is 7.", "7", "They cost 3.5 each."),
        ("The answer must be a dog.", None, "The answer must be a dog."),
        ("the answer is ", None, "the answer is"),
        ("", None, ""),
        ("犬です。So the answer is (a)。", "a", "犬です。"),
    ],
)
def test_reading_and_leaving_out_the_answer(text: str, answer: str | None, reasons: str) -> None:
    assert read_answer(text, CONFIG) == answer
    assert without_answer(text, CONFIG) == reasons


def test_another_expression() -> None:
    config = RationaleConfig(answer=r"#### (\S+)")
    assert read_answer("2 + 2 = 4. #### 4", config) == "4"
    assert without_answer("2 + 2 = 4. #### 4", config) == "2 + 2 = 4."
    optional = RationaleConfig(answer=r"answer(?: is (\w+))?")
    assert read_answer("the answer", optional) is None
    assert read_answer("the answer is b. No answer", optional) == "b"


@given(st.text(alphabet="aA. ,;:()\n!?b3"), st.sampled_from(["b", "(b)", "dog"]), st.text(alphabet="aA. ,;:()\n!?b3"))
def test_the_reasons_come_in_their_order_and_without_the_answer(before: str, answer: str, behind: str) -> None:
    text = f"{before} So the answer is {answer}. {behind}"
    reasons = without_answer(text, CONFIG)
    assert read_answer(reasons, CONFIG) is None
    letters = [letter for letter in reasons if letter.isalnum()]
    whole = iter(letter for letter in text if letter.isalnum())
    assert all(letter in whole for letter in letters)  # a subsequence


def test_phrases_announce_the_answer_and_are_not_it() -> None:
    text = "x " * 5000 + "Dogs bark. So the answer is (a) dog. So the answer is a."
    found = [text[first:last] for first, last in phrases(text, CONFIG)]
    assert found == ["So the answer is (", "So the answer is "]


def test_long_hostile_texts_are_read_in_time() -> None:
    start = time.perf_counter()
    for piece in ("the answer is ", "so ", "the answer is a. ", " ", "(", ".", "the answer is" + " " * 50, "so, "):
        text = piece * (LONGEST_TEXT // len(piece)) + " so the answer is b"
        read_answer(text, CONFIG)
        without_answer(text, CONFIG)
        clean(text)
    assert time.perf_counter() - start < 10
