"""From a teacher's sparse distributions to a student's training targets: other token boundaries, other vocabulary."""

from __future__ import annotations

from typing import List, Literal, Optional, Sequence

import numpy as np

from fate_llm_ext.data.collate import TeacherTargets
from fate_llm_ext.models.alignment import align_starts_batch, map_top_k


def transfer(
    tokens: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    log_probs: np.ndarray,
    student_starts: Sequence[np.ndarray],
    table: Optional[np.ndarray],
    merge: Literal["sum", "first"] = "sum",
) -> List[Optional[TeacherTargets]]:
    """What a teacher said about S texts, in the student's terms.

    A position of the student takes the teacher's distribution if the teacher has one for the same place in the text's
    bytes and at least one of its tokens has a counterpart; other positions get none.

    Args:
        tokens: positions of the teacher in each text (int [S], sum P).
        starts: first byte of the predicted token at each position, not decreasing within a text (int [P]).
        ids: the teacher's most probable tokens (int [P, K]), -1 where unused.
        log_probs: their log-probabilities [P, K].
        student_starts: the same as ``starts`` for the student's tokens, per text (S times int [A]).
        table: the student's id of each of the teacher's, -1 for none (int [V]); None: one vocabulary.
        merge: see :func:`~fate_llm_ext.models.alignment.map_top_k`.

    Returns:
        Per text the student's targets, None if there are none.

    Raises:
        ExtensionError: E324 starts decrease; E325 there are not as many texts on both sides.
    """
    counts = [len(mine) for mine in student_starts]
    source_edges = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
    target_edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    flat = np.concatenate(student_starts) if len(counts) else np.zeros(0, dtype=np.int64)
    source = align_starts_batch(starts.astype(np.int64), source_edges, flat, target_edges)
    if table is not None:
        ids, log_probs, _ = map_top_k(ids.astype(np.int64), log_probs, table, merge=merge)
    usable = source >= 0
    usable[usable] = (ids[source[usable]] >= 0).any(axis=1)
    result: List[Optional[TeacherTargets]] = []
    for first, last in zip(target_edges[:-1], target_edges[1:]):
        slots = np.flatnonzero(usable[first:last])
        where = source[first:last][slots]
        result.append(TeacherTargets(slots, ids[where], log_probs[where]) if len(slots) else None)
    return result
