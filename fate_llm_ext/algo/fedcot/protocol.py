"""The messages of FedCoT.

Every client (guest and hosts) talks to the arbiter only, and what the LLM writes after its questions goes back to it
alone. A question is a fixed form around perturbed words (:mod:`~fate_llm_ext.algo.fedcot.questions`); neither a label
nor a raw field can get into it, but for the fields under ``none``. Number of records, and of words in each of their
fields, count as public. Questions are sent in the order of the alphabet, which tells nothing of their records', except
to a recording.

step      sender -> receiver  name        derives from private data          covered by
--------  ------------------  ----------  ---------------------------------  ----------------------------------
start     client -> arbiter   hello       no (version, parameters, ε, δ,     nothing to cover
                                          choices)
start     arbiter -> client   welcome     no                                 nothing to cover
proxy     client -> arbiter   proxies     no: prompts of a public set, and   nothing to cover
                                          perturbed ones
proxy     arbiter -> client   explained   no: the LLM's rationales for these nothing to cover
explain   client -> arbiter   questions   yes: perturbed prompts, or texts   what the strategy is: an ε-LDP
                                          of a DP generator                  mechanism per word, a DP generator,
                                                                             or a release without privacy
explain   arbiter -> client   rationales  the LLM's texts after these        post-processing of these

``proxies`` and ``explained`` are there for ``adaptive_exponential`` alone. Signs of life go by the clock and say what a
party does, nothing about its records. A client that cannot read or render its rows says so in one constant text.

Dimensions: S texts, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.fedcot.config import LONGEST_WORD, MOST_CHOICES
from fate_llm_ext.algo.messages import MessageRow, Texts, check_told
from fate_llm_ext.federation.codec import WireMessage, array
from fate_llm_ext.privacy.events import LocalDP, NonPrivate, PostProcessing


@dataclass(frozen=True)
class Hello(WireMessage):
    """A client introduces itself.

    Attributes:
        parameters: what has to be the same at both ends, as text.
        epsilon: per record, of what it will release; -1 stands for infinity.
        delta: at this δ.
        choices: the task's closed list of answers, for the prompts of the LLM; empty if each row has its own.
        proxies: whether it will ask about public prompts first.
    """

    name: ClassVar[str] = "hello"
    version: str
    parameters: Dict[str, str]
    epsilon: float
    delta: float
    choices: List[str]
    proxies: bool

    def validate(self) -> None:
        """The choices are different words of a number and size that fit into a prompt."""
        if len(self.choices) > MOST_CHOICES or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"{len(self.choices)} choices, {len(set(self.choices))} different ones")
        longest = max((len(one) for one in self.choices), default=0)
        if longest > LONGEST_WORD or not all(one.strip() for one in self.choices):
            raise ValueError(f"a choice is empty or has {longest} of at most {LONGEST_WORD} characters")


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
class Proxies(Texts):
    """Prompts of a public set, the perturbed ones behind the others; ``codes`` number them."""

    name: ClassVar[str] = "proxies"


@dataclass(frozen=True)
class Questions(Texts):
    """What a client wants rationales for; ``codes`` number them, or are positions of rows (``rationale.recorded``)."""

    name: ClassVar[str] = "questions"


@dataclass(frozen=True)
class _Answers(Texts):
    """Rationales, as far as there are any; ``codes`` are those of the questions.

    Attributes:
        unfinished: 1 for each that was cut at ``rationale.max_new_tokens``.
        dropped: reason -> how many questions have no rationale for it, as decimal numbers.
        note: why there are none, or fewer than questions; empty otherwise.
    """

    dropped: Dict[str, str]  # type: ignore[misc]  # array() in the base class declares a field, it is no default
    note: str  # type: ignore[misc]
    unfinished: np.ndarray = array("u1", "S")

    def validate(self) -> None:
        """Texts are valid, counts are numbers; what will be shown to the client's people is a line of plain text."""
        super().validate()
        if len(set(self.codes.tolist())) < len(self.codes):
            raise ValueError(f"{len(self.codes)} rationales for {len(set(self.codes.tolist()))} questions")
        check_told(self.dropped, self.note)


@dataclass(frozen=True)
class Explained(_Answers):  # type: ignore[misc]
    """Rationales for the prompts of :class:`Proxies`."""

    name: ClassVar[str] = "explained"


@dataclass(frozen=True)
class Rationales(_Answers):  # type: ignore[misc]
    """Rationales for the prompts of :class:`Questions`."""

    name: ClassVar[str] = "rationales"


_ANY = (LocalDP.kind, PostProcessing.kind, NonPrivate.kind)

MESSAGES: Tuple[MessageRow, ...] = (
    MessageRow("hello", "client", "arbiter", "", (), Hello),
    MessageRow("welcome", "arbiter", "client", "", (), Welcome),
    MessageRow("proxies", "client", "arbiter", "", (), Proxies),
    MessageRow("explained", "arbiter", "client", "", (), Explained),
    MessageRow("questions", "client", "arbiter", "perturbed prompts", _ANY, Questions),
    MessageRow("rationales", "arbiter", "client", "texts of an LLM after perturbed prompts", _ANY, Rationales),
)
"""Of ``covered_by`` one is needed here, the strategy's, not all."""
