"""The student: learns from the teacher's texts and distributions, writes texts of its own, is judged."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence

import numpy as np

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records, items
from fate_llm_ext.algo.dpkd.evaluation import evaluate
from fate_llm_ext.algo.dpkd.party import DPKDParty
from fate_llm_ext.algo.dpkd.signals import TextSignals, targets, teacher_signals
from fate_llm_ext.algo.dpkd.student import distillation_items, on_policy_items, train_student
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.synthesis import code_counts, synthesise
from fate_llm_ext.data.collate import Item, TeacherTargets
from fate_llm_ext.models.vocabulary import Vocabulary, map_vocabulary, read_vocabulary

Targets = List[Optional[TeacherTargets]]
Scores = Callable[[Records, int], Targets]  # of the student's texts, in a round

_TRAINING, _WRITING = 1, 2  # salts of seeds


class Pupil:
    """A student model and what it is judged on.

    Args:
        model: the student.
        test: records of the public set's test split.
    """

    def __init__(self, party: DPKDParty, model: Model, test: Records) -> None:
        self.model = model
        self.test = test
        self._party = party
        self._config = party.config

    def translate_to(self, vocabulary: Vocabulary) -> Optional[np.ndarray]:
        """The student's id of each token of a teacher's vocabulary; None if it is the student's own."""
        own = read_vocabulary(self.model.tokenizer)
        if own.fingerprint == vocabulary.fingerprint:
            return None
        doing = "mapping the teacher's vocabulary"
        return np.asarray(
            map_vocabulary(vocabulary, own, self.model.tokenizer, "span", lambda: self._party.channel.heartbeat(doing))
        )

    def learn(self, arm: str, records: Records, known: Targets, teacher: Optional[Model] = None) -> None:
        """From the untrained state: (1 - λ) CE + λ t² KL (+ α MSE) on the teacher's texts.

        Args:
            known: the teacher's distributions on the records, in the student's terms.
            teacher: for the hidden-state term, at the same party.
        """
        self.model.restore()
        work = distillation_items(self.model.encode(records), known, self._config.distill.soft_weight)
        self._train(arm, work, teacher=teacher)
        self.judge(arm)

    def learn_texts(self, arm: str, records: Records) -> None:
        """From the untrained state: cross-entropy on the teacher's texts alone."""
        self.model.restore()
        self._train(arm, items(self.model.encode(records)), hard=True)
        self.judge(arm)

    def learn_on_policy(self, scores: Scores, teacher: Optional[Model] = None) -> None:
        """From where it is: write texts, have the teacher score them, learn from that; round by round."""
        distill, party = self._config.distill, self._party
        counts = code_counts(distill.on_policy_samples, None, len(self._config.control.values))
        for round in range(distill.on_policy_rounds):
            party.phase("on_policy", "the student writes", round)
            written, _ = synthesise(
                self.model.network,
                self.model.tokenizer,
                self._config.control,
                counts,
                self._config.synthesis,
                seed=derived_seed(self._config.seed, _WRITING, round),
                heartbeat=party.saying("the student writes"),
            )
            work = on_policy_items(self.model.encode(written), scores(written, round))
            self._train("on_policy", work, round=round, epochs=1, teacher=teacher)
            if round + 1 == distill.on_policy_rounds or self._config.evaluation.each_round:
                self.judge("on_policy", round, last=round + 1 == distill.on_policy_rounds)

    def judge(self, arm: str, round: int = 0, last: bool = True) -> None:
        """Measure it on the test records; ``last`` makes this the arm's result."""
        judge(self._party, self.model, self.test, arm, round, last)

    def _train(
        self,
        arm: str,
        work: Sequence[Item],
        *,
        round: int = 0,
        epochs: Optional[int] = None,
        teacher: Optional[Model] = None,
        hard: bool = False,
    ) -> None:
        self._party.phase(arm, "training the student", round)
        distill = self._config.distill.copy(update={"hidden_weight": 0.0}) if hard else self._config.distill
        loss = train_student(
            self.model.network,
            self.model.tokenizer,
            work,
            distill,
            self._config.train,
            seed=derived_seed(self._config.seed, _TRAINING, round),
            heartbeat=self._party.saying("training the student"),
            teacher=teacher.network if teacher is not None else None,
            epochs=epochs,
        )
        self._party.metrics.log(arm, round, "student_loss", loss)


def judge(party: DPKDParty, model: Model, test: Records, arm: str, round: int = 0, last: bool = True) -> None:
    """Perplexity and code accuracy of a model on the test records, if there are any."""
    if not len(test):
        return
    party.phase(arm, "evaluation", round)
    settings = party.config.evaluation
    values = evaluate(
        model.network,
        model.tokenizer,
        test,
        party.config.control,
        settings.batch_size,
        party.saying("evaluation"),
        max_rows=settings.max_rows,
    )
    for name, value in values.items():
        party.metrics.log(arm, round, name, value)
    if last:
        party.metrics.results(arm, values)


def local_targets(
    party: DPKDParty, teacher: Model, pupil: Pupil, records: Records, table: Optional[np.ndarray], doing: str
) -> Targets:
    """What a teacher at the same party says about records, in the student's terms."""
    signals = score(party, teacher, teacher.encode(records), doing)
    return targets(signals, pupil.model.encode(records), table)


def score(party: DPKDParty, teacher: Model, encoded: Sequence[Encoded], doing: str) -> TextSignals:
    """The teacher's sparse distributions."""
    distill: Any = party.config.distill
    return teacher_signals(
        teacher.network,
        teacher.tokenizer,
        encoded,
        distill.top_k,
        distill.temperature,
        batch_size=party.config.evaluation.batch_size,
        heartbeat=party.saying(doing),
    )
