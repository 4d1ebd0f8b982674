"""The comparisons: one party's model, trained on what it would have without the others."""

from __future__ import annotations

from typing import Any, Dict, List

from fate_llm_ext.algo.base import Metrics, RoundLoop
from fate_llm_ext.algo.fedmkt.arms import phase_seed
from fate_llm_ext.algo.fedmkt.learner import Learner


class Alone(RoundLoop):
    """The phases of a round (private, public) as often as in FedMKT, with the same seeds, and nobody teaches.

    Args:
        arm: name of the comparison.
        phases: private items and public items to train on, either may be empty; none at all: zero-shot.
        learner: the party's model.
        metrics: where the numbers of a round go.
    """

    def __init__(self, arm: str, phases: List[List[Any]], learner: Learner, metrics: Metrics) -> None:
        config = learner.config
        super().__init__(arm, config.rounds if phases else 0, metrics, config.evaluation.each_round)
        self._phases = phases
        self._learner = learner

    def setup(self) -> None:
        """Every arm starts from the same adapter: untrained, or that of an earlier job."""
        self._learner.reset()

    def step(self, round: int) -> None:
        """Train on each phase's items."""
        config = self._learner.config
        epochs = (config.train.epochs, config.distill.epochs)
        for phase, items in enumerate(self._phases):
            if items:
                self.phase(round, "training")
                loss = self._learner.train(items, epochs[phase], "training", phase_seed(config.seed, round, phase))
                self.log(round, ("private_loss", "public_loss")[phase], loss)

    def finish(self) -> None:
        """Without rounds the model is evaluated as it came."""
        if not self.rounds:
            self.phase(self._learner.config.rounds - 1, "evaluation")
            self.metrics.results(self.arm, self.evaluate())

    def evaluate(self) -> Dict[str, float]:
        """On the test rows."""
        return self._learner.evaluate()
