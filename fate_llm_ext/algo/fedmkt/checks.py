"""Whether a peer's message fits the public set and what was asked for: dtypes and shapes cannot say that."""

from __future__ import annotations

import numpy as np

from fate_llm_ext.algo.fedmkt.protocol import Request, Scores, Signals
from fate_llm_ext.algo.fedmkt.public import PublicSet
from fate_llm_ext.errors import ExtensionError


def check_scores(scores: Scores, sender: str, public: PublicSet, unlabelled: bool) -> None:
    """Each row is scored once and each answer is one of the choices.

    Args:
        unlabelled: whether unlabelled rows are taught in this arm, or labelled ones.

    Raises:
        ExtensionError: E301.
    """
    expected = {
        "nll": 0 if unlabelled else len(public.labelled),
        "calibration_nll": len(public.calibration) if unlabelled else 0,
        "predicted": len(public.unlabelled) if unlabelled else 0,
    }
    for name, rows in expected.items():
        got = len(getattr(scores, name))
        if got != rows:
            raise invalid(sender, scores.name, f"{name} has {got} rows, {rows} were expected")
    for answers in (scores.calibration_predicted, scores.predicted):
        bad = answers[(answers < 0) | (answers >= public.regions)]
        if len(bad):
            raise invalid(sender, scores.name, f"answer {int(bad[0])} of {public.regions} choices")


def check_request(request: Request, sender: str, public: PublicSet, unlabelled: bool) -> np.ndarray:
    """The rows of a request (int64 [R]), all of the kind that is taught in this arm.

    Raises:
        ExtensionError: E301.
    """
    rows = request.rows.astype(np.int64)
    first, end = (len(public.labelled), len(public)) if unlabelled else (0, len(public.labelled))
    bad = rows[(rows < first) | (rows >= end)]
    if len(bad):
        raise invalid(sender, request.name, f"public row {int(bad[0])}, teachable are {first} to {end - 1}")
    return rows


def check_signals(signals: Signals, sender: str, wanted: np.ndarray) -> None:
    """Exactly the ``wanted`` rows (int [R]) were sent.

    Raises:
        ExtensionError: E301.
    """
    if not np.array_equal(signals.rows, wanted):
        reason = f"{len(signals.rows)} rows that are not the {len(wanted)} requested"
        raise invalid(sender, signals.name, reason)


def invalid(sender: str, message: str, reason: str) -> ExtensionError:
    """E301: the peer's message is not what the protocol allows."""
    return ExtensionError("E301", sender=sender, message=message, reason=reason)
