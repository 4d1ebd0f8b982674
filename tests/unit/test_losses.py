"""Sparse, chunked losses against the dense formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.training.losses import (
    chunked_head_loss,
    sparse_kd_loss,
    token_nll,
    weighted_nll_and_kd,
)


def dense(logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float, tail: str) -> Tensor:
    """Position by position, token by token, with explicit probabilities."""
    q = (logits / temperature).softmax(-1)
    losses = []
    for row in range(len(logits)):
        pairs = [(int(i), float(lp)) for i, lp in zip(ids[row], log_probs[row]) if i >= 0]
        mass = sum(math.exp(lp) for _, lp in pairs)
        loss = logits[row].sum() * 0.0
        for index, lp in pairs:
            p = math.exp(lp) / (mass if tail == "drop" else 1.0)
            loss = loss - p * q[row, index].log()
        others = [v for v in range(logits.shape[1]) if v not in {index for index, _ in pairs}]
        if tail == "bucket" and others and mass < 1.0:
            loss = loss - (1.0 - mass) * q[row, others].sum().log()
        losses.append(loss)
    return torch.stack(losses)


def case(seed: int, rows: int, vocabulary: int, k: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits and a random teacher's top k, with random padding at the end of each row."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * scale
    teacher = (torch.randn(rows, vocabulary, generator=generator) * scale).log_softmax(-1)
    log_probs, ids = teacher.topk(k, dim=-1)
    keep = torch.randint(0, k + 1, (rows, 1), generator=generator)
    pads = torch.arange(k)[None] >= keep
    return logits, ids.masked_fill(pads, -1), log_probs.masked_fill(pads, 7.0)


@pytest.mark.parametrize("tail", ["bucket", "drop"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 5),
    size=st.integers(2, 40),
    share=st.floats(0.01, 1.0),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_kd_loss_is_the_dense_formula(
    tail: str, seed: int, rows: int, size: int, share: float, temperature: float
) -> None:
    logits, ids, log_probs = case(seed, rows, size, max(1, int(size * share)))
    mine, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = sparse_kd_loss(mine, ids, log_probs, temperature, tail)  # type: ignore[arg-type]
    expected = dense(theirs, ids, log_probs.double(), temperature, tail)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.arange(1, rows + 1)
    (loss * weights).sum().backward()
    expected.mul(weights).sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)


def test_full_support_equals_dense_cross_entropy() -> None:
    """K = V: no tail bucket, the paper's formula itself."""
    logits = torch.randn(6, 9, requires_grad=True)
    teacher = torch.randn(6, 9).log_softmax(-1)
    ids = torch.arange(9).expand(6, 9)
    loss = sparse_kd_loss(logits, ids, teacher)
    torch.testing.assert_close(loss, -(teacher.exp() * logits.log_softmax(-1)).sum(-1))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - teacher.exp(), atol=1e-6, rtol=1e-5)


def test_certain_teacher_is_the_supervised_loss() -> None:
    logits = torch.randn(4, 11, requires_grad=True)
    targets = torch.tensor([0, 3, 10, 5])
    for tail in ("bucket", "drop"):
        loss = sparse_kd_loss(logits, targets[:, None], torch.zeros(4, 1), tail=tail)  # type: ignore[arg-type]
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))


def test_nothing_is_nan_at_the_edges() -> None:
    """No targets; zero probability; a student certain of the targets; full support plus tail."""
    logits = torch.zeros(5, 4)
    logits[2] = torch.tensor([200.0, 0.0, 0.0, 0.0])
    logits[3] = torch.tensor([-200.0, 0.0, 0.0, 0.0])
    logits.requires_grad_()
    ids = torch.tensor([[-1] * 4, [0, 1, -1, -1], [0, -1, -1, -1], [0, -1, -1, -1], [0, 1, 2, 3]])
    probs = torch.tensor([[0.9] * 4, [1.0, 0.0, 1, 1], [0.5, 1, 1, 1], [1.0, 1, 1, 1], [0.1] * 4])
    for tail in ("bucket", "drop"):
        logits.grad = None
        loss = sparse_kd_loss(logits, ids, probs.log(), tail=tail)  # type: ignore[arg-type]
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
        assert loss[0] == 0.0
    loss = sparse_kd_loss(logits, ids, probs.log())
    assert loss[2].item() == pytest.approx(0.5 * (200 - math.log(3)), rel=1e-4)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, ids, log_probs = case(1, 8, 300, 16)
    for dtype in (torch.float16, torch.bfloat16):
        low = logits.to(dtype)
        loss = sparse_kd_loss(low, ids, log_probs)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, sparse_kd_loss(low.float(), ids, log_probs))


def test_int32_ids_and_no_rows() -> None:
    logits, ids, log_probs = case(2, 3, 20, 4)
    torch.testing.assert_close(
        sparse_kd_loss(logits, ids.int(), log_probs.half().float()), sparse_kd_loss(logits, ids, log_probs.half())
    )
    assert sparse_kd_loss(logits[:0], ids[:0], log_probs[:0]).shape == (0,)


def test_bad_arguments() -> None:
    logits, ids, log_probs = case(3, 3, 20, 4)
    for arguments, code in (
        ((logits, ids[:2], log_probs[:2]), "E443"),
        ((logits, ids, log_probs[:, :2]), "E443"),
        ((logits[0], ids[0], log_probs[0]), "E443"),
        ((logits, ids, log_probs, 1.0, "keep"), "E444"),
    ):
        with pytest.raises(ExtensionError) as caught:
            sparse_kd_loss(*arguments)  # type: ignore[arg-type]
        assert caught.value.code == code
    with pytest.raises(ExtensionError) as caught:
        chunked_head_loss(logits, lambda part: part, 0, lambda part, rows: part[:, 0])
    assert caught.value.code == "E445"


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_head_equals_whole(chunk: int) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 40)
    _, ids, log_probs = case(4, 7, 40, 8)
    hidden = torch.randn(7, 5)
    results = []
    for size in (None, chunk):
        head.zero_grad()
        x = hidden.clone().requires_grad_()
        if size is None:
            losses = sparse_kd_loss(head(x), ids, log_probs)
        else:
            losses = chunked_head_loss(x, head, size, lambda z, rows: sparse_kd_loss(z, ids[rows], log_probs[rows]))
        losses.mean().backward()
        results.append((losses.detach(), x.grad, head.weight.grad.clone(), head.bias.grad.clone()))  # type: ignore[union-attr]
    for whole, parts in zip(*results):
        torch.testing.assert_close(parts, whole)


def test_chunked_head_trains_the_head_over_frozen_states_and_keeps_no_logits() -> None:
    head = torch.nn.Linear(4, 1000)
    hidden, targets = torch.randn(64, 4), torch.randint(0, 1000, (64,))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = chunked_head_loss(hidden, head, 8, lambda z, rows: token_nll(z, targets[rows]))
    assert max(kept, default=0) < 8 * 1000, "a chunk's logits were kept for the backward pass"
    losses.sum().backward()
    assert head.weight.grad is not None
    with torch.no_grad():
        again = chunked_head_loss(hidden, head, 8, lambda z, rows: token_nll(z, targets[rows]))
    torch.testing.assert_close(again, losses.detach())
    assert chunked_head_loss(hidden[:0], head, 8, lambda z, rows: z[:, 0]).shape == (0,)


def test_the_weighted_loss_is_the_sum_of_its_terms() -> None:
    logits, ids, log_probs = case(3, 6, 20, 4)
    weights = torch.tensor([[0.5, 0.0], [0.0, 0.7], [0.3, 0.2], [0.0, 0.0], [1.0, 1.0], [0.1, 0.9]])
    target = torch.arange(6)
    names = ("gold_weight", "teacher_weight", "target", "teacher_ids", "teacher_log_probs")
    batch = dict(zip(names, (weights[:, 0], weights[:, 1], target, ids, log_probs)))
    expected = weights[:, 0] * token_nll(logits, target)
    expected = expected + 4.0 * weights[:, 1] * sparse_kd_loss(logits, ids, log_probs, 2.0, "drop")
    for part in (slice(None), slice(1, 4)):
        found = weighted_nll_and_kd(logits[part], batch, part, 2.0, "drop")
        torch.testing.assert_close(found, expected[part])
