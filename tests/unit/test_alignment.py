"""Spans, pairs and alignment, to the byte, on all ordered pairs of four real tokenizers."""

from __future__ import annotations

import csv
import unicodedata
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.alignment import align_starts, align_starts_batch, map_top_k
from fate_llm_ext.models.encoding import (
    SpanTokenizer,
    encode_pair,
    encode_pairs,
    token_spans,
)
from fate_llm_ext.models.tokenizers import load_tokenizer

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
FAMILIES = ("gpt2", "opt", "llama2", "neox")
PAIRS = list(permutations(FAMILIES, 2))
TEXTS = [
    "Hello world",
    " leading space",
    "  two leading",
    "two  spaces,   three    four",
    "lines\n\nand\ttabs \r\n",
    "emoji 😀👍🏽 x 😀",
    "😀",
    "日本語 と 漢字 𠮷 猫",
    "naïve café ﬁ",
    "trailing  ",
    " ",
    "a",
    "",
]
DECOMPOSED = ["cafe\u0301 e\u0301x", "e\u0301", "\u212bngstrom A\u030a", "x\u0340y 한국 \u1112\u1161\u11ab z"]
CONTROL = ["a</s> b<|endoftext|> c 猫", "<s>x</s>", "<|endoftext|>", "<|padding|>  y</s>"]


@cache
def load(family: str) -> tuple[PreTrainedTokenizerFast, SpanTokenizer]:
    tokenizer = load_tokenizer(ASSETS / "tokenizers" / family)
    return tokenizer, SpanTokenizer(tokenizer)


@cache
def words_of(family: str) -> list[bytes]:
    return load(family)[1].vocabulary.tokens()


@cache
def news() -> tuple[str, ...]:
    with (ASSETS / "data" / "ag_news" / "train_first2000.csv").open(encoding="utf-8") as file:
        return tuple(max(row, key=len) for _, row in zip(range(60), csv.reader(file)))


def walk(family: str, text: str) -> tuple[list[int], list[int], list[int]]:
    """Token by token through the text: each token must spell what comes next."""
    tokenizer, words, raw = load(family)[0], words_of(family), text.encode()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    at = -1 if family == "llama2" and text else 0
    starts, ends = [], []
    for index in ids:
        word = words[index]
        assert word == (b" " + raw)[at + 1 : at + 1 + len(word)]
        starts.append(at)
        at += len(word)
        ends.append(at)
    assert at == len(raw)
    return ids, starts, ends


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_against_a_walk(family: str) -> None:
    texts = [*TEXTS, *news()]
    for text, spans in zip(texts, load(family)[1].spans(texts)):
        ids, starts, ends = walk(family, text)
        assert (spans.ids.tolist(), spans.starts.tolist(), spans.ends.tolist()) == (ids, starts, ends), text
        alone = token_spans(load(family)[1], text)
        assert alone.starts.tolist() == starts
        assert alone.ids.dtype == alone.starts.dtype == alone.ends.dtype == np.int32


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=30))
def test_spans_of_any_text(family: str, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    added = load(family)[0].backend_tokenizer.get_added_tokens_decoder().values()
    assume(not any(token.special and token.content in text for token in added))  # tested below
    spans = token_spans(load(family)[1], text)
    ids, starts, ends = walk(family, text)
    assert (spans.ids.tolist(), spans.starts.tolist(), spans.ends.tolist()) == (ids, starts, ends)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*DECOMPOSED, *CONTROL, "a\u2581b \u2581", "cafe\u0301 </s> 猫 e\u0301<|endoftext|>"])
def test_spans_where_the_tokens_do_not_spell_the_text(family: str, text: str) -> None:
    tokenizer, spanner = load(family)
    spans, raw, words = token_spans(spanner, text), text.encode(), words_of(family)
    assert spans.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert spans.ends[-1] == len(raw)
    assert spans.starts[0] == (-1 if family == "llama2" and words[spans.ids[0]] else 0)
    assert (spans.starts[1:] == spans.ends[:-1]).all()
    assert (spans.starts <= spans.ends).all()
    for index, start, end in zip(spans.ids.tolist(), spans.starts.tolist(), spans.ends.tolist()):
        piece = raw[max(start, 0) : end]
        same = words[index] in (piece, b" " + piece)
        special = not words[index] and piece.decode() == tokenizer.convert_ids_to_tokens(index)
        marker = family == "llama2" and "\u2581" in text
        composed = family == "neox" and text != unicodedata.normalize("NFC", text)
        assert same or special or marker or composed, (piece, words[index])


def test_composed_characters() -> None:
    """neox composes e + U+0301 (3 bytes) to é (2 bytes): what follows has its place in the text as it was given."""
    spans = token_spans(load("neox")[1], "cafe\u0301 e\u0301x")
    assert spans.starts.tolist() == [0, 1, 3, 6, 10]
    assert spans.ends.tolist() == [1, 3, 6, 10, 11]


def test_dummy_prefix_and_byte_fallback() -> None:
    spans = token_spans(load("llama2")[1], "😀a")
    assert spans.starts.tolist() == [-1, 0, 1, 2, 3, 4]
    assert spans.ends.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_and_eos_have_no_length(family: str) -> None:
    tokenizer, spanner = load(family)
    for text in ("Hi there", ""):
        spans = token_spans(tokenizer, text, bos=True, eos=True)
        inner = token_spans(spanner, text)
        assert spans.ids.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert spans.starts[-1] == spans.ends[-1] == len(text)
        skip = len(spanner.prefix)
        assert spans.starts[skip:-1].tolist() == inner.starts.tolist()
        assert spans.starts[:skip].tolist() == spans.ends[:skip].tolist()
    assert len(spanner.prefix) == (family in ("llama2", "opt"))


def test_callers_settings_do_not_matter() -> None:
    """Truncation and padding set by an earlier call stay in the tokenizer's backend."""
    tokenizer = load_tokenizer(ASSETS / "tokenizers" / "gpt2")
    tokenizer(["a b c d e", "a"], truncation=True, max_length=2, padding="max_length")
    assert len(token_spans(tokenizer, "a b c d e").ids) == 5


# --- pairs -------------------------------------------------------------------------------------------

SAMPLES = [
    ("Classify: oil prices rise.\nTopic:", " Business"),
    ("Classify: oil prices rise.\nTopic: ", "Business"),
    ("Question: 猫?\n", "日本語 😀"),
    ("glue", "d together"),
    ("", "alone"),
    ("", " spaced"),
    ("prompt only", ""),
    ("", ""),
    ("e", "\u0301tude"),
    ("ends in double  ", "  starts in double"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(family: str) -> None:
    tokenizer, spanner = load(family)
    prompts, answers = zip(*SAMPLES)
    pairs = encode_pairs(spanner, prompts, answers, 64)
    for prompt, answer, pair in zip(prompts, answers, pairs):
        spans, boundary = token_spans(spanner, prompt + answer), len(prompt.encode())
        assert pair.ids.tolist() == [*spanner.prefix.tolist(), *spans.ids.tolist(), tokenizer.eos_token_id]
        mine = [end > boundary for end in spans.ends.tolist()]
        assert pair.answer.tolist() == [False] * len(spanner.prefix) + mine + [True]
        starts = [start - boundary for start, keep in zip(spans.starts.tolist(), mine) if keep]
        assert pair.starts.tolist() == [*starts, len(answer.encode())]
        assert (pair.ids.dtype, pair.answer.dtype, pair.starts.dtype) == (np.int32, np.bool_, np.int32)
        single = encode_pair(spanner, prompt, answer, 64)
        assert single.ids.tolist() == pair.ids.tolist()


def test_straddling_token_belongs_to_the_answer() -> None:
    pair = encode_pair(load("gpt2")[0], "Topic: ", "Business", 64)
    assert load("gpt2")[0].convert_ids_to_tokens(pair.ids.tolist()) == ["Topic", ":", "ĠBusiness", "<|endoftext|>"]
    assert pair.answer.tolist() == [False, False, True, True]
    assert pair.starts.tolist() == [-1, 8]


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation(family: str) -> None:
    """Reference: drop tokens one by one, by the rules."""
    spanner = load(family)[1]
    prompt, answer = "The quick brown fox jumps over", " the lazy dog"
    whole = encode_pair(spanner, prompt, answer, 1000)
    n_prefix, n_answer = len(spanner.prefix), int(whole.answer.sum())
    for limit in range(1, len(whole.ids) + 2):
        ids, mask = whole.ids.tolist(), whole.answer.tolist()
        while len(ids) > limit:
            drop = n_prefix if not mask[n_prefix] else (0 if not mask[0] else len(ids) - 1)
            del ids[drop], mask[drop]
        pair = encode_pair(spanner, prompt, answer, limit)
        assert pair.ids.tolist() == ids
        assert pair.answer.tolist() == mask
        assert pair.starts.tolist() == whole.starts.tolist()[: min(limit, n_answer)]
        assert (pair.ids[-1] == spanner.eos_id) == (limit >= n_answer)


def test_pairs_need_equal_counts() -> None:
    with pytest.raises(ExtensionError) as caught:
        encode_pairs(load("gpt2")[1], ["a"], [], 8)
    assert caught.value.code == "E325"


# --- alignment ---------------------------------------------------------------------------------------


def loop(source: list[int], target: list[int]) -> list[int]:
    result = []
    for at, start in enumerate(target):
        same = [index for index, other in enumerate(source) if other == start]
        last = at + 1 == len(target) or target[at + 1] != start
        result.append(same[-1] if same and last else -1)
    return result


STARTS = st.lists(st.integers(-3, 12), max_size=12).map(sorted)


@given(STARTS, STARTS)
def test_align_starts(source: list[int], target: list[int]) -> None:
    found = align_starts(np.array(source, np.int32), np.array(target, np.int32))
    assert found.dtype == np.int32
    assert found.tolist() == loop(source, target)


@given(st.lists(st.tuples(STARTS, STARTS), max_size=6))
def test_align_many(samples: list[tuple[list[int], list[int]]]) -> None:
    edges = [np.cumsum([0, *(len(sample[side]) for sample in samples)]) for side in (0, 1)]
    flat = [np.array([start for sample in samples for start in sample[side]], np.int32) for side in (0, 1)]
    found = align_starts_batch(flat[0], edges[0], flat[1], edges[1])
    expected: list[int] = []
    for base, (source, target) in zip(edges[0].tolist(), samples):
        expected += [index + base if index >= 0 else -1 for index in loop(source, target)]
    assert found.tolist() == expected


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_aligned_positions_have_consumed_the_same_text(source: str, target: str) -> None:
    (_, have), (_, want) = load(source), load(target)
    aligned = total = 0
    for text in [*TEXTS, *DECOMPOSED, *news()[:12]]:
        left, right = token_spans(have, text, eos=True), token_spans(want, text, eos=True)
        found = align_starts(left.starts, right.starts)
        prefix: list[dict[int, bytes]] = [{}, {}]  # what each side has consumed before each position
        for side, (family, spans) in enumerate(((source, left), (target, right))):
            words = words_of(family)
            for at in range(len(spans.ids)):
                prefix[side][at] = b"".join(words[index] for index in spans.ids[:at])
                if spans.starts[0] == -1 and at:
                    prefix[side][at] = prefix[side][at][1:]
        for at, index in enumerate(found.tolist()):
            if index >= 0:
                consumed = [prefix[0][index], prefix[1][at]]
                assert (
                    len({unicodedata.normalize("NFC", piece.decode("latin-1")) for piece in consumed}) == 1
                    or len({unicodedata.normalize("NFC", piece.decode("utf-8", "replace")) for piece in consumed}) == 1
                ), (text, consumed)
        assert found[-1] == len(left.ids) - 1, "the end aligns with the end"
        aligned, total = aligned + int((found >= 0).sum()), total + len(found)
    assert aligned / total > 0.65


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_answers_align_at_their_end_tokens(source: str, target: str) -> None:
    for prompt, answer in SAMPLES:
        left, right = (encode_pair(load(family)[1], prompt, answer, 64) for family in (source, target))
        found = align_starts(left.starts, right.starts)
        assert found[-1] == len(left.starts) - 1
        assert found.tolist() == loop(left.starts.tolist(), right.starts.tolist())


def test_alignment_input_is_checked() -> None:
    with pytest.raises(ExtensionError) as caught:
        align_starts_batch(np.array([0, 1, 5, 4]), np.array([0, 2, 4]), np.array([0, 0]), np.array([0, 1, 2]))
    assert caught.value.code == "E324"
    assert caught.value.facts == {"sample": 1, "before": 5, "after": 4}
    with pytest.raises(ExtensionError) as caught:
        align_starts_batch(np.array([0]), np.array([0, 1]), np.array([0]), np.array([0, 1, 1]))
    assert caught.value.code == "E325"


# --- top-k mapping -----------------------------------------------------------------------------------


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    rows, width, size = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(6, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.stack([rng.permutation(size + 2)[:width] for _ in range(rows)]) if rows else np.zeros((0, width), int)
    probs = -np.sort(-rng.dirichlet(np.ones(width + 1), rows)[:, :width], axis=1)
    ids[rng.random(ids.shape) < 0.2] = -1
    return ids, np.log(probs), rng.integers(-1, 4, size).astype(np.int32)


@settings(max_examples=200)
@given(distributions(), st.sampled_from(["sum", "first"]))
def test_map_top_k(case: tuple[Any, Any, Any], merge: Any) -> None:
    ids, log_probs, table = case
    new_ids, new_log_probs, tail = map_top_k(ids, log_probs, table, merge=merge)
    assert new_ids.shape == ids.shape == new_log_probs.shape
    for row in range(len(ids)):
        expected: dict[int, float] = {}
        for index, log_prob in zip(ids[row].tolist(), log_probs[row].tolist()):
            mapped = int(table[index]) if 0 <= index < len(table) else -1
            if mapped >= 0 and (merge == "sum" or mapped not in expected):
                expected[mapped] = expected.get(mapped, 0.0) + float(np.exp(log_prob))
        kept = new_ids[row] >= 0
        got = dict(zip(new_ids[row][kept].tolist(), np.exp(new_log_probs[row][kept]).tolist()))
        assert got == pytest.approx(expected, rel=1e-5)
        assert tail[row] == pytest.approx(1.0 - sum(expected.values()), abs=1e-5)
        assert (np.diff(new_log_probs[row][kept]) <= 0).all()
        assert not kept[len(got) :].any(), "padding comes last"
        assert (new_log_probs[row][~kept] == -np.inf).all()


def test_map_top_k_survives_float16_underflow() -> None:
    ids, log_probs = np.array([[0, 1, 2]]), np.array([[0.0, -65504.0, -65504.0]], np.float16)
    new_ids, new_log_probs, tail = map_top_k(ids, log_probs, np.array([1, 0, 0], np.int32))
    assert new_ids.tolist() == [[1, 0, -1]]
    assert new_log_probs[0, 1] == pytest.approx(-65504 + np.log(2), rel=1e-3)
    assert tail.tolist() == [0.0]
