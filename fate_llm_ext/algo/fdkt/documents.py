"""Documents that teach a small LLM to follow the prompts of a job.

A large language model writes one more text after a few labelled ones, tells the label of a text and names the
well-formed ones among several; a model made for a trial can do so only if it has read such documents. They are made of
public labelled texts and of the job's own templates (:mod:`~fate_llm_ext.algo.fdkt.prompts`), so that what the model
has learned is what it will be asked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Dict, Iterator, List, Sequence

import numpy as np

from fate_llm_ext.algo.fdkt.prompts import Prompts, one_line
from fate_llm_ext.algo.fdkt.shots import draw
from fate_llm_ext.errors import ExtensionError

Document = Dict[str, str]


@dataclass(frozen=True)
class Amounts:
    """How many documents of each form: a text after others, a label of a text, a choice among texts."""

    write: int
    label: int
    judge: int


class Documents:
    """Makes ``{"prompt", "completion"}`` documents of labelled texts.

    Args:
        prompts: of the job.
        description: what the texts are.
        labels: all labels, in the order in which the prompts are to name them.
        codes: the texts' labels, places in ``labels`` (int [N]).
        texts: N public texts.
        shots: demonstrations of each label in a document that asks for a text.
        candidates: most texts in a document that asks for a choice.
        seed: the same one gives the same documents.

    Raises:
        ExtensionError: E212 a label has too few texts.
    """

    def __init__(
        self,
        prompts: Prompts,
        description: str,
        labels: Sequence[str],
        codes: np.ndarray,
        texts: Sequence[str],
        *,
        shots: int = 1,
        candidates: int = 8,
        seed: int = 0,
    ) -> None:
        self._prompts, self._description, self._labels = prompts, description, list(labels)
        self._codes, self._texts = codes, [one_line(text) for text in texts]
        self._shots, self._candidates = shots, candidates
        self._seed = seed
        counts = np.bincount(codes, minlength=len(labels))
        fewest = int(counts.argmin())
        if counts[fewest] <= shots:
            detail = f"{shots} demonstrations and 1 more text of the label {labels[fewest]!r}"
            raise ExtensionError("E212", asked=shots + 1, what="public", available=int(counts[fewest]), detail=detail)

    def all(self, amounts: Amounts) -> List[Document]:
        """The documents of all forms, shuffled."""
        made = [*self.write(amounts.write), *self.label(amounts.label), *self.judge(amounts.judge)]
        random.Random(f"documents/{self._seed}").shuffle(made)
        return made

    def write(self, count: int) -> Iterator[Document]:
        """A few labelled texts, a label -> a text of it; each text is asked for about equally often."""
        random_ = np.random.default_rng([self._seed, 0])
        rows = self._rows(count, 0)
        for row, drawn in zip(rows, draw(self._codes, self._codes[rows], self._shots, random_)):
            shown = [one for one in drawn.shown(len(drawn.ranked)) if one != row]
            demonstrations = [(self._labels[self._codes[one]], self._texts[one]) for one in shown]
            label = self._labels[self._codes[row]]
            prompt = self._prompts.augment(self._description, self._labels, demonstrations, label)
            yield {"prompt": prompt, "completion": self._texts[row]}

    def label(self, count: int) -> Iterator[Document]:
        """A text -> its label."""
        for row in self._rows(count, 1).tolist():
            prompt = self._prompts.label(self._description, self._labels, self._texts[row])
            yield {"prompt": prompt, "completion": one_line(self._labels[self._codes[row]])}

    def judge(self, count: int) -> Iterator[Document]:
        """Several texts, some of them spoiled or said again -> the numbers of the others."""
        draws = random.Random(f"judge/{self._seed}")
        for _ in range(count):
            candidates, good = self._cluster(draws)
            prompt = self._prompts.judge(self._description, self._labels, candidates)
            numbers = ", ".join(str(number) for number in good)
            yield {"prompt": prompt, "completion": numbers or "none"}

    def _rows(self, count: int, form: int) -> np.ndarray:
        """``count`` rows in random order, all before any comes again (int64)."""
        random_ = np.random.default_rng([self._seed, form, 1])
        passes = -(-count // len(self._texts))
        rows: np.ndarray = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(random_.permutation(len(self._texts)) for _ in range(passes))]
        )
        return rows[:count]

    def _cluster(self, draws: random.Random) -> tuple[List[str], List[int]]:
        """Candidates, and the numbers (from 1) of those that are to be kept."""
        size = min(draws.randint(2, self._candidates), len(self._texts))
        rows = draws.sample(range(len(self._texts)), size)
        share = draws.random() * 0.6  # some clusters are good, some are not
        candidates: List[str] = []
        good: List[int] = []
        for row in rows:
            text, fate = self._texts[row], draws.random()
            if fate >= share:
                good.append(len(candidates) + 1)
            elif fate < share / 3 and good:
                text = candidates[draws.choice(good) - 1]
            else:
                text = spoiled(text, draws)
            candidates.append(text)
        return candidates, good


def spoiled(text: str, draws: random.Random) -> str:
    """The text with its words in disorder, or stuck on one of them: what a poor generator writes."""
    words = text.split()
    if len(words) > 3 and draws.random() < 0.5:
        at = draws.randrange(len(words) // 2)
        return " ".join([*words[: at + 1], *[words[at]] * draws.randint(3, 8)])
    draws.shuffle(words)
    return " ".join(words)
