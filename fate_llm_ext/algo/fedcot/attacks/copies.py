"""What is left of private texts in those of a DP generator, where no word stands for another: copied runs of words."""

from __future__ import annotations

import math
from typing import Callable, Dict, List, Sequence

import numpy as np

from fate_llm_ext.algo.fdkt.contamination import Passage, overlap

_WIDTH = 1.96  # standard errors of a normal 95 % interval


def copy_figures(
    private: Sequence[str],
    made: Sequence[str],
    held_out: Sequence[str],
    heartbeat: Callable[[], None] = lambda: None,
) -> Dict[str, float]:
    """How much more of the private texts stands in the made ones than of texts that the generator never read.

    ``attack_copied``   mean share of a private text's word 5-grams that stand in a made text, in [0, 1].
    ``attack_prior``    the same of the held-out texts: what texts of this kind have in common anyway. Left out if there
                        are none, and taken as 0, so that the next is too large rather than too small.
    ``attack_success``  the excess of the first over the second, at least 0, with ``_low`` and ``_high``: a normal 95 %
                        interval of the difference of means, cut to [0, 1].
    ``attack_records``  how many private texts were looked at.
    """
    if not private or not made:
        return {}
    sources = [Passage(text) for text in made]
    own, base = (_shares(texts, sources, heartbeat) for texts in (private, held_out))
    excess = float(own.mean() - (base.mean() if len(base) else 0.0))
    error = math.sqrt(sum(one.var(ddof=1) / len(one) for one in (own, base) if len(one) > 1))
    figures = {
        "attack_records": float(len(own)),
        "attack_copied": float(own.mean()),
        "attack_success": max(0.0, excess),
        "attack_success_low": min(1.0, max(0.0, excess - _WIDTH * error)),
        "attack_success_high": min(1.0, max(0.0, excess + _WIDTH * error)),
    }
    return {**figures, "attack_prior": float(base.mean())} if len(base) else figures


def _shares(texts: Sequence[str], sources: List[Passage], heartbeat: Callable[[], None]) -> np.ndarray:
    """Of each text the share of its 5-grams that stand in a source, float64 [N]."""
    found: List[float] = []
    for text in texts:
        found.append(overlap(Passage(text), sources))
        heartbeat()
    return np.array(found)
