"""Shares of attempts that succeed, with their exact intervals."""

from __future__ import annotations

from typing import Dict

from scipy.stats import binomtest

CONFIDENCE = 0.95


def share(name: str, hits: int, attempts: int) -> Dict[str, float]:
    """``name``, ``name_low`` and ``name_high``: a share and its Clopper-Pearson 95 % interval, in [0, 1].

    Empty if nothing was attempted. Of the best of several methods the share is a little too large for its interval,
    which is the right side to err on.
    """
    if not attempts:
        return {}
    interval = binomtest(hits, attempts).proportion_ci(CONFIDENCE, "exact")
    return {name: hits / attempts, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
