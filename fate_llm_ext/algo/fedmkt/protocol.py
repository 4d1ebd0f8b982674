"""The messages of FedMKT.

Only the arbiter talks to the data owners ("clients": guest and hosts); clients never talk to each other.

round  sender -> receiver  name     derives from private data          privacy event
-----  ------------------  -------  ---------------------------------  -------------------------------
start  client -> arbiter   hello    no (versions, parameters, public   none
                                    fingerprint, vocabulary [1])
start  arbiter -> client   welcome  no (vocabulary [1])                none
each   client -> arbiter   scores   yes: likelihoods (NLL) of public   non-private release (ε = ∞), one
                                    answers and predicted answers of   entry in the ledger for all rounds,
                                    a model trained on it              written before the first `scores`
each   arbiter -> client   request  indirectly (which rows are useful) post-processing of `scores`
each   client -> arbiter   signals  yes: predicted answers and top-k   the same entry
                                    log-probabilities of a model
                                    trained on it; generated text [2]
each   arbiter -> client   signals  indirectly, through the LLM: the   post-processing of clients' messages
                                    same as a client's signals

Signs of life of a client say what it does ("private training"), not how far it is, which would tell how many rows
it has. A client that cannot read or render its rows says so in one constant text.

[1] Of the tokenizer: it derives from private rows only if the tokenizer was trained on them.
[2] Without choices (free text) an answer is the text that the model generates for a public prompt; it may
    repeat private training text word for word.

Dimensions: N labelled public rows that are trained on, C calibration rows, U unlabelled rows, R rows
taught, P answer positions of these, K log-probabilities per position, V vocabulary, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, List

import numpy as np

from fate_llm_ext.algo.agreement import check_distributions
from fate_llm_ext.federation.codec import WireMessage, array


@dataclass(frozen=True)
class Hello(WireMessage):
    """A client introduces itself: what must agree, and its vocabulary."""

    name: ClassVar[str] = "hello"
    version: str
    public_rows: int
    public_fingerprint: str
    parameters: Dict[str, str]
    eos_id: int
    blob: np.ndarray = array("u1", "B")
    lengths: np.ndarray = array("u2|u4", "V")
    kind: np.ndarray = array("u1", "V")


@dataclass(frozen=True)
class Welcome(WireMessage):
    """The arbiter accepts a client and gives its own vocabulary."""

    name: ClassVar[str] = "welcome"
    eos_id: int
    blob: np.ndarray = array("u1", "B")
    lengths: np.ndarray = array("u2|u4", "V")
    kind: np.ndarray = array("u1", "V")


@dataclass(frozen=True)
class Scores(WireMessage):
    """How a client's SLM does on the public set.

    Attributes:
        nll: NLL of the gold answer per byte, labelled rows (nats; equation 1's loss, comparable across
            tokenizers).
        calibration_nll: the same on the calibration rows.
        calibration_predicted: its answer to each calibration row, index into the choices (0 without).
        predicted: its answer to each unlabelled row, likewise.
    """

    name: ClassVar[str] = "scores"
    nll: np.ndarray = array("f4", "N")
    calibration_nll: np.ndarray = array("f4", "C")
    calibration_predicted: np.ndarray = array("i2", "C")
    predicted: np.ndarray = array("i2", "U")


@dataclass(frozen=True)
class Request(WireMessage):
    """The public rows (labelled first, then unlabelled) on which the arbiter wants to learn from a client."""

    name: ClassVar[str] = "request"
    rows: np.ndarray = array("u2|u4", "R")


@dataclass(frozen=True)
class Signals(WireMessage):
    """A teacher's distributions over the answers of some public rows, in the teacher's vocabulary.

    Attributes:
        rows: public rows (labelled first, then unlabelled).
        answers: the distinct answers of unlabelled rows; labelled rows have the gold answer.
        answer: index into ``answers`` per row, -1 for labelled rows.
        tokens: number of answer positions per row; they sum to P.
        starts: byte, counted from the answer's first, at which each position's predicted token starts
            (negative if it begins in the prompt).
        ids: token ids.
        log_probs: natural logarithms; what is missing to 1 is the tail.
    """

    name: ClassVar[str] = "signals"
    answers: List[str]
    rows: np.ndarray = array("u2|u4", "R")
    answer: np.ndarray = array("i2|i4", "R")
    tokens: np.ndarray = array("u2|u4", "R")
    starts: np.ndarray = array("i2|i4", "P")
    ids: np.ndarray = array("u2|u4", "P", "K")
    log_probs: np.ndarray = array("f2", "P", "K")

    def validate(self) -> None:
        """Counts and ranges that dtypes and shapes cannot say."""
        check_distributions(self.tokens, self.starts, self.log_probs, "position")
        if len(self.answer) and int(self.answer.max()) >= len(self.answers):
            raise ValueError(f"answer index {int(self.answer.max())}, {len(self.answers)} answers were sent")
