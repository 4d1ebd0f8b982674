"""How well a model writes texts like the test texts, and whether it heeds the control code."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import numpy as np

from fate_llm_ext.algo.answering import Encoded, watched_scorer
from fate_llm_ext.algo.control import Records, encode_prompts, encode_texts, join, text_room
from fate_llm_ext.config import ControlConfig
from fate_llm_ext.errors import ExtensionError


def evaluate(
    model: Any,
    tokenizer: Any,
    records: Records,
    control: ControlConfig,
    batch_size: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
    max_rows: Optional[int] = None,
) -> Dict[str, float]:
    """Perplexity and code accuracy on records.

    ``perplexity`` is exp(mean NLL per token) given the own code, over all tokens of the texts and the end tokens;
    it depends on the model's tokenizer. ``code_accuracy`` is the share of texts that are likelier under their own
    code than under any other (a tie counts by the part that guessing would win), without the prior of the codes.

    Args:
        max_rows: look at the first records only; the accuracy costs one pass per code.

    Returns:
        The two numbers; nothing if there are no records.

    Raises:
        ExtensionError: E407 a likelihood is no number; E662 the prompts leave no room for a text.
    """
    records = records if max_rows is None else records.first(max_rows)
    if not len(records):
        return {}
    prompts = encode_prompts(tokenizer, control)
    texts = encode_texts(tokenizer, records.texts, text_room(prompts, control))
    flat: List[Encoded] = [join(prompt, text, 0) for text in texts for prompt in prompts]
    scorer = watched_scorer(model, tokenizer, batch_size, "evaluation", heartbeat)
    scores = scorer.answers([one.ids for one in flat], [one.places for one in flat])
    nll = scores.nll.astype(np.float64).reshape(len(records), len(prompts))
    bad = int(nll.size - np.isfinite(nll).sum())
    if bad:
        raise ExtensionError("E407", bad=bad, total=nll.size, what="the test texts")
    own = nll[np.arange(len(records)), records.codes]
    tokens = sum(len(text.ids) for text in texts)
    best = nll == nll.min(axis=1, keepdims=True)
    right = best[np.arange(len(records)), records.codes] / best.sum(axis=1)
    return {"perplexity": float(np.exp(own.sum() / tokens)), "code_accuracy": float(right.mean())}
