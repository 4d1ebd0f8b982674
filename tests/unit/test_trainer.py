"""Training with transformers' Trainer: what is learned, accumulation, and that it is silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import Item, TeacherTargets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.training import trainer
from fate_llm_ext.training.trainer import train_items

VOCABULARY, LENGTH, PAD = 48, 12, 0


def model(arch: str = "gpt2") -> Any:
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if arch == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **dropout, **shape))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, max_position_embeddings=32, **sizes, **shape))


def item(row: int, teacher: bool = False, gold: float = 1.0) -> Item:
    """A sequence of a length of its own; the answer is its last tokens, the teacher knows some of them."""
    numbers = np.random.default_rng(row)
    size = LENGTH - row % 4
    ids = numbers.integers(3, VOCABULARY, size).astype(np.int32)
    ids[-3:] = (5, 6, 7)
    answer = np.arange(size - 3 - row % 2, size, dtype=np.int32)
    if not teacher:
        return Item(ids, answer, gold)
    slots = np.array([0, 2], dtype=np.int32)
    known = np.stack([ids[answer[slots]], np.full(2, 8), np.full(2, -1)], axis=1).astype(np.int32)
    log_probs = np.log(np.array([[0.7, 0.2, 1.0]] * 2)).astype(np.float32)
    return Item(ids, answer, gold, TeacherTargets(slots, known, log_probs), 1.0 - gold or 1.0)


def train(trained: Any, items: list[Item], *, epochs: int = 1, **changes: Any) -> float:
    settings = {"learning_rate": 1e-2, "batch_size": 4, "warmup_ratio": 0.0, "weight_decay": 0.0}
    config = TrainConfig(**{**settings, **changes})
    return train_items(trained, items, config, epochs=epochs, seed=3, pad_id=PAD, phase="training")


def flat(trained: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


def cross_entropy(trained: Any, items: list[Item]) -> torch.Tensor:
    """Mean over items of the mean over answer tokens, one sequence at a time."""
    losses = []
    for one in items:
        ids = torch.from_numpy(one.ids.astype(np.int64))
        places = torch.from_numpy(one.answer.astype(np.int64))
        losses.append(F.cross_entropy(trained(ids[None]).logits[0, places - 1], ids[places]))
    return torch.stack(losses).mean()


MIXED = [item(0), item(1, teacher=True, gold=0.9), item(2, teacher=True, gold=0.0), item(3)] * 2


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("items", [[item(n) for n in range(8)], MIXED], ids=["gold", "gold and teacher"])
def test_the_loss_falls(arch: str, items: list[Item]) -> None:
    trained = model(arch)
    first = train(trained, items)
    train(trained, items, epochs=8)
    assert train(trained, items) < first - 1.0


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_accumulated_batches_are_one_batch(arch: str) -> None:
    """2 x 4 and 1 x 8 in the same order. Adam's step is blind to the gradient's scale: the gradient is compared too."""
    gradients = []

    def record(optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

    once, accumulated = model(arch), model(arch)
    hook = register_optimizer_step_pre_hook(record)
    try:
        changes = {"learning_rate": 3e-4, "max_grad_norm": 1e9}
        losses = [
            train(once, MIXED, batch_size=8, **changes),
            train(accumulated, MIXED, batch_size=2, gradient_accumulation=4, **changes),
        ]
    finally:
        hook.remove()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(gradients) == 2
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)
    torch.testing.assert_close(flat(once), flat(accumulated), atol=1e-6, rtol=0)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_gold_only_is_cross_entropy(arch: str) -> None:
    items = [item(n) for n in range(4)]
    trained, by_hand = model(arch), model(arch)
    expected = cross_entropy(by_hand, items)
    assert train(trained, items) == pytest.approx(expected.item(), abs=1e-5)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    expected.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    optimizer.step()
    torch.testing.assert_close(flat(trained), flat(by_hand), atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_chunks_of_positions_change_nothing(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = model(arch), model(arch)
    expected = train(whole, MIXED, learning_rate=3e-4)
    monkeypatch.setattr(trainer, "_CHUNK_FLOATS", 5 * VOCABULARY)
    assert train(chunked, MIXED, learning_rate=3e-4) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(flat(whole), flat(chunked), atol=1e-5, rtol=0)


def test_a_teacher_moves_the_student_towards_it() -> None:
    trained, items = model(), [item(1, teacher=True, gold=0.0)]
    train(trained, items, epochs=60)
    targets = items[0].teacher
    assert targets is not None
    places = torch.from_numpy(items[0].answer[targets.slots].astype(np.int64))
    with torch.no_grad():
        probs = trained(torch.from_numpy(items[0].ids.astype(np.int64))[None]).logits[0, places - 1].softmax(-1)
    taught = probs.gather(1, torch.from_numpy(targets.ids[:, :2].astype(np.int64)))
    torch.testing.assert_close(taught, torch.tensor([[0.7, 0.2]] * 2), atol=0.05, rtol=0)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = model(), model()
    for trained in (first, second):
        train(trained, MIXED, epochs=2)
    assert torch.equal(flat(first), flat(second))


def test_a_loss_that_is_no_number_stops() -> None:
    trained = model()
    with torch.no_grad():
        next(trained.parameters()).fill_(float("nan"))
    with pytest.raises(ExtensionError, match=r"E406 The loss is nan at step 1 of training"):
        train(trained, MIXED)


def test_training_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    train(model(), MIXED, epochs=2)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_heartbeats_name_the_step() -> None:
    beats: list[str] = []
    config = TrainConfig(batch_size=4)
    train_items(model(), MIXED, config, epochs=1, seed=0, pad_id=PAD, phase="x", heartbeat=beats.append)
    assert beats == ["x, step 1 of 2", "x, step 2 of 2"]
