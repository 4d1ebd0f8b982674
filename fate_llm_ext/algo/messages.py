"""Messages that several protocols use, and how a protocol declares what each of its messages gives away."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Type

import numpy as np

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, array

LONGEST_TEXT = 1 << 18  # bytes
LONGEST_NOTE = 2000  # characters
_REASON = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True)
class Texts(WireMessage):
    """Texts with their control codes.

    Attributes:
        codes: index into the list of control codes.
        lengths: bytes of each text.
        blob: the texts one after the other, UTF-8.
    """

    codes: np.ndarray = array("u2|u4", "S")
    lengths: np.ndarray = array("u2|u4", "S")
    blob: np.ndarray = array("u1", "B")

    def validate(self) -> None:
        """The lengths cover the bytes, which are UTF-8, and no text is endless."""
        if int(self.lengths.sum()) != len(self.blob):
            raise ValueError(f"text lengths sum to {int(self.lengths.sum())}, {len(self.blob)} bytes were sent")
        if len(self.lengths) and int(self.lengths.max()) > LONGEST_TEXT:
            raise ValueError(f"a text of {int(self.lengths.max())} bytes, at most {LONGEST_TEXT} are allowed")
        if len(self.lengths) and int(self.lengths.min()) == 0:
            raise ValueError(f"text {int(self.lengths.argmin())} of {len(self.lengths)} is empty")
        self.texts()

    def texts(self) -> list[str]:
        """The texts. ValueError if one of them is no UTF-8."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        blob = self.blob.tobytes()
        return [blob[end - size : end].decode() for end, size in zip(ends.tolist(), self.lengths.tolist())]


def check_texts(message: Texts, sender: str, codes: int, limit: int, what: str = "control code") -> None:
    """The codes are in the list, and there are no more texts than were asked for; ``what`` the protocol calls a code.

    Raises:
        ExtensionError: E301.
    """
    if len(message.codes) > limit:
        raise invalid(sender, message.name, f"{len(message.codes)} texts, at most {limit} were asked for")
    if len(message.codes) and int(message.codes.max()) >= codes:
        raise invalid(sender, message.name, f"{what} {int(message.codes.max())} of {codes}")


def invalid(sender: str, message: str, reason: str) -> ExtensionError:
    """E301: the peer's message is not what the protocol allows."""
    return ExtensionError("E301", sender=sender, message=message, reason=reason)


def pack_texts(codes: np.ndarray, texts: list[str]) -> dict[str, np.ndarray]:
    """The fields of :class:`Texts` (codes int [S])."""
    raw = [text.encode() for text in texts]
    return {
        "codes": codes,
        "lengths": np.array([len(one) for one in raw], dtype=np.uint32),
        "blob": np.frombuffer(b"".join(raw), dtype=np.uint8),
    }


def check_told(dropped: Dict[str, str], note: str) -> None:
    """Counts by reason and a line of plain text: what will be shown to the receiver's people.

    Raises:
        ValueError: they are something else.
    """
    if len(note) > LONGEST_NOTE or not note.isprintable():
        raise ValueError(f"a note of {len(note)} characters, not at most {LONGEST_NOTE} printable ones")
    odd = [reason for reason in dropped if not _REASON.fullmatch(reason)]
    if odd:
        raise ValueError(f"{len(odd)} of {len(dropped)} reasons are no names")
    wrong = [reason for reason, count in dropped.items() if not (count.isascii() and count.isdigit())]
    if wrong or len(dropped) > 64 or any(len(count) > 12 for count in dropped.values()):
        raise ValueError(f"{len(dropped)} counts of dropped texts, {len(wrong)} of them no numbers")


def printable(note: str) -> str:
    """A note as :func:`check_told` lets it pass."""
    return "".join(letter if letter.isprintable() else " " for letter in note)[:LONGEST_NOTE]


@dataclass(frozen=True)
class MessageRow:
    """What one kind of message of a protocol holds, and why it may leave.

    Attributes:
        name: as in the ``message`` events of a party.
        sender: a kind of party, e.g. ``owner`` or ``arbiter``.
        receiver: likewise.
        derives_from: the private data behind it; empty if there is none.
        covered_by: kinds of mechanism (:mod:`fate_llm_ext.privacy.events`) of which the sender's ledger must hold
            an event before the message leaves; empty exactly if nothing private is behind it.
        type: the message's class; None for what FATE's aggregator sends.
    """

    name: str
    sender: str
    receiver: str
    derives_from: str
    covered_by: Tuple[str, ...]
    type: Optional[Type[WireMessage]] = None
