"""A data owner (guest or host) in FedMKT: equations 1, 4, 6 and 8."""

from __future__ import annotations

from typing import Dict, List

from fate_llm_ext.algo.base import Metrics, RoundLoop
from fate_llm_ext.algo.fedmkt.arms import Arm, phase_seed
from fate_llm_ext.algo.fedmkt.checks import check_request
from fate_llm_ext.algo.fedmkt.learner import Learner
from fate_llm_ext.algo.fedmkt.protocol import Request, Signals
from fate_llm_ext.algo.fedmkt.teaching import Translator
from fate_llm_ext.data.collate import Item
from fate_llm_ext.federation.channel import Channel


class Client(RoundLoop):
    """Trains its SLM on private data, tells what it knows about public rows, learns from the LLM.

    Args:
        arm: which rows take part.
        learner: the SLM.
        private: items of the private table.
        channel: to the arbiter.
        translator: from the LLM's vocabulary to the SLM's.
    """

    def __init__(
        self,
        arm: Arm,
        learner: Learner,
        private: List[Item],
        channel: Channel,
        translator: Translator,
        metrics: Metrics,
    ) -> None:
        super().__init__(arm.name, learner.config.rounds, metrics, learner.config.evaluation.each_round)
        self._rows = arm
        self._learner = learner
        self._private = private
        self._channel = channel
        self._arbiter = channel.peers[0]
        self._translator = translator

    def setup(self) -> None:
        """Every arm starts from the same adapter: untrained, or that of an earlier job."""
        self._learner.reset()

    def before_round(self, round: int) -> None:
        """Private training: equations 1 and 4."""
        self.phase(round, "private training")
        seed = phase_seed(self._learner.config.seed, round, 0)
        loss = self._learner.train(self._private, self._learner.config.train.epochs, "private training", seed)
        self.log(round, "private_loss", loss)

    def step(self, round: int) -> None:
        """Scores and signals to the arbiter, the LLM's signals back, learning from them."""
        sent, received = self._channel.bytes_sent, self._channel.bytes_received
        self.phase(round, "teaching the LLM")
        scores = self._learner.score_public(self._rows.unlabelled)
        self._channel.send(self._arbiter, scores, round)
        request = self._channel.receive(self._arbiter, Request, round)
        wanted = check_request(request, self._arbiter.name, self._learner.public, self._rows.unlabelled)
        self._channel.send(self._arbiter, self._learner.signals(wanted, scores.predicted), round)
        self.phase(round, "waiting for the LLM")
        signals = self._channel.receive(self._arbiter, Signals, round)
        teaching = self._translator(signals)
        self.phase(round, "learning from the LLM")
        gold = self._rows.gold_rows(last_use=round + 1 == self.rounds)
        items = self._learner.public_items(gold, teaching.taught)
        seed = phase_seed(self._learner.config.seed, round, 1)
        loss = self._learner.train(items, self._learner.config.distill.epochs, "learning from the LLM", seed)
        self.log(round, "public_loss", loss)
        self.log(round, "taught_share", len(signals.rows) / self._rows.teachable)
        self.log(round, "aligned_share", teaching.aligned_share)
        self.log(round, "bytes_sent", self._channel.bytes_sent - sent)
        self.log(round, "bytes_received", self._channel.bytes_received - received)

    def evaluate(self) -> Dict[str, float]:
        """On the test rows."""
        return self._learner.evaluate()
