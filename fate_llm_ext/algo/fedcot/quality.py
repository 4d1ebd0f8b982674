"""Which rationales a client learns from, decided by its own records; nobody hears which were dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from fate_llm_ext.algo.fdkt.contamination import Passage
from fate_llm_ext.algo.fdkt.labels import parse_label
from fate_llm_ext.algo.fedcot.config import QualityConfig, RationaleConfig
from fate_llm_ext.algo.fedcot.rationales import core, read_answer, without_answer

# What may be wrong with a rationale, in the order in which it is asked.
REASONS = ("unfinished", "unanswered", "inconsistent", "too_short", "too_long", "copy")

_LETTER = re.compile(r"\W*(?:(?:option|choice|answer)\W+)?([a-z])(?:\W*\Z|[).:\]])", re.IGNORECASE)
_LONGEST = 20_000  # characters of which words are counted: more than `max_words` can be


@dataclass(frozen=True, eq=False)
class Kept:
    """K of M rationales.

    Attributes:
        rows: which they are (int64 [K], ascending).
        texts: what is learned of them: the reasons without the answer.
        dropped: reason (:data:`REASONS`) -> rationales dropped for it; each has one, the first that applies.
    """

    rows: np.ndarray
    texts: List[str]
    dropped: Dict[str, int]


def select(
    rationales: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Optional[str]],
    config: QualityConfig,
    *,
    rationale: RationaleConfig,
    choices: Sequence[Sequence[str]],
    unfinished: np.ndarray,
    written: Optional[Sequence[str]] = None,
) -> Kept:
    """Choose among M rationales.

    The answer is no part of what is learned: it is the SLM's other task, and length and copies are measured without
    it, see :func:`~fate_llm_ext.algo.fedcot.rationales.without_answer`.

    Args:
        rationales: decoded, for the own prompts.
        prompts: these prompts.
        labels: the right answers, where they are known.
        rationale: how an answer is read.
        choices: the options of each prompt, by letter or as a closed list; empty if it has none.
        unfinished: which the LLM did not come to the end of (bool [M]).
        written: as the LLM wrote them, before they were decoded: there an answer is looked for that decoding lost.
    """
    dropped = dict.fromkeys(REASONS, 0)
    rows, texts = [], []
    for row, (text, prompt, label) in enumerate(zip(rationales, prompts, labels)):
        answer = read_answer(text, rationale)
        if answer is None and written is not None:
            answer = read_answer(written[row], rationale)
        right = None if answer is None or label is None else same_answer(answer, label, choices[row], prompt)
        reasons = without_answer(text, rationale)
        if config.finished and unfinished[row]:
            dropped["unfinished"] += 1
        elif config.answered and answer is None:
            dropped["unanswered"] += 1
        elif config.consistent and right is False:
            dropped["inconsistent"] += 1
        elif (problem := _problem(reasons, prompt, config)) is not None:
            dropped[problem] += 1
        else:
            rows.append(row)
            texts.append(reasons)
    return Kept(np.array(rows, dtype=np.int64), texts, dropped)


def _problem(text: str, prompt: str, config: QualityConfig) -> Optional[str]:
    """What is wrong with the reasons themselves."""
    passage = Passage(text[:_LONGEST])
    if len(passage.words) < max(1, config.min_words):
        return "too_short"
    if len(passage.words) > config.max_words or len(text) > _LONGEST:
        return "too_long"
    return "copy" if copied(passage, Passage(prompt)) > config.max_copy else None


def copied(text: Passage, source: Passage) -> float:
    """Share of a text's pairs of neighbouring words that stand in the source, in [0, 1]; 0 for less than two words."""
    pairs = list(text.grams(2))
    known: Set[Tuple[str, ...]] = set(source.grams(2))
    return sum(pair in known for pair in pairs) / len(pairs) if pairs else 0.0


def same_answer(answer: str, label: str, choices: Sequence[str], prompt: str) -> bool:
    """Whether an answer says the label, by its letter, its words, or the words of the option that it is.

    Args:
        answer: as it was read, e.g. `d`, `(d) math problem`, `math problem`.
        label: the right one, e.g. ` D` or ` Sports`.
        choices: of this prompt; letters (options that the prompt lists), a closed list, or none.
        prompt: where the options are looked up.
    """
    said, right = core(answer), core(label)
    if said == right:
        return True
    names = [core(choice) for choice in choices]
    if not names:
        return False
    if any(len(name) != 1 or not name.isalpha() for name in names):
        named = parse_label(answer, [choice.strip() for choice in choices])
        return named is not None and names[named] == right
    letter = _LETTER.match(answer)
    if letter and letter[1].lower() in names:
        return letter[1].lower() == right
    return right in _named(said, _options(prompt, names))


def _options(prompt: str, letters: Sequence[str]) -> Mapping[str, str]:
    """Letter -> words of the option that a line of the prompt begins with it (`D. math problem`)."""
    found = re.finditer(r"^[^\w\n]{0,3}([a-z])[^\S\n]?[.):][^\S\n]*(\S.*)$", prompt, re.MULTILINE | re.IGNORECASE)
    return {one[1].lower(): core(one[2]) for one in found if one[1].lower() in letters}


def _named(said: str, options: Mapping[str, str]) -> Set[str]:
    """The options whose words stand in what was said; of those that contain each other only the longest."""
    inside = {name: words for name, words in options.items() if words and f" {words} " in f" {said} "}
    longest = {
        name
        for name, words in inside.items()
        if not any(words != other and f" {words} " in f" {other} " for other in inside.values())
    }
    return longest if len({inside[name] for name in longest}) == 1 else set()
