"""The words that are attacked, and how many of them a guess gets right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.fedcot.attacks.shares import share
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed

_MOST_OF = 0.5  # of a record's words: more than this, and the record counts as read


@dataclass(frozen=True, eq=False)
class Sample:
    """n words of R records, whole records as far as possible.

    Attributes:
        true: the private word, int32 [n]; -1 for a unit that the vocabulary does not have.
        seen: the word that left in its place, int32 [n].
        owners: number of its record, int64 [n], ascending.
        places: its place in the record, int64 [n].
        units: what stands there in clear, n texts.
        records: the words that left of each record, int32 [length] each.
    """

    true: np.ndarray
    seen: np.ndarray
    owners: np.ndarray
    places: np.ndarray
    units: List[str]
    records: List[np.ndarray]

    def __len__(self) -> int:
        return len(self.true)

    @property
    def known(self) -> int:
        """How many are words of the vocabulary."""
        return int((self.true >= 0).sum())


def draw_sample(perturbed: Perturbed, most: int, generator: np.random.Generator) -> Sample:
    """Records in random order until ``most`` words are together; of a longer one the first words.

    Units that are empty stand for a field without words: nothing is there to be guessed, and they are left out.
    """
    chosen: List[int] = []
    owners: List[int] = []
    places: List[int] = []
    for index in generator.permutation(len(perturbed.ids)):
        if len(owners) >= most:
            break
        found = [place for place, unit in enumerate(perturbed.units[index]) if unit][: most - len(owners)]
        owners += [len(chosen)] * len(found)
        places += found
        chosen.append(int(index))
    pairs = [(chosen[owner], place) for owner, place in zip(owners, places)]
    return Sample(
        np.array([perturbed.ids[index][place] for index, place in pairs], dtype=np.int32),
        np.array([perturbed.drawn[index][place] for index, place in pairs], dtype=np.int32),
        np.array(owners, dtype=np.int64),
        np.array(places, dtype=np.int64),
        [perturbed.units[index][place] for index, place in pairs],
        [perturbed.drawn[index] for index in chosen],
    )


def right_guesses(sample: Sample, guesses: np.ndarray) -> np.ndarray:
    """Which words are guessed: bool [n]."""
    right: np.ndarray = (sample.true >= 0) & (guesses == sample.true)
    return right


def words_that_occur(sample: Sample, other: int = 0) -> int:
    """How many words left anywhere in their record, each as often as it left there.

    Args:
        other: look into the record so many places behind it, to see what records have in common anyway.
    """
    left = [Counter(record.tolist()) for record in [*sample.records[other:], *sample.records[:other]]]
    found = 0
    for owner, word in zip(sample.owners, sample.true.tolist()):
        if word >= 0 and left[owner][word]:
            left[owner][word] -= 1
            found += 1
    return found


def unknown_guesses(sample: Sample, guesses: np.ndarray, words: Sequence[str]) -> int:
    """How many units that are no words of the vocabulary are guessed, whatever their capitals.

    A guess is always a word of the list. Of numbers, addresses and names that no word of the list spells none is ever
    guessed; what is counted are words in capitals that chance, or their neighbours, gave away.
    """
    unknown = np.flatnonzero(sample.true < 0)
    return sum(words[guesses[index]].casefold() == sample.units[index].casefold() for index in unknown)


def record_figures(sample: Sample, right: np.ndarray, guesses: np.ndarray, words: Sequence[str]) -> Dict[str, float]:
    """``attack_documents``: share of records of whose known words more than half are guessed; ``attack_overlap``.

    The overlap is the mean over records of ROUGE-1 (F): words of the true text, unknown units among them, that the
    guessed one has, whatever their order.
    """
    known = np.bincount(sample.owners[sample.true >= 0], minlength=len(sample.records))
    got = np.bincount(sample.owners[right], minlength=len(sample.records))
    asked = known > 0
    figures = share("attack_documents", int((got > _MOST_OF * known)[asked].sum()), int(asked.sum()))
    overlaps = [
        _overlap([sample.units[i].casefold() for i in range(*span)], [words[guesses[i]] for i in range(*span)])
        for span in _spans(sample)
    ]
    return {**figures, "attack_overlap": float(np.mean(overlaps))} if overlaps else figures


def _spans(sample: Sample) -> List[Tuple[int, int]]:
    numbers = np.unique(sample.owners)
    starts = np.searchsorted(sample.owners, numbers)
    ends = np.searchsorted(sample.owners, numbers, side="right")
    return list(zip(starts.tolist(), ends.tolist()))


def _overlap(true: List[str], guessed: List[str]) -> float:
    """F of two bags of as many words each, which is what they share."""
    return sum((Counter(true) & Counter(guessed)).values()) / len(true)
