"""Encoder-decoder models are loaded, scored, trained and sampled from, against transformers itself."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from fate_llm_ext.config import GenerationConfig, LLMConfig, ModelConfig, TrainConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.encoding import SpanTokenizer, encode_pairs, encode_prompts
from fate_llm_ext.models.engines.local import open_local
from fate_llm_ext.models.generation import generate
from fate_llm_ext.models.loading import decoder_start, is_encoder_decoder, load_base, positions
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.scoring import Scorer
from fate_llm_ext.models.tiny import TinyConfig, build_model, evaluate_lm, train_lm
from fate_llm_ext.models.tiny_t5 import continuation
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.training.trainer import train_items

CPU = torch.device("cpu")
TOKENS = {"t5": "byte_bpe", "t5 sentencepiece": "sentencepiece_bpe", "bart": "byte_bpe"}
PROMPTS = ["The printer is out of paper.", "猫?", "my screen stays dark and the keyboard is wet", "ok"]
ANSWERS = [" hardware", " a cat in Zürich", " no idea at all", " ok"]


@cache
def texts() -> list[str]:
    return [row["text"] for row in generate_tickets(300, seed=1)]


@cache
def parts(kind: str) -> tuple[Any, Any]:
    """A model far from uniform, and its tokenizer."""
    tokenizer = train_tokenizer(texts(), 400, TOKENS[kind])
    if kind.startswith("t5"):
        model: Any = build_model(TinyConfig(arch="t5", hidden=16, layers=2, context=64, steps=1), tokenizer)
    else:
        torch.manual_seed(0)
        size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        wide = {
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "d_model": 16,
            "max_position_embeddings": 64,
            "dropout": 0.0,
        }
        special = {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_eos_token_id": None,
        }
        model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **size, **wide, **special))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(2.0)
    return model.eval(), tokenizer


def sides(kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What encoder and decoder have to see of each pair, by transformers' own tokenisation."""
    _, tokenizer = parts(kind)
    answers = [answer.strip() if "sentencepiece" in kind else answer for answer in ANSWERS]
    read = [np.array([*tokenizer(prompt)["input_ids"], tokenizer.eos_token_id]) for prompt in PROMPTS]
    written = [np.array([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]) for answer in answers]
    return read, written


def slow_logits(model: Any, read: np.ndarray, written: np.ndarray) -> torch.Tensor:
    """One pair at a time, without padding, shifted by transformers."""
    labels = torch.from_numpy(written)[None].long()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.from_numpy(read)[None].long(), labels=labels).logits[0]
    return logits


# --- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENS)
def test_prompt_and_answer_are_tokenised_apart(kind: str) -> None:
    read, written = sides(kind)
    pairs = encode_pairs(parts(kind)[1], PROMPTS, ANSWERS, 64, apart=True)
    for pair, prompt, answer in zip(pairs, read, written):
        assert pair.ids[~pair.answer].tolist() == prompt.tolist()
        assert pair.ids[pair.answer].tolist() == answer.tolist()
        assert len(pair.starts) == len(answer)


@pytest.mark.parametrize("kind", TOKENS)
def test_each_side_has_a_limit_of_its_own(kind: str) -> None:
    tokenizer = parts(kind)[1]
    lead = "Predict: "
    (pair,) = encode_pairs(tokenizer, [lead + "first " * 40 + "last"], ["word " * 40], 16, keep=lead, apart=True)
    read, written = pair.ids[~pair.answer], pair.ids[pair.answer]
    assert len(read) == len(written) == 16
    assert read[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(read[:-1]).startswith("Predict:")
    assert tokenizer.decode(read[:-1]).endswith("first last")
    assert tokenizer.eos_token_id not in written.tolist()
    (prompt,) = encode_prompts(
        SpanTokenizer(tokenizer), [lead + "first " * 40 + "last"], keep=lead, room=16, apart=True
    )
    assert prompt.tolist() == read.tolist()


# --- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihood_of_answers(kind: str, batch_size: int) -> None:
    model, tokenizer = parts(kind)
    expected = [
        float(F.cross_entropy(slow_logits(model, *pair), torch.from_numpy(pair[1]).long(), reduction="sum"))
        for pair in zip(*sides(kind))
    ]
    pairs = encode_pairs(tokenizer, PROMPTS, ANSWERS, 64, apart=True)
    places = [np.flatnonzero(pair.answer) for pair in pairs]
    got = Scorer(model, tokenizer.pad_token_id, batch_size).answers([pair.ids for pair in pairs], places)
    np.testing.assert_allclose(got.nll, expected, rtol=1e-4)
    assert np.std(expected) > 1.0


@pytest.mark.parametrize("kind", TOKENS)
def test_choices_of_one_token_and_of_several(kind: str) -> None:
    model, tokenizer = parts(kind)
    pairs = encode_pairs(tokenizer, [PROMPTS[2]] * 3, [" a", " b", " printer paper"], 64, apart=True)
    without_end = [(pair.ids[:-1], np.flatnonzero(pair.answer)[:-1]) for pair in pairs]
    expected = []
    for ids, places in without_end:
        cut = places[0]
        log_probs = slow_logits(model, ids[:cut], ids[cut:]).log_softmax(1)
        expected.append(float(log_probs[torch.arange(len(places)), torch.from_numpy(ids[cut:]).long()].sum()))
    scorer = Scorer(model, tokenizer.pad_token_id, 2)
    np.testing.assert_allclose(scorer.choices([without_end])[0], expected, rtol=1e-4)
    np.testing.assert_allclose(scorer.choices([without_end[:2]])[0], expected[:2], rtol=1e-4)


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENS)
def test_the_first_loss_is_that_of_transformers(kind: str) -> None:
    """Mean over the pairs of the mean over an answer's tokens; with next to no rate, the first loss is the only one."""
    model, tokenizer = parts(kind)
    losses = [
        F.cross_entropy(slow_logits(model, *pair), torch.from_numpy(pair[1]).long()).item()
        for pair in zip(*sides(kind))
    ]
    pairs = encode_pairs(tokenizer, PROMPTS, ANSWERS, 64, apart=True)
    items = [Item(pair.ids, np.flatnonzero(pair.answer)) for pair in pairs]
    config = TrainConfig(batch_size=4, learning_rate=1e-12, weight_decay=0.0)
    got = train_items(model, items, config, epochs=1, seed=0, pad_id=tokenizer.pad_token_id, phase="training")
    model.eval()
    assert got == pytest.approx(float(np.mean(losses)), rel=1e-4)


# --- generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_texts_are_those_of_transformers(kind: str, batch_size: int) -> None:
    model, tokenizer = parts(kind)
    prompts = encode_prompts(tokenizer, [*PROMPTS, PROMPTS[0]], apart=True)
    got = generate(
        model, tokenizer, prompts, GenerationConfig(top_k=1, max_new_tokens=12, batch_size=batch_size), seed=0
    )
    for prompt, text in zip(prompts, got):
        ids = torch.from_numpy(prompt)[None].long()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
        )
        expected = out[0, 1:].tolist()
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert text.tolist() == expected


def test_a_draw_does_not_depend_on_the_batch() -> None:
    model, tokenizer = parts("t5")
    prompts = encode_prompts(tokenizer, PROMPTS * 4, apart=True)
    config = {"top_k": 0, "top_p": 1.0, "temperature": 1.5, "max_new_tokens": 200}
    alone, together = (
        generate(model, tokenizer, prompts, GenerationConfig(batch_size=size, **config), seed=4) for size in (1, 16)
    )
    assert [one.tolist() for one in alone] == [one.tolist() for one in together]
    lengths = {len(one) for one in alone}
    assert min(lengths) < 200, "some end while others go on"
    assert len(lengths) > 2


def test_an_encoder_and_a_decoder_have_positions_of_their_own() -> None:
    model, tokenizer = parts("bart")
    long = [np.full(64, 5), np.full(65, 5)]
    config = GenerationConfig(top_k=1, max_new_tokens=8)
    assert len(generate(model, tokenizer, long[:1], config, seed=0)) == 1
    with pytest.raises(ExtensionError, match=r"E665 .* 65 tokens .* 64"):
        generate(model, tokenizer, long, config, seed=0)
    with pytest.raises(ExtensionError, match=r"E665 .* text of 65 "):
        generate(model, tokenizer, long[:1], GenerationConfig(max_new_tokens=65), seed=0)
    assert positions(parts("t5")[0].config) is None


def test_the_local_engine_takes_one(tmp_path: Path) -> None:
    model, tokenizer = parts("t5")
    save_model(model, tokenizer, tmp_path / "t5", "")
    engine = open_local(tmp_path / "t5", None, LLMConfig(name="llm"), CPU)
    config = GenerationConfig(top_k=1, max_new_tokens=6)
    expected = generate(model, tokenizer, encode_prompts(tokenizer, PROMPTS, apart=True), config, seed=0)
    got = engine.generate(PROMPTS, config, seed=0)
    assert [one.text for one in got] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert engine.fits(["word " * 500], config).all()


# --- loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_loading(kind: str, tmp_path: Path) -> None:
    model, tokenizer = parts(kind)
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder, "")
    read, _ = load_base(folder, ModelConfig(name="tiny"), CPU, 64, encoder_decoder=True)
    assert is_encoder_decoder(read)
    assert decoder_start(read) == model.config.decoder_start_token_id
    pair = [side[0] for side in sides(kind)]
    torch.testing.assert_close(slow_logits(read.eval(), *pair), slow_logits(model, *pair))
    if kind == "t5":  # a component that knows causal models only says so
        with pytest.raises(ExtensionError, match="E402"):
            load_base(folder, ModelConfig(name="tiny"), CPU)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(ExtensionError, match="E763"):
        load_base(folder, ModelConfig(name="tiny"), CPU, encoder_decoder=True)


def test_a_causal_model_is_none() -> None:
    model = build_model(TinyConfig(arch="gpt2", hidden=16, layers=1, steps=1), parts("bart")[1])
    assert not is_encoder_decoder(model)
    assert decoder_start(model) is None


# --- a small T5 ---------------------------------------------------------------------------------------


def test_tiny_t5_learns_and_is_read_again(tmp_path: Path) -> None:
    tokenizer = parts("t5")[1]
    config = TinyConfig(arch="t5", hidden=32, layers=1, context=48, batch_tokens=384, steps=60)
    model, losses = build_model(config, tokenizer), []
    untrained, _ = evaluate_lm(model, tokenizer, texts()[:20], 48)
    report = train_lm(model, tokenizer, texts(), config, lambda state: losses.append(state.loss))
    assert losses[-1] < losses[0] - 1.0
    assert report.heldout_nats_per_token < untrained - 1.0
    save_model(model, tokenizer, tmp_path / "model", "")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([tokenizer(texts()[0])["input_ids"][:12]])
    with torch.no_grad():
        outputs = [one.eval()(input_ids=ids, decoder_input_ids=ids[:, :3]).logits for one in (model, again)]
    assert torch.equal(*outputs)


def test_the_same_seed_gives_the_same_t5() -> None:
    weights = []
    for seed in (3, 3, 4):
        config = TinyConfig(arch="t5", hidden=16, layers=1, context=32, steps=4, seed=seed, candidates=50)
        model = build_model(config, parts("t5")[1])
        train_lm(model, parts("t5")[1], texts(), config)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_a_t5_continues() -> None:
    """The hidden states give the model's own logits behind the cut, which is drawn from all of the block's middle."""
    model, tokenizer = parts("t5")
    ids = torch.arange(5, 37).reshape(2, 16)
    with torch.no_grad():
        hidden, targets = continuation(model, ids)
        logits = model(
            input_ids=torch.cat([ids[:, :8], torch.full((2, 1), tokenizer.eos_token_id)], 1),
            labels=ids[:, 8:].contiguous(),
        ).logits
        torch.testing.assert_close(model.lm_head(hidden), logits.flatten(0, 1))
        assert targets.tolist() == ids[:, 8:].flatten().tolist()
        chance = random.Random(0)
        sizes = {len(continuation(model, ids, chance)[1]) // 2 for _ in range(200)}
    assert sizes == set(range(2, 15))


def test_a_t5_has_one_table() -> None:
    with pytest.raises(pydantic.ValidationError, match="shares embedding"):
        TinyConfig(arch="t5", tie=False, steps=1)
