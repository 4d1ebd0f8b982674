"""How many demonstrations of a few-shot prompt the LLM's context has room for."""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import numpy as np


def fit(
    most: Sequence[int],
    render: Callable[[int, int], str],
    fits: Callable[[Sequence[str]], np.ndarray],
    least: int = 1,
) -> Tuple[List[str], np.ndarray]:
    """Prompts with as many demonstrations as there is room for, found by halving.

    Args:
        most: how many there are for each prompt [M].
        render: prompt number i with the first so many of its demonstrations.
        fits: whether each prompt fits into the LLM's context (bool [M]).
        least: a prompt with fewer makes no sense.

    Returns:
        The prompts, and how many demonstrations each holds (int64 [M]). ``least - 1``: not even ``least`` fit, the
        prompt is not to be sent.
    """
    high = np.array(most, dtype=np.int64)
    low = np.full(len(high), least - 1, dtype=np.int64)
    prompts = [""] * len(high)
    middle = high.copy()  # all of them, mostly
    while len(unsettled := np.flatnonzero(low < high)):
        texts = [render(index, int(middle[index])) for index in unsettled.tolist()]
        for index, text, good in zip(unsettled.tolist(), texts, fits(texts).tolist()):
            if good:
                low[index], prompts[index] = middle[index], text
            else:
                high[index] = middle[index] - 1
        middle = (low + high + 1) // 2
    return prompts, low
