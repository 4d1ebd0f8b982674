"""The task model of a client in FDKT: trained on its records and on texts that it got back, and judged.

This is the client's own affair, done once all messages are through. The models have read the private records and are
not differentially private; they stay where they are.

``fdkt``             D ∪ D_a: the records and what the LLM has written (and D' with ``with_synthetic``).
``local``            D: the records alone.
``local_synthetic``  D ∪ D': and the texts of the DP generator.
``non_private``      D ∪ D'': and texts of a generator trained without noise and clipping, which nobody else sees.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.client import Client, FDKTParty
from fate_llm_ext.algo.fdkt.quality import stage_quality
from fate_llm_ext.algo.fdkt.student import TaskModel
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.synthesis import code_counts

TRAINING = "training the task model"

_LEARNING, _MEASURING = 3, 4  # salts of seeds


class Learning:
    """Trains one task model again and again, each time from the same start.

    Args:
        client: with all of its texts.
        student: the task model.
    """

    def __init__(self, party: FDKTParty, client: Client, student: TaskModel) -> None:
        self._party = party
        self._client = client
        self._student = student

    def asked(self) -> List[Callable[[], None]]:
        """The comparisons that the job asks for, and the measurements; none needs another."""
        config = self._party.config
        known = {"local": self.local, "local_synthetic": self.local_synthetic, "non_private": self.non_private}
        measured = [self.quality] if config.quality else []
        return [*(comparison for name, comparison in known.items() if name in config.compare), *measured]

    def fdkt(self) -> None:
        """The method; it is to run last of those whose model is kept."""
        weights, client = self._party.config.weights, self._client
        sources = [(client.augmented, weights.augmented)]
        if self._party.config.with_synthetic:
            sources.append((client.synthetic, weights.synthetic))
        self._learn("fdkt", sources)

    def local(self) -> None:
        """The records alone."""
        self._learn("local", [])

    def local_synthetic(self) -> None:
        """The records and the DP generator's texts."""
        self._learn("local_synthetic", [(self._client.synthetic, self._party.config.weights.synthetic)])

    def non_private(self) -> None:
        """The records and texts of a generator that was trained on as many samples, without clipping and noise."""
        party, client = self._party, self._client
        party.phase("non_private", "training the generator")
        client.train_without_privacy()
        labels = len(party.config.control.values)
        shares = np.bincount(client.records.codes, minlength=labels)
        counts = code_counts(
            party.config.synthesis.samples,
            shares if party.config.control.frequencies == "histogram" else None,
            labels,
        )
        self._learn("non_private", [(client.sample("non_private", counts), party.config.weights.synthetic)])

    def quality(self) -> None:
        """How close the texts of each stage are to the records, whether their labels fit, how much they differ."""
        party, client = self._party, self._client
        party.phase("fdkt", "measuring the texts")
        kept = client.synthetic.take(np.flatnonzero(client.kept))
        stages: Dict[str, Records] = {"synthetic": client.synthetic, "kept": kept, "augmented": client.augmented}
        for stage, texts in stages.items():
            if not len(texts):
                continue
            values = stage_quality(client.records, texts, derived_seed(party.config.seed, _MEASURING))
            for name, value in values.items():
                party.metrics.log("fdkt", 0, f"{stage}_{name}", value)

    def _learn(self, arm: str, more: List[Tuple[Records, float]]) -> None:
        """From the first weights: the records and ``more`` (records, weight)."""
        party = self._party
        party.phase(arm, TRAINING)
        sources = [(self._client.records, party.config.weights.private), *((one, w) for one, w in more if len(one))]
        self._student.restore()
        loss = self._student.train(sources, derived_seed(party.config.seed, _LEARNING), TRAINING)
        party.metrics.log(arm, 0, "student_loss", loss)
        party.metrics.log(arm, 0, "student_samples", sum(len(records) for records, _ in sources))
        if len(self._client.test):
            party.phase(arm, "evaluation")
            values = self._student.evaluate(self._client.test)
            for name, value in values.items():
                party.metrics.log(arm, 0, name, value)
            party.metrics.results(arm, values)
