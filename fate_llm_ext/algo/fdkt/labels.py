"""Which label of a closed list an LLM's free answer names."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

_WORD = re.compile(r"[^\W_]+")
# Ends what is said about the first label: an answer is often followed by its explanation, which may name others.
_END = re.compile(r"[.;!?](?=[\s\"'”’)*]|$)|[。！？；\n]")
_NEGATION = re.compile(
    r"(?:\b(?:not|no|never|neither|nor)|n['’]t|不是?|非)(?:\s+(?:an?|the|in|about))*[\s\"'“‘*]*$", re.IGNORECASE
)


class _Mention(NamedTuple):
    start: int
    end: int
    label: int

    def within(self, other: _Mention) -> bool:
        """Whether it is a part of another, longer mention."""
        return other.start <= self.start and self.end <= other.end and other[:2] != self[:2]


def parse_label(answer: str, labels: Sequence[str]) -> Optional[int]:
    """The label that an answer names, by its place in ``labels``; None if it names none or several.

    Case, punctuation and spaces inside a label do not count (``sci - tech`` is ``Sci/Tech``) unless labels differ in
    nothing else. Of labels that contain each other the longest counts (``very good``, not ``good``). Denied ones do
    not count (``not World``). The first sentence or line that names a label decides; what follows is explanation.
    What stands in ``<think>`` before the answer does not count, and without its end there is no answer.
    """
    known = _known(tuple(labels))
    text = known.fold(unicodedata.normalize("NFKC", answer.rpartition("</think>")[2]))
    mentions = [] if "<think>" in text else _mentions(text, known)
    if not mentions:
        return None
    end = _END.search(text, mentions[0].end)
    named = {one.label for one in mentions if end is None or one.start < end.start()}
    return named.pop() if len(named) == 1 else None


class _Known(NamedTuple):
    """A list of labels, made ready to be looked for: how case is removed, and an expression for each label."""

    fold: Callable[[str], str]
    expressions: Tuple[re.Pattern[str], ...]


@functools.lru_cache(maxsize=8)
def _known(labels: Tuple[str, ...]) -> _Known:
    fold = _folding(labels)
    names = [fold(unicodedata.normalize("NFKC", label).strip()) for label in labels]
    words = [tuple(_WORD.findall(name)) for name in names]
    shared = Counter(words)
    patterns = (_pattern(own if own and shared[own] == 1 else (), name) for name, own in zip(names, words))
    return _Known(fold, tuple(map(re.compile, patterns)))


def _mentions(text: str, known: _Known) -> List[_Mention]:
    """Where labels stand in the folded text, in order; without those inside a longer one, and without denied ones."""
    found = [
        _Mention(match.start(), match.end(), index)
        for index, expression in enumerate(known.expressions)
        for match in expression.finditer(text)
    ]
    longest = [one for one in found if not any(one.within(other) for other in found)]
    return sorted(one for one in longest if not _NEGATION.search(text, 0, one.start))


def _pattern(words: Sequence[str], name: str) -> str:
    """A regular expression for a label: its words with any punctuation between, or without words as it is written."""
    inner = r"[\W_]*".join(map(re.escape, words)) if words else r"\s+".join(map(re.escape, name.split()))
    first, last = (words[0][0], words[-1][-1]) if words else (name[0], name[-1])
    before = r"(?<![^\W_])(?<!\d[.,])" if _spaced(first) else ""
    after = r"(?![^\W_])(?![.,]\d)" if _spaced(last) else ""
    return before + inner + after


def _spaced(letter: str) -> bool:
    """Whether a script sets spaces between words: one with upper and lower case, or digits; Chinese does not."""
    return letter.isdigit() or letter.lower() != letter.upper()


def _folding(labels: Sequence[str]) -> Callable[[str], str]:
    """How case is removed; not at all if labels differ in case only."""
    return str.casefold if len({label.casefold() for label in labels}) == len(labels) else str
