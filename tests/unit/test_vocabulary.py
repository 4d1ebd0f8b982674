"""Vocabulary maps, against slow references, on all ordered pairs of four real tokenizers."""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.backends import plain_backend
from fate_llm_ext.models.tokenizers import load_tokenizer
from fate_llm_ext.models.vocabulary import SPECIAL, Vocabulary, map_vocabulary, read_vocabulary

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
FAMILIES = ("gpt2", "opt", "llama2", "neox")
PAIRS = list(permutations(FAMILIES, 2))


@cache
def load(family: str) -> tuple[PreTrainedTokenizerFast, Vocabulary]:
    tokenizer = load_tokenizer(ASSETS / "tokenizers" / family)
    return tokenizer, read_vocabulary(tokenizer)


@cache
def span_map(source: str, target: str) -> Any:
    return map_vocabulary(load(source)[1], load(target)[1], load(target)[0], "span")


def tiny_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@cache
def letters() -> dict[str, int]:
    """GPT-2's byte alphabet, as observed from the library."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found: dict[str, int] = {}
    for code in [*range(0x800), *range(0x800, 0x10000, 0x40), *range(0x10000, 0x110000, 0x1000)]:
        if 0xD800 <= code < 0xE000:
            continue
        spelt = "".join(piece for piece, _ in splitter.pre_tokenize_str(chr(code)))
        found.update(zip(spelt, chr(code).encode()))
    return found


def bytes_of(tokenizer: PreTrainedTokenizerFast, index: int) -> bytes:
    token = tokenizer.convert_ids_to_tokens(index)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    if index in added:
        return b"" if added[index].special else token.encode()
    if len(tokenizer) == 32000:  # llama2
        byte = re.fullmatch("<0x(..)>", token)
        return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    return bytes(letters().get(letter, 0) for letter in token) if set(token) <= set(letters()) else token.encode()


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_every_token(family: str) -> None:
    tokenizer, vocabulary = load(family)
    assert len(letters()) == 256 - 13, "all bytes that occur in UTF-8"
    words = vocabulary.tokens()
    for index in range(0, len(vocabulary), 31):
        token = tokenizer.convert_ids_to_tokens(index)
        if family == "llama2" or set(token) <= set(letters()):
            assert words[index] == bytes_of(tokenizer, index), (index, token)


@pytest.mark.parametrize("family", FAMILIES)
def test_concatenated_bytes_spell_the_text(family: str) -> None:
    tokenizer, vocabulary = load(family)
    words = vocabulary.tokens()
    for text in ("Hello  world 😀猫\n\tnaïve", "a", "    indented = 1"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelt = b"".join(words[index] for index in ids)
        assert spelt == (b" " if family == "llama2" else b"") + text.encode()


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_empty_and_marked(family: str) -> None:
    tokenizer, vocabulary = load(family)
    for index in tokenizer.all_special_ids:
        assert vocabulary.kind[index] == SPECIAL
        assert vocabulary.lengths[index] == 0
    assert vocabulary.eos_id == tokenizer.eos_token_id
    assert np.count_nonzero(vocabulary.lengths == 0) == np.count_nonzero(vocabulary.kind == SPECIAL)


def test_round_trip_as_arrays() -> None:
    vocabulary = load("llama2")[1]
    arrays = {name: array.copy() for name, array in vocabulary.to_arrays().items()}
    again = Vocabulary.from_arrays(arrays)
    assert again.tokens() == vocabulary.tokens()
    assert again.fingerprint == vocabulary.fingerprint
    assert len({load(family)[1].fingerprint for family in FAMILIES}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offsets", np.array([0, 5], np.int64)),
        ("blob", np.zeros(3, np.uint8)),
        ("blob", np.zeros(3, np.float32)),
        ("eos_id", np.array([99_999_999])),
        ("kind", None),
    ],
)
def test_malformed_arrays_are_refused(field: str, value: Any) -> None:
    arrays = load("llama2")[1].to_arrays()
    arrays[field] = value
    with pytest.raises(ExtensionError) as caught:
        Vocabulary.from_arrays(arrays)
    assert caught.value.code == "E320"


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_span_map(source: str, target: str) -> None:
    """Reference: exact bytes; else the first token the target writes for these bytes behind other text."""
    (_, have), (tokenizer, want) = load(source), load(target)
    table, source_words, target_words = span_map(source, target), have.tokens(), want.tokens()
    assert table.dtype == np.int32
    assert table.shape == (len(have),)
    assert table[have.eos_id] == want.eos_id
    for index in np.flatnonzero(have.kind == SPECIAL):
        assert table[index] == (want.eos_id if index == have.eos_id else -1)
    known = set(target_words)
    rng = np.random.default_rng(0)
    missing = [i for i, word in enumerate(source_words) if word and word not in known]
    exact = [i for i, word in enumerate(source_words) if word in known and word]
    for index in exact:
        assert target_words[table[index]] == source_words[index]
    for index in rng.permutation(missing)[:60]:
        word = source_words[index]
        try:
            text = word.decode()
        except UnicodeDecodeError:
            if table[index] >= 0:
                assert word.startswith(target_words[table[index]])
            continue
        if "</s>" in text or "<|" in text or "<s>" in text or (target == "neox" and not text.isascii()):
            continue
        anchor = "\u4e00" if target == "llama2" else ""  # joins nothing that follows
        ids = tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
        skip = len(tokenizer(anchor, add_special_tokens=False)["input_ids"])
        assert table[index] == ids[skip], (word, target_words[table[index]])


def test_span_map_takes_no_dummy_prefix() -> None:
    """gpt2's "ickson" stands inside a word: its first llama2 piece must not begin with a space."""
    gpt2, llama2 = load("gpt2"), load("llama2")
    index = gpt2[0].convert_tokens_to_ids("ickson")
    assert llama2[0].convert_ids_to_tokens(int(span_map("gpt2", "llama2")[index])) == "ick"
    backend = plain_backend(llama2[0], dummy_prefix=False)
    assert backend.encode("ickson", add_special_tokens=False).tokens[0] == "ick"


def test_byte_tokens() -> None:
    gpt2, llama2 = load("gpt2")[0], load("llama2")[0]
    forth, back = span_map("gpt2", "llama2"), span_map("llama2", "gpt2")
    newline = gpt2.convert_tokens_to_ids("Ċ")
    assert llama2.convert_ids_to_tokens(int(forth[newline])) == "<0x0A>"
    assert back[llama2.convert_tokens_to_ids("<0x0A>")] == newline
    assert gpt2.convert_ids_to_tokens(int(back[llama2.convert_tokens_to_ids("<0xF0>")])) == "ð"
    assert llama2.convert_ids_to_tokens(int(forth[gpt2.convert_tokens_to_ids("A")])) == "A", "not <0x41>"
    emoji = gpt2("😀")["input_ids"][0]
    assert llama2.convert_ids_to_tokens(int(forth[emoji])) == "<0xF0>"


def test_added_tokens_win_over_equal_bytes() -> None:
    neox = load("neox")[0]
    spaces = neox("a   b")["input_ids"][1]
    assert neox.convert_ids_to_tokens(spaces) == "   "
    assert neox.convert_tokens_to_ids("ĠĠĠ") != spaces
    assert span_map("llama2", "neox")[load("llama2")[0].convert_tokens_to_ids("▁▁▁")] == spaces


def test_same_vocabulary_maps_to_itself() -> None:
    tokenizer, vocabulary = load("gpt2")
    for method in ("span", "min_ed"):
        assert (map_vocabulary(vocabulary, vocabulary, tokenizer, method) == np.arange(len(vocabulary))).all()  # type: ignore[arg-type]


def test_wrong_arguments() -> None:
    with pytest.raises(ExtensionError) as caught:
        map_vocabulary(load("gpt2")[1], load("gpt2")[1], load("llama2")[0])
    assert caught.value.code == "E321"
    with pytest.raises(ExtensionError) as caught:
        map_vocabulary(load("gpt2")[1], load("gpt2")[1], load("gpt2")[0], "dtw")  # type: ignore[arg-type]
    assert caught.value.code == "E322"


# --- minimum edit distance ---------------------------------------------------------------------------


def distance(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def nearest(word: bytes, candidates: list[str]) -> str:
    text = word.decode("utf-8", "surrogateescape")
    return min(candidates, key=lambda other: (distance(text, other), other))


def test_min_ed_against_brute_force() -> None:
    source = tiny_tokenizer(["the theatre shows a thousand films about weather and leather"] * 4, 330)
    target = tiny_tokenizer(["another mother, breathing the weathered 日本 leaves", "a film showing 日本"] * 4, 340)
    have, want = read_vocabulary(source), read_vocabulary(target)
    table = map_vocabulary(have, want, target, "min_ed")
    words = [word.decode("utf-8", "surrogateescape") for word in want.tokens()]
    candidates = [word for word in words if word]
    inexact = 0
    for index, word in enumerate(have.tokens()):
        if word:
            inexact += word not in want.tokens()
            assert words[table[index]] == nearest(word, candidates)
    assert inexact > 20
    assert table[have.eos_id] == want.eos_id


@pytest.mark.parametrize(("source", "target"), [("gpt2", "llama2"), ("llama2", "gpt2")])
def test_min_ed_on_real_vocabularies(source: str, target: str) -> None:
    (_, have), (tokenizer, want) = load(source), load(target)
    words, known = have.tokens(), set(want.tokens())
    missing = [word for word in words if word and word not in known and len(word) < 9][:4000:1500]
    offsets = np.cumsum([0, *map(len, missing)])
    part = Vocabulary(np.frombuffer(b"".join(missing), np.uint8), offsets, np.full(len(missing), 2, np.uint8), -1)
    table = map_vocabulary(part, want, tokenizer, "min_ed")
    texts = [word.decode("utf-8", "surrogateescape") for word in want.tokens()]
    for word, index in zip(missing, table):
        mine = word.decode("utf-8", "surrogateescape")
        best = distance(mine, texts[index])
        near = [text for text in texts if text and abs(len(text) - len(mine)) <= best]
        assert texts[index] == nearest(word, near)
