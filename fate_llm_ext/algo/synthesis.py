"""Texts sampled from a model by control code. From a DP teacher this is post-processing: it costs no privacy."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.answering import watched
from fate_llm_ext.algo.control import Records, clean, encode_prompts
from fate_llm_ext.config import ControlConfig, GenerationConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.generation import generate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SynthesisReport:
    """What became of the texts asked for.

    Attributes:
        asked: texts sampled.
        kept: texts left.
        dropped: reason (``empty``, ``duplicate``) -> texts dropped for it.
        per_code: kept texts of each control code (int64 [C]).
    """

    asked: int
    kept: int
    dropped: Dict[str, int]
    per_code: np.ndarray


def code_counts(samples: int, shares: Optional[np.ndarray], codes: int) -> np.ndarray:
    """How many texts to ask for per code: int64 [C], in sum ``samples``, by largest remainder.

    Args:
        shares: weight of each code, e.g. a noisy histogram, whose negative entries count as 0; None: all alike.
            Noise that left nothing positive says nothing: then all codes are alike, too.

    Raises:
        ExtensionError: E325 as many shares as codes are needed.
    """
    weights = np.ones(codes) if shares is None else np.maximum(np.asarray(shares, dtype=np.float64), 0.0)
    if weights.shape != (codes,):
        raise ExtensionError("E325", what="shares of control codes", got=weights.shape, expected=(codes,))
    if not weights.any():
        logger.warning("no control code has a positive noisy count; asking for all %d alike", codes)
        weights = np.ones(codes)
    exact = samples * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")  # the largest remainder first, ties by the code's place
    counts[most[: samples - int(counts.sum())]] += 1
    return counts


def synthesise(
    model: Any,
    tokenizer: Any,
    control: ControlConfig,
    counts: np.ndarray,
    config: GenerationConfig,
    *,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Tuple[Records, SynthesisReport]:
    """Sample ``counts[c]`` texts for each code c; empty ones and repetitions are left out and counted.

    A text repeats another if it is the same up to white space and case, under whatever code; the first stays.

    Raises:
        ExtensionError: as :func:`sample_texts`.
    """
    records, _ = sample_texts(model, tokenizer, control, counts, config, seed=seed, heartbeat=heartbeat)
    return select(records, len(counts))


def sample_texts(
    model: Any,
    tokenizer: Any,
    control: ControlConfig,
    counts: np.ndarray,
    config: GenerationConfig,
    *,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Tuple[Records, np.ndarray]:
    """Sample ``counts[c]`` texts for each code c.

    Returns:
        All of them, in the codes' order, and which ones the model has ended itself before ``max_new_tokens`` were
        written (bool [S]).

    Raises:
        ExtensionError: E662 prompt and ``max_new_tokens`` are longer than ``control.max_length``; E665 or than the
            model's context.
    """
    prompts = encode_prompts(tokenizer, control, config.max_new_tokens)
    codes = np.repeat(np.arange(len(prompts), dtype=np.int32), counts)
    written = generate(
        model,
        tokenizer,
        [prompts[code] for code in codes],
        config,
        seed=seed,
        step=watched("sampling texts", heartbeat),
    )
    decoded = tokenizer.batch_decode(written, skip_special_tokens=True) if written else []
    texts = [clean(text) for text in decoded]
    # The end token is not among what was written, so a text of full length has none.
    ended = np.array([len(one) < config.max_new_tokens for one in written], dtype=bool)
    return Records(codes, texts), ended


def select(records: Records, codes: int) -> Tuple[Records, SynthesisReport]:
    """Leave out empty texts and repetitions; ``codes`` is the number of control codes."""
    kept, dropped = distinct(records.texts)
    chosen = records.take(kept)
    per_code = np.bincount(chosen.codes, minlength=codes)
    return chosen, SynthesisReport(len(records), len(chosen), dropped, per_code)


def distinct(texts: Sequence[str]) -> Tuple[List[int], Dict[str, int]]:
    """Which texts are neither empty nor repeat an earlier one, and how many are left out for each reason."""
    dropped = {"empty": 0, "duplicate": 0}
    seen = set()
    kept: List[int] = []
    for index, text in enumerate(texts):
        key = " ".join(text.split()).casefold()
        if not key or key in seen:
            dropped["duplicate" if key else "empty"] += 1
            continue
        seen.add(key)
        kept.append(index)
    return kept, dropped
