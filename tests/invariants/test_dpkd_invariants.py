"""What must hold of DP-KD's pure parts whatever the numbers are."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fate_llm_ext.algo.control import Records, encode_records
from fate_llm_ext.algo.dpkd.config import DistillationConfig
from fate_llm_ext.algo.dpkd.evaluation import evaluate
from fate_llm_ext.algo.dpkd.signals import targets, teacher_signals
from fate_llm_ext.algo.dpkd.student import distillation_items, on_policy_items, train_student
from fate_llm_ext.algo.synthesis import code_counts, synthesise
from fate_llm_ext.config import ControlConfig, GenerationConfig, TrainConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.models.generation import generate
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

ROWS = generate_tickets(300, seed=1)
LABELS = sorted({row["label"] for row in ROWS})
CONTROL = ControlConfig(code="{{ label }}", values=LABELS, max_length=96)
RECORDS = Records(
    np.array([LABELS.index(row["label"]) for row in ROWS[:8]], dtype=np.int32), [row["text"] for row in ROWS[:8]]
)
GENERATION = GenerationConfig(max_new_tokens=16, batch_size=8)


@cache
def tokenizer() -> Any:
    return train_tokenizer([row["text"] for row in ROWS], 400, "byte_bpe")


def make(seed: int = 0, hidden: int = 16, arch: str = "gpt2") -> Any:
    model = build_model(TinyConfig(arch=arch, hidden=hidden, layers=1, context=112, steps=1, seed=seed), tokenizer())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(6.0)
    return model.eval()


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distilled(student: Any, teacher: Any, hidden_weight: float = 0.2, **changes: Any) -> torch.Tensor:
    encoded = encode_records(tokenizer(), RECORDS, CONTROL)
    signals = teacher_signals(teacher, tokenizer(), encoded, 16, 1.0)
    batch = distillation_items(encoded, targets(signals, encoded, None), 0.4)
    train = TrainConfig(**{"batch_size": 8, "epochs": 2, "learning_rate": 1e-3, "warmup_ratio": 0.0, **changes})
    config = DistillationConfig(hidden_weight=hidden_weight)
    train_student(student, tokenizer(), batch, config, train, seed=3, teacher=teacher)
    return flat(student)


def test_the_same_seed_gives_the_same_student() -> None:
    teacher = make(1, 32)
    assert torch.equal(distilled(make(), teacher), distilled(make(), teacher))


def test_accumulation_changes_nothing() -> None:
    teacher = make(1, 32)
    once = distilled(make(), teacher)
    accumulated = distilled(make(), teacher, batch_size=2, gradient_accumulation=4)
    assert (once - flat(make())).abs().max() > 1e-4
    # Adam turns the rounding of a gradient that is nearly zero into a step: of single weights only
    assert (once - accumulated).abs().mean() < 1e-6
    torch.testing.assert_close(once, accumulated, atol=1e-4, rtol=0)


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_it() -> None:
    """The soft and the hidden term vanish at the teacher itself: its weights are a fixed point."""
    teacher = make(1)
    student = copy.deepcopy(teacher)
    encoded = encode_records(tokenizer(), RECORDS, CONTROL)
    whole = teacher_signals(teacher, tokenizer(), encoded, 400, 1.0)
    batch = on_policy_items(encoded, targets(whole, encoded, None))
    gradients = []

    def record(optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients.extend(p.grad.abs().max().item() for group in optimizer.param_groups for p in group["params"])

    hook = register_optimizer_step_pre_hook(record)
    try:
        train = TrainConfig(batch_size=8, warmup_ratio=0.0)
        config = DistillationConfig(hidden_weight=1.0)
        train_student(student, tokenizer(), batch, config, train, seed=0, teacher=teacher)
    finally:
        hook.remove()
    assert max(gradients) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_texts_asked_for_later_change_none_before(arch: str) -> None:
    model, draw = make(arch=arch), np.random.default_rng(0)
    prompts = [draw.integers(3, 300, size=n).astype(np.int32) for n in (4, 2, 7, 4, 1)]
    few = generate(model, tokenizer(), prompts[:3], GENERATION, seed=5)
    many = generate(model, tokenizer(), prompts, GENERATION, seed=5)
    longer = generate(model, tokenizer(), prompts, GENERATION.copy(update={"max_new_tokens": 32}), seed=5)
    for short, text, long in zip(few, many, longer):
        assert short.tolist() == text.tolist() == long[: len(text)].tolist()


def test_sampling_leaves_torchs_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    synthesise(make(), tokenizer(), CONTROL, code_counts(9, None, len(LABELS)), GENERATION, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_evaluation_does_not_depend_on_order_or_batches() -> None:
    model = make()
    order = np.random.default_rng(0).permutation(len(RECORDS))
    shuffled = Records(RECORDS.codes[order], [RECORDS.texts[row] for row in order])
    first = evaluate(model, tokenizer(), RECORDS, CONTROL, 4)
    for other in (
        evaluate(model, tokenizer(), shuffled, CONTROL, 4),
        evaluate(model, tokenizer(), RECORDS, CONTROL, 1),
    ):
        assert other["perplexity"] == pytest.approx(first["perplexity"], rel=1e-5)
        assert other["code_accuracy"] == first["code_accuracy"]


def test_equal_codes_give_equal_counts_whatever_the_scale() -> None:
    for scale in (1e-6, 1.0, 1e9):
        assert code_counts(100, np.full(7, scale), 7).tolist() == code_counts(100, None, 7).tolist()
