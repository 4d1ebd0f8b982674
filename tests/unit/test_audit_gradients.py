"""Gradient canaries: that a canary is what it should be, in models of several kinds, and what the scores see."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from scipy import stats

from fate_llm_ext.config import LoraConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy.audit_gradients import canary_items, canary_scores, canary_slots, observed
from fate_llm_ext.privacy.record_loss import RecordLoss

VOCABULARY, CANARIES = 48, 10


def model(arch: str) -> Any:
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if arch.startswith("gpt2"):
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        made: Any = hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **dropout, **shape)
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
        if arch == "opt":
            made = hf.OPTForCausalLM(hf.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, dropout=0.0, **sizes, **shape))
        else:
            made = hf.LlamaForCausalLM(hf.LlamaConfig(intermediate_size=32, **sizes, **shape))
    if arch == "gpt2 lora":
        made = add_lora(made, LoraConfig(dropout=0.0), seed=0)
    return made


ARCHITECTURES = ["gpt2", "gpt2 lora", "opt", "llama"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_canarys_clipped_gradient_is_its_slot(arch: str) -> None:
    """In units of C, all of it is in its own slots, to 1e-4, in equal parts, and before clipping it is far above 1."""
    causal = model(arch)
    items = canary_items(causal, np.array([3, 7]), np.random.default_rng(0))
    with canary_slots(causal, CANARIES) as slots:
        parameters = [p for p in causal.parameters() if p.requires_grad]
        assert len(slots) == 16
        losses = RecordLoss(causal, pad_id=0)(items)
        for slot, loss in zip((3, 7), losses):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
            assert norm > 100
            own = [g / norm for p, g in zip(parameters, gradients) if any(p is one for one in slots)]
            expected = torch.zeros(16, CANARIES)
            expected[:, slot] = 0.25
            torch.testing.assert_close(torch.stack(own)[:, :, 0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_slots_follow_the_weight_of_the_loss(arch: str) -> None:
    """Ghost clipping weights the records' losses by their clipping factors: gradients must follow."""
    causal = model(arch)
    items = canary_items(causal, np.array([3, 7]), np.random.default_rng(0))
    with canary_slots(causal, CANARIES) as slots:
        losses = RecordLoss(causal, pad_id=0)(items)
        whole = torch.autograd.grad(losses.sum(), slots, retain_graph=True)
        weighted = torch.autograd.grad(0.25 * losses[0] + 4 * losses[1], slots)
        for one, other in zip(weighted, whole):
            torch.testing.assert_close(one[3], 0.25 * other[3])
            torch.testing.assert_close(one[7], 4 * other[7])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_records_are_as_without_canaries(arch: str) -> None:
    causal = model(arch)
    causal.eval()
    before = causal.get_input_embeddings()
    names = [name for name, _ in causal.named_parameters()]
    ids = torch.arange(3, 20)[None]
    plain = causal(input_ids=ids).logits
    with canary_slots(causal, CANARIES) as slots:
        output = causal(input_ids=ids).logits
        torch.testing.assert_close(output, plain, atol=0, rtol=0)
        assert not any(gradient.any() for gradient in torch.autograd.grad(output.sum(), slots))
    assert causal.get_input_embeddings() is before
    assert [name for name, _ in causal.named_parameters()] == names


def test_observed_is_what_the_optimizer_gets() -> None:
    slots = [torch.nn.Parameter(torch.zeros(3, 1)) for _ in range(4)]
    other = torch.nn.Parameter(torch.zeros(2))
    optimizer, unrelated = torch.optim.SGD([*slots, other], lr=0.1), torch.optim.SGD([other], lr=0.1)
    with observed(slots) as seen:
        for number, slot in enumerate(slots):
            slot.grad = torch.tensor([[1.0], [2.0], [number]])
        optimizer.step()
        unrelated.step()
        slots[0].grad = None
        optimizer.step()
    optimizer.step()
    np.testing.assert_array_equal(np.stack(seen), [[2, 4, 3], [1.5, 3, 3]])


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_first_score_is_the_likelihood_ratio(rate: float) -> None:
    noise = 1.7
    sums = np.random.default_rng(0).normal(0.3, noise, size=(6, 5))
    out = stats.norm.pdf(sums, 0, noise)
    into = (1 - rate) * out + rate * stats.norm.pdf(sums, 1, noise)
    np.testing.assert_allclose(canary_scores(sums, rate, noise)[0], np.log(into / out).sum(axis=0))


def test_the_second_score_takes_the_noise_that_is_seen() -> None:
    rng = np.random.default_rng(0)
    sums = rng.normal(0, 0.5, size=(40, 2000))
    expected = canary_scores(sums, 0.25, float(np.median(np.abs(sums))) / stats.norm.ppf(0.75))[0]
    np.testing.assert_allclose(canary_scores(sums, 0.25, 2.0)[1], expected, rtol=1e-9)
    assert np.isfinite(canary_scores(np.zeros((4, 5)), 0.25, 2.0)).all()


def test_the_third_score_sees_through_noise_that_is_drawn_once() -> None:
    rng = np.random.default_rng(0)
    taken = (rng.random((20, 100)) < 0.3) & (np.arange(100) < 50)
    scores = canary_scores(taken + rng.normal(0, 5, size=100), 0.3, 5.0)[2]
    np.testing.assert_allclose(scores, np.arange(100) < 50, atol=1e-9)


def test_a_training_that_diverges() -> None:
    with pytest.raises(ExtensionError, match=r"E650 .* 2 of them no numbers"):
        canary_scores(np.array([[1.0, math.inf], [math.nan, 0.0]]), 0.5, 1.0)
