"""FDKT's augmentation with engines that write and answer by rule, and with a real one."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from functools import cache
from typing import Any, Callable, List, Optional, Sequence

import numpy as np
import pytest
import torch

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.augmentation import REASONS, Augmentation, augment, trim
from fate_llm_ext.algo.fdkt.config import AugmentationConfig, PromptsConfig
from fate_llm_ext.algo.fdkt.contamination import Passage, overlap
from fate_llm_ext.algo.fdkt.labels import parse_label
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.models.engines.base import Completion, Engine, cut
from fate_llm_ext.models.engines.local import LocalEngine
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
PROMPTS = Prompts(PromptsConfig())
WORDS = ["alpha", "bravo", "delta", "echo", "golf", "hotel", "india", "kilo", "lima", "mike", "oscar", "papa", "quebec"]

Rule = Callable[[str, np.random.Generator], str]


class RuleEngine(Engine):
    """Writes and answers by rule; its context is counted in words."""

    name = "by rule"

    def __init__(self, write: Rule, answer: Rule, context: int = 10**6) -> None:
        self.write, self.answer, self.context = write, answer, context
        self.calls: List[List[str]] = []

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Any = lambda done, total: None,
    ) -> List[Completion]:
        assert self.fits(prompts, config).all()
        self.calls.append(list(prompts))
        results = []
        for row, prompt in enumerate(prompts):
            rule = self.answer if prompt.endswith("\nAnswer:") else self.write
            results.append(Completion(cut(rule(prompt, np.random.default_rng([seed, row])), stop)[0], True))
            step(row + 1, len(prompts))
        return results

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        return np.array([len(prompt.split()) <= self.context for prompt in prompts], dtype=bool)

    @property
    def written(self) -> List[str]:
        """The prompts that asked for a text."""
        return [prompt for call in self.calls for prompt in call if not prompt.endswith("\nAnswer:")]

    @property
    def questions(self) -> List[str]:
        """Those that asked for a label."""
        return [prompt for call in self.calls for prompt in call if prompt.endswith("\nAnswer:")]


def wanted(prompt: str) -> str:
    """The label that a prompt asks for."""
    return prompt.rpartition("\n\n")[2].removesuffix(":")


def words(random: np.random.Generator, count: int = 12) -> str:
    return " ".join(random.choice(WORDS, count))


def on_topic(prompt: str, random: np.random.Generator) -> str:
    return f" {words(random)} about {wanted(prompt)}."


def topic(prompt: str, random: np.random.Generator) -> str:
    """Answers what :func:`on_topic` wrote."""
    return " " + prompt.partition("\n")[0].rpartition(" about ")[2]


def demonstrations(per_label: Sequence[int] = (5, 5, 5, 5)) -> Records:
    random = np.random.default_rng(7)
    codes = np.repeat(np.arange(len(per_label), dtype=np.int32), per_label)
    return Records(codes, [f"{words(random)} number {place}" for place in range(len(codes))])


def run(engine: Engine, shown: Optional[Records] = None, seed: int = 3, **changes: Any) -> Augmentation:
    config = AugmentationConfig(**{"samples": 40, **changes})
    shown = demonstrations() if shown is None else shown
    made = augment(shown, LABELS, engine, PROMPTS, config, description="a news item", seed=seed)
    assert made.asked == len(made.records) + sum(made.dropped.values())
    assert made.asked <= config.attempts * config.samples
    assert tuple(made.dropped) == REASONS
    assert (made.note == "") == (len(made.records) == config.samples and len(set(shown.codes.tolist())) == 4)
    return made


def counts(made: Augmentation) -> List[int]:
    return np.bincount(made.records.codes, minlength=4).tolist()


def test_texts_are_balanced_and_bear_the_label_of_the_answer() -> None:
    engine = RuleEngine(on_topic, topic)
    made = run(engine, samples=42)
    assert counts(made) == [11, 11, 10, 10]
    assert made.asked == 42
    assert made.records.codes.dtype == np.int32
    assert [len(call) for call in engine.calls] == [42, 42], "one call for all texts, one for all labels"
    for code, text in zip(made.records.codes, made.records.texts):
        assert text.endswith(f"about {LABELS[code]}.")
        assert text == text.strip()


def test_the_answer_counts_where_it_is_not_the_label_asked_for() -> None:
    shift = dict(zip(LABELS, [*LABELS[1:], LABELS[0]]))

    def answer(prompt: str, random: np.random.Generator) -> str:
        honest = topic(prompt, random).strip(" .")
        return shift[honest] if zlib.crc32(prompt.encode()) % 3 == 0 else honest

    answered = RuleEngine(on_topic, answer)
    made = run(answered, samples=80)
    assert counts(made) == [20, 20, 20, 20]
    wrong = 0
    for code, text in zip(made.records.codes.tolist(), made.records.texts):
        question = PROMPTS.label("a news item", LABELS, text)
        assert LABELS[code] == answer(question, np.random.default_rng(0))
        wrong += not text.endswith(f"about {LABELS[code]}.")
    assert wrong, "some texts bear another label than was asked for"

    both = run(RuleEngine(on_topic, answer), samples=80, label_by="both")
    assert both.dropped["label_differs"] > 10
    assert counts(both) == [20, 20, 20, 20]
    assert all(text.endswith(f"about {LABELS[code]}.") for code, text in zip(both.records.codes, both.records.texts))

    engine = RuleEngine(on_topic, answer)
    requested = run(engine, samples=80, label_by="requested")
    assert not engine.questions
    assert requested.asked == 80
    assert all(
        text.endswith(f"about {LABELS[code]}.") for code, text in zip(requested.records.codes, requested.records.texts)
    )


def test_a_text_that_got_the_label_asked_for_goes_before_one_that_did_not() -> None:
    """All World prompts come out as Sports, and come first; yet the Sports prompts' own texts are taken."""
    made = run(RuleEngine(on_topic, lambda prompt, random: topic(prompt, random).replace("World", "Sports")))
    assert counts(made) == [0, 10, 10, 10]
    own = [text.endswith("about Sports.") for code, text in zip(made.records.codes, made.records.texts) if code == 1]
    assert all(own)
    assert made.dropped["surplus"] >= 10
    assert "labels without a text: World" in made.note


def test_each_prompt_shows_every_label_and_its_order_says_nothing() -> None:
    engine = RuleEngine(on_topic, topic)
    run(engine, samples=400, shots=2)
    places: Counter[int] = Counter()
    used = set()
    for prompt in engine.written:
        *shown, last = prompt.split("\n\n")
        heads = [one.partition(":")[0] for one in shown]
        assert Counter(heads) == dict.fromkeys(LABELS, 2)
        assert len(set(shown)) == 8
        places.update(place for place, head in enumerate(heads) if head == last.removesuffix(":"))
        used.update(shown)
    assert len(used) == 20, "all demonstrations are used"
    assert set(places) == set(range(8))
    assert min(places.values()) > 60


def test_a_limit_of_demonstrations_keeps_the_label_asked_for() -> None:
    engine = RuleEngine(on_topic, topic)
    run(engine, samples=100, shots=2, demonstrations=3)
    others: Counter[str] = Counter()
    for prompt in engine.written:
        *shown, last = prompt.split("\n\n")
        heads = [one.partition(":")[0] for one in shown]
        assert len(heads) == len(set(heads)) == 3
        assert last.removesuffix(":") in heads
        others.update(heads)
    assert set(others) == set(LABELS)


def test_labels_with_few_or_no_demonstrations() -> None:
    engine = RuleEngine(on_topic, topic)
    made = run(engine, demonstrations((5, 1, 0, 5)), shots=3)
    assert counts(made) == [14, 13, 0, 13]
    assert made.note == "labels without a demonstration were left out: Business"
    heads = Counter(one.partition(":")[0] for one in engine.written[0].split("\n\n")[:-1])
    assert heads == {"World": 3, "Sports": 1, "Sci/Tech": 3}

    engine = RuleEngine(on_topic, topic)
    nothing = augment(
        demonstrations(()), LABELS, engine, PROMPTS, AugmentationConfig(), description="a news item", seed=0
    )
    assert len(nothing.records) == nothing.asked == len(engine.calls) == 0
    assert nothing.records.codes.dtype == np.int32
    assert nothing.note == "there is no demonstration of any of the 4 labels to write after"


@pytest.mark.parametrize("label_by", ["answer", "both"])
def test_answers_that_cannot_be_read_throughout(label_by: str) -> None:
    engine = RuleEngine(on_topic, lambda prompt, random: " I cannot say: World or Sports")
    made = run(engine, samples=100, label_by=label_by)
    assert len(made.records) == 0
    assert made.dropped["unreadable_label"] == made.asked == 100
    assert made.note == "of the LLM's 100 answers about a text's label, 0 could be read"
    assert len(engine.calls) == 2, "a wave that gives nothing is the last"


def test_some_answers_cannot_be_read_and_are_asked_for_again() -> None:
    def answer(prompt: str, random: np.random.Generator) -> str:
        return topic(prompt, random) if random.random() < 0.4 else "-"

    engine = RuleEngine(on_topic, answer)
    made = run(engine, samples=200)
    assert counts(made) == [50, 50, 50, 50]
    assert made.dropped["unreadable_label"] > 150
    assert made.asked < 600
    assert len(engine.calls) <= 2 * 6, "few waves"


def test_what_it_gives_up_for() -> None:
    """One label in four never comes: the others are complete, and it stops long before its budget."""
    engine = RuleEngine(on_topic, lambda prompt, random: topic(prompt, random).replace("Business", "?"))
    made = run(engine, samples=400, attempts=20)
    assert counts(made) == [100, 100, 0, 100]
    assert made.asked < 800
    assert "300 of 400 texts came of" in made.note
    assert "labels without a text: Business" in made.note


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_copies_of_demonstrations_are_dropped(share: float) -> None:
    shown = demonstrations()

    def write(prompt: str, random: np.random.Generator) -> str:
        if random.random() < share:
            source = prompt.split("\n\n")[int(random.integers(4))].partition(": ")[2].split()
            kind = int(random.integers(3))
            if kind == 0:
                return " ".join(source).upper()  # the same text: a duplicate
            return " ".join(source[2:]) if kind == 1 else " ".join([*source, "and", "so", "on"])
        return on_topic(prompt, random)

    made = run(RuleEngine(write, topic), shown, samples=200)
    assert counts(made) == [50] * 4
    assert (made.dropped["copied"] > 20) == (made.dropped["duplicate"] > 20) == (share > 0)
    for text in made.records.texts:
        assert not any(overlap(Passage(text), [Passage(source)]) > 0.5 for source in shown.texts)


def test_only_demonstrations_that_the_prompt_showed_count_as_copied() -> None:
    """A text that shares its 5-grams with another demonstration is no copy: the LLM did not see that one."""
    shown = demonstrations((1, 1, 1, 30))
    engine = RuleEngine(lambda prompt, random: shown.texts[3] + f" {words(random, 3)}", lambda *_: "World")
    made = run(engine, shown, samples=8, label_by="requested", attempts=1)
    seen = sum(shown.texts[3] in prompt for prompt in engine.written)
    assert made.dropped["copied"] == seen < made.asked


def test_repetitions_are_dropped_also_across_waves() -> None:
    engine = RuleEngine(lambda prompt, random: f"the  SAME {wanted(prompt)} text", topic)
    made = run(engine, samples=8, attempts=10, label_by="requested")
    assert counts(made) == [1, 1, 1, 1]
    assert made.dropped["duplicate"] == made.asked - 4
    assert len(engine.calls) > 1


def test_empty_texts() -> None:
    made = run(RuleEngine(lambda prompt, random: " \n\n...", topic), samples=70)
    assert made.dropped["empty"] == made.asked == 70
    assert made.note == "0 of 70 texts came of 70 prompts (dropped: 70 empty); labels without a text: " + (
        "World, Sports, Business, Sci/Tech"
    )


def test_prompts_hold_what_the_context_has_room_for() -> None:
    everything = RuleEngine(on_topic, topic)
    run(everything, shots=3)
    longest = max(len(prompt.split()) for prompt in everything.written)

    engine = RuleEngine(on_topic, topic, context=longest // 2)
    made = run(engine, shots=3)
    assert len(made.records) == 40
    for prompt in engine.written:
        *shown, last = prompt.split("\n\n")
        assert len(prompt.split()) > longest // 2 - 16, "one more would have fitted"
        heads = Counter(one.partition(":")[0] for one in shown)
        assert max(heads.values()) - min(heads[label] for label in LABELS) <= 1, "labels lose evenly"
        assert heads[last.removesuffix(":")] == max(heads.values()), "the one asked for loses last"

    one_only = RuleEngine(on_topic, topic, context=30)
    run(one_only)
    assert all(prompt.split(":")[0] == wanted(prompt) for prompt in one_only.written)

    none = RuleEngine(on_topic, topic, context=5)
    made = run(none)
    assert not none.written
    assert made.dropped["no_room"] == made.asked
    assert made.note == f"not one of {made.asked} prompts fits into the LLM's context, even with one demonstration"


def test_a_question_about_a_label_that_does_not_fit() -> None:
    long = RuleEngine(lambda prompt, random: words(random, 40 if random.random() < 0.5 else 4), lambda *_: "World", 40)
    made = run(long, demonstrations((5, 0, 0, 0)), samples=20, attempts=4)
    assert made.dropped["no_room"] > 5
    assert len(made.records) == 20


class RefusingEngine(RuleEngine):
    """A server that refuses some prompts."""

    def __init__(self, refuses: Callable[[str], bool]) -> None:
        super().__init__(on_topic, topic)
        self.refuses = refuses

    def generate(self, prompts: Sequence[str], *args: Any, **options: Any) -> List[Completion]:
        written = super().generate(prompts, *args, **options)
        return [Completion("", True, refused=True) if self.refuses(p) else one for p, one in zip(prompts, written)]


def test_texts_that_are_refused_are_counted_and_asked_for_again() -> None:
    rare = RefusingEngine(lambda prompt: wanted(prompt) == "Sports" and zlib.crc32(prompt.encode()) % 3 == 0)
    made = run(rare, demonstrations((20,) * 4), attempts=6)
    assert counts(made) == [10] * 4
    assert made.dropped["refused"] == sum(map(rare.refuses, rare.written)) > 0
    assert made.dropped["empty"] == 0

    made = run(RefusingEngine(lambda prompt: wanted(prompt) == "Sports"))
    assert counts(made) == [10, 0, 10, 10]
    assert f"{made.dropped['refused']} refused" in made.note
    assert "labels without a text: Sports" in made.note


def test_questions_about_labels_that_are_refused_are_unreadable_answers() -> None:
    engine = RefusingEngine(lambda prompt: prompt.endswith("Answer:") and zlib.crc32(prompt.encode()) % 3 == 0)
    made = run(engine)
    assert len(made.records) == 40
    assert made.dropped["unreadable_label"] == sum(map(engine.refuses, engine.questions)) > 0
    assert made.dropped["refused"] == made.dropped["empty"] == 0


def test_the_seed_decides_and_nothing_else() -> None:
    def texts(**changes: Any) -> List[str]:
        return run(RuleEngine(on_topic, topic), **changes).records.texts

    assert texts() == texts() == texts(batch_size=1)
    assert texts() != texts(seed=4)


def test_logs_and_signs_of_life_hold_no_text(caplog: pytest.LogCaptureFixture) -> None:
    said: List[str] = []
    with caplog.at_level(logging.DEBUG):
        made = augment(
            demonstrations(),
            LABELS,
            RuleEngine(on_topic, topic),
            PROMPTS,
            AugmentationConfig(samples=8),
            description="a news item",
            seed=0,
            heartbeat=said.append,
        )
    assert {one.partition(",")[0] for one in said} == {"writing texts", "asking for labels", "reading labels"}
    assert caplog.messages == ["wave 0: 8 prompts, 8 texts kept"]
    assert len(made.records) == 8
    assert not any(word in "".join([*said, *caplog.messages]).split() for word in WORDS)


@pytest.mark.parametrize(
    ("written", "finished", "text"),
    [
        (" A text. ", True, "A text."),
        ("World: A text", True, "A text"),
        ("A text\nof two lines", True, "A text\nof two lines"),
        ("A text\n \t\nand more", True, "A text"),
        ("A text\nSports: another\nWorld: more", True, "A text"),
        ("A text\nSportsmen: are meant", True, "A text\nSportsmen: are meant"),
        ("\n\nWorld:\nA text", False, "A text"),
        ("One two three. Four five. Six", False, "One two three. Four five."),
        ("One two three. Four five. Six\n\nWorld: x", False, "One two three. Four five. Six"),
        ("Dr. One two three four five", False, "Dr. One two three four five"),
        ('He said "yes." And th', False, 'He said "yes."'),
        ("Version 3.5 of it is", False, "Version 3.5 of it is"),
        ("一二三。四五", False, "一二三。"),
        ("half a pair \ud83d", True, "half a pair"),
        (" -- ", True, ""),
        ("", False, ""),
        ("Sure! Here is a new one:", True, ""),
    ],
)
def test_trim(written: str, finished: bool, text: str) -> None:
    assert trim(Completion(written, finished), LABELS) == text


SIZES = ["very good", "good", "bad", "not good enough"]
STARS = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("answer", "labels", "expected"),
    [
        *[
            (answer, LABELS, "Sports")
            for answer in (
                "Sports",
                " sports.\n-",
                "Answer: Sports.",
                "SPORTS!",
                "**Sports**",
                "__Sports__",
                '"Sports", I would say',
                "I think that this is about Sports",
                "\n\nSports",
                "The label:\nSports\n\nAnother text of the World",
                "Sports. It names several people of the business world.",
                "It is not about World but Sports",
                "Sports, not Business",
                "This isn't World. It is Sports",
                "no: Sports",
                "\uff33\uff50\uff4f\uff52\uff54\uff53",
            )
        ],
        *[(answer, LABELS, "Sci/Tech") for answer in ("Sci/Tech", "sci / tech", "Sci-Tech", "scitech", "Sci Tech.")],
        *[
            (answer, LABELS, None)
            for answer in (
                "",
                "-",
                "Sport",
                "worldwide",
                "Sports or World",
                "World, Sports, Business, Sci/Tech",
                "World\u00a0/ Sports.",
                "not World",
                "Which of World, Sports, Business, Sci/Tech?",
                "Tech",
                "2",
            )
        ],
        ("Very  Good!", SIZES, "very good"),
        ("very_good", SIZES, "very good"),
        ("good", SIZES, "good"),
        ("goods", SIZES, None),
        ("it was not good", SIZES, None),
        ("not good enough", SIZES, "not good enough"),
        ("good, or very good", SIZES, None),
        *[(answer, STARS, "2") for answer in ("2", "2.", " 2 stars", "(2)", "2. Because 5 would be much", "\uff12")],
        *[(answer, STARS, None) for answer in ("2.5", "2/5", "2 out of 5", "1-4", "12", "2,5", "v2", "two")],
        ("C++", ["C", "C++"], "C++"),
        ("c.", ["C", "C++"], "C"),
        ("it", ["IT", "it"], "it"),
        ("It", ["IT", "it"], None),
        ("-1", ["-1", "0", "1"], "-1"),
        ("1", ["-1", "0", "1"], "1"),
        ("这是体育新闻。不是财经。", ["财经", "体育"], "体育"),
        ("不是体育", ["财经", "体育"], None),
        ("U.S. news. Not World.", ["U.S. news", "World"], "U.S. news"),
        ("World or U.S. news", ["U.S. news", "World"], None),
        ("cafe\u0301", ["caf\u00e9", "bar"], "caf\u00e9"),
        ("<think>\nIs it World? The text is about", ["World", "Sports"], None),
        ("<think>\nIs it World?</think>\n\nSports", ["World", "Sports"], "Sports"),
    ],
)
def test_parse_label(answer: str, labels: List[str], expected: str) -> None:
    got = parse_label(answer, labels)
    assert (None if got is None else labels[got]) == expected


@cache
def real() -> Any:
    rows = generate_tickets(200, seed=1)
    tokenizer = train_tokenizer([row["text"] for row in rows], 400, "byte_bpe")
    model = build_model(TinyConfig(arch="gpt2", hidden=16, layers=1, context=128, steps=1, seed=0), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    labels = sorted({row["label"] for row in rows})
    records = Records(
        np.array([labels.index(row["label"]) for row in rows[:40]], dtype=np.int32), [row["text"] for row in rows[:40]]
    )
    return LocalEngine(model.eval(), tokenizer, "tiny"), records, labels


@pytest.mark.parametrize("label_by", ["answer", "requested"])
def test_with_a_real_model(label_by: str) -> None:
    """It has learned nothing: its texts are noise, and nearly all its answers cannot be read."""
    engine, records, labels = real()

    def made(batch_size: int) -> Augmentation:
        config = AugmentationConfig(samples=24, label_by=label_by, max_new_tokens=12, batch_size=batch_size, attempts=2)
        return augment(records, labels, engine, PROMPTS, config, description="a ticket", seed=1)

    one, other = made(64), made(5)
    assert one.records.texts == other.records.texts
    assert one.dropped == other.dropped
    assert one.asked == len(one.records) + sum(one.dropped.values())
    if label_by == "requested":
        assert len(one.records) == 24
        assert one.note == ""
        assert np.ptp(np.bincount(one.records.codes, minlength=len(labels))) <= 1
    else:
        assert one.dropped["unreadable_label"] > 0.8 * one.asked
        assert one.note
