"""Units of texts, the closed vocabulary, the perturber: on texts of all kinds."""

from __future__ import annotations

import math
import time
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from fate_llm_ext.algo.fedcot.config import VocabularyConfig
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed, Perturber
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary, build_vocabulary, embedding_table
from fate_llm_ext.algo.fedcot.perturbation.words import COMMON, capitalised, is_word, split
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

SENTENCES = [
    "The dog sleeps near the river, and the cat sleeps too.",
    "We met Anna near the river. Anna said that the dog is old.",
    "A river is long; the dog of Anna is not. Dogs bark.",
    "In may we may see a bear. I think that May is a month.",
    "the house, the garden and the house again",
]


class Uniform:
    """A mechanism that only knows whether a word is known; it keeps what it gets, to look at."""

    strategy, epsilon, word_epsilon = "test", 1.0, math.inf

    def __init__(self, size: int) -> None:
        self.vectors = np.eye(size, dtype=np.float32)
        self.calls: list[np.ndarray] = []

    def sample(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        self.calls.append(ids)
        drawn = generator.integers(len(self.vectors), size=len(ids))
        return np.where((ids >= 0) & (generator.random(len(ids)) < 0.5), ids, drawn).astype(np.int32)


def list_of(*words: str) -> Vocabulary:
    return Vocabulary(words, np.eye(len(words), dtype=np.float32))


@cache
def tiny(kind: Any) -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES * 20, 700, kind)


def table_for(tokenizer: Any, width: int = 8) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(len(tokenizer), width)).astype(np.float32)


# --- units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", []),
        (" \t\n\u00a0\u2003 ", []),
        ("... -- ?! \u2014 \u00ab \u00bb", []),
        ("The dog, (a cat) and \u201cbirds\u201d!", ["The", "dog", "a", "cat", "and", "birds"]),
        ("Anna's well-known e-mail: anna@mail.org.", ["Anna's", "well-known", "e-mail", "anna@mail.org"]),
        ("AB-1234/x 12.05.1987 (030) 55", ["AB-1234/x", "12.05.1987", "030", "55"]),
        ("dog,cat dog\u2014cat dog...cat", ["dog,cat", "dog\u2014cat", "dog...cat"]),
        ("do\u200bg \ufeffcat co\u00adat \u200f\u202bword\u202c", ["dog", "cat", "coat", "word"]),
        ("ﬁsh 𝐌𝐚𝐫𝐤 ＤＯＧ，", ["fish", "Mark", "DOG"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("山田太郎は、元気。 「猫」", ["山田太郎は、元気", "猫"]),
        ("مرحبا، كيف حالك؟", ["مرحبا", "كيف", "حالك"]),
        ("नमस्ते।", ["नमस्ते"]),
        ("😀 👩\u200d👧 ok😀", ["😀", "👩👧", "ok😀"]),
        ("¿qué? ¡hola!", ["qué", "hola"]),
    ],
)  # fmt: skip
def test_units_stand_between_white_space_without_punctuation(text: str, units: list[str]) -> None:
    assert split(text) == units


@pytest.mark.parametrize(
    "sign", ["@", "#", "/", "~", "_", "*", "%", "$", "+", "=", "&", "|", "\\", "<", ">", "^", "`", "§", "°", "€"]
)
def test_a_sign_that_belongs_to_a_word_stays_and_makes_it_unknown(sign: str) -> None:
    known = list_of("dog", "rose")
    for text in (f"{sign}rose", f"rose{sign}", f"({sign}rose{sign}),"):
        assert split(text) == [text.strip("(),")]
        assert known.ids(split(text)).tolist() == [-1]


@settings(deadline=None)
@given(st.text())
def test_no_unit_has_white_space_or_punctuation_around_it(text: str) -> None:
    units = split(text)
    for unit in units:
        assert unit == "".join(unit.split())
        assert unicodedata.category(unit[0])[:2] not in ("Ps", "Pe", "Pi", "Pf", "Pd", "Zs", "Cf")
        assert unit[-1] not in ".,;:!?'\""
    assert len(units) <= len(unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize("word", ["dog", "a", "été", "на", "猫", "नमस्ते", "שלום", "straße"])  # fmt: skip
def test_small_letters_of_any_script_are_a_word(word: str) -> None:
    assert is_word(word)


@pytest.mark.parametrize(
    "text",
    ["", "Dog", "DOG", "dOg", "d0g", "dog's", "well-known", "a b", "dog.", "\u0301a", "ﬁsh", "cafe\u0301",
     "Été", "За", "١٢", "²", "Ⅰ", "ⅰ", "a\u200bb", "😀", "_", "ǅa"],
)  # fmt: skip
def test_anything_else_is_no_word(text: str) -> None:
    assert not is_word(text)


def test_common_words_are_words_and_no_given_names() -> None:
    assert all(map(is_word, COMMON))
    assert not COMMON & {"will", "may", "mark", "grace", "rose", "bill", "hope", "said", "even"}
    assert 150 < len(COMMON) < 300


# --- the list ------------------------------------------------------------------------------------------


def test_only_words_as_they_stand_in_the_list_are_known() -> None:
    known = list_of("dog", "mark", "may", "will", "the", "i", "x")
    texts = "dog Dog DOG dog's the The THE i I Mark MARK mark May Will X 4711 4 ⅽ dogs"
    units = texts.split()
    places = dict(zip(units, known.ids(units).tolist()))
    assert {unit for unit, place in places.items() if place >= 0} == {"dog", "the", "The", "i", "I", "mark"}
    assert (places["The"], places["I"], places["mark"]) == (4, 5, 1)
    assert known.ids([]).shape == (0,)
    assert known.ids(["dog"]).dtype == np.int32


@settings(deadline=None)
@given(st.text())
def test_a_known_unit_is_a_word_of_the_list_or_a_common_one_with_a_capital(unit: str) -> None:
    words = ("dog", "the", "été", "mark")
    place = list_of(*words).ids([unit])[0]
    assert place == (words.index(unit) if unit in words else 1 if unit == "The" else -1)


def test_a_million_units_take_about_a_second() -> None:
    known = list_of(*(f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(2000)))
    units = [known.words[i % 2000] if i % 3 else f"Unknown{i}" for i in range(1_000_000)]
    start = time.process_time()
    places = known.ids(units)
    assert time.process_time() - start < 2.0
    assert (places < 0).sum() == len(units[::3])


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_whole_words_of_a_tokenizer_with_their_own_vectors(kind: Any) -> None:
    tokenizer = tiny(kind)
    table = table_for(tokenizer)
    known = build_vocabulary(tokenizer, table, VocabularyConfig())
    assert {"the", "dog", "river", "is"} <= set(known.words)
    assert not {"Anna", "anna", "The", "s"} & set(known.words)
    assert all(map(is_word, known.words))
    assert len(set(known.words)) == len(known.words) == len(known.vectors)
    assert known.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(known.vectors, axis=1), 1.0, rtol=1e-6)
    mark = "Ġ" if kind == "byte_bpe" else "▁"
    tokens = [tokenizer.get_vocab()[mark + word] for word in known.words]
    assert tokens == sorted(tokens)
    rows = table[tokens].astype(np.float64)
    np.testing.assert_allclose(known.vectors, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-5)


def word_tokenizer(tokens: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the given SentencePiece-like tokens."""
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["<unk>", *tokens])}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **options)


def test_names_and_single_letters_of_a_tokenizer_are_left_out() -> None:
    tokens = ["▁dog", "▁Anna", "▁anna", "▁mark", "▁Mark", "▁I", "▁i", "▁The", "▁the",
              "▁b", "ing", "▁dog's", "▁é", "▁Dog"]  # fmt: skip
    tokenizer = word_tokenizer(tokens)
    known = build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig())
    assert known.words == ("dog", "mark", "i", "the", "é")
    assert known.left_out == {"name": 1, "letter": 1}


def test_size_takes_the_first_words_that_have_a_vector() -> None:
    tokenizer = word_tokenizer(["▁one", "▁nil", "▁two", "▁three"])
    table = table_for(tokenizer)
    table[2] = 0.0
    known = build_vocabulary(tokenizer, table, VocabularyConfig(size=2))
    assert known.words == ("one", "two")
    assert known.left_out == {"vector": 1}


def test_a_word_piece_tokenizer_marks_what_goes_on() -> None:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "dog", "##dog", "##s", "cat", "river", "12", "!"]
    backend = Tokenizer(models.WordPiece({one: i for i, one in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    assert build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig()).words == ("dog", "cat", "river")
    known = build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig(), ["cat dogs bird", "cat dogs"])
    assert known.words == ("cat", "dogs")
    assert known.left_out == {"vector": 1}


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_words_of_a_public_set_by_frequency(kind: Any) -> None:
    tokenizer = tiny(kind)
    table = table_for(tokenizer)
    known = build_vocabulary(tokenizer, table, VocabularyConfig(), iter(SENTENCES))
    assert known.words[:5] == ("the", "is", "a", "dog", "river")
    assert {"may", "i", "a"} <= set(known.words)
    assert not {"anna", "dogs", "month's", "b"} & set(known.words)
    assert known.left_out["name"] == 2  # "anna" and "dogs", which is never seen without a capital
    again = build_vocabulary(tokenizer, table, VocabularyConfig(), reversed(SENTENCES))
    assert again.words == known.words
    assert np.array_equal(again.vectors, known.vectors)
    assert build_vocabulary(tokenizer, table, VocabularyConfig(size=2), SENTENCES).words == ("the", "is")
    for word, vector in zip(known.words, known.vectors):
        tokens = tokenizer(f"x {word}", add_special_tokens=False)["input_ids"][len(tokenizer("x")["input_ids"]) :]
        mean = sum(table[token].astype(np.float64) for token in tokens) / len(tokens)
        np.testing.assert_allclose(vector, mean / math.sqrt(sum(mean * mean)), rtol=1e-5)


@pytest.mark.parametrize(
    ("texts", "stays"),
    [
        (["we mark it. Mark it"], True),  # at the beginning of a sentence a capital says nothing
        (["we saw Mark mark it"], False),  # half of the times is not more often than not
        (["we saw Mark mark it and mark it"], True),
        (["Mark", "Mark sleeps"], False),  # never seen without
        (["we saw MARK mark it"], True),  # shouted: it says nothing either
        (["they saw: Mark ran; Mark mark"], False),
    ],
)
def test_a_word_of_a_public_set_is_a_name_if_it_mostly_has_a_capital_inside_sentences(
    texts: list[str], stays: bool
) -> None:
    tokenizer = tiny("byte_bpe")
    known = build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig(), [*texts, "the dog is old"])
    assert ("mark" in known.words) is stays


def test_too_few_words_are_one_error() -> None:
    tokenizer = word_tokenizer(["▁dog", "▁Anna", "▁anna", "ing"])
    with pytest.raises(ExtensionError, match=r"E750 .*tokenizer gives 1 \(left out: name: 1\)"):
        build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig())
    for texts in ([], ["Anna Anna 12", ""]):
        with pytest.raises(ExtensionError, match=r"E750 .*public set gives 0"):
            build_vocabulary(tokenizer, table_for(tokenizer), VocabularyConfig(), texts)


def test_a_table_that_does_not_fit_is_an_error() -> None:
    tokenizer = tiny("byte_bpe")
    for table in (table_for(tokenizer)[:300], table_for(tokenizer)[:, 0]):
        with pytest.raises(ExtensionError, match="E751"):
            build_vocabulary(tokenizer, table, VocabularyConfig())
    broken = table_for(tokenizer)
    broken[:, 3] = np.nan
    with pytest.raises(ExtensionError, match=f"E407 {len(broken)} of {broken.size}"):
        build_vocabulary(tokenizer, broken, VocabularyConfig())


def test_the_table_of_a_model_is_a_copy() -> None:
    sizes = {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(**sizes))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1))
    for network in (t5, gpt2.to(torch.bfloat16)):
        table = embedding_table(network)
        assert (table.shape, table.dtype) == ((50, 8), np.float32)
        np.testing.assert_array_equal(table, network.get_input_embeddings().weight.detach().float().numpy())
        with torch.no_grad():
            network.get_input_embeddings().weight.zero_()
        assert table.any()


# --- the perturber -------------------------------------------------------------------------------------

UNITS = st.lists(st.lists(st.one_of(st.sampled_from(["dog", "The", "the", "Mark"]), st.text(min_size=1)), max_size=6))
KNOWN = list_of("dog", "the", "cat", "bird")


@settings(deadline=None)
@given(UNITS, st.integers(0, 2**32))
def test_one_word_of_the_list_for_each_unit_and_nothing_else(units: list[list[str]], seed: int) -> None:
    mechanism = Uniform(len(KNOWN))
    result = Perturber(KNOWN, mechanism).draw(units, np.random.default_rng(seed))  # type: ignore[arg-type]
    assert len(result) == len(units) == len(result.units) == len(result.ids) == len(result.drawn)
    assert len(mechanism.calls) == min(1, len(units))
    for own, kept, ids, drawn, text in zip(units, result.units, result.ids, result.drawn, result.texts):
        assert kept == (own or [""])
        assert text.split(" ") == [KNOWN.words[place] for place in drawn]
        assert len(drawn) == len(ids) == max(1, len(own))
        assert ids.tolist() == KNOWN.ids(kept).tolist()
        assert (ids.dtype, drawn.dtype) == (np.int32, np.int32)


@settings(max_examples=50, deadline=None)
@given(UNITS, st.integers(0, 2**32))
def test_what_comes_out_depends_on_the_places_alone(units: list[list[str]], seed: int) -> None:
    twins = {-1: "Zz9", 0: "dog", 1: "the", 2: "cat", 3: "bird"}
    others = [[twins[place] for place in KNOWN.ids(text).tolist()] for text in units]

    def draw(some: list[list[str]]) -> Perturbed:
        perturber = Perturber(KNOWN, Uniform(len(KNOWN)))  # type: ignore[arg-type]
        return perturber.draw(some, np.random.default_rng(seed))

    assert draw(units).texts == draw(others).texts


def test_without_a_generator_no_two_draws_are_the_same() -> None:
    perturber = Perturber(KNOWN, Uniform(len(KNOWN)))  # type: ignore[arg-type]
    np.random.seed(0)
    first = perturber.draw([["Zz9"] * 100])
    np.random.seed(0)
    assert perturber.draw([["Zz9"] * 100]).texts != first.texts
    assert Counter(first.texts[0].split()).keys() == set(KNOWN.words)


def test_capitalised() -> None:
    assert [capitalised(word) for word in ("dog", "été", "ǆa", "")] == ["Dog", "Été", "ǅa", ""]  # fmt: skip
