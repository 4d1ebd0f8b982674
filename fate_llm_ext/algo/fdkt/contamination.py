"""How much of a text is copied from others, by word n-grams."""

from __future__ import annotations

import re
from functools import cached_property
from typing import FrozenSet, Iterator, List, Sequence, Tuple

_WORD = re.compile(r"\w+")
SIZE = 5  # words of an n-gram

Gram = Tuple[str, ...]


class Passage:
    """A text as words, without case and punctuation.

    Attributes:
        words: in order.
    """

    def __init__(self, text: str) -> None:
        self.words: List[str] = _WORD.findall(text.casefold())

    def grams(self, size: int) -> Iterator[Gram]:
        """All runs of ``size`` words, repeated ones again."""
        return zip(*(self.words[start:] for start in range(size)))

    @cached_property
    def known(self) -> FrozenSet[Gram]:
        """The runs of :data:`SIZE` words."""
        return frozenset(self.grams(SIZE))


def overlap(text: Passage, sources: Sequence[Passage]) -> float:
    """Share of a text's word 5-grams that stand in one of the sources, in [0, 1].

    A text of fewer than 5 words is one n-gram, of all its words. Linear in the words of text and sources; n-grams of
    the sources are kept for the next text.
    """
    size = min(SIZE, len(text.words))
    if not size:
        return 0.0
    grams = list(text.grams(size))
    known = [one.known if size == SIZE else frozenset(one.grams(size)) for one in sources]
    return sum(any(gram in one for one in known) for gram in grams) / len(grams)
