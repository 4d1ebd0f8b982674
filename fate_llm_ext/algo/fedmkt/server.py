"""The arbiter in FedMKT: equations 2, 5 and 7, and who teaches whom on which public row."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Optional

import numpy as np

from fate_llm_ext.algo.base import Metrics, RoundLoop
from fate_llm_ext.algo.fedmkt.arms import Arm, phase_seed
from fate_llm_ext.algo.fedmkt.checks import check_scores, check_signals
from fate_llm_ext.algo.fedmkt.learner import Learner
from fate_llm_ext.algo.fedmkt.protocol import Request, Scores, Signals
from fate_llm_ext.algo.fedmkt.public import PublicSet
from fate_llm_ext.algo.fedmkt.selection import RunningMinimum, region_skill
from fate_llm_ext.algo.fedmkt.teaching import Taught, Translator
from fate_llm_ext.federation.channel import Channel


class Server(RoundLoop):
    """Learns from the clients' SLMs where they know more, then teaches each where the LLM knows more.

    Args:
        arm: which rows take part.
        learner: the LLM.
        channel: to the clients.
        translators: peer name -> from that client's vocabulary to the LLM's.
    """

    def __init__(
        self, arm: Arm, learner: Learner, channel: Channel, translators: Dict[str, Translator], metrics: Metrics
    ) -> None:
        super().__init__(arm.name, learner.config.rounds, metrics, learner.config.evaluation.each_round)
        self._rows = arm
        self._own: Optional[Scores] = None
        self._learner = learner
        self._channel = channel
        self._translators = translators
        self._scores: List[Scores] = []

    def setup(self) -> None:
        """Every arm starts from the same adapter: untrained, or that of an earlier job."""
        self._learner.reset()

    def step(self, round: int) -> None:
        """Learn from the clients, then teach them."""
        sent, received = self._channel.bytes_sent, self._channel.bytes_received
        self._learn(round)
        self._teach(round)
        self.log(round, "bytes_sent", self._channel.bytes_sent - sent)
        self.log(round, "bytes_received", self._channel.bytes_received - received)

    def evaluate(self) -> Dict[str, float]:
        """On the test rows."""
        return self._learner.evaluate()

    def _learn(self, round: int) -> None:
        config = self._learner.config
        self.phase(round, "waiting for the clients")
        self._scores = self._channel.receive_all(Scores, round)
        for peer, scores in zip(self._channel.peers, self._scores):
            check_scores(scores, peer.name, self._learner.public, self._rows.unlabelled)
        self.phase(round, "choosing teachers")
        # The LLM has not changed since it taught in the round before.
        own = self._own or self._learner.score_public(self._rows.unlabelled)
        best = RunningMinimum(teaching_loss(own, self._learner.public) - self._margin)
        for source, scores in enumerate(self._scores):
            best.add(source, teaching_loss(scores, self._learner.public, config.distill.caution))
        chosen = best.chosen if config.direction != "llm_to_slm" else np.full_like(best.chosen, -1)
        wanted = [self._public_rows(chosen == source) for source in range(len(self._channel.peers))]
        for peer, rows in zip(self._channel.peers, wanted):
            self._channel.send(peer, Request(rows), round)
        taught: Taught = {}
        aligned = 0.0
        for peer, rows in zip(self._channel.peers, wanted):
            signals = self._channel.receive(peer, Signals, round)
            check_signals(signals, peer.name, rows)
            teaching = self._translators[peer.name](signals)
            taught.update(teaching.taught)
            aligned += teaching.aligned_share * len(rows)
        self.phase(round, "learning from the clients")
        last = round + 1 == self.rounds
        items = self._learner.public_items(self._rows.gold_rows(last), taught)
        seed = phase_seed(config.seed, round, 1)
        loss = self._learner.train(items, config.distill.epochs, "learning from the clients", seed)
        self.log(round, "public_loss", loss)
        self.log(round, "taught_share", len(taught) / self._rows.teachable)
        asked = sum(map(len, wanted))
        if asked:  # a share of nothing would look like a failure to align
            self.log(round, "aligned_share", aligned / asked)
        self._own = self._learner.score_public(self._rows.unlabelled)
        if last:
            # It has now learned the held-out rows, so its skill there is the one from before.
            self._own = dataclasses.replace(
                self._own, calibration_nll=own.calibration_nll, calibration_predicted=own.calibration_predicted
            )

    def _teach(self, round: int) -> None:
        public, config = self._learner.public, self._learner.config
        self.phase(round, "teaching the clients")
        own = self._own
        assert own is not None  # _learn has run
        loss = teaching_loss(own, public, config.distill.caution)
        wanted = [loss < teaching_loss(scores, public) - self._margin for scores in self._scores]
        if config.direction == "slm_to_llm":
            wanted = [np.zeros_like(mask) for mask in wanted]
        # One pass of the LLM over all rows that any client needs, then each gets its own.
        union = np.any(wanted, axis=0)
        signals = self._learner.signals(self._public_rows(union), own.predicted)
        for peer, mask in zip(self._channel.peers, wanted):
            self._channel.send(peer, take_rows(signals, mask[union]), round)

    @property
    def _margin(self) -> float:
        return self._learner.config.distill.margin if self._rows.unlabelled else 0.0

    def _public_rows(self, mask: np.ndarray) -> np.ndarray:
        first = len(self._learner.public.labelled) if self._rows.unlabelled else 0
        return np.flatnonzero(mask) + first


def teaching_loss(scores: Scores, public: PublicSet, caution: float = 0.0) -> np.ndarray:
    """The yardstick of the selection, per teachable row; lower is better, infinite where it is not a number.

    Labelled rows: the NLL of the gold answer per byte (DualMinCE, the paper). Unlabelled rows: minus the
    held-out skill in the region of the answer given. With choices, skill is the smoothed share of right
    answers among the calibration rows that got this answer; for free text it is minus the mean NLL per byte.

    Args:
        caution: standard errors by which skill is discounted, for teachers. The best of several on a
            hundred rows looks better than it is, and who learns from it loses what it knew.
    """
    if not len(scores.predicted):
        loss = scores.nll
    elif public.choices:
        right = scores.calibration_predicted == public.gold_choice(public.calibration)
        # A model that was never seen giving an answer is taken to be right by chance.
        skill = region_skill(scores.calibration_predicted, right, public.regions, prior=1 / public.regions)
        seen = np.bincount(scores.calibration_predicted, minlength=public.regions)
        loss = (caution * np.sqrt(skill * (1 - skill) / (seen + 2)) - skill)[scores.predicted]
    else:
        nll = scores.calibration_nll
        loss = np.full(len(scores.predicted), float(nll.mean() + caution * nll.std() / np.sqrt(len(nll))))
    return np.where(np.isfinite(loss), loss, np.inf)


def take_rows(signals: Signals, mask: np.ndarray) -> Signals:
    """The signals of some rows only.

    Args:
        mask: bool [R].
    """
    positions = np.repeat(mask, signals.tokens)
    return Signals(
        answers=signals.answers,
        rows=signals.rows[mask],
        answer=signals.answer[mask],
        tokens=signals.tokens[mask],
        starts=signals.starts[positions],
        ids=signals.ids[positions],
        log_probs=signals.log_probs[positions],
    )
