"""The arbiter in DP-KD: averages the owners' teachers, trains the student if that is its own; no private data here."""

from __future__ import annotations

import math
from typing import List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.dpkd.checks import check_counts, check_signals, trains_student
from fate_llm_ext.algo.dpkd.handshake import welcome
from fate_llm_ext.algo.dpkd.party import DPKDParty, load, public_test
from fate_llm_ext.algo.dpkd.protocol import Frequencies, Histogram, Rollouts, Signals, Synthetic
from fate_llm_ext.algo.dpkd.pupil import Pupil, Targets
from fate_llm_ext.algo.dpkd.signals import TextSignals, targets
from fate_llm_ext.algo.messages import check_texts, pack_texts
from fate_llm_ext.algo.synthesis import distinct
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.aggregation import SecureMean
from fate_llm_ext.federation.channel import Peer
from fate_llm_ext.models.vocabulary import Vocabulary


class Arbiter:
    """The arbiter's side.

    Args:
        party: who and where.

    Attributes:
        pupil: the student, if it is trained here.
        records: the owners' texts, without repetitions.
        guarantee: ε and δ that hold for every record of every owner.
    """

    def __init__(self, party: DPKDParty) -> None:
        self._party = party
        self._channel = party.channel
        self.pupil: Optional[Pupil] = None
        self.mean: Optional[SecureMean] = None
        self.records = Records(np.zeros(0, dtype=np.int32), [])
        if trains_student(party.config, party.role):
            student = load("student", party)
            self.pupil = Pupil(party, student, public_test(party))
        self.guarantee = (math.inf, 1.0)
        self._vocabulary: Optional[Vocabulary] = None
        self._table: Optional[np.ndarray] = None

    def agree(self) -> None:
        """Handshake with the owners."""
        self._party.phase("", "waiting for the owners")
        agreed = welcome(self._channel, self._party.config)
        self.guarantee = (agreed.epsilon, agreed.delta)
        self._vocabulary = agreed.vocabulary
        if self.pupil is not None and self._vocabulary is not None:
            self._table = self.pupil.translate_to(self._vocabulary)

    def average(self) -> None:
        """Serve the mean of the teachers, and the sum of the noisy histograms, with two owners or more."""
        party, config = self._party, self._party.config
        if party.owners == 1:
            return
        self.mean = SecureMean(party.ctx, self._channel)
        for round in range(config.rounds):
            party.phase("dp_teacher", "averaging the teachers", round)
            self.mean.serve(round)
        if config.control.frequencies == "histogram":
            codes = len(config.control.values)
            total = np.zeros(codes)
            for peer in self._channel.peers:
                total += check_counts(self._channel.receive(peer, Histogram, 0), peer.name, codes)
            for peer in self._channel.peers:
                self._channel.send(peer, Frequencies(total), 0)

    def study(self) -> None:
        """Train the student on the owners' texts, then on its own."""
        party, config, pupil = self._party, self._party.config, self.pupil
        if pupil is None:
            return
        self.records, known = self._collect(pupil)
        if "synthetic_ce" in config.compare:
            pupil.learn_texts("synthetic_ce", self.records)
        pupil.learn("dp_kd", self.records, known)
        if config.distill.on_policy_rounds:
            guest = next(peer for peer in self._channel.peers if peer.name.startswith("guest"))

            def scores(records: Records, round: int) -> Targets:
                self._channel.send(guest, Rollouts(**pack_texts(records.codes, records.texts)), round)
                return self._signals(guest, records, pupil, round)

            pupil.learn_on_policy(scores)
        party.phase("dp_kd", "done")

    def _collect(self, pupil: Pupil) -> Tuple[Records, Targets]:
        """Texts of all owners and what the teacher says about them; a text that two owners sent counts once."""
        party, config = self._party, self._party.config
        party.phase("dp_kd", "waiting for texts")
        codes: List[np.ndarray] = []
        texts: List[str] = []
        known: Targets = []
        for peer in self._channel.peers:
            message = self._channel.receive(peer, Synthetic, 0)
            check_texts(message, peer.name, len(config.control.values), config.synthesis.samples)
            records = Records(message.codes.astype(np.int32), message.texts())
            known += self._signals(peer, records, pupil, 0)
            codes.append(records.codes)
            texts += records.texts
        kept, dropped = distinct(texts)
        party.metrics.log("dp_kd", 0, "texts", len(kept))
        party.metrics.log("dp_kd", 0, "texts_dropped_duplicate", dropped["duplicate"])
        everything = np.concatenate(codes)
        return Records(everything, texts).take(kept), [known[row] for row in kept]

    def _signals(self, peer: Peer, records: Records, pupil: Pupil, round: int) -> Targets:
        """The teacher's distributions on records, block by block, in the student's terms."""
        assert self._vocabulary is not None
        encoded = pupil.model.encode(records)
        known: Targets = []
        while len(known) < len(records):
            message = self._channel.receive(peer, Signals, round)
            check_signals(message, peer.name, len(known), len(records), len(self._vocabulary))
            block = encoded[len(known) : len(known) + len(message.tokens)]
            known += self._translate(message, peer.name, block)
        return known

    def _translate(self, message: Signals, sender: str, block: Sequence[Encoded]) -> Targets:
        signals = TextSignals(
            message.tokens.astype(np.int64),
            message.starts.astype(np.int32),
            message.ids.astype(np.int32),
            message.log_probs.astype(np.float32),
        )
        try:
            return targets(signals, block, self._table)
        except ExtensionError as error:  # the student's own starts are in order
            raise ExtensionError(
                "E301", sender=sender, message=message.name, reason=error.problem.rstrip(".")
            ) from error
