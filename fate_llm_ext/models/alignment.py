"""Which positions of two tokenizers say the same thing, and what that is in the other's vocabulary.

A causal LM's distribution at a position predicts the next token given the bytes consumed so far. It may be
given to another model exactly where that model has consumed the same bytes, that is where the predicted
tokens *start at the same byte*. Comparing starts is O(T), needs no edit distance, and never pairs
predictions made from different prefixes (FATE-LLM's dynamic time warping does for 37-45 % of positions).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fate_llm_ext.errors import ExtensionError

Array = np.ndarray[Any, Any]


def align_starts(source_starts: Array, target_starts: Array) -> Array:
    """Index of the source token that starts at the byte where each target token starts: int32 [T_t], -1 if none.

    Index ``i`` stands for the distribution that predicted source token ``i``. Of several tokens with one start
    (all but the last are empty) only the last takes part, on both sides.

    Args:
        source_starts: int [T_s], not decreasing.
        target_starts: int [T_t], not decreasing.

    Raises:
        ExtensionError: E324 the starts decrease.
    """
    edges = np.array([0, len(source_starts)]), np.array([0, len(target_starts)])
    return align_starts_batch(source_starts, edges[0], target_starts, edges[1]).astype(np.int32)


def align_starts_batch(source_starts: Array, source_edges: Array, target_starts: Array, target_edges: Array) -> Array:
    """:func:`align_starts` of N samples in CSR form: int64, indices into the *flat* ``source_starts``, -1 if none.

    Sample ``n`` owns ``starts[edges[n]:edges[n + 1]]``; ``edges`` are int [N + 1].
    """
    if len(source_edges) != len(target_edges):
        raise ExtensionError("E325", what="samples to align", got=len(source_edges) - 1, expected=len(target_edges) - 1)
    source, target = (np.asarray(starts, np.int64) for starts in (source_starts, target_starts))
    if not len(source) or not len(target):
        return np.full(len(target), -1, np.int64)
    low = min(int(source.min()), int(target.min()))
    stride = max(int(source.max()), int(target.max())) - low + 1
    keys = [
        starts - low + stride * np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        for starts, edges in ((source, source_edges), (target, target_edges))
    ]
    for starts, key, edges in zip((source, target), keys, (source_edges, target_edges)):
        _check_order(starts, key, edges)
    found = np.searchsorted(keys[0], keys[1], side="right") - 1
    hit = (found >= 0) & (keys[0][found] == keys[1])
    hit[:-1] &= keys[1][1:] != keys[1][:-1]
    return np.where(hit, found, -1)


def _check_order(starts: Array, key: Array, edges: Array) -> None:
    drops = np.flatnonzero(np.diff(key) < 0)
    if drops.size:
        at = int(drops[0])
        sample = int(np.searchsorted(edges, at, side="right")) - 1
        raise ExtensionError("E324", sample=sample, before=int(starts[at]), after=int(starts[at + 1]))


def map_top_k(
    ids: Array, log_probs: Array, table: Array, *, merge: Literal["sum", "first"] = "sum"
) -> tuple[Array, Array, Array]:
    """Rewrite sparse distributions in the target's vocabulary.

    Source ids that meet in one target id add up (``sum``), or the first one in the list wins and the others go
    to the tail (``first``, the paper). Ids without a counterpart, -1 or beyond the table go to the tail.

    Args:
        ids: int [P, K], -1 for padding.
        log_probs: [P, K], anything at padding.
        table: int [V_source], target id of each source id, -1 for none.
        merge: what happens to source ids with the same target id.

    Returns:
        ids int32 [P, K], most probable first, then -1; log_probs float32 [P, K] (-inf at padding); tail float32 [P],
        the probability that is left: ``1 - sum exp(log_probs)``, at least 0.
    """
    rows, width = ids.shape
    inside = (ids >= 0) & (ids < len(table))
    mapped = np.where(inside, table[np.where(inside, ids, 0)] if len(table) else -1, -1).astype(np.int64)
    order = np.argsort(mapped, axis=1, kind="stable")
    mapped = np.take_along_axis(mapped, order, 1).ravel()
    weights = np.take_along_axis(np.asarray(log_probs, np.float64), order, 1).ravel()
    out_ids = np.full((rows, width), -1, np.int32)
    out = np.full((rows, width), -np.inf, np.float32)
    row = np.repeat(np.arange(rows), width)
    first = np.ones(len(mapped), bool)
    first[1:] = (mapped[1:] != mapped[:-1]) | (row[1:] != row[:-1])
    heads = np.flatnonzero(first)
    if heads.size:
        joined = np.logaddexp.reduceat(weights, heads) if merge == "sum" else weights[heads]
        keep = mapped[heads] >= 0
        heads, joined = heads[keep], joined[keep]
        out_ids.ravel()[heads] = mapped[heads]
        out.ravel()[heads] = joined
    rank = np.argsort(-out, axis=1, kind="stable")
    out_ids, out = np.take_along_axis(out_ids, rank, 1), np.take_along_axis(out, rank, 1)
    tail = np.clip(1.0 - np.exp(out.astype(np.float64)).sum(axis=1), 0.0, 1.0)
    return out_ids, out, tail.astype(np.float32)
