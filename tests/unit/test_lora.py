"""Adapters: what is trained, what is saved, and that it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

from fate_llm_ext.config import LoraConfig
from fate_llm_ext.models.lora import adapter_state, add_lora, load_adapter, load_adapter_state

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2),
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ),
    "opt": OPTConfig(
        vocab_size=50,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
    "neox": GPTNeoXConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ),
}
IDS = torch.arange(8)[None]


def base(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def perturbed(name: str, embeddings: bool) -> torch.nn.Module:
    model = add_lora(base(name), LoraConfig(r=2, alpha=4, dropout=0.0, embeddings=embeddings), seed=1)
    torch.manual_seed(2)
    load_adapter_state(model, {key: torch.randn_like(value) for key, value in adapter_state(model).items()})
    return model.eval()


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_adapter_comes_back_and_holds_nothing_of_the_base(name: str, embeddings: bool, tmp_path: Path) -> None:
    model = perturbed(name, embeddings)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as saved:
        keys = list(saved.keys())
    assert keys
    assert all("lora_" in key for key in keys)
    assert any("embedding" in key for key in keys) == embeddings
    again = load_adapter(base(name), tmp_path).eval()
    with torch.no_grad():
        expected, got = model(input_ids=IDS).logits, again(input_ids=IDS).logits
        untouched = base(name)(input_ids=IDS).logits
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(expected, untouched)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_adapter_is_trained_and_a_fresh_one_changes_nothing(name: str) -> None:
    model = add_lora(base(name), LoraConfig(embeddings=True), seed=1).eval()
    assert all("lora_" in key for key in adapter_state(model))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, base(name)(input_ids=IDS).logits)


def test_the_seed_decides_the_first_weights() -> None:
    one, two, other = (adapter_state(add_lora(base("gpt2"), LoraConfig(), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
