"""A data owner (guest or host) in DP-KD: the private table, the DP teacher, and what it writes.

The phases, in order: read and plan, agree with the arbiter, charge the ledger, train the teacher by DP-SGD (and
average it over the owners), sample texts. All that leaves the party follows from the DP-SGD and, if asked for, from
the noisy histogram, and both are in the ledger before the first step.
"""

from __future__ import annotations

from typing import Any, List, Optional

import numpy as np

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records, items, to_records
from fate_llm_ext.algo.dpkd.checks import check_counts
from fate_llm_ext.algo.dpkd.handshake import greet
from fate_llm_ext.algo.dpkd.party import DPKDParty, load, split_counts, split_steps
from fate_llm_ext.algo.dpkd.protocol import (
    Frequencies,
    Histogram,
    Rollouts,
    Signals,
    Synthetic,
    Welcome,
)
from fate_llm_ext.algo.dpkd.pupil import score
from fate_llm_ext.algo.dpkd.release import plan
from fate_llm_ext.algo.messages import check_texts, pack_texts
from fate_llm_ext.algo.party import derived_seed, private_table
from fate_llm_ext.algo.private import charge
from fate_llm_ext.algo.session import untold
from fate_llm_ext.algo.synthesis import code_counts, synthesise
from fate_llm_ext.data.collate import Item
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.aggregation import SecureMean
from fate_llm_ext.models.vocabulary import read_vocabulary
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer
from fate_llm_ext.privacy.mechanisms import gaussian_noise

TRAINING = "training the teacher"
_BLOCK = 256  # texts whose signals are made and sent at a time

_SAMPLING = 0  # salt of a seed


class Owner:
    """The owner's side; it holds the private records and what they were planned to cost.

    Args:
        party: who and where.
        train_data: FATE's reader of the private table.

    Attributes:
        teacher: the DP teacher, once :meth:`train` has run.
        private: items of the private records.

    Raises:
        ExtensionError: all that is wrong with table, budget, plan and model, before anything is charged.
    """

    def __init__(self, party: DPKDParty, train_data: Any) -> None:
        config = party.config
        self._party = party
        self._channel = party.channel
        table = private_table(party, train_data, plan)
        self.data, self.planned, self.plan = table.data, table.planned, table.plan
        if party.owners > 1 and config.rounds > self.plan.steps:
            raise ExtensionError("E671", rounds=config.rounds, steps=self.plan.steps)
        party.phase("", "preparing the records")
        with untold():
            self.records = to_records(table.rows, config.control, table.folder)
        self.teacher: Model = load("teacher", party)
        party.phase("", "tokenising the private records")
        with untold():
            self.private: List[Item] = items(self.teacher.encode(self.records))
        self.clipping = ""
        self.mean: Optional[SecureMean] = None
        self._welcome: Optional[Welcome] = None

    # -- before the first step -----------------------------------------------------------------------

    def agree(self) -> None:
        """Handshake with the arbiter."""
        self._party.phase("", "waiting for the arbiter")
        vocabulary = read_vocabulary(self.teacher.tokenizer)
        guarantee = (self.plan.epsilon, self.plan.delta)
        self._welcome = greet(self._channel, self._party.config, self.teacher.fingerprint(), vocabulary, guarantee)

    def charge(self) -> None:
        """Write the release into the ledger; it is durable when this returns.

        Raises:
            ExtensionError: the ledger's, if the table's budget would be exceeded.
        """
        self._party.phase("", "charging the ledger")
        self.spending = charge(self._party.site, self.data, self.planned)

    # -- the teacher ---------------------------------------------------------------------------------

    def train(self) -> None:
        """DP-SGD; with several owners their mean after each round, by secure aggregation."""
        party = self._party
        trainer = self.trainer(self.teacher, self.plan, self.private)
        self.clipping = f"over all trained weights at once, per-record gradients by {trainer.per_sample}"
        if party.owners == 1:
            party.phase("dp_teacher", TRAINING)
            party.log_loss("dp_teacher", trainer.run(self.plan.steps))
            return
        self.mean = SecureMean(party.ctx, self._channel)
        for round, steps in enumerate(split_steps(self.plan.steps, party.config.rounds)):
            party.phase("dp_teacher", TRAINING, round)
            party.log_loss("dp_teacher", trainer.run(steps), round)
            party.phase("dp_teacher", "averaging the teachers", round)
            self.teacher.take(self.mean.average(self.teacher.arrays(), round))

    def trainer(self, model: Model, plan: DPPlan, private: List[Item], doing: str = TRAINING) -> DPTrainer:
        """DP-SGD of a model on the private records; signs of life say nothing about them."""
        config = self._party.config
        return DPTrainer(
            model.network,
            private,
            plan,
            config.privacy,
            pad_id=model.pad_id,
            phase=doing,
            heartbeat=self._party.saying(doing),
            temperature=config.distill.temperature,
        )

    # -- texts ---------------------------------------------------------------------------------------

    def write(self) -> Records:
        """This owner's share of the texts, sampled from the DP teacher; none at a host of a guest's student."""
        party, config = self._party, self._party.config
        counts = code_counts(config.synthesis.samples, self._shares(), len(config.control.values))
        assert self._welcome is not None  # agree has run
        if config.student_at == "arbiter":
            counts = split_counts(counts, self._welcome.owners, self._welcome.rank)
        elif party.role == "host":
            return Records(np.zeros(0, dtype=np.int32), [])
        return self.sample(self.teacher, counts, "dp_kd")

    def sample(self, teacher: Model, counts: np.ndarray, arm: str) -> Records:
        """Texts of a teacher, ``counts`` [C] per code."""
        party, config = self._party, self._party.config
        party.phase(arm, "sampling texts")
        rank = self._welcome.rank if self._welcome is not None else 0
        if not counts.sum():
            return Records(np.zeros(0, dtype=np.int32), [])
        records, report = synthesise(
            teacher.network,
            teacher.tokenizer,
            config.control,
            counts,
            config.synthesis,
            seed=derived_seed(config.seed, _SAMPLING, rank),
            heartbeat=party.saying("sampling texts"),
        )
        party.metrics.log(arm, 0, "texts", report.kept)
        for reason, count in report.dropped.items():
            party.metrics.log(arm, 0, f"texts_dropped_{reason}", count)
        return records

    def _shares(self) -> Optional[np.ndarray]:
        """Noisy counts of the codes over all owners, float64 [C]; None: all codes alike."""
        config = self._party.config
        if config.control.frequencies != "histogram":
            return None
        codes = len(config.control.values)
        counts = np.bincount(self.records.codes, minlength=codes)
        counts = counts + gaussian_noise(config.control.histogram_noise, codes)
        if self._party.owners == 1:
            return counts
        arbiter = self._channel.peers[0]
        self._channel.send(arbiter, Histogram(counts), 0)
        return check_counts(self._channel.receive(arbiter, Frequencies, 0), arbiter.name, codes)

    # -- for a student at the arbiter ----------------------------------------------------------------

    def send(self, records: Records) -> None:
        """Texts and the DP teacher's distributions over them to the arbiter."""
        self._party.phase("dp_kd", "sending texts")
        self._channel.send(self._channel.peers[0], Synthetic(**pack_texts(records.codes, records.texts)), 0)
        self._send_signals(records, 0)

    def answer(self) -> None:
        """Score what the arbiter's student writes (the guest does)."""
        party, distill = self._party, self._party.config.distill
        arbiter = self._channel.peers[0]
        codes = len(party.config.control.values)
        for round in range(distill.on_policy_rounds):
            party.phase("on_policy", "waiting for the student's texts", round)
            message = self._channel.receive(arbiter, Rollouts, round)
            check_texts(message, arbiter.name, codes, distill.on_policy_samples)
            self._send_signals(Records(message.codes.astype(np.int32), message.texts()), round)

    def _send_signals(self, records: Records, round: int) -> None:
        encoded = self.teacher.encode(records)
        for first in range(0, len(encoded), _BLOCK):
            signals = score(self._party, self.teacher, encoded[first : first + _BLOCK], "scoring texts")
            message = Signals(first, signals.tokens, signals.starts, signals.ids, signals.log_probs)
            self._channel.send(self._channel.peers[0], message, round)
