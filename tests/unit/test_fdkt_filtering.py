"""Which texts become demonstrations: answers as LLMs give them, planted duplicates and junk among real news."""

from __future__ import annotations

import csv
import itertools
import random
import re
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import FilterConfig, PromptsConfig
from fate_llm_ext.algo.fdkt.filtering import (
    Filtered,
    clustered,
    duplicates,
    outliers,
    parse_numbers,
    parts,
    select_demonstrations,
    spread,
)
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.embeddings import Embedder
from fate_llm_ext.models.engines import Completion, Engine, LocalEngine
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

NEWS = Path(__file__).resolve().parents[3] / "shared" / "assets" / "data" / "ag_news" / "sample4000.csv"
LABELS = ["World", "Sports", "Business", "Sci/Tech"]
ALL = list(range(1, 9))

# --- the LLM's answer ---------------------------------------------------------------------------------

LISTS = {
    "1, 3": [1, 3],
    "[1, 3]": [1, 3],
    "[1], [3]": [1, 3],
    "[1] [3]": [1, 3],
    "1,3 and 5": [1, 3, 5],
    "1 3 5": [1, 3, 5],
    "1; 3; 5.": [1, 3, 5],
    "1/3": [1, 3],
    "#1 & #3": [1, 3],
    "Numbers: 2.": [2],
    "Answer: 1, 3": [1, 3],
    "**1, 3**": [1, 3],
    "1st and 3rd": [1, 3],
    "1-4": [1, 2, 3, 4],
    "1 to 4": [1, 2, 3, 4],
    "1 through 3, 7": [1, 2, 3, 7],
    "1–3, 6—7": [1, 2, 3, 6, 7],
    "1-3-5": [1, 3, 5],
    "\uff11\uff0c\uff13": [1, 3],
    "\u0661, \u0663": [1, 3],
    "[ 3, 1 ]": [1, 3],
    '{"numbers": [1, 3]}': [1, 3],
    "```json\n[\n  1,\n  3\n]\n```": [1, 3],
    "\n\n1\n2\n\n3\n": [1, 2, 3],
    "- 1\n- 3\n": [1, 3],
    "1, 3, 1, 3, 1, 3, 1, 3, 1": [1, 3],
    "1 1 1 1 1 1 1 1 1 1": [1],
    ", ".join(str(one) for one in range(1, 40)): ALL,
    "1, 3, 12": [1, 3],
    "6-12": [6, 7, 8],
    "0-3": [1, 2, 3],
    "1, 2, 3, ...": [1, 2, 3],
}
PROSE = {
    "The eligible ones are 1, 3 and 5.": [1, 3, 5],
    "I would keep 1 and 3 because they are clear.": [1, 3],
    "Yes, 1 and 3": [1, 3],
    "2, because it is clear": [2],
    "1, 3 (written in 2004)": [1, 3],
    "Of the candidates, texts 1, 3 and text 5 read well.": [1, 3, 5],
    "Out of the 8 candidates, the eligible ones are:\n1, 3": [1, 3],
    "Here are all the eligible numbers:\n\n1, 3": [1, 3],
    "The answer is:\n\n1\n3\n\nExplanation: 2 repeats 1": [1, 3],
    "1, 3\nHere are 8 candidates for a text.\n[1] In 2": [1, 3],
    "<think>1 or 2, maybe 4, all fine</think>\n2, 3": [2, 3],
    "All": ALL,
    "all of them.": ALL,
    "All 8 are well-formed.": ALL,
    '{"eligible": [1, 3], "reason": "clear"}': [1, 3],
}
NONE = ["none", "None.", "NONE\n", "Numbers: none", "None of them is a news item.", "[]", '{"numbers": []}']
NONE += ["none\n\nHere are 8 candidates for a text.\n[1] In 2004"]
UNREADABLE = [
    "",
    " \n\t\n",
    "the the the the the the",
    "They look good to me.",
    "I cannot help with that.",
    "No.",
    "N/A",
    "0",
    "12, 13",
    "1999",
    "The company was founded in 1999.",
    "On 2004-05-01 at 10:30 shares rose 3.5 or 8% to $5, of 1,200",
    "2 of them are fine",
    "8 candidates",
    "All but 3",
    "all except 2 and 4",
    "not all of them",
    "None of them say the same.",
    "none, 1, 3",
    "1, 2, none",
    "None but 3",
    "1 or 3",
    "1: yes, 2: no, 3: yes",
    "1. The text is good. 2. It is bad.",
    "1. Foo bar\n2. Baz",
    "Candidates 1 and 3 repeat each other.",
    "Texts 1, 3 and 5 are fine; 2 says the same as 1.",
    "Text 1 is well-formed. Text 3 is well-formed.",
    "2 repeats 1.\nTake 1 and 3 because they are clear.",
    "4-1",
    "1, 2, 3, ... 8",
    "1..4",
    "Q3 F16 x\u00b2",
    "9" * 5000,
    "<think>1, 2",
]


@pytest.mark.parametrize(("answer", "expected"), [*LISTS.items(), *PROSE.items()])
def test_answers_that_can_be_read(answer: str, expected: list[int]) -> None:
    assert parse_numbers(answer, 8) == expected


@pytest.mark.parametrize("answer", NONE)
def test_answers_that_say_none(answer: str) -> None:
    assert parse_numbers(answer, 8) == []


@pytest.mark.parametrize("answer", UNREADABLE)
def test_answers_that_cannot_be_read(answer: str) -> None:
    assert parse_numbers(answer, 8) is None


def test_both() -> None:
    assert parse_numbers("both", 2) == [1, 2]
    assert parse_numbers("Both.", 3) is None


FORMS: list[Callable[[list[int]], str]] = [
    lambda numbers: ", ".join(map(str, numbers)),
    lambda numbers: str(numbers),
    lambda numbers: " and ".join(map(str, numbers)) + ".",
    lambda numbers: "Numbers: " + ",".join(f"[{one}]" for one in numbers),
    lambda numbers: "\n".join(f"- {one}" for one in numbers),
    lambda numbers: f"The eligible texts are {', '.join(map(str, numbers))}.\n\nHere are 9 more",
]


@given(st.sets(st.integers(1, 16), min_size=1), st.sampled_from(FORMS), st.randoms())
def test_every_form_of_every_list_is_read(chosen: set[int], form: Callable[..., str], chance: random.Random) -> None:
    numbers = list(chosen)
    chance.shuffle(numbers)
    assert parse_numbers(form(numbers), 16) == sorted(chosen)


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("0123456789,.-: []\nandoeal"))), st.integers(1, 20))
def test_whatever_it_reads_is_a_choice(answer: str, count: int) -> None:
    read = parse_numbers(answer, count)
    assert read is None or (read == sorted(set(read)) and all(1 <= one <= count for one in read))


# --- by embeddings ------------------------------------------------------------------------------------


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100])
def test_clusters_are_as_many_as_asked_for_and_hold_each_text_once(count: int) -> None:
    points = spread(unit(np.random.default_rng(0).normal(size=(count, 5))))
    groups = clustered(points, 8, seed=0)
    assert len(groups) == -(-count // 8)
    assert sorted(np.concatenate(groups).tolist()) == list(range(count))
    again = clustered(points, 8, seed=0)
    assert all(np.array_equal(one, other) for one, other in zip(groups, again))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [np.ones((30, 4)) / 2, np.zeros((3, 4)), np.ones((2, 4)) / 2, np.ones((1, 4)) / 2])
def test_equal_points_are_one_cluster_of_duplicates(points: np.ndarray) -> None:
    assert len(clustered(spread(points), 8, seed=0)) == 1
    assert duplicates(spread(points), 0.95).tolist() == [False] + [True] * (len(points) - 1)
    assert not outliers(points, 0.5, 8).any()


def test_duplicates_against_all_pairs() -> None:
    """One text of each pair of near ones goes, and none without a near one that stays."""
    points = unit(np.random.default_rng(1).normal(size=(60, 4)))
    gone = duplicates(points, 0.8)
    near = points @ points.T > 0.8
    stays = np.flatnonzero(~gone)
    assert not any(near[a, b] for a, b in itertools.combinations(stays, 2))
    assert all(near[row, stays].any() for row in np.flatnonzero(gone))
    assert 0 < gone.sum() < 59


def test_outliers_against_a_slow_reference() -> None:
    points = unit(np.random.default_rng(2).normal(size=(50, 3)))
    means = [np.mean(sorted(np.linalg.norm(points - one, axis=1))[1:7]) for one in points]
    expected = sorted(range(50), key=lambda row: means[row])[-5:]
    assert np.flatnonzero(outliers(points, 0.1, 6)).tolist() == sorted(expected)
    assert outliers(points, 0.99, 6).sum() <= 25  # what lies as usual stays


def test_spread_tells_apart_what_lies_in_a_narrow_cone() -> None:
    narrow = unit(np.random.default_rng(3).normal(size=(100, 16)) + 100 * np.eye(16)[0])
    assert np.min(narrow @ narrow.T) > 0.99
    wide = spread(narrow)
    np.testing.assert_allclose(np.linalg.norm(wide, axis=1), 1, atol=1e-5)
    assert np.abs(np.median(wide @ wide.T)) < 0.1


def test_parts_hold_near_points() -> None:
    points = np.array([[0.1 * (row % 3), row] for row in (1, 12, 2, 11, 3, 10, 13)], dtype=np.float32)
    group = np.array([0, 1, 2, 3, 4, 5])
    assert [part.tolist() for part in parts(group, points, 3)] in ([[0, 2, 4], [1, 3, 5]], [[1, 3, 5], [0, 2, 4]])
    assert [part.tolist() for part in parts(group, points, 6)] == [group.tolist()]


# --- among real news ----------------------------------------------------------------------------------


class News:
    """Real texts with planted near duplicates and junk, and an untrained model's embeddings: a bag of words."""

    def __init__(self, count: int = 200, doubles: int = 20) -> None:
        chance = random.Random(0)
        rows = [row for row in csv.reader(NEWS.open(encoding="utf-8")) if len(row[0].split()) > 12]
        chance.shuffle(rows)
        real = [text for text, _ in rows[:count]]
        self.originals = chance.sample(range(count), doubles)
        words = [real[index].split() for index in self.originals]
        for row in words:
            row[chance.randrange(len(row))] = "also"
        symbols = "zq xv kw jj ## @@ 0x91 %% }{ ~~ |||".split()  # noqa: SIM905
        junk = [" ".join(chance.choices(symbols, k=15)) for _ in range(4)]
        junk += ["buy " * 20, "!!! ??? " * 8, "a a a a a a a a a a a a", "lorem ipsum dolor sit amet consectetur elit"]
        self.texts = [*real, *map(" ".join, words), *(text.strip() for text in junk)]
        self.real, self.doubles = count, list(range(count, count + doubles))
        self.junk = list(range(count + doubles, len(self.texts)))
        codes = np.array([index % len(LABELS) for index in range(len(self.texts))], dtype=np.int32)
        self.records = Records(codes, self.texts)
        tokenizer = train_tokenizer(real, 1000)
        torch.manual_seed(0)
        model = build_model(TinyConfig(arch="gpt2", steps=1, hidden=64, layers=1, context=256), tokenizer)
        self.embeddings = Embedder(model, tokenizer).embed(self.texts)


@pytest.fixture(scope="module")
def news() -> News:
    if not NEWS.exists():
        pytest.skip("AG News is not there")
    return News()


class Scripted(Engine):
    """Answers about the candidates of a prompt by a rule; ``room`` is the longest prompt, in characters."""

    name = "llm"

    def __init__(self, rule: Callable[[list[str]], Any], room: Optional[int] = None) -> None:
        self.rule = rule
        self.room = room
        self.calls = 0
        self.seen: list[list[str]] = []
        self.config: Any = None

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Any = lambda done, total: None,
    ) -> list[Completion]:
        assert prompts
        assert self.room is None or max(map(len, prompts)) <= self.room
        self.calls += 1
        self.config = config
        answers = []
        for prompt in prompts:
            texts = re.findall(r"^\[\d+\] (.*)$", prompt, re.MULTILINE)
            self.seen.append(texts)
            answer = self.rule(texts)
            answers.append(answer if isinstance(answer, Completion) else Completion(answer, True))
        step(len(prompts), len(prompts))
        return answers

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        return np.array([self.room is None or len(prompt) <= self.room for prompt in prompts], dtype=bool)

    def close(self) -> None:
        """Nothing to close."""


def careful(texts: list[str]) -> str:
    """What the LLM is asked to do, by rule."""
    chosen: list[int] = []
    for number, text in enumerate(texts, 1):
        words = set(text.split())
        ordinary = len([word for word in words if re.fullmatch(r"[A-Za-z]{2,}[.,]?", word)]) > 7
        earlier = [set(texts[one - 1].split()) for one in chosen]
        if ordinary and not any(len(words & other) > 0.8 * len(words) for other in earlier):
            chosen.append(number)
    return ", ".join(map(str, chosen)) or "none"


def select(
    news: News,
    engine: Engine,
    records: Optional[Records] = None,
    embeddings: Optional[np.ndarray] = None,
    **changes: Any,
) -> Filtered:
    records = news.records if records is None else records
    embeddings = news.embeddings if embeddings is None else embeddings
    return select_demonstrations(
        records,
        LABELS,
        embeddings[: len(records)],
        engine,
        Prompts(PromptsConfig()),
        FilterConfig(**changes),
        description="a news item",
        seed=7,
    )


def pairs_kept(news: News, found: Filtered) -> int:
    return sum(bool(found.kept[a] and found.kept[b]) for a, b in zip(news.originals, news.doubles))


def check_counts(news: News, found: Filtered) -> None:
    assert sum(found.dropped.values()) == int((~found.kept).sum())
    assert found.per_code.tolist() == np.bincount(news.records.codes[found.kept], minlength=4).tolist()


@pytest.mark.parametrize("cone", [0.0, 10.0])
def test_distance_finds_planted_duplicates_and_junk(news: News, cone: float) -> None:
    """Also where all similarities are above 0.95, as with language models."""
    engine = Scripted(careful)
    embeddings = unit(news.embeddings + cone * np.eye(news.embeddings.shape[1])[0])
    assert (np.quantile(embeddings @ embeddings.T, 0.01) > 0.95) == (cone > 0)
    found = select(news, engine, embeddings=embeddings, judge="distance", outlier_share=0.08)
    assert engine.calls == 0
    assert pairs_kept(news, found) <= 3
    assert found.kept[news.junk].sum() <= 1
    assert found.dropped["judged"] == 0
    assert found.dropped["duplicate"] <= 25  # hardly a real text is taken for one
    assert found.clusters == -(-len(news.texts) // 8)
    assert found.unread == 0
    check_counts(news, found)


def test_the_llm_chooses(news: News) -> None:
    engine = Scripted(careful)
    found = select(news, engine)
    assert engine.calls == 1
    assert engine.config.top_k == 1
    assert engine.config.max_new_tokens == FilterConfig().max_new_tokens
    assert sorted(itertools.chain(*engine.seen)) == sorted(" ".join(text.split()) for text in news.texts)
    assert max(map(len, engine.seen)) <= 16
    assert pairs_kept(news, found) <= 1  # of those that lie in one cluster none
    assert not found.kept[news.junk].any()
    assert found.kept[: news.real].sum() >= news.real - 25
    assert found.unread == 0
    assert found.dropped == {"judged": int((~found.kept).sum()), "duplicate": 0, "outlier": 0}
    check_counts(news, found)


def test_the_same_seed_gives_the_same_choice(news: News) -> None:
    first, second = (select(news, Scripted(careful)) for _ in range(2))
    assert np.array_equal(first.kept, second.kept)


def test_unreadable_answers_are_counted_and_distance_takes_over(news: News, caplog: pytest.LogCaptureFixture) -> None:
    every_third = itertools.cycle(["They look good to me.", careful, careful])

    def rule(texts: list[str]) -> str:
        answer = next(every_third)
        return answer if isinstance(answer, str) else answer(texts)

    engine = Scripted(rule)
    found = select(news, engine)
    assert found.clusters == len(engine.seen)
    assert found.unread == -(-found.clusters // 3)
    assert min(found.dropped.values()) > 0
    check_counts(news, found)
    assert f"{found.clusters} clusters" in caplog.text
    assert not any(text in caplog.text for text in news.texts)
    all_unread = select(news, Scripted(lambda texts: ""))
    assert all_unread.unread == all_unread.clusters
    assert all_unread.dropped["judged"] == 0


def test_an_llm_that_says_none_leaves_nothing(news: News, caplog: pytest.LogCaptureFixture) -> None:
    found = select(news, Scripted(lambda texts: "none"))
    assert not found.kept.any()
    assert found.unread == 0
    assert found.dropped["judged"] == len(news.texts)
    assert found.emptied == (0, 1, 2, 3)
    assert "4 of 4 labels have no text left" in caplog.text


def test_a_label_that_loses_all_its_texts_is_named(news: News) -> None:
    sports = {" ".join(text.split()) for code, text in zip(news.records.codes, news.texts) if code == 1}

    def rule(texts: list[str]) -> str:
        return str([number for number, text in enumerate(texts, 1) if text not in sports])

    found = select(news, Scripted(rule))
    assert found.emptied == (1,)
    assert found.per_code[1] == 0
    assert found.per_code[0] > 0


def test_clusters_that_do_not_fit_are_halved_and_texts_that_do_not_are_counted(news: News) -> None:
    lengths = sorted(len(" ".join(text.split())) for text in news.texts)
    overhead = len(Prompts(PromptsConfig()).judge("a news item", LABELS, ["", ""])) + 4
    room = lengths[-3] + overhead
    engine = Scripted(careful, room)
    found = select(news, engine)
    shown = list(itertools.chain(*engine.seen))
    assert found.too_long == len(news.texts) - len(shown)
    assert 0 < found.too_long <= 3
    assert found.clusters == len(engine.seen) + found.too_long
    assert found.unread == 0
    check_counts(news, found)
    nothing = Scripted(careful, 10)
    found = select(news, nothing)
    assert found.too_long == found.clusters == len(news.texts)
    assert not nothing.seen
    alone = select(news, nothing, judge="distance")
    assert np.array_equal(found.kept, alone.kept)  # near duplicates are found although no two texts stand together
    assert found.dropped["duplicate"] > 10


def test_a_model_in_this_process_is_asked(news: News) -> None:
    """An untrained one has nothing to say, so that distance chooses; it says the same again."""
    records = news.records.first(40)
    tokenizer = train_tokenizer(news.texts, 1000)
    torch.manual_seed(0)
    model = build_model(TinyConfig(arch="gpt2", steps=1, hidden=32, layers=1, context=512), tokenizer)
    seen: list[str] = []
    first, second = (
        select_demonstrations(
            records,
            LABELS,
            news.embeddings[:40],
            LocalEngine(model, tokenizer, "llm"),
            Prompts(PromptsConfig()),
            FilterConfig(max_new_tokens=8),
            description="a news item",
            seed=0,
            heartbeat=seen.append,
        )
        for _ in range(2)
    )
    assert np.array_equal(first.kept, second.kept)
    assert first.unread + first.too_long >= first.clusters - 1
    assert first.clusters > 5  # some had to be split
    assert seen[0] == "choosing demonstrations"
    assert any(re.search(r"\d+ of \d+", doing) for doing in seen)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("judge", ["llm", "distance"])
def test_fewer_texts_than_a_cluster(news: News, count: int, judge: str) -> None:
    found = select(news, Scripted(careful), news.records.first(count), judge=judge)
    assert found.kept.tolist() == [True] * count
    assert found.clusters == 1


def test_large_clusters_are_shown_in_parts() -> None:
    """Two heaps of equal points are two clusters of 50."""
    records = Records(np.zeros(100, np.int32), [f"text {row}" for row in range(100)])
    heaps = unit(np.array([[1.0, 0.02 if row % 2 else -0.02, 0.0] for row in range(100)]))
    engine = Scripted(lambda texts: "all")
    found = select_demonstrations(
        records, LABELS, heaps, engine, Prompts(PromptsConfig()), FilterConfig(), description="d", seed=0
    )
    assert found.kept.all()
    assert sorted(map(len, engine.seen)) == [12, 12, 12, 12, 13, 13, 13, 13]
    assert sorted(itertools.chain(*engine.seen)) == sorted(records.texts)


def test_a_refusal_is_no_answer(news: News) -> None:
    """It is not `none`: the cluster's texts are not lost."""
    refused = select(news, Scripted(lambda texts: Completion("", True, refused=True)))
    distance = select(news, Scripted(careful), judge="distance")
    assert refused.unread == refused.clusters > 0
    assert refused.kept.tolist() == distance.kept.tolist()
    assert refused.kept.any()


@pytest.mark.parametrize(
    ("answer", "finished", "kept"),
    [("1, 12", True, [0, 11]), ("1, 1", False, [0]), ("2, 1", False, [1]), ("1, 9", False, [0, 8]), ("1", False, None)],
)
def test_a_number_that_may_be_cut_does_not_count(answer: str, finished: bool, kept: Optional[list[int]]) -> None:
    records = Records(np.zeros(12, np.int32), [f"text {row}" for row in range(12)])
    found = select_demonstrations(
        records,
        LABELS,
        unit(np.random.default_rng(0).normal(size=(12, 3))),
        Scripted(lambda texts: Completion(answer, finished)),
        Prompts(PromptsConfig()),
        FilterConfig(samples_per_cluster=12),
        description="d",
        seed=0,
    )
    assert found.unread == (kept is None)
    assert kept is None or np.flatnonzero(found.kept).tolist() == kept


def test_no_texts_or_other_embeddings_are_an_error(news: News) -> None:
    for records in (news.records.first(0), news.records):
        with pytest.raises(ExtensionError, match="E325"):
            select_demonstrations(
                records,
                LABELS,
                news.embeddings[:3],
                Scripted(careful),
                Prompts(PromptsConfig()),
                FilterConfig(),
                description="d",
                seed=0,
            )
