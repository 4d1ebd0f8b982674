"""The messages of DP-KD.

Every data owner ("owner": guest and hosts) talks to the arbiter only, except for the public keys of the
secure aggregation. Numbers of records, sampling rates and numbers of steps count as public.

step      sender -> receiver  name              derives from private data         covered by
--------  ------------------  ----------------  --------------------------------  --------------------------
start     owner -> arbiter    hello             no (versions, parameters, ε, δ,   nothing to cover
                                                fingerprint and vocabulary of
                                                the base model [1])
start     arbiter -> owner    welcome           no (rank among the owners)        nothing to cover
teacher   owner -> owner      aggregation_keys  no (Diffie-Hellman, fresh)        nothing to cover
teacher   owner -> arbiter    aggregation       yes: weights of the teacher       DP-SGD of the sender [2]
                                                after its steps, masked
teacher   arbiter -> owner    aggregation       their mean                        post-processing of these
texts     owner -> arbiter    histogram         yes: how many records have each   Gaussian noise, in the same
                                                code                              ε as the DP-SGD
texts     arbiter -> owner    frequencies       their sum, as shares              post-processing of these
texts     owner -> arbiter    synthetic         through the DP teacher: texts     DP-SGD
                                                that it wrote
texts     owner -> arbiter    signals           through the DP teacher: top-k     DP-SGD
                                                log-probabilities on these texts
student   arbiter -> guest    rollouts          texts that the student wrote      post-processing
student   guest -> arbiter    signals           through the DP teacher, as above  DP-SGD

``aggregation`` and its keys are there with two owners or more, ``histogram`` and ``frequencies`` then too if
they are asked for. The rows from ``synthetic`` on are there if the student is the arbiter's.
Signs of life ("training the teacher") go by the clock, and their texts say what a party does, nothing about its
records: in particular not how many records a step has sampled, which the guarantee of Poisson sampling keeps secret.
When messages come may still hint at the sizes of samples; the guarantee does not cover that. An owner that cannot
read or render its rows says so in one constant text, without the error's code.

[1] They derive from private rows only if the base model was trained on them.
[2] Each sender's weights are differentially private without the masks; these are a second line. FATE adds its
    masks to floating-point numbers, which hides them well but not perfectly.

Dimensions: C control codes, S texts, B bytes, P predicted tokens, K log-probabilities per token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, Tuple

import numpy as np

from fate_llm_ext.algo.agreement import check_distributions
from fate_llm_ext.algo.messages import MessageRow, Texts
from fate_llm_ext.federation.aggregation import KEYS_MESSAGE, WEIGHTS_MESSAGE
from fate_llm_ext.federation.codec import WireMessage, array
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian


@dataclass(frozen=True)
class Hello(WireMessage):
    """An owner introduces itself: what must agree, and the vocabulary in which it will send signals.

    Attributes:
        teacher: fingerprint of the base model and of the weights that are trained; alike at all owners.
        epsilon: what its part of the job will cost, as the job asks for it.
        delta: at this δ.
        eos_id: end token, -1 without a vocabulary (it is not sent if the student stays at the guest).
    """

    name: ClassVar[str] = "hello"
    version: str
    parameters: Dict[str, str]
    teacher: str
    epsilon: float
    delta: float
    eos_id: int
    blob: np.ndarray = array("u1", "B")
    lengths: np.ndarray = array("u2|u4", "V")
    kind: np.ndarray = array("u1", "V")


@dataclass(frozen=True)
class Welcome(WireMessage):
    """The arbiter accepts an owner and tells its rank, which decides which texts it samples."""

    name: ClassVar[str] = "welcome"
    rank: int
    owners: int

    def validate(self) -> None:
        """The rank is one of them."""
        if not 0 <= self.rank < self.owners:
            raise ValueError(f"rank {self.rank} of {self.owners} owners")


@dataclass(frozen=True)
class Histogram(WireMessage):
    """An owner's records per control code with Gaussian noise; may be negative."""

    name: ClassVar[str] = "histogram"
    counts: np.ndarray = array("f8", "C")


@dataclass(frozen=True)
class Frequencies(WireMessage):
    """Noisy counts of all owners together, from which all compute the same numbers of texts."""

    name: ClassVar[str] = "frequencies"
    counts: np.ndarray = array("f8", "C")


@dataclass(frozen=True)
class Synthetic(Texts):
    """Texts that an owner has sampled from the DP teacher."""

    name: ClassVar[str] = "synthetic"


@dataclass(frozen=True)
class Rollouts(Texts):
    """Texts that the student has written and the DP teacher shall score."""

    name: ClassVar[str] = "rollouts"


@dataclass(frozen=True)
class Signals(WireMessage):
    """The DP teacher's distributions over the tokens of a block of texts, in the teacher's vocabulary.

    Attributes:
        first: the block's first text.
        tokens: predicted tokens per text; they sum to P.
        starts: byte, counted from the text's first, at which each predicted token starts.
        ids: token ids.
        log_probs: natural logarithms; what is missing to 1 is the tail.
    """

    name: ClassVar[str] = "signals"
    first: int
    tokens: np.ndarray = array("u2|u4", "S")
    starts: np.ndarray = array("i2|i4", "P")
    ids: np.ndarray = array("u2|u4", "P", "K")
    log_probs: np.ndarray = array("f2", "P", "K")

    def validate(self) -> None:
        """Counts and ranges that dtypes and shapes cannot say."""
        check_distributions(self.tokens, self.starts, self.log_probs, "token")


_DP_SGD = (PoissonGaussian.kind,)
_TEXTS = "texts of the DP teacher"

MESSAGES: Tuple[MessageRow, ...] = (
    MessageRow("hello", "owner", "arbiter", "", (), Hello),
    MessageRow("welcome", "arbiter", "owner", "", (), Welcome),
    MessageRow(KEYS_MESSAGE, "owner", "owner", "", ()),
    MessageRow(WEIGHTS_MESSAGE, "owner", "arbiter", "masked weights of the DP teacher", _DP_SGD),
    MessageRow(WEIGHTS_MESSAGE, "arbiter", "owner", "mean of the DP teachers' weights", _DP_SGD),
    MessageRow("histogram", "owner", "arbiter", "noisy records per code", (Gaussian.kind,), Histogram),
    MessageRow("frequencies", "arbiter", "owner", "sum of the noisy histograms", (Gaussian.kind,), Frequencies),
    MessageRow("synthetic", "owner", "arbiter", _TEXTS, _DP_SGD, Synthetic),
    MessageRow("signals", "owner", "arbiter", "log-probabilities of the DP teacher", _DP_SGD, Signals),
    MessageRow("rollouts", "arbiter", "owner", "texts of a student of the DP teacher", _DP_SGD, Rollouts),
)
