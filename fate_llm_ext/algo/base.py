"""The federated round loop that all algorithms share."""

from __future__ import annotations

import time
from typing import Any, Dict

from fate_llm_ext.algo.delivery import deliver
from fate_llm_ext.progress import emit


class RoundLoop:
    """Phases in the order in which they run; an algorithm's client and server override them.

    Args:
        arm: name of this run of the loop in metrics and results, e.g. ``fedmkt``.
        rounds: number of rounds.
        metrics: where the numbers of a round go.
        each_round: evaluate after every round, not after the last one only.
    """

    def __init__(self, arm: str, rounds: int, metrics: Metrics, each_round: bool = True) -> None:
        self.arm = arm
        self.rounds = rounds
        self.metrics = metrics
        self._each_round = each_round

    def run(self) -> None:
        """Run all phases."""
        self.setup()
        for round in range(self.rounds):
            started = time.monotonic()
            self.before_round(round)
            self.step(round)
            self.after_round(round)
            self.log(round, "seconds", time.monotonic() - started)
        self.finish()

    def setup(self) -> None:
        """Before the first round."""

    def before_round(self, round: int) -> None:
        """Local work before the parties exchange anything."""

    def step(self, round: int) -> None:
        """Exchange and learn."""

    def after_round(self, round: int) -> None:
        """Evaluation; after the last round it gives the arm's results."""
        last = round + 1 == self.rounds
        if not (last or self._each_round):
            return
        self.phase(round, "evaluation")
        values = self.evaluate()
        for name, value in values.items():
            self.log(round, name, value)
        if last:
            self.metrics.results(self.arm, values)

    def finish(self) -> None:
        """After the last round."""

    def evaluate(self) -> Dict[str, float]:
        """How the party's model does on its test rows."""
        return {}

    def phase(self, round: int, name: str) -> None:
        """Say which phase begins."""
        emit("phase", arm=self.arm, round=round, phase=name)

    def log(self, round: int, name: str, value: float) -> None:
        """Record a number of this round."""
        self.metrics.log(self.arm, round, name, value)


class Metrics:
    """Numbers to FATE's metrics (curves per round in FATEBoard) and to the party's events.

    Args:
        ctx: FATE's context of the task.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        deliver(ctx.metrics.handler)

    def log(self, arm: str, round: int, name: str, value: float) -> None:
        """A number of one round."""
        metrics = self._ctx.sub_ctx(arm).on_iterations.indexed_ctx(round).metrics
        if name == "loss" or name.endswith("_loss"):
            metrics.log_loss(name, value)
        elif name == "accuracy":
            metrics.log_accuracy(name, value)
        else:
            metrics.log_scalar(name, value)
        emit("metric", arm=arm, round=round, name=name, value=value)

    def results(self, arm: str, values: Dict[str, float]) -> None:
        """The final numbers of one arm."""
        if not values:
            return
        self._ctx.sub_ctx(arm).metrics.log_metrics(data=values, name="result", type="result")
        for metric, value in values.items():
            emit("result", arm=arm, metric=metric, value=value)
