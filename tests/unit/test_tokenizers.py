"""Loading tokenizers: the four real families, checked against the libraries they come from."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.tokenizers import load_tokenizer

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
FAMILIES = ("gpt2", "opt", "llama2", "neox")
TEXTS = [
    "Hello world",
    " leading space",
    "two  spaces,   three",
    "lines\n\nand\ttabs \r\n",
    "emoji 😀👍🏽 end",
    "日本語 と 漢字 𠮷",
    "naïve café, cafe\u0301",
    "It's don't 1234567 $3.50 <b>&amp;</b>",
    "x" * 70 + " " * 20 + "y",
    "\u00a0\u200b non-breaking",
    "trailing ",
    " ",
    "",
]


@cache
def load(family: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(ASSETS / "tokenizers" / family)


def news(count: int) -> list[str]:
    with (ASSETS / "data" / "ag_news" / "train_first2000.csv").open(encoding="utf-8") as file:
        return [max(row, key=len) for _, row in zip(range(count), csv.reader(file))]


@pytest.mark.parametrize(
    ("family", "size", "eos", "bos", "pad"),
    [
        ("gpt2", 50257, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ("opt", 50265, "</s>", "</s>", "<pad>"),
        ("llama2", 32000, "</s>", "<s>", "</s>"),
        ("neox", 50277, "<|endoftext|>", "<|endoftext|>", "<|padding|>"),
    ],
)
def test_special_tokens(family: str, size: int, eos: str, bos: str, pad: str) -> None:
    tokenizer = load(family)
    assert len(tokenizer) == size
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (eos, bos, pad)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_gives_the_text_back(family: str) -> None:
    tokenizer = load(family)
    for text in TEXTS + news(50):
        if family == "neox" and "\u0301" in text:
            continue  # its normaliser composes characters
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_again_tokenises_identically(family: str, tmp_path: Path) -> None:
    before = load(family)
    before.save_pretrained(str(tmp_path))
    after = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.special_tokens_map == before.special_tokens_map
    assert after.pad_token_id == before.pad_token_id


def test_llama_agrees_with_sentencepiece() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor()
    reference.Load(str(ASSETS / "tokenizers" / "llama2" / "tokenizer.model"))
    tokenizer = load("llama2")
    for text in TEXTS + news(150):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), text
    assert tokenizer("a")["input_ids"][0] == reference.bos_id()


def test_gpt2_agrees_with_known_ids() -> None:
    assert load("gpt2")("Hello world, 猫")["input_ids"] == [15496, 995, 11, 13328, 234, 104]
    assert load("opt")("Hello world")["input_ids"] == [2, 31414, 232]


def test_gpt2_and_opt_have_the_same_pieces() -> None:
    """Both use GPT-2's merges: different ids, same segmentation."""
    for text in TEXTS + news(20):
        pieces = [
            load(family).convert_ids_to_tokens(load(family)(text, add_special_tokens=False)["input_ids"])
            for family in ("gpt2", "opt")
        ]
        assert pieces[0] == pieces[1]


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "E440"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.model", b"\x0a\xff\x01abc"),
        ("tokenizer.model", b""),
        ("tokenizer.json", b"{"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExtensionError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "E442"


@pytest.mark.parametrize("size", [100_000, 100_001, 400_000])
def test_model_cut_short(tmp_path: Path, size: int) -> None:
    """The first cut falls between two pieces: what is left is a valid message without its specifications."""
    whole = (ASSETS / "tokenizers" / "llama2" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:size])
    with pytest.raises(ExtensionError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "E442"


def test_no_end_token(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], **parts, "model": model})
    )
    with pytest.raises(ExtensionError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "E441"


def test_pad_falls_back_to_the_end_token(tmp_path: Path) -> None:
    load("gpt2").save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    assert load_tokenizer(tmp_path).pad_token == "<|endoftext|>"
