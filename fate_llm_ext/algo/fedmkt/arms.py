"""The runs that one FedMKT task makes: the method itself and what it is compared with.

``zero_shot``          the adapter that all arms start from: untrained, or that of an earlier job, as it came.
``standalone``         client: private rows only.
``standalone_public``  client: private rows, then public gold answers, round by round, nobody teaches.
                       Arbiter: public gold answers only (printed as "public only").
``paper``              FedMKT as in the paper: labelled rows, DualMinCE.
``centralized``        arbiter: public gold and the pooled set `centralized` of its site file (trials only).
``fedmkt``             the method: the parties also teach each other their answers to unlabelled rows, and
                       held-out skill decides who teaches. Without unlabelled rows it is ``paper``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fate_llm_ext.algo.fedmkt.public import PublicSet


@dataclass(frozen=True)
class Arm:
    """Which public rows a federated arm uses.

    Attributes:
        training: labelled rows that are trained on.
        unlabelled: whether unlabelled rows are taught (then labelled rows carry gold answers only).
        teachable: number of rows somebody could teach.
        held_out: labelled rows that measure skill.
    """

    name: str
    training: np.ndarray
    unlabelled: bool
    teachable: int
    held_out: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def gold_rows(self, last_use: bool) -> np.ndarray:
        """Labelled rows of a round's public training; held-out rows join once nothing is measured on them."""
        return np.union1d(self.training, self.held_out) if last_use else self.training


def paper_arm(public: PublicSet, name: str = "paper") -> Arm:
    """All labelled rows are trained on and may be taught."""
    return Arm(name, np.arange(len(public.labelled)), False, len(public.labelled))


def main_arm(public: PublicSet) -> Arm:
    """The arm whose model is the task's output."""
    if not public.unlabelled:
        return paper_arm(public, "fedmkt")
    return Arm("fedmkt", public.training, True, len(public.unlabelled), public.calibration)


def phase_seed(seed: int, round: int, phase: int) -> int:
    """The seed of one training phase; equal across arms, so that arms differ in what they are taught only."""
    return int(np.random.SeedSequence([seed, round, phase]).generate_state(1)[0] % (1 << 31))
