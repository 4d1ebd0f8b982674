"""Saved model folders: what both supported releases of transformers need to compute the same from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fate_llm_ext._compat import installed_set
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OLD = {"llama": {"rope_theta": 5e5}, "gpt_neox": {"rotary_emb_base": 5e5, "rotary_pct": 1.0}}
NEW = {"llama": {"rope_theta": 5e5}, "gpt_neox": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}}


@pytest.mark.parametrize("kind", OLD)
def test_positions_are_encoded_as_in_the_model(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([row["text"] for row in generate_tickets(100, seed=1)], 400)
    rope: dict[str, Any] = OLD[kind]
    if installed_set() == "modern":
        rope = {"rope_parameters": {"rope_type": "default", **NEW[kind]}}
    config = AutoConfig.for_model(kind, vocab_size=400, max_position_embeddings=64, **SMALL, **rope)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)  # attention that is far from uniform
    model.config._name_or_path = str(tmp_path)
    save_model(model, tokenizer, tmp_path / "model", "card")
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    text = (tmp_path / "model" / "config.json").read_text()
    written = json.loads(text)
    assert {name: written[name] for name in OLD[kind]} == OLD[kind]  # the words of 4.37, from either release
    assert str(tmp_path) not in text
