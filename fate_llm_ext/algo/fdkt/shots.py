"""Few-shot prompts: which demonstrations stand in each, in which order, and how many the LLM's context has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo import fitting


@dataclass(frozen=True, eq=False)
class Shots:
    """The demonstrations of one prompt.

    Attributes:
        label: the label that is asked for.
        ranked: indices of demonstrations; the first is of that label, then one of each other label, and so on: if
            there is room for some only, these are the first ones.
        order: places in the prompt, a permutation of ``ranked``.
    """

    label: int
    ranked: np.ndarray
    order: np.ndarray

    def shown(self, count: int) -> List[int]:
        """The first ``count`` ones of ``ranked``, in the order of the prompt."""
        return self.ranked[self.order[self.order < count]].tolist()


def draw(codes: np.ndarray, asked: np.ndarray, shots: int, random: np.random.Generator) -> List[Shots]:
    """Demonstrations for each prompt, ``shots`` of each label (all of a label that has fewer), in random order.

    Args:
        codes: the demonstrations' labels (int [N]).
        asked: the label that each prompt asks for; it has a demonstration (int [M]).
    """
    members: Dict[int, np.ndarray] = {int(code): np.flatnonzero(codes == code) for code in np.unique(codes)}
    result = []
    for label in asked.tolist():
        others = random.permutation([code for code in members if code != label]).astype(int).tolist()
        columns = [
            random.choice(members[code], min(shots, len(members[code])), replace=False) for code in [label, *others]
        ]
        ranked = [column[row] for row in range(shots) for column in columns if row < len(column)]
        result.append(Shots(label, np.array(ranked, dtype=np.int64), random.permutation(len(ranked))))
    return result


def fit(
    drawn: Sequence[Shots],
    render: Callable[[Shots, int], str],
    fits: Callable[[Sequence[str]], np.ndarray],
    most: Optional[int] = None,
) -> Tuple[List[str], np.ndarray]:
    """Prompts with as many demonstrations as there is room for, found by halving.

    Args:
        render: the prompt with the first so many demonstrations.
        fits: whether each prompt fits into the LLM's context (bool [M]).
        most: no more demonstrations than this in a prompt.

    Returns:
        The prompts, and how many demonstrations each holds (int [M]). 0: not even one fits, the prompt is not to be
        sent.
    """
    return fitting.fit(
        [len(one.ranked[:most]) for one in drawn], lambda index, count: render(drawn[index], count), fits
    )
