"""What protocols have in common: versions, parameters, vocabularies and distributions that parties tell each other."""

from __future__ import annotations

from typing import Any, Dict, Mapping

import numpy as np

from fate_llm_ext import __version__
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.vocabulary import Vocabulary

_HALF_PRECISION = 1.05  # log-probabilities travel as float16, whose rounding adds up over K of them


def check_distributions(tokens: np.ndarray, starts: np.ndarray, log_probs: np.ndarray, what: str) -> None:
    """Counts and ranges of sparse distributions that dtypes and shapes cannot say.

    Args:
        tokens: predicted tokens per text, int [S]; they sum to P.
        starts: int [P].
        log_probs: natural logarithms, [P, K].
        what: what one of the P is called in the message, token or position.

    Raises:
        ValueError: the counts do not cover the positions, a probability or the sum of a position's is above 1.
    """
    if int(tokens.sum()) != len(starts):
        raise ValueError(f"token counts sum to {int(tokens.sum())}, {len(starts)} {what}s were sent")
    if log_probs.size and float(log_probs.max()) > 1e-3:
        raise ValueError(f"a log-probability of {float(log_probs.max()):.3f} is above 0")
    mass = np.exp(log_probs.astype(np.float32)).sum(axis=1)
    if mass.size and float(mass.max()) > _HALF_PRECISION:
        raise ValueError(f"the probabilities of a {what} sum to {float(mass.max()):.3f}")


def agree(party: str, version: str, parameters: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Whether a client runs the arbiter's release with the arbiter's parameters.

    Args:
        party: the client, for errors.
        version: of its fate-llm-ext.
        parameters: its parameters that must be common, as text.
        own: the arbiter's.

    Raises:
        ExtensionError: E306 parameters differ, E307 versions differ.
    """
    if version != __version__:
        raise ExtensionError("E307", party=party, got=version, expected=__version__)
    differences = [
        f"{name} is {parameters.get(name)} there and {own.get(name)} here"
        for name in sorted(set(own) | set(parameters))
        if parameters.get(name) != own.get(name)
    ]
    if differences:
        raise ExtensionError("E306", party=party, differences="; ".join(differences))


def vocabulary_fields(vocabulary: Vocabulary) -> Dict[str, Any]:
    """A vocabulary as the fields ``eos_id, blob, lengths, kind`` of a message."""
    return {
        "eos_id": vocabulary.eos_id,
        "blob": vocabulary.blob,
        "lengths": vocabulary.lengths,
        "kind": vocabulary.kind,
    }


def vocabulary_of(message: Any, sender: str) -> Vocabulary:
    """The vocabulary in a message that has the fields of :func:`vocabulary_fields`.

    Raises:
        ExtensionError: E301 it is malformed.
    """
    try:
        return Vocabulary.from_arrays(
            {
                "blob": message.blob,
                "offsets": np.concatenate([[0], np.cumsum(message.lengths, dtype=np.int64)]),
                "kind": message.kind,
                "eos_id": np.array([message.eos_id], dtype=np.int64),
            }
        )
    except (ExtensionError, OverflowError) as error:
        reason = error.problem if isinstance(error, ExtensionError) else "the end token is out of range"
        raise ExtensionError("E301", sender=sender, message=message.name, reason=reason.rstrip(".")) from error
