"""Embeddings in batches against one text at a time, pooled by hand; encoders and causal LMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.config import LoraConfig, ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.embeddings import Embedder, load_embedder, open_embedder
from fate_llm_ext.models.engines import Engine, LocalEngine
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.site import Site

CPU = torch.device("cpu")
WORDS = ["the", "cat", "sees", "a", "dog", "and", "runs", "home", "before", "it", "rains", "over", "hills"]
TEXTS = ["the cat sees a dog", "rains", "a dog runs home before it rains over the hills and home", "the cat", "a dog"]
CONTEXT = 16


def word_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's way: lower case, [CLS] text [SEP], a padding token of its own."""
    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *WORDS])}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", **names)


def built(kind: str) -> tuple[Any, PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    if kind in ("gpt2", "opt", "llama"):
        tokenizer = train_tokenizer(TEXTS, 400, "sentencepiece_bpe" if kind == "llama" else "byte_bpe")
        model = build_model(TinyConfig(arch=kind, steps=1, hidden=32, layers=2, context=64), tokenizer)
    else:
        tokenizer = word_tokenizer()
        wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        shape = {"vocab_size": len(tokenizer), "pad_token_id": 1, "max_position_embeddings": CONTEXT}
        config = {
            "bert": lambda: transformers.BertConfig(**wide, **shape),
            "roberta": lambda: transformers.RobertaConfig(**wide, **shape),
            "distilbert": lambda: transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=32, **shape),
            "t5": lambda: transformers.T5Config(
                d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, vocab_size=len(tokenizer), pad_token_id=1
            ),
        }[kind]()
        model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # far from uniform, so that a padding token that counts shows
        for name, parameter in model.named_parameters():
            if "orm" not in name and "ln_" not in name:
                parameter.mul_(5.0)
    return model.eval(), tokenizer


KINDS = ("gpt2", "opt", "llama", "bert", "roberta", "distilbert", "t5")


def reference(model: Any, tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """One text, no padding: the mean over its own tokens, of length 1."""
    with_specials = tokenizer(text)["input_ids"]
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(with_specials)) if with_specials[at : at + len(own)] == own)
    network = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        out = network(input_ids=torch.tensor([with_specials]), output_hidden_states=True)
    # the base of a causal LM gives the last of these, too
    hidden = out.hidden_states[-1][0].double().numpy()
    mean = sum(hidden[start + place] for place in range(len(own))) / len(own)
    return np.array(mean / np.sqrt((mean * mean).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_one_text_at_a_time_gives(kind: str) -> None:
    model, tokenizer = built(kind)
    expected = np.stack([reference(model, tokenizer, text) for text in TEXTS])
    for size in (1, 2, 32):
        got = Embedder(model, tokenizer, size).embed(TEXTS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert np.abs(expected[0] - expected[3]).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_of_a_long_text_the_end_does_not_count(kind: str) -> None:
    model, tokenizer = built(kind)
    room = CONTEXT - 2 - (2 if kind == "roberta" else 0)  # [CLS] and [SEP]; RoBERTa's places start behind the pad's
    short = " ".join((WORDS * 3)[:room])
    got = Embedder(model, tokenizer).embed([short, short + " dog dog dog", short.rsplit(" ", 1)[0]])
    np.testing.assert_allclose(got[0], got[1], atol=1e-6)
    assert np.abs(got[0] - got[2]).max() > 1e-3


def test_a_text_without_tokens_gets_zeros() -> None:
    embedder = Embedder(*built("bert"))
    got = embedder.embed(["the cat", "\u200b", ""])
    assert np.linalg.norm(got[0]) == pytest.approx(1)
    assert not got[1:].any()
    assert not embedder.embed(["", ""]).any()
    assert embedder.embed(["", ""]).shape == (2, 32)
    assert embedder.embed([]).shape == (0, 32)


def test_progress_and_mode() -> None:
    model, tokenizer = built("gpt2")
    model.train()
    seen: list[tuple[int, int]] = []
    Embedder(model, tokenizer, 2).embed(TEXTS, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert model.training
    assert model.transformer.training


def test_a_model_that_computes_no_numbers_is_refused() -> None:
    model, tokenizer = built("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(ExtensionError, match=r"E407 .*5"):
        Embedder(model, tokenizer).embed(TEXTS)


def test_half_precision_is_close_and_the_adapter_counts() -> None:
    model, tokenizer = built("gpt2")
    exact = Embedder(model, tokenizer).embed(TEXTS)
    with_adapter = add_lora(model, LoraConfig(dropout=0.0), seed=0)
    np.testing.assert_allclose(Embedder(with_adapter, tokenizer).embed(TEXTS), exact, atol=1e-6)  # B is zero
    with torch.no_grad():
        for name, parameter in with_adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = Embedder(with_adapter, tokenizer).embed(TEXTS)
    assert np.abs(changed - exact).max() > 1e-3
    half = Embedder(built("gpt2")[0].to(torch.bfloat16), tokenizer).embed(TEXTS)
    assert half.dtype == np.float32
    assert (half * exact).sum(axis=1).min() > 0.99


# --- from the site file -------------------------------------------------------------------------------


class Remote(Engine):
    """An engine without a model in this process."""

    name = "far"

    def generate(self, prompts: Any, config: Any, *, seed: int, stop: Any = (), step: Any = None) -> Any:
        raise AssertionError

    def fits(self, prompts: Any, config: Any) -> Any:
        raise AssertionError

    def close(self) -> None:
        """Nothing to close."""


def saved(kind: str, folder: Path) -> Path:
    model, tokenizer = built(kind)
    save_model(model, tokenizer, folder, "card")
    return folder


def test_the_default_is_the_llm_itself() -> None:
    model, tokenizer = built("gpt2")
    embedder = open_embedder(Site(), None, LocalEngine(model, tokenizer, "llm"), CPU)
    np.testing.assert_array_equal(embedder.embed(TEXTS), Embedder(model, tokenizer).embed(TEXTS))
    with pytest.raises(ExtensionError, match="E701"):
        open_embedder(Site(), None, Remote(), CPU)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta"])
def test_a_model_of_the_site(kind: str, tmp_path: Path) -> None:
    site = Site(models={"small": str(saved(kind, tmp_path / kind))})
    embedder = open_embedder(site, ModelConfig(name="small"), Remote(), CPU)
    model, tokenizer = built(kind)
    np.testing.assert_allclose(embedder.embed(TEXTS), Embedder(model, tokenizer).embed(TEXTS), atol=1e-6)
    with pytest.raises(ExtensionError, match="E110"):
        open_embedder(site, ModelConfig(name="other"), Remote(), CPU)


def test_an_encoder_saved_with_a_head_but_without_pooler(tmp_path: Path) -> None:
    base, tokenizer = built("bert")
    whole = transformers.BertForMaskedLM(base.config)
    whole.bert.load_state_dict({key: value for key, value in base.state_dict().items() if "pooler" not in key})
    save_model(whole, tokenizer, tmp_path, "card")
    embedder = load_embedder(tmp_path, ModelConfig(name="small"), CPU)
    np.testing.assert_allclose(embedder.embed(TEXTS), Embedder(base, tokenizer).embed(TEXTS), atol=1e-6)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match="E702"):
        load_embedder(tmp_path, ModelConfig(name="small"), CPU)
    folder = saved("bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExtensionError, match=r"E702 .* 1 weights are missing, encoder.layer.0.output"):
        load_embedder(folder, ModelConfig(name="small"), CPU)
