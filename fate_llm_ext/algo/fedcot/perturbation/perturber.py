"""Texts of units become texts of vocabulary words: every unit goes through the mechanism, and nothing else leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence

import numpy as np

from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.privacy.mechanisms import fresh_generator


@dataclass(frozen=True, eq=False)
class Perturbed:
    """M texts word by word; the lists are parallel, and so are their entries. Only ``drawn`` and ``texts`` may leave.

    Attributes:
        units: of each text, as they were; a text without any has one empty unit.
        ids: the unit's place in the vocabulary, int32 [n]; -1 if it is unknown.
        drawn: the place of the word that stands for it, int32 [n].
        texts: these words, with one space between.
    """

    units: List[List[str]]
    ids: List[np.ndarray]
    drawn: List[np.ndarray]
    texts: List[str]

    def __len__(self) -> int:
        return len(self.texts)


class Perturber:
    """Draws a vocabulary word for every unit.

    What comes out depends on a unit only by its place in the vocabulary, which all unknown units share. The number of
    units of a text is disclosed.

    Args:
        mechanism: over the vectors of this vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, mechanism: Mechanism) -> None:
        self._vocabulary = vocabulary
        self._mechanism = mechanism

    def draw(self, units: Sequence[Sequence[str]], generator: Optional[np.random.Generator] = None) -> Perturbed:
        """Perturb texts, each once: another draw from the same text is another release.

        Args:
            units: of each text; an empty list counts as one unknown word, so that it looks like any other text.
            generator: for tests; by default the operating system's entropy decides, for a job's seed is public.
        """
        if not units:
            return Perturbed([], [], [], [])
        filled = [list(text) or [""] for text in units]
        ids = self._vocabulary.ids([unit for text in filled for unit in text])
        drawn = self._mechanism.sample(ids, fresh_generator() if generator is None else generator).astype(np.int32)
        edges = np.cumsum([len(text) for text in filled])[:-1]
        parts = np.split(drawn, edges)
        words = np.array(self._vocabulary.words, dtype=object)
        return Perturbed(filled, np.split(ids, edges), parts, [" ".join(words[part]) for part in parts])
