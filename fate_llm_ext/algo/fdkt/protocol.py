"""The messages of FDKT.

Every client (guest and hosts) talks to the arbiter only, and its texts, labels and votes are used for itself alone.
Number of records, sampling rate and number of steps count as public, and so do labels and description.

step      sender -> receiver  name       derives from private data          covered by
--------  ------------------  ---------  ---------------------------------  -------------------------------
start     client -> arbiter   hello      no (version, parameters, ε, δ,     nothing to cover
                                         labels, description)
start     arbiter -> client   welcome    no                                 nothing to cover
texts     client -> arbiter   synthetic  through the DP generator: texts    DP-SGD, and the noisy histogram of
                                         that it wrote, their labels        labels if asked for
augment   arbiter -> client   augmented  texts of the LLM after these,      post-processing of these (and votes)
                                         which of these were kept
feedback  client -> arbiter   votes      yes: for how many records each     Gaussian noise, in the same ε
                                         augmented text is the nearest

``augmented`` comes once, and once more per round of feedback. Signs of life go by the clock and say what a party
does, nothing about its records. A client that cannot read or render its rows says so in one constant text.

Dimensions: S texts, B bytes, K texts that the client had sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.fdkt.config import LONGEST_WORD, MOST_LABELS
from fate_llm_ext.algo.messages import MessageRow, Texts, check_told
from fate_llm_ext.federation.codec import WireMessage, array
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian


@dataclass(frozen=True)
class Hello(WireMessage):
    """A client introduces itself.

    Attributes:
        parameters: what has to be the same at both ends, as text.
        epsilon: what its part of the job will cost, as the job asks for it; -1 stands for infinity.
        delta: at this δ.
        labels: the client's public list of labels.
        description: what its texts are, for the prompts of the LLM.
    """

    name: ClassVar[str] = "hello"
    version: str
    parameters: Dict[str, str]
    epsilon: float
    delta: float
    labels: List[str]
    description: str

    def validate(self) -> None:
        """There are labels, all different, of a number and size that fit into a prompt."""
        if len(self.labels) > MOST_LABELS:
            raise ValueError(f"{len(self.labels)} labels, at most {MOST_LABELS} are allowed")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{len(self.labels)} labels, {len(set(self.labels))} different ones")
        longest = max(len(one) for one in [*self.labels, self.description])
        if longest > LONGEST_WORD or not all(one.strip() for one in [*self.labels, self.description]):
            raise ValueError(f"a label or description is empty or has {longest} of at most {LONGEST_WORD} characters")


@dataclass(frozen=True)
class Welcome(WireMessage):
    """The arbiter accepts a client.

    Attributes:
        clients: how many it serves.
        llm: the LLM's name in the job.
    """

    name: ClassVar[str] = "welcome"
    clients: int
    llm: str


@dataclass(frozen=True)
class Synthetic(Texts):
    """Texts that a client has sampled from its DP generator; ``codes`` are their labels."""

    name: ClassVar[str] = "synthetic"


@dataclass(frozen=True)
class Augmented(Texts):
    """Texts that the LLM has written for one client; ``codes`` are their labels.

    Attributes:
        dropped: reason -> how many texts were dropped for it, as decimal numbers.
        note: why there are none, or fewer than asked for; empty otherwise.
        kept: 1 for each text of the client that became a demonstration; empty in rounds of feedback.
    """

    name: ClassVar[str] = "augmented"
    dropped: Dict[str, str]  # type: ignore[misc]  # array() in the base class declares a field, it is no default
    note: str  # type: ignore[misc]
    kept: np.ndarray = array("u1", "K")

    def validate(self) -> None:
        """Texts are valid, counts are numbers; what will be shown to the client's people is a line of plain text."""
        super().validate()
        check_told(self.dropped, self.note)
        if len(self.kept) and int(self.kept.max()) > 1:
            raise ValueError(f"a mark of {int(self.kept.max())} for a kept text")


@dataclass(frozen=True)
class Votes(WireMessage):
    """For how many of the client's records each augmented text is the nearest, with Gaussian noise; may be negative."""

    name: ClassVar[str] = "votes"
    counts: np.ndarray = array("f8", "S")


_DP_SGD = (PoissonGaussian.kind,)

MESSAGES: Tuple[MessageRow, ...] = (
    MessageRow("hello", "client", "arbiter", "", (), Hello),
    MessageRow("welcome", "arbiter", "client", "", (), Welcome),
    MessageRow("synthetic", "client", "arbiter", "texts of the DP generator", _DP_SGD, Synthetic),
    MessageRow("augmented", "arbiter", "client", "texts of an LLM after the DP generator's", _DP_SGD, Augmented),
    MessageRow("votes", "client", "arbiter", "noisy votes for augmented texts", (Gaussian.kind,), Votes),
)
