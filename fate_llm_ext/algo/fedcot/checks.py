"""What each role needs in FedCoT, and whether a peer's message fits the job. Imports nothing heavy."""

from __future__ import annotations

from typing import FrozenSet, List

import numpy as np

from fate_llm_ext.algo.fedcot.config import WORD_BY_WORD, FedCoTConfig, PredictConfig
from fate_llm_ext.algo.fedcot.protocol import Explained, Rationales
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.algo.messages import Texts, invalid
from fate_llm_ext.errors import ExtensionError


def looked_up(config: FedCoTConfig, role: str) -> FrozenSet[str]:
    """The parameters whose names the party's site file has to know."""
    if role == "arbiter":
        return frozenset({"llm"})
    found = {"student"}
    if config.perturbation.strategy in WORD_BY_WORD:
        found |= {"vocabulary.model", "vocabulary.public", "perturbation.proxy"}
        if "infill" in config.attack.methods:
            found.add("attack.model")
    return frozenset(found)


def role_problems(config: FedCoTConfig, role: str) -> List[ExtensionError]:
    """What this party's parameters lack (E670), or what is wrong with the form of its questions (E784 to E786)."""
    needed = {"llm": "it writes the rationales"} if role == "arbiter" else {"student": "it learns to answer"}
    found = [
        ExtensionError("E670", role=role, parameter=name, why=why)
        for name, why in needed.items()
        if getattr(config, name) is None
    ]
    if role != "arbiter":
        try:
            Outgoing(config.task, config.question)
        except ExtensionError as error:
            found.append(error)
    return found


def predict_looked_up(config: PredictConfig, role: str) -> FrozenSet[str]:
    """As :func:`looked_up`, for the predict stage: a model trained as a whole needs no base model."""
    return frozenset({"student"} if role != "arbiter" and config.student_weights == "lora" else ())


def predict_problems(config: PredictConfig, role: str) -> List[ExtensionError]:
    """As :func:`role_problems`, for the predict stage."""
    why = "an adapter was trained, and it needs its base model"
    lacking = config.student is None and predict_looked_up(config, role)
    return [ExtensionError("E670", role=role, parameter="student", why=why)] if lacking else []


def check_questions(message: Texts, sender: str) -> None:
    """Every question has a number of its own.

    Raises:
        ExtensionError: E301.
    """
    different = len(np.unique(message.codes))
    if different < len(message.codes):
        raise invalid(sender, message.name, f"{len(message.codes)} questions, {different} different numbers")


def check_rationales(message: Rationales | Explained, sender: str, asked: np.ndarray) -> None:
    """Every rationale belongs to a question that was asked (codes int [S]).

    Raises:
        ExtensionError: E301.
    """
    odd = int((~np.isin(message.codes, asked)).sum())
    if odd:
        raise invalid(sender, message.name, f"{odd} of {len(message.codes)} rationales are for no question")
