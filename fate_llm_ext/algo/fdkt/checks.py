"""What each role needs in FDKT, and whether a peer's message fits the job. Imports nothing heavy."""

from __future__ import annotations

from typing import FrozenSet, List

from fate_llm_ext.algo.fdkt.config import FDKTConfig, PredictConfig
from fate_llm_ext.algo.fdkt.protocol import Augmented, Votes
from fate_llm_ext.algo.messages import invalid
from fate_llm_ext.errors import ExtensionError


def looked_up(config: FDKTConfig, role: str) -> FrozenSet[str]:
    """The parameters whose names the party's site file has to know."""
    return frozenset({"llm", "embedder"} if role == "arbiter" else {"generator", "student"})


def role_problems(config: FDKTConfig, role: str) -> List[ExtensionError]:
    """E670 for every parameter that the role cannot do without and that this party's parameters lack."""
    why = {
        "llm": "it writes new texts after the clients' ones",
        "generator": "it is trained on the table by DP-SGD",
        "student": "it is what the client wants in the end",
    }
    needed = ("llm",) if role == "arbiter" else ("generator", "student")
    return [
        ExtensionError("E670", role=role, parameter=name, why=why[name])
        for name in needed
        if getattr(config, name) is None
    ]


def predict_looked_up(config: PredictConfig, role: str) -> FrozenSet[str]:
    """As :func:`looked_up`, for the predict stage: a model trained as a whole needs no base model."""
    return frozenset({"student"} if role != "arbiter" and config.student_weights == "lora" else ())


def predict_problems(config: PredictConfig, role: str) -> List[ExtensionError]:
    """As :func:`role_problems`, for the predict stage."""
    why = "an adapter was trained, and it needs its base model"
    lacking = config.student is None and predict_looked_up(config, role)
    return [ExtensionError("E670", role=role, parameter="student", why=why)] if lacking else []


def check_kept(message: Augmented, sender: str, texts: int) -> None:
    """There is one mark for each of the client's texts.

    Raises:
        ExtensionError: E301.
    """
    if len(message.kept) != texts:
        raise invalid(sender, message.name, f"{len(message.kept)} marks, {texts} texts were sent")


def check_votes(message: Votes, sender: str, texts: int) -> None:
    """There is one count for each augmented text.

    Raises:
        ExtensionError: E301.
    """
    if len(message.counts) != texts:
        raise invalid(sender, message.name, f"{len(message.counts)} counts, there are {texts} augmented texts")
