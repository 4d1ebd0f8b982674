"""What each role needs in DP-KD, and whether a peer's message fits the job. Imports nothing heavy."""

from __future__ import annotations

from typing import FrozenSet, List

import numpy as np

from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.protocol import Frequencies, Histogram, Signals
from fate_llm_ext.algo.messages import invalid
from fate_llm_ext.errors import ExtensionError

# Comparisons that an owner makes with its private records; `synthetic_ce` is made where the student is.
OWNER_COMPARISONS = ("dp_sgd_student", "dpkd", "non_private")


def compares(config: DPKDConfig, role: str) -> bool:
    """Whether a party makes comparisons on its private records: the guest if asked, a host that has a student too."""
    asked = any(name in config.compare for name in OWNER_COMPARISONS)
    return asked and (role == "guest" or (role == "host" and config.student is not None))


def trains_student(config: DPKDConfig, role: str) -> bool:
    """Whether the party trains and keeps the student."""
    return role == config.student_at


def looked_up(config: DPKDConfig, role: str) -> FrozenSet[str]:
    """The parameters among ``teacher``, ``student``, ``public`` whose names the party's site file has to know."""
    names = set() if role == "arbiter" else {"teacher"}
    if trains_student(config, role) or compares(config, role):
        names |= {"student", "public"}
    return frozenset(names)


def role_problems(config: DPKDConfig, role: str) -> List[ExtensionError]:
    """E670 for every parameter that the role cannot do without and that this party's parameters lack."""
    why = {"teacher": "it trains the teacher on its table"}
    if trains_student(config, role):
        why["student"] = f"`student_at: {config.student_at}`"
    elif compares(config, role):
        why["student"] = "it makes the comparisons of `compare`"
    return [
        ExtensionError("E670", role=role, parameter=name, why=why[name])
        for name in ("teacher", "student")
        if name in why and name in looked_up(config, role) and getattr(config, name) is None
    ]


def check_counts(message: Histogram | Frequencies, sender: str, codes: int) -> np.ndarray:
    """The noisy counts (float64 [C]), one per control code.

    Raises:
        ExtensionError: E301.
    """
    if len(message.counts) != codes:
        raise invalid(sender, message.name, f"{len(message.counts)} counts, there are {codes} control codes")
    return message.counts.astype(np.float64)


def check_signals(message: Signals, sender: str, first: int, texts: int, vocabulary: int) -> None:
    """The block starts where the last one ended, ends within the texts and names tokens of the vocabulary.

    Raises:
        ExtensionError: E301.
    """
    reason = ""
    if message.first != first:
        reason = f"a block from text {message.first}, the next one is {first}"
    elif not len(message.tokens) or first + len(message.tokens) > texts:
        reason = f"{len(message.tokens)} texts from text {first}, there are {texts}"
    elif message.ids.size and int(message.ids.max()) >= vocabulary:
        reason = f"token id {int(message.ids.max())} of {vocabulary}"
    if reason:
        raise invalid(sender, message.name, reason)
