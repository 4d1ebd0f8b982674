"""Which candidates an LLM has chosen, read from its answer.

An answer is read line by line. A line that is nothing but a list of numbers decides, wherever it stands. Prose
decides where it leaves one reading only: one enumeration, and no word that could turn it around. Whatever else there
is counts as unreadable: a wrong reading would go unnoticed, an unreadable answer is counted and replaced.
"""

from __future__ import annotations

import re
import unicodedata
from typing import FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set


def _words(text: str) -> FrozenSet[str]:
    return frozenset(text.split())


_LONGEST = 4000  # characters that are looked at
# Words among which numbers are still a list.
_LIST = _words(
    "numbers number answer answers text texts candidate candidates sample samples item items and the are is of final "
    "my valid eligible suitable selected chosen kept keep i would choose select ids id json result output yes"
)
# Words that may turn around what numbers in prose mean.
_TURNING = _words(
    "no not nor never none nothing neither except excluding exclude excluded without but out omit omitted drop dropped "
    "remove removed reject rejected delete duplicate duplicates duplicated repeat repeats repeated same similar "
    "identical skip skipped bad invalid ineligible unsuitable wrong malformed incomplete discard discarded ignore "
    "other others rest leave left or cannot don doesn isn aren unless instead than redundant broken"
)
# What is no candidate's number although it has digits: dates, times, thousands, decimals, shares, money.
_FOREIGN = (
    r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}:\d{2}(?!\d)|\d{1,3}(?:,\d{3})+(?![\d])|\d+\.\d+"
    r"|\d+\s*%|[$€£]\s*\d+"
)
_TOKEN = re.compile(
    rf"(?P<foreign>(?<!\w)(?:{_FOREIGN}))"
    r"|(?P<range>(?<![\w-])(?P<first>\d+)\s*(?:-|–|—|\bto\b|\bthrough\b)\s*(?P<last>\d+)(?!\w|\s*[-–—]\s*\d))"
    r"|(?P<word>\w+)"
)
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)?\Z")
_BETWEEN = re.compile(r"(?:[\W_]|\b(?:and|numbers?|texts?|candidates?|samples?|items?)\b)*\Z")
_NUMBERED = re.compile(r"\W*\d+\s*[.):]\s*[^\W\d]")  # a line that starts as the member of a numbered list
_ELIDED = re.compile(r"\.{2,}[\s,]*\d")  # numbers that are left to be guessed
_COUNTED = re.compile(r"\s*[^\W\d]")  # a word right behind a number: `2 of them`


def parse_numbers(answer: str, count: int) -> Optional[List[int]]:
    """The candidates that an answer names.

    Args:
        answer: e.g. `1, 3`, `[1] and [3]`, `1-4`, `none`, `The eligible ones are 1 and 3.`, `{"numbers": [1, 3]}`.
        count: how many candidates there are; other numbers do not count where some of theirs remain.

    Returns:
        Numbers from 1, ascending and each once; [] if the answer is that none is eligible; None if it cannot be read.
    """
    text = unicodedata.normalize("NFKC", answer[:_LONGEST])[:_LONGEST]
    text = text.rpartition("</think>")[2]
    if "<think>" in text:  # it never came to an answer
        return None
    listed: Set[int] = set()
    unclear = False
    for line in text.splitlines():
        if not line.strip():
            continue
        reading = _read(line, count)
        if listed and (reading is None or reading.listed != 1):
            break  # numbers one below the other are one list, all else behind a list is another matter
        if reading is None:
            continue
        if reading.listed and reading.chosen:
            listed |= reading.chosen
            if reading.listed > 1:
                break
        elif reading.chosen is None:
            unclear = True
        elif not unclear:
            return sorted(reading.chosen)
    return sorted(listed) if listed else None


class _Reading(NamedTuple):
    """What a line says: the candidates, None if that is unclear; how many numbers it has if it is a list, else 0."""

    chosen: Optional[FrozenSet[int]]
    listed: int = 0


class _Token(NamedTuple):
    """A number or range (its values), a word, or something foreign."""

    kind: str
    values: List[int]
    start: int
    end: int


def _read(line: str, count: int) -> Optional[_Reading]:
    """What a line says about candidates, None if nothing."""
    tokens = list(_tokens(line, count))
    words = {line[one.start : one.end].lower() for one in tokens if one.kind == "word"}
    numbers = [one for one in tokens if one.kind == "number"]
    inside = frozenset(value for one in numbers for value in one.values if 1 <= value <= count)
    if inside and _ELIDED.search(line):
        return _Reading(None)
    if numbers and words <= _LIST and len(numbers) + sum(one.kind == "word" for one in tokens) == len(tokens):
        counted = len(numbers) == 1 and _COUNTED.match(line, numbers[0].end)
        return _Reading(None if counted else inside or None, sum(min(len(one.values), 2) for one in numbers))
    if not inside and line.rstrip().endswith(":"):
        return None
    turning = words & _TURNING
    if not turning and inside <= {count} and ("all" in words or (count == 2 and "both" in words)):
        return _Reading(frozenset(range(1, count + 1)))
    if inside:
        return _Reading(None if turning or _NUMBERED.match(line) else _enumerated(line, numbers, inside))
    if re.search(r"\[\s*\]", line) or ("none" in words and turning == {"none"} and "all" not in words):
        return _Reading(frozenset())
    return _Reading(None) if words & {"none", "neither", "all", "both"} else None


def _enumerated(line: str, numbers: Sequence[_Token], inside: FrozenSet[int]) -> Optional[FrozenSet[int]]:
    """The numbers of prose, None if they are not one enumeration or a count of something."""
    valid = [one for one in numbers if inside & set(one.values)]
    if any(not _BETWEEN.match(line, one.end, other.start) for one, other in zip(valid, valid[1:])):
        return None
    return None if len(inside) == 1 and _COUNTED.match(line, valid[-1].end) else inside


def _tokens(line: str, count: int) -> Iterator[_Token]:
    """Numbers, words and the rest of a line, in order; a range beyond the candidates ends with them."""
    for match in _TOKEN.finditer(line):
        kind, values, word = "number", list[int](), match["word"] or ""
        if match["range"] and int(match["first"]) < int(match["last"]):
            values = list(range(int(match["first"]), min(int(match["last"]), count) + 1))
        elif _ORDINAL.match(word):
            values = [int(word.rstrip("stndrh"))]
        else:
            kind = "word" if word.isalpha() else "foreign"
        yield _Token(kind, values, match.start(), match.end())
