"""How a client turns a rationale for its perturbed prompt into one for its own; nothing of this leaves.

``model``: the SLM rewrites it, in context, as in the paper. ``substitution``: the units that drawn words stand for are
put back, names and numbers among them; that needs no model that can rewrite. ``none``: as it comes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Callable, Dict, List, Protocol, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.fedcot.config import DecodingConfig, RationaleConfig
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.algo.fedcot.perturbation.words import COMMON, capitalised
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.rationales import clean, phrases
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.config import GenerationConfig

_SALT = 31  # of the seed
_DOING = "decoding rationales"

# Words with their marks: runs without white space and punctuation, of ASCII and beyond.
_WORD = re.compile(r"[^\s!-/:-@\[-`{-\xbf‐-‧‰-⁞\u3000-\u303f\uff01-\uff0f\uff1a-\uff20]+")


class Writer(Protocol):
    """What writes behind prompts, see :class:`~fate_llm_ext.algo.fedcot.answers.Reasoner`."""

    def write(
        self, prompts: Sequence[str], config: GenerationConfig, *, seed: int, doing: str, stop: Sequence[str]
    ) -> List[str]:
        """A text behind each prompt."""


def decode(
    config: DecodingConfig,
    rationales: Sequence[str],
    *,
    questions: Sequence[str],
    prompts: Sequence[str],
    perturbed: Sequence[Tuple[Sequence[str], np.ndarray]],
    vocabulary: Vocabulary,
    model: Writer,
    templates: Prompts,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> List[str]:
    """Rationales for the own prompts, one for each of M given ones; "" where the SLM writes nothing.

    Args:
        rationales: as the LLM wrote them.
        questions: what it was asked.
        prompts: the own prompt behind each question.
        perturbed: units of each question's record, and which words of the vocabulary stand for them (int [n]).
        seed: of the SLM's sampling.
    """
    heartbeat(_DOING)
    if config.method == "none":
        return list(rationales)
    if config.method == "model":
        asked = [templates.decode(*three) for three in zip(questions, rationales, prompts)]
        stop = templates.decode_stop
        written = model.write(asked, config, seed=derived_seed(seed, _SALT), doing=_DOING, stop=stop)
        return [clean(text) for text in written]
    words = vocabulary.words
    results = []
    for text, (units, drawn) in zip(rationales, perturbed):
        results.append(substitute(text, units, [words[index] for index in drawn.tolist()], templates.rationale))
        heartbeat(_DOING)
    return results


def substitute(text: str, units: Sequence[str], drawn: Sequence[str], config: RationaleConfig) -> str:
    """The text with the unit that each drawn word stands for in its place, where a whole word of the text is one.

    Not touched are words that say nothing about anybody (:data:`COMMON`), for an LLM writes them of its own accord;
    single letters, for they name options; and what announces the answer. A word that stands for several units becomes
    the one whose neighbours are nearest to those in the text, else the most frequent one, else the first one.

    Args:
        units: of the record.
        drawn: the word for each.
    """
    places = _places(units, drawn)
    found = list(_WORD.finditer(text))
    words = [unicodedata.normalize("NFKC", match[0]).lower() for match in found]
    announced = phrases(text, config)
    parts, at = [], 0
    for number, (match, word) in enumerate(zip(found, words)):
        if word not in places or any(first <= match.start() < last for first, last in announced):
            continue
        around = (words[number - 1] if number else "", words[number + 1] if number + 1 < len(words) else "")
        unit = _chosen(places[word], around, units, drawn)
        parts += [text[at : match.start()], capitalised(unit) if match[0][0].isupper() else unit]
        at = match.end()
    return "".join([*parts, text[at:]])


def _places(units: Sequence[str], drawn: Sequence[str]) -> Dict[str, List[int]]:
    """Where each drawn word that is worth looking for stands."""
    places: Dict[str, List[int]] = {}
    for index, (unit, word) in enumerate(zip(units, drawn)):
        if unit and word not in COMMON and not (len(word) == 1 and word.isascii()):
            places.setdefault(word, []).append(index)
    return places


def _chosen(places: Sequence[int], around: Tuple[str, str], units: Sequence[str], drawn: Sequence[str]) -> str:
    """The unit at the best of several places of a drawn word."""
    if len(places) == 1:
        return units[places[0]]
    counts = Counter(units[index] for index in places)

    def fit(index: int) -> Tuple[int, int, int]:
        before = drawn[index - 1] if index else None
        behind = drawn[index + 1] if index + 1 < len(drawn) else None
        return (before == around[0]) + (behind == around[1]), counts[units[index]], -index

    return units[max(places, key=fit)]
