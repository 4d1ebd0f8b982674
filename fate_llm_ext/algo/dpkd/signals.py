"""What the teacher says about texts, sparse from the start, and what a student makes of it.

The teacher's distribution at each token of a text is its K most probable tokens; the rest of its probability is one
bucket. That is what crosses the wire if the student lives at another party, and it follows from the teacher's weights
and the texts alone: of a DP teacher and its own or a student's texts it is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Sequence

import numpy as np

from fate_llm_ext.algo.answering import Encoded, watched_scorer
from fate_llm_ext.data.collate import TeacherTargets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.targets import transfer
from fate_llm_ext.models.tokenizers import vocabulary_size

_SMALLEST_LOG_PROB = -60000.0  # float16, in which they may travel, ends at -65504


@dataclass(frozen=True, eq=False)
class TextSignals:
    """A teacher's distributions over S texts with P positions in all.

    Attributes:
        tokens: positions of each text, end token included (int64 [S], sum P).
        starts: first byte of each predicted token, counted from the text's first byte (int32 [P]).
        ids: the K most probable tokens of the teacher's vocabulary at each position (int32 [P, K]).
        log_probs: their log-probabilities at the teacher's temperature (float32 [P, K]).
    """

    tokens: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray


def teacher_signals(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    top_k: int,
    temperature: float,
    *,
    batch_size: int = 32,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> TextSignals:
    """The teacher's top-k distributions at the places of each sequence (texts as the teacher encodes them).

    Raises:
        ExtensionError: E407 a distribution is no number.
    """
    known = vocabulary_size(tokenizer)
    scores = watched_scorer(model, tokenizer, batch_size, "scoring texts", heartbeat).answers(
        [one.ids for one in encoded], [one.places for one in encoded], min(top_k, known), temperature, known
    )
    bad = int((~np.isfinite(scores.nll)).sum())
    if bad:
        raise ExtensionError("E407", bad=bad, total=len(encoded), what="the sampled texts")
    return TextSignals(
        tokens=np.diff(scores.offsets),
        starts=np.concatenate([one.starts for one in encoded]).astype(np.int32) if len(encoded) else np.zeros(0, "i4"),
        ids=scores.ids,
        log_probs=np.clip(scores.log_probs, _SMALLEST_LOG_PROB, 0.0),
    )


def targets(
    signals: TextSignals, encoded: Sequence[Encoded], table: Optional[np.ndarray]
) -> List[Optional[TeacherTargets]]:
    """The signals as targets of a student that encodes the same texts as ``encoded``; None where there are none.

    Args:
        table: the student's id of each of the teacher's tokens, from
            :func:`~fate_llm_ext.models.vocabulary.map_vocabulary`; None: both have the same tokenizer.

    Raises:
        ExtensionError: E324 starts decrease; E325 the signals are not about as many texts.
    """
    return transfer(
        signals.tokens, signals.starts, signals.ids, signals.log_probs, [one.starts for one in encoded], table
    )
