"""From a teacher's signals to targets for the student: other vocabulary, other token boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Literal

import numpy as np

from fate_llm_ext.algo.fedmkt.checks import invalid
from fate_llm_ext.algo.fedmkt.learner import Learner, TaughtRow
from fate_llm_ext.algo.fedmkt.protocol import Signals
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.targets import transfer
from fate_llm_ext.models.vocabulary import Vocabulary, map_vocabulary

Taught = Dict[int, TaughtRow]


@dataclass(frozen=True)
class Teaching:
    """Targets per public row, and the share of the student's answer positions that got one."""

    taught: Taught
    aligned_share: float


class Translator:
    """Turns one teacher's signals into the student's terms.

    Args:
        student: who learns.
        teacher: the vocabulary in which the signals are written.
        teacher_name: party name, for errors.
        heartbeat: called while the vocabularies are mapped with what is being done.
    """

    def __init__(
        self,
        student: Learner,
        teacher: Vocabulary,
        teacher_name: str,
        heartbeat: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._student = student
        self._teacher_size = len(teacher)
        self._name = teacher_name
        self._method = student.config.distill.alignment
        doing = f"mapping the vocabulary of {teacher_name}"
        heartbeat(doing)
        own = student.answerer
        self._table = map_vocabulary(teacher, own.vocabulary, own.tokenizer, self._method, lambda: heartbeat(doing))
        heartbeat(doing)

    def __call__(self, signals: Signals) -> Teaching:
        """Align positions by byte and map tokens.

        A position takes the teacher's distribution if the teacher has one for the same place in the
        answer's bytes; other positions get no KD term.

        Raises:
            ExtensionError: E301 if rows, answers, starts or token ids are not what the protocol allows.
        """
        self._check(signals)
        public = self._student.public
        examples = [public[row] for row in signals.rows]
        answers = [signals.answers[a] if a >= 0 else e.answer or "" for e, a in zip(examples, signals.answer)]
        pairs = self._student.answerer.encode(examples, answers)
        merge: Literal["first", "sum"] = "first" if self._method == "min_ed" else "sum"
        try:
            targets = transfer(
                signals.tokens,
                signals.starts,
                signals.ids,
                signals.log_probs,
                [p.starts for p in pairs],
                self._table,
                merge,
            )
        except ExtensionError as error:  # our own starts are in order
            raise invalid(self._name, signals.name, error.problem.rstrip(".")) from error
        taught = {row: (pair, one) for row, pair, one in zip(signals.rows.tolist(), pairs, targets) if one is not None}
        positions = sum(len(p.starts) for p in pairs)
        aligned = sum(len(one.slots) for _, one in taught.values())
        return Teaching(taught, aligned / positions if positions else 0.0)

    def _check(self, signals: Signals) -> None:
        problem = ""
        if len(signals.rows) and int(signals.rows.max()) >= len(self._student.public):
            problem = f"public row {int(signals.rows.max())} of {len(self._student.public)}"
        elif signals.ids.size and int(signals.ids.max()) >= self._teacher_size:
            problem = f"token id {int(signals.ids.max())} of {self._teacher_size}"
        elif len(np.unique(signals.rows)) < len(signals.rows):
            problem = "a public row twice"
        elif ((signals.answer < 0) & (signals.rows >= len(self._student.public.labelled))).any():
            problem = "an unlabelled row without an answer"
        elif ((signals.answer >= 0) & (signals.rows < len(self._student.public.labelled))).any():
            problem = "a labelled row with an answer of its own"
        if problem:
            raise invalid(self._name, signals.name, problem)
