"""The batched scorer against one sequence at a time, on five architectures."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fate_llm_ext.models.loading import split_head
from fate_llm_ext.models.scoring import Scorer

VOCABULARY = 61
PAD = 0


def configuration(arch: str) -> Any:
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    if arch == "gpt2":
        return transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **shape)
    if arch == "opt":
        return transformers.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, **wide, **shape)
    if arch == "llama":
        return transformers.LlamaConfig(intermediate_size=32, **wide, **shape)
    if arch == "bloom":
        return transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **shape)
    if arch == "neox":
        return transformers.GPTNeoXConfig(intermediate_size=32, **wide, **shape)
    if arch == "cohere":
        return transformers.CohereConfig(intermediate_size=32, logit_scale=0.25, **wide, **shape)
    return transformers.Gemma2Config(
        intermediate_size=32, head_dim=8, num_key_value_heads=1, final_logit_softcapping=2.0, **wide, **shape
    )


@cache
def model_of(arch: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration(arch))
    with torch.no_grad():  # far from uniform, so that a wrong position or a leaking pad shows
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(8.0)
    return model.eval()


ARCHITECTURES = ["gpt2", "opt", "llama", "bloom", "neox"]
SCALED = [
    arch for arch, name in (("gemma2", "Gemma2Config"), ("cohere", "CohereConfig")) if hasattr(transformers, name)
]


def sequences(n: int = 9, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of unlike length and their answer places: the end, the middle, all, none."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(3, VOCABULARY, size=length).astype(np.int32) for length in draw.integers(2, 20, size=n)]
    places = [
        np.sort(draw.choice(np.arange(1, len(row)), size=draw.integers(1, len(row)), replace=False)) for row in ids
    ]
    places[3] = np.arange(1, len(ids[3]))
    places[5] = np.zeros(0, dtype=np.int64)
    return ids, places


def slow_log_probs(model: Any, row: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities after each token of one sequence alone, without padding: float64 [T, V]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(map(int, row))])).logits[0].double() / temperature
    return torch.log_softmax(logits, dim=-1).numpy()


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *SCALED])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_answers(arch: str, batch_size: int, temperature: float) -> None:
    model, (ids, places) = model_of(arch), sequences()
    scores = Scorer(model, PAD, batch_size).answers(ids, places, top_k=5, temperature=temperature)
    assert scores.offsets.tolist() == np.cumsum([0] + [len(p) for p in places]).tolist()
    assert (scores.nll.dtype, scores.ids.dtype, scores.log_probs.dtype) == (np.float32, np.int32, np.float32)
    for row, (sequence, where) in enumerate(zip(ids, places)):
        expected = slow_log_probs(model, sequence, temperature)
        nll = -sum(expected[place - 1, sequence[place]] for place in where)
        assert scores.nll[row] == pytest.approx(nll, rel=1e-3, abs=1e-3)
        for number, place in enumerate(where):
            got_ids = scores.ids[scores.offsets[row] + number]
            got = scores.log_probs[scores.offsets[row] + number]
            best = np.sort(expected[place - 1])[::-1][:5]
            np.testing.assert_allclose(got, best, rtol=1e-3, atol=2e-3)
            np.testing.assert_allclose(expected[place - 1, got_ids], best, rtol=1e-3, atol=2e-3)
            assert len(set(got_ids)) == 5


def test_only_ids_of_the_tokenizer_are_kept() -> None:
    """An embedding is often longer than its vocabulary; no peer could know what such an id means."""
    ids, places = sequences()
    model = model_of("llama")
    whole = Scorer(model, PAD, 4).answers(ids, places, 5)
    scores = Scorer(model, PAD, 4).answers(ids, places, 5, vocabulary=20)
    assert whole.ids.max() >= 20 > scores.ids.max()
    np.testing.assert_array_equal(scores.nll, whole.nll)
    row, place = 3, int(places[3][0])
    best = np.sort(slow_log_probs(model, ids[row])[place - 1, :20])[::-1][:5]
    np.testing.assert_allclose(scores.log_probs[scores.offsets[row]], best, rtol=1e-3, atol=2e-3)


def test_the_models_are_far_from_uniform() -> None:
    """Otherwise the comparisons above could not fail."""
    ids, places = sequences()
    for arch in ARCHITECTURES:
        nll = Scorer(model_of(arch), PAD, 4).answers(ids, places).nll
        uniform = np.array([len(p) for p in places]) * math.log(VOCABULARY)
        assert np.abs(nll - uniform).max() > 1.0, arch


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_does_not_matter(arch: str) -> None:
    """Neither the padding id nor the company in the batch."""
    ids, places = sequences()
    alone = Scorer(model_of(arch), PAD, 1).answers(ids, places, 3)
    for pad in (PAD, 2, VOCABULARY - 1):
        together = Scorer(model_of(arch), pad, 64).answers(ids, places, 3)
        np.testing.assert_allclose(together.nll, alone.nll, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(together.log_probs, alone.log_probs, rtol=1e-3, atol=1e-3)


def test_nothing_to_score() -> None:
    scores = Scorer(model_of("gpt2"), PAD, 4).answers([], [], 3)
    assert (len(scores.nll), scores.offsets.tolist(), scores.ids.shape) == (0, [0], (0, 3))


def test_chunks_of_logits_join(monkeypatch: pytest.MonkeyPatch) -> None:
    from fate_llm_ext.models import scoring

    ids, places = sequences()
    whole = Scorer(model_of("llama"), PAD, 64).answers(ids, places, 4)
    monkeypatch.setattr(scoring, "_CHUNK_FLOATS", 3 * VOCABULARY)
    parts = Scorer(model_of("llama"), PAD, 64).answers(ids, places, 4)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5)
    np.testing.assert_array_equal(parts.ids, whole.ids)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    ids, places = sequences()
    Scorer(model_of("gpt2"), PAD, 4, lambda done, total: seen.append((done, total))).answers(ids, places)
    assert seen == [(4, 9), (8, 9), (9, 9)]


# --- choices ----------------------------------------------------------------------------------------------


def rows_of_choices(lengths: Sequence[Sequence[int]], seed: int = 1) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Per row a prompt and choices with these numbers of tokens."""
    draw = np.random.default_rng(seed)
    rows = []
    for counts in lengths:
        prompt = draw.integers(3, VOCABULARY, size=draw.integers(2, 15))
        texts = [draw.integers(3, VOCABULARY, size=count) for count in counts]
        rows.append([(np.concatenate([prompt, t]), len(prompt) + np.arange(len(t))) for t in texts])
    return rows


def slow_choices(model: Any, rows: Any) -> np.ndarray:
    result = np.full((len(rows), max(map(len, rows))), -np.inf)
    for r, row in enumerate(rows):
        for c, (ids, places) in enumerate(row):
            log_probs = slow_log_probs(model, ids)
            result[r, c] = sum(log_probs[place - 1, ids[place]] for place in places)
    return result


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_choices(arch: str) -> None:
    """Rows of one-token choices, of longer ones and mixed, with unlike numbers of choices."""
    rows = rows_of_choices([(1, 1, 1), (2, 3, 1), (1, 1), (1, 2, 1), (4,), (1,), (2, 2, 2)])
    got = Scorer(model_of(arch), PAD, 4).choices(rows)
    assert got.shape == (7, 3)
    np.testing.assert_allclose(got, slow_choices(model_of(arch), rows), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_short_way_and_the_long_way_agree(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fate_llm_ext.models import scoring

    rows = rows_of_choices([(1, 1, 1)] * 6)
    short = Scorer(model_of(arch), PAD, 4).choices(rows)
    monkeypatch.setattr(scoring, "_one_token_each", lambda choices: False)
    np.testing.assert_allclose(Scorer(model_of(arch), PAD, 4).choices(rows), short, rtol=1e-4, atol=1e-3)


def test_choices_whose_prompts_differ_take_the_long_way() -> None:
    """One token each, but the boundary token differs: the short way would use the wrong prompt."""
    rows = rows_of_choices([(1, 1)])
    ids, places = rows[0][1]
    changed = ids.copy()
    changed[places[0] - 1] = (changed[places[0] - 1] + 1 - 3) % (VOCABULARY - 3) + 3
    rows[0][1] = (changed, places)
    got = Scorer(model_of("llama"), PAD, 4).choices(rows)
    np.testing.assert_allclose(got, slow_choices(model_of("llama"), rows), rtol=1e-3, atol=2e-3)


# --- writing ----------------------------------------------------------------------------------------------


class Words:
    """Just enough of a tokenizer: an id is a word."""

    eos_token_id = 2

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(str(i) for i in row if i not in (PAD, 1, 2)) for row in ids.tolist()]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_writing_in_batches_is_writing_one_by_one(arch: str) -> None:
    model = model_of(arch)
    prompts = [row[:12] for row in sequences(7, seed=3)[0]]
    texts = Scorer(model, PAD, 3).write(Words(), prompts, 6)
    for prompt, text in zip(prompts, texts):
        ids = torch.tensor([prompt.tolist()])
        settings = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": 2, "max_new_tokens": 6}
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        assert text == Words().batch_decode(out[:, ids.shape[1] :], True)[0]
    assert len(set(texts)) > 1


# --- backbone and head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_split_head_is_exact(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(arch)
    with caplog.at_level(logging.WARNING):
        backbone, head = split_head(model)
    assert not caplog.records, "no fallback"
    ids = torch.randint(3, VOCABULARY, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        hidden = backbone(ids, mask)
        assert hidden.shape == (2, 7, 16)
        torch.testing.assert_close(head(hidden)[mask.bool()], whole[mask.bool()])


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_split_head_with_an_adapter(arch: str) -> None:
    """The adapter's part must not get lost on the way through the base model."""
    from fate_llm_ext.config import LoraConfig
    from fate_llm_ext.models.lora import add_lora

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(configuration(arch))
    model = add_lora(base, LoraConfig(r=2, alpha=4, dropout=0.0), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        backbone, head = split_head(model)
        ids = torch.randint(3, VOCABULARY, (1, 5))
        whole = model(input_ids=ids).logits
        torch.testing.assert_close(head(backbone(ids, torch.ones_like(ids))), whole)
        with model.disable_adapter():
            assert (model(input_ids=ids).logits - whole).abs().max() > 0.1


@pytest.mark.parametrize("arch", SCALED)
def test_a_model_that_changes_its_logits_runs_whole(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(arch)
    with caplog.at_level(logging.WARNING):
        backbone, head = split_head(model)
    assert "running it whole" in caplog.text
    assert isinstance(head, torch.nn.Identity)
    ids = torch.randint(3, VOCABULARY, (2, 5))
    with torch.no_grad():
        torch.testing.assert_close(head(backbone(ids, torch.ones_like(ids))), model(input_ids=ids).logits)


def test_a_head_wrapped_by_hand_runs_whole(caplog: pytest.LogCaptureFixture) -> None:
    """The same in every version of transformers: a GPT-2 whose logits are halved."""

    class Halved(transformers.GPT2LMHeadModel):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 2
            return out

    torch.manual_seed(0)
    model = Halved(configuration("gpt2")).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20.0)
    with caplog.at_level(logging.WARNING):
        split_head(model)
    assert "running it whole" in caplog.text
    ids, places = sequences()
    nll = Scorer(model, PAD, 4).answers(ids, places).nll
    for row, (sequence, where) in enumerate(zip(ids, places)):
        expected = slow_log_probs(model, sequence)
        assert nll[row] == pytest.approx(-sum(expected[p - 1, sequence[p]] for p in where), rel=1e-3, abs=1e-3)


def test_the_training_state_survives_the_probe() -> None:
    model = transformers.AutoModelForCausalLM.from_config(configuration("gpt2"))
    model.train()
    split_head(model)
    assert model.training
