"""From a teacher's messages to a student's targets, between real tokenizers, against a slow reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.answering import Answerer
from fate_llm_ext.algo.fedmkt.protocol import Signals
from fate_llm_ext.algo.fedmkt.public import PublicSet
from fate_llm_ext.algo.fedmkt.server import take_rows
from fate_llm_ext.algo.fedmkt.teaching import Translator
from fate_llm_ext.config import EvaluationConfig, TaskConfig
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import decode, encode
from fate_llm_ext.models.tokenizers import load_tokenizer

TOKENIZERS = Path(__file__).parents[3] / "shared" / "assets" / "tokenizers"
# The table of each pair is tested with the alignment; here each family teaches and learns once or twice.
PAIRS = [
    ("gpt2", "gpt2"),
    ("llama2", "gpt2"),
    ("llama2", "neox"),
    ("gpt2", "llama2"),
    ("neox", "opt"),
    ("opt", "llama2"),
]
pytestmark = pytest.mark.skipif(not TOKENIZERS.exists(), reason="the real tokenizers are not on this machine")
LABELLED = [
    Example("Which section? Shares fell 3 % in Zürich. Section:", " Business", None),
    Example("Where does the Kilimanjaro lie? Answer:", " In Tanzania, 5,895 m above the sea - naïvely measured.", None),
    Example("Say nothing:", "", None),
]
UNLABELLED = [Example("Translate 猫:", None, None), Example("Antidisestablishmentarianism? Answer:", None, None)]
ANSWERS = [" cat 😀 (a feline)", " yes, unquestionably"]
K = 4


@cache
def answerer(family: str, max_length: int = 64) -> Answerer:
    task = TaskConfig(prompt="{{ x }}", answer="{{ y }}", max_length=max_length)
    return Answerer(None, load_tokenizer(TOKENIZERS / family), task, EvaluationConfig())


def student(family: str, alignment: str = "span") -> Any:
    public = PublicSet(LABELLED, UNLABELLED, np.array([1]), ())
    config = SimpleNamespace(distill=SimpleNamespace(alignment=alignment))
    return SimpleNamespace(config=config, public=public, answerer=answerer(family))


@cache
def translator(teacher: str, learner: str) -> Translator:
    return Translator(student(learner), answerer(teacher).vocabulary, "host 10000")


@cache
def spelling(family: str) -> list[bytes]:
    return answerer(family).vocabulary.tokens()


def message(teacher: str, student_family: str, rows: tuple[int, ...] = (0, 1, 2, 3, 4), seed: int = 0) -> Signals:
    """What a teacher would send: at each of its answer positions K tokens that both vocabularies spell alike."""
    draw = np.random.default_rng(seed)
    common = sorted(set(spelling(teacher)) & set(spelling(student_family)) - {b""})
    known = {word: i for i, word in enumerate(spelling(teacher))}
    examples = [(*LABELLED, *UNLABELLED)[row] for row in rows]
    answer = np.array([row - 3 if row >= 3 else -1 for row in rows])
    pairs = answerer(teacher).encode(
        examples, [ANSWERS[a] if a >= 0 else e.answer or "" for a, e in zip(answer, examples)]
    )
    total = sum(len(pair.starts) for pair in pairs)
    words = [draw.choice(len(common), size=K, replace=False) for _ in range(total)]
    probabilities = draw.dirichlet(np.ones(K + 1), size=total)[:, :K]
    log_probs = np.log(probabilities).astype(np.float16).clip(-60_000, 0)
    signals = Signals(
        answers=ANSWERS,
        rows=np.array(rows),
        answer=answer,
        tokens=np.array([len(pair.starts) for pair in pairs]),
        starts=np.concatenate([pair.starts for pair in pairs]),
        ids=np.array([[known[common[w]] for w in position] for position in words]),
        log_probs=log_probs,
    )
    return decode(encode(signals), Signals, "host 10000")


@pytest.mark.parametrize(("teacher", "learner"), PAIRS)
def test_each_distribution_arrives_at_its_place(teacher: str, learner: str) -> None:
    """At the student's token that starts at the same byte, with the teacher's mass on the tokens of the same bytes."""
    signals = message(teacher, learner)
    teaching = translator(teacher, learner)(signals)
    teacher_words, learner_words = spelling(teacher), spelling(learner)
    at, found, positions = 0, 0, 0
    for number, row in enumerate(signals.rows.tolist()):
        count = int(signals.tokens[number])
        sent = dict(zip(signals.starts[at : at + count].tolist(), range(at, at + count)))
        at += count
        text = ANSWERS[row - 3] if row >= 3 else LABELLED[row].answer or ""
        (pair,) = answerer(learner).encode([(*LABELLED, *UNLABELLED)[row]], [text])
        expected = {
            slot: sent[start]
            for slot, start in enumerate(pair.starts.tolist())
            if start in sent and start not in pair.starts[slot + 1 :]
        }
        positions += len(pair.starts)
        found += len(expected)
        got_pair, targets = teaching.taught[row]
        np.testing.assert_array_equal(got_pair.ids, pair.ids)
        assert targets.slots.tolist() == sorted(expected)
        for place, slot in enumerate(targets.slots.tolist()):
            source = expected[slot]
            mass = {learner_words[i]: np.exp(p) for i, p in zip(targets.ids[place], targets.log_probs[place]) if i >= 0}
            wanted = {
                teacher_words[i]: np.exp(float(p)) for i, p in zip(signals.ids[source], signals.log_probs[source])
            }
            assert mass == pytest.approx(wanted, rel=1e-4)
    assert teaching.aligned_share == pytest.approx(found / positions)
    assert found > positions / 2, "most positions are taught"


def test_the_first_token_of_the_answer_is_taught_and_the_end_too() -> None:
    """What the paper's code misses by one position."""
    signals = message("llama2", "gpt2", (0,))
    _, targets = translator("llama2", "gpt2")(signals).taught[0]
    (pair,) = answerer("gpt2").encode(LABELLED[:1], [" Business"])
    assert pair.starts.tolist() == [0, 9]
    assert targets.slots.tolist() == [0, 1]


def test_the_end_token_is_translated() -> None:
    signals = message("llama2", "neox", (0,))
    ids = signals.ids.copy()
    ids[-1, 0] = answerer("llama2").vocabulary.eos_id
    changed = Signals(**{**vars(signals), "ids": ids})
    _, targets = translator("llama2", "neox")(changed).taught[0]
    assert answerer("neox").vocabulary.eos_id in targets.ids[-1]


def test_mass_without_counterpart_becomes_tail() -> None:
    """Special tokens of the teacher mean nothing to the student; what is left is never scaled up."""
    signals = message("llama2", "gpt2", (0,))
    ids = signals.ids.copy()
    ids[:, 1] = 0  # <unk>
    changed = Signals(**{**vars(signals), "ids": ids})
    _, targets = translator("llama2", "gpt2")(changed).taught[0]
    for place in range(len(targets.slots)):
        kept = np.exp(np.delete(signals.log_probs[place].astype(np.float64), 1)).sum()
        assert np.exp(targets.log_probs[place][targets.ids[place] >= 0]).sum() == pytest.approx(kept, rel=1e-3)


def test_a_row_nobody_can_use_is_left_out() -> None:
    signals = message("llama2", "gpt2", (0, 1))
    ids = signals.ids.copy()
    ids[: signals.tokens[0]] = 0
    teaching = translator("llama2", "gpt2")(Signals(**{**vars(signals), "ids": ids}))
    assert sorted(teaching.taught) == [1]


def test_no_rows() -> None:
    signals = take_rows(message("llama2", "gpt2"), np.zeros(5, dtype=bool))
    teaching = translator("llama2", "gpt2")(decode(encode(signals), Signals, "x"))
    assert (teaching.taught, teaching.aligned_share) == ({}, 0.0)


def test_some_rows_of_a_message() -> None:
    """The arbiter computes its signals once and gives each client its own rows."""
    whole = message("llama2", "neox")
    part = translator("llama2", "neox")(take_rows(whole, np.array([False, True, False, True, False]))).taught
    everything = translator("llama2", "neox")(whole).taught
    assert sorted(part) == [1, 3]
    for row, (pair, targets) in part.items():
        np.testing.assert_array_equal(pair.ids, everything[row][0].ids)
        np.testing.assert_array_equal(targets.ids, everything[row][1].ids)
        np.testing.assert_array_equal(targets.log_probs, everything[row][1].log_probs)


# --- what a peer may not say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "index", "value", "words"),
    [
        ("ids", (0, 0), 32_000, "token id 32000 of 32000"),
        ("rows", 0, 5, "public row 5 of 5"),
        ("answer", 3, -1, "an unlabelled row without an answer"),
        ("answer", 0, 1, "a labelled row with an answer of its own"),
        ("rows", 1, 0, "a public row twice"),
    ],
)
def test_out_of_range(field: str, index: Any, value: int, words: str) -> None:
    signals = message("llama2", "gpt2")
    array = getattr(signals, field).astype(np.int64).copy()
    array[index] = value
    changed = decode(encode(Signals(**{**vars(signals), field: array})), Signals, "host 10000")
    with pytest.raises(ExtensionError) as caught:
        translator("llama2", "gpt2")(changed)
    assert caught.value.code == "E301"
    assert "host 10000 sent an invalid 'signals' message" in str(caught.value)
    assert words in str(caught.value)


def test_starts_that_decrease() -> None:
    signals = message("llama2", "gpt2")
    starts = signals.starts.copy()
    starts[:2] = (5, 0)
    with pytest.raises(
        ExtensionError, match="E301 host 10000 sent an invalid 'signals' message: Token starts must not"
    ):
        translator("llama2", "gpt2")(Signals(**{**vars(signals), "starts": starts}))
