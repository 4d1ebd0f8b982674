"""The language model of the infill attack against one sequence at a time, causal and masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.algo.fedcot.attacks import infill
from fate_llm_ext.algo.fedcot.attacks.infill import AFTER, BEFORE, Infiller, load_infiller
from fate_llm_ext.config import LoraConfig, ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

CPU = torch.device("cpu")
WORDS = ("the", "cat", "sees", "a", "dog", "runs", "home", "beforehand", "rains", "hill")
PIECES = [
    "[UNK]",
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "##hand",
    "before",
    *(word for word in WORDS if word != "beforehand"),
]


def bert_tokenizer(pieces: Sequence[str] = tuple(PIECES)) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", **names)


def spread(model: Any) -> Any:
    with torch.no_grad():  # far from uniform, so that a wrong place shows
        for name, parameter in model.named_parameters():
            if "orm" not in name and "ln_" not in name:
                parameter.mul_(5.0)
    return model.eval()


@cache
def causal(kind: str, context: int = 64) -> tuple[Any, Any]:
    texts = [" ".join(WORDS), "the cat runs home", "a dog sees the hill"] * 30
    tokenizer = train_tokenizer(texts, 330, "sentencepiece_bpe" if kind == "llama" else "byte_bpe")
    return spread(build_model(TinyConfig(arch=kind, steps=1, hidden=32, context=context), tokenizer)), tokenizer


@cache
def masked(context: int = 64) -> tuple[Any, Any]:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(PIECES), pad_token_id=1, max_position_embeddings=context, **shape)
    return spread(transformers.BertForMaskedLM(config)), bert_tokenizer()


def tokens(tokenizer: Any, word: str) -> list[int]:
    """Of a word in the middle of a text: what it adds to a text that ends before it."""
    before = tokenizer("the", add_special_tokens=False)["input_ids"]
    both = tokenizer(f"the {word}", add_special_tokens=False)["input_ids"]
    assert both[: len(before)] == before
    return both[len(before) :]


def log_probs(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=1).numpy()


def flat(tokenizer: Any, words: Any) -> list[int]:
    return [token for word in words for token in tokens(tokenizer, WORDS[word])]


def causal_reference(model: Any, tokenizer: Any, record: np.ndarray, place: int, word: int) -> float:
    own = tokens(tokenizer, WORDS[word])
    after = flat(tokenizer, record[place + 1 :])[:AFTER]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    head = [start, *flat(tokenizer, record[:place])[-BEFORE:]]
    ids = [*head, *own, *after]
    found = log_probs(model, ids)
    return sum(found[at - 1, ids[at]] for at in range(len(head), len(ids)))


def masked_reference(model: Any, tokenizer: Any, record: np.ndarray, place: int, word: int) -> float:
    own = tokens(tokenizer, WORDS[word])
    head = [2, *flat(tokenizer, record[:place])[-BEFORE:]]
    ids = [*head, *[4] * len(own), *flat(tokenizer, record[place + 1 :])[:AFTER], 3]
    found = log_probs(model, ids)
    return sum(found[len(head) + at, token] for at, token in enumerate(own))


RECORDS = [
    np.array([0, 1, 5, 6, 7, 8], dtype=np.int32),
    np.arange(30, dtype=np.int32) % 10,
    np.array([4], dtype=np.int32),
]
OWNERS = np.array([0, 0, 0, 1, 1, 2])
PLACES = np.array([0, 2, 5, 12, 29, 0])
CANDIDATES = np.array([[7, 0, 3], [1, 7, 2], [9, 8, 4], [2, 5, 7], [7, 6, 1], [4, 3, 7]], dtype=np.int32)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bert"])
@pytest.mark.parametrize(("batch", "sequences"), [(64, 4096), (2, 4)])
def test_scores_are_those_of_one_sequence_at_a_time(kind, batch, sequences, monkeypatch):
    monkeypatch.setattr(infill, "_SEQUENCES", sequences)
    model, tokenizer = masked() if kind == "bert" else causal(kind)
    reference = masked_reference if kind == "bert" else causal_reference
    found = Infiller(model, tokenizer, WORDS, batch).scores(RECORDS, OWNERS, PLACES, CANDIDATES)
    for row, (owner, place) in enumerate(zip(OWNERS, PLACES)):
        wanted = [reference(model, tokenizer, RECORDS[owner], place, word) for word in CANDIDATES[row]]
        assert found[row] == pytest.approx(wanted, abs=2e-3), row
    assert np.ptp(found) > 1, "nothing to tell apart"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_scan_tells_how_each_begins(kind):
    model, tokenizer = causal(kind)
    found = Infiller(model, tokenizer, WORDS).scan(RECORDS, OWNERS, PLACES, CANDIDATES)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for row, (owner, place) in enumerate(zip(OWNERS, PLACES)):
        given = log_probs(model, [start, *flat(tokenizer, RECORDS[owner][:place])[-BEFORE:]])[-1]
        wanted = [given[tokens(tokenizer, WORDS[word])[0]] for word in CANDIDATES[row]]
        assert found[row] == pytest.approx(wanted, abs=2e-3), row
    model, tokenizer = masked()
    scan, scores = (getattr(Infiller(model, tokenizer, WORDS), name) for name in ("scan", "scores"))
    where = (RECORDS, OWNERS, PLACES, CANDIDATES)
    assert scan(*where) == pytest.approx(scores(*where)), "a masked one is as cheap as that"


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_short_context_takes_fewer_neighbours(kind):
    model, tokenizer = masked(10) if kind == "bert" else causal("gpt2", 8)
    infiller = Infiller(model, tokenizer, WORDS)
    for method in (infiller.scores, infiller.scan):
        assert np.isfinite(method(RECORDS, OWNERS, PLACES, CANDIDATES)).all()


def test_heartbeats_come_while_it_works():
    beats: list[int] = []
    for model, tokenizer in (causal("gpt2"), masked()):
        beats.clear()
        Infiller(model, tokenizer, WORDS, 2).scores(RECORDS, OWNERS, PLACES, CANDIDATES, lambda: beats.append(1))
        assert len(beats) >= 3


def test_an_adapter_is_looked_through():
    model, tokenizer = causal("gpt2")
    before = Infiller(model, tokenizer, WORDS).scores(RECORDS, OWNERS, PLACES, CANDIDATES)
    network = add_lora(build_model(TinyConfig(arch="gpt2", steps=1, hidden=32, context=64), tokenizer), LoraConfig(), 0)
    network.get_base_model().load_state_dict(model.state_dict(), strict=False)
    assert Infiller(network, tokenizer, WORDS).scores(RECORDS, OWNERS, PLACES, CANDIDATES).shape == before.shape


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    save_model(model, tokenizer, folder, "a card")
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_folder_says_what_its_model_is(kind, tmp_path):
    model, tokenizer = masked() if kind == "bert" else causal("gpt2")
    folder = saved(model, tokenizer, tmp_path / "model")
    loaded = load_infiller(folder, ModelConfig(name="m"), CPU, WORDS)
    wanted = Infiller(model, tokenizer, WORDS).scores(RECORDS, OWNERS, PLACES, CANDIDATES)
    assert loaded.scores(RECORDS, OWNERS, PLACES, CANDIDATES) == pytest.approx(wanted, abs=1e-4)


def test_what_cannot_guess_is_refused(tmp_path):
    config = transformers.T5Config(
        d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(PIECES), pad_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    t5 = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ExtensionError, match=r"E758.*T5ForConditionalGeneration"):
        Infiller(t5, bert_tokenizer(), WORDS)
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(ExtensionError, match=r"E758.*T5"):
        load_infiller(tmp_path / "t5", ModelConfig(name="m"), CPU, WORDS)
    pieces = [word for word in PIECES if word != "[MASK]"]
    with pytest.raises(ExtensionError, match=r"E759.*BertForMaskedLM"):
        Infiller(masked()[0], bert_tokenizer(pieces), WORDS)
    with pytest.raises(ExtensionError, match="E402"):
        load_infiller(tmp_path, ModelConfig(name="m"), CPU, WORDS)
    headless = transformers.BertModel(masked()[0].config, add_pooling_layer=False)
    headless.config.architectures = ["BertForMaskedLM"]
    folder = saved(headless, bert_tokenizer(), tmp_path / "headless")
    text = (folder / "config.json").read_text().replace('"BertModel"', '"BertForMaskedLM"')
    (folder / "config.json").write_text(text)
    with pytest.raises(ExtensionError, match=r"E402.*missing"):
        load_infiller(folder, ModelConfig(name="m"), CPU, WORDS)
