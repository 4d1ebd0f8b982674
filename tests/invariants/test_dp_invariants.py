"""DP-SGD: resumed = uninterrupted; without noise and clipping it is plain training; physical batches do not matter."""

from __future__ import annotations

import dataclasses
from typing import Any, List

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from fate_llm_ext.config import LoraConfig, PrivacyConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer
from fate_llm_ext.privacy.events import PoissonGaussian
from fate_llm_ext.privacy.sampling import Randomness

PLAN = DPPlan(10, 0.4, 12, 0.5, 0.8, 1e-3, 8.0, "prv")
WAYS = ["loop", "hooks", "ghost"]


def model(lora: bool = False, dropout: float = 0.0) -> Any:
    """Llama: no parameter's gradient is zero but for rounding, which AdamW would blow up to whole steps."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "max_position_embeddings": 32, "vocab_size": 40, "attention_dropout": dropout}
    torch.manual_seed(0)
    built: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **more, bos_token_id=1, eos_token_id=2))
    return add_lora(built, LoraConfig(dropout=dropout), seed=0) if lora else built


def items() -> List[Item]:
    numbers = np.random.default_rng(0)
    lengths = [12 - 3 * (row % 3) for row in range(PLAN.records)]
    return [Item(numbers.integers(3, 40, n).astype(np.int32), np.arange(1 + n % 2, n, dtype=np.int32)) for n in lengths]


def trainer(of: Any, plan: DPPlan = PLAN, seed: int = 1, **config: Any) -> DPTrainer:
    settings = PrivacyConfig(**{"epsilon": 8.0, "physical_batch_size": 3, "learning_rate": 1e-2, **config})
    randomness = Randomness.seeded(seed)
    return DPTrainer(of, items(), plan, settings, pad_id=0, phase="training", randomness=randomness)


def weights(of: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.parameters() if p.requires_grad])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lora", [False, True])
def test_resumed_is_uninterrupted(lora: bool, way: str) -> None:
    whole = model(lora, dropout=0.2)
    trainer(whole, per_sample=way, weight_decay=0.1).run(12)
    first = trainer(model(lora, dropout=0.2), per_sample=way, weight_decay=0.1)
    first.run(5)
    stored = first.state_dict()
    first.run(3)  # work that is lost
    second_model = model(lora, dropout=0.2)
    second = trainer(second_model, seed=2, per_sample=way, weight_decay=0.1)
    second.load_state_dict(stored)
    assert second.spent() == PoissonGaussian(0.4, 0.5, 5)
    torch.manual_seed(99)  # another process has another global generator
    second.run(4)
    second.run(3)
    assert second.spent() == PLAN.mechanism()
    assert torch.equal(weights(second_model), weights(whole))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lora", [False, True])
def test_without_noise_and_clipping_it_is_plain_training(lora: bool, way: str) -> None:
    plan = dataclasses.replace(PLAN, sampling_rate=1.0, noise_multiplier=0.0, max_grad_norm=float("inf"))
    private = model(lora).double()
    loss = trainer(private, plan, per_sample=way, weight_decay=0.1, schedule="constant", warmup_ratio=0.0).run(12)
    plain = model(lora).double()
    trained = [p for p in plain.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for one in items():
            ids, places = torch.from_numpy(one.ids).long(), torch.from_numpy(one.answer).long()
            total = total + F.cross_entropy(plain(input_ids=ids[None]).logits[0, places - 1], ids[places])
        (total / PLAN.records).backward()
        optimizer.step()
        losses.append(float(total.detach()) / PLAN.records)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    moved = (weights(plain) - weights(model(lora).double())).norm()
    assert float((weights(private) - weights(plain)).norm() / moved) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_physical_batches_do_not_matter(way: str) -> None:
    results = []
    for size in (1, 3, 8):
        of = model().double()
        trainer(of, per_sample=way, physical_batch_size=size).run(4)
        results.append(weights(of))
    moved = float((results[0] - weights(model().double())).norm())
    for other in results[1:]:
        assert float((results[0] - other).norm()) / moved < 1e-5


def test_the_ways_agree() -> None:
    results = []
    for way in WAYS:
        of = model().double()
        trainer(of, per_sample=way).run(4)
        results.append(weights(of))
    for other in results[1:]:
        assert float((results[0] - other).norm() / results[0].norm()) < 1e-5


def test_rounds_are_one_run() -> None:
    whole, parts = model(), model()
    trainer(whole).run(12)
    in_parts = trainer(parts)
    for _ in range(4):
        in_parts.run(3)
    assert torch.equal(weights(whole), weights(parts))
