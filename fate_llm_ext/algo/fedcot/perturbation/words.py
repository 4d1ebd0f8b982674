"""How a text becomes units, and which units are plain words.

A unit is what stands between white space. It is never cut into parts: of "anna@mail.org", "AB-1234/x" or "Anna's" no
part may count as a word, so each is one unit, which no vocabulary has. Scripts without spaces give one unit per run.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import FrozenSet, Iterator, List, Tuple

_COMMON = """
a about above across after again against all almost alone along already also although always am among an and another
any anyone anything are around as asked at away be became because become been before began behind being below between
both but by called came can cannot come could did do does doing done down during each either else enough ever every
everyone everything far few finally first following for found from gave get given goes going gone got had has have
having he hence her here hers herself him himself his how however i if in inside instead into is it its itself just
kept least less let like made make many me might more most much must my myself near nearly need neither never no
nobody none nor not nothing now of off often on once one only onto or other others our ours out over own perhaps quite
rather really same second see seen several she should since so some somebody someone something sometimes soon still
such take taken than that the their them themselves then there therefore these they third this those though three
through thus to today together too took toward towards two under unless until up upon us used usually very was we well
went were what whatever when where whether which while who whom whose why with within without would yes yet you your
yours yourself
"""

COMMON: FrozenSet[str] = frozenset(_COMMON.split())
"""English words that stand at the beginning of any sentence, so that one passes for a word with a capital in front too.
Those that are given names as well ("Will", "May") are not among them."""

_POINTS = ".,;:!?'\"\u00a1\u00bf\u00b7\u055b\u055c\u055e\u0589\u05be\u05c3\u060c\u061b\u061f\u06d4\u0964\u0965"
_POINTS += "\u104a\u104b\u1362\u1363\u1364\u1365\u1366\u1367\u1368\u17d4\u17d5\u3001\u3002\u30fb"
_ENDS = ".!?:\u0589\u061f\u06d4\u0964\u0965\u104b\u1362\u1367\u1368\u17d4\u3002"  # of them, what ends a sentence
_CLOSING = ("Pe", "Pf", "Pd", "Ps", "Pi")  # brackets, quotation marks, dashes

# What is not seen and stands for nothing between two words: joiners, marks of direction, variation selectors, tags.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def split(text: str) -> List[str]:
    """The units of a text (NFKC), without the punctuation around them; what is punctuation alone is no unit.

    Signs that belong to what they stand at ("@anna", "#may", "/anna/", "5%", "$5") are no punctuation here: they stay.
    """
    return [unit for unit, _ in pieces(text)]


def pieces(text: str) -> Iterator[Tuple[str, bool]]:
    """The units of a text, each with whether a sentence (or the text, or a line) begins with it."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))
    edges = _edges()
    for line in text.splitlines():
        begins = True
        for piece in line.split():
            unit = piece.strip(edges)
            if unit:
                yield unit, begins
                begins = False
            begins = begins or _ends_sentence(piece, edges)


def is_word(text: str) -> bool:
    """Whether this is a plain word: letters alone (with their marks), all of them small where there are two cases."""
    if text.isascii():
        return text.isalpha() and text.islower()
    normal = text == unicodedata.normalize("NFKC", text) and text == text.lower()
    kinds = [unicodedata.category(letter) for letter in text]
    return normal and kinds[0] in _SMALL and all(kind in _SMALL or kind in _MARKS for kind in kinds)


def capitalised(word: str) -> str:
    """The word as it stands at the beginning of a sentence."""
    return word[:1].title() + word[1:]


_SMALL = ("Ll", "Lo", "Lm")
_MARKS = ("Mn", "Mc")


@functools.lru_cache(maxsize=1)
def _edges() -> str:
    """All characters that are stripped: brackets, quotation marks and dashes of all scripts, and sentence points."""
    others = map(chr, range(0x10000))
    return _POINTS + "".join(letter for letter in others if unicodedata.category(letter) in _CLOSING)


def _ends_sentence(piece: str, edges: str) -> bool:
    tail = piece[len(piece.rstrip(edges)) :]
    return any(letter in _ENDS for letter in tail)
