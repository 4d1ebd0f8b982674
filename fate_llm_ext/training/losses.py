"""Losses on answer positions, from sparse targets and in chunks: nothing of size batch x length x vocabulary.

A teacher's distribution at one position is its K most probable tokens and the rest, the tail, as one bucket.
All functions work on ``P`` positions gathered from any number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fate_llm_ext.errors import ExtensionError

Tail = Literal["bucket", "drop"]


def sparse_kd_loss(
    logits: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    temperature: float = 1.0,
    tail: Tail = "bucket",
) -> Tensor:
    """Cross-entropy against a sparse teacher, the paper's ``CE(z, p) = -sum_v p(v) log softmax(z)(v)``; float32 [P].

    ``bucket``: ``-sum_k p_k log q_k - p_tail log(1 - sum_k q_k)`` with ``p_tail = 1 - sum_k p_k``; the teacher's
    tail mass goes to the student's tail as a whole. ``drop``: ``-sum_k p_k / (sum_j p_j) log q_k``.
    A position without targets (all -1) costs 0. If the K tokens are the whole vocabulary, there is no tail bucket.

    Args:
        logits: [P, V], any float type; computed in float32.
        ids: int [P, K], distinct within a row, -1 for padding.
        log_probs: [P, K], the teacher's, at the same temperature; anything at padding.
        temperature: divides the logits. Multiply the result by its square to keep the gradient's scale.
        tail: bucket or drop.

    Raises:
        ExtensionError: E443 shapes do not fit; E444 unknown treatment of the tail.
    """
    if tail not in ("bucket", "drop"):
        raise ExtensionError("E444", tail=tail)
    if logits.dim() != 2 or ids.shape != log_probs.shape or ids.shape[:1] != logits.shape[:1]:
        shapes = f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)}, log_probs {tuple(log_probs.shape)}"
        raise ExtensionError("E443", shapes=shapes)
    scores = logits.float() / temperature
    valid = ids >= 0
    probs = torch.where(valid, log_probs.float(), -torch.inf).exp()
    total = torch.logsumexp(scores, dim=-1)
    log_q = scores.gather(1, ids.clamp(min=0).long()) - total[:, None]
    if tail == "drop":
        probs = probs / probs.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    loss = -torch.where(probs > 0, probs * log_q, 0.0).sum(dim=-1)
    if tail == "bucket":
        loss = loss - _tail_term(scores, total, ids, valid, 1.0 - probs.sum(dim=-1))
    return loss


def _tail_term(scores: Tensor, total: Tensor, ids: Tensor, valid: Tensor, mass: Tensor) -> Tensor:
    """``p_tail log(1 - sum_k q_k)``, [P]; the logarithm is a logsumexp over the other tokens, never ``1 - sum``."""
    rows, size = scores.shape
    listed = torch.zeros(rows, size + 1, dtype=torch.bool, device=scores.device)
    listed.scatter_(1, torch.where(valid, ids.long(), size), True)
    listed = listed[:, :size]
    counts = (~listed.all(dim=-1)) & (mass > 0)
    rest = scores.masked_fill(listed & counts[:, None], -torch.inf)
    return torch.where(counts, mass * (torch.logsumexp(rest, dim=-1) - total), 0.0)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log p(target)`` of each position: float32 [P], nats."""
    return torch.nn.functional.cross_entropy(logits.float(), targets.long(), reduction="none")


def weighted_nll_and_kd(
    logits: Tensor, batch: Mapping[str, Tensor], part: slice, temperature: float = 1.0, tail: Tail = "bucket"
) -> Tensor:
    """``gold_weight * CE + teacher_weight * t² * KD`` of some answer positions of a batch: float32 [p].

    Args:
        logits: [p, V].
        batch: from :class:`~fate_llm_ext.data.collate.Collator`; its weights hold the means over positions and items.
        part: the positions.
        temperature: t, of teacher and student. The square keeps the gradient's scale at any temperature.
        tail: as :func:`sparse_kd_loss`.
    """
    gold_weight, teacher_weight = batch["gold_weight"][part], batch["teacher_weight"][part]
    loss = gold_weight * token_nll(logits, batch["target"][part])
    taught = (teacher_weight > 0).nonzero().squeeze(1)
    if len(taught):
        ids, log_probs = batch["teacher_ids"][part][taught], batch["teacher_log_probs"][part][taught]
        kd = sparse_kd_loss(logits[taught], ids, log_probs, temperature, tail)
        loss = loss.index_add(0, taught, teacher_weight[taught] * kd * temperature**2)
    return loss


def chunked_head_loss(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    chunk: int,
    fn: Callable[[Tensor, slice], Tensor],
) -> Tensor:
    """``fn(head(hidden[rows]), rows)`` for consecutive slices of ``chunk`` positions, concatenated: [P].

    The head's output is computed again in the backward pass instead of being kept, so that at any time only one
    chunk of [chunk, V] exists.

    Args:
        hidden: [P, d].
        head: [p, d] -> [p, V].
        chunk: positions at a time, at least 1.
        fn: takes logits [p, V] and the slice they belong to; returns one value per position, [p].

    Raises:
        ExtensionError: E445 ``chunk`` is not positive.
    """
    if chunk < 1:
        raise ExtensionError("E445", chunk=chunk)

    def run(part: Tensor, rows: slice) -> Tensor:
        return fn(head(part), rows)

    pieces = []
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, min(start + chunk, hidden.shape[0]))
        if torch.is_grad_enabled():
            pieces.append(checkpoint(run, hidden[rows], rows, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(run(hidden[rows], rows))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)
