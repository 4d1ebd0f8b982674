"""Black-box audit with canaries in the text: random words that nobody would write unless they were trained on.

What a model has kept of them shows in their likelihood (exposure; Carlini et al., "The Secret Sharer", 2019), and what
comes through a DP teacher's synthetic texts in the runs of words that the texts share with them. Both give scores for
the one-run audit of :mod:`~fate_llm_ext.privacy.audit`. Such an adversary is far weaker than the one that ε is
about: a bound near 0 is what is to be expected, and no proof of privacy.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any, Dict, List, Sequence, Set, Tuple

import numpy as np

from fate_llm_ext.errors import ExtensionError

_WORD = re.compile(r"\w+")
# Added to each count of the bigram model; small, because the canaries' words are rare together.
_SMOOTHING = 0.01


@dataclass(frozen=True, eq=False)
class TextCanaries:
    """Texts of random words of which about half are among the records.

    Attributes:
        texts: all of them.
        codes: control code of each (int32 [m]).
        included: which ones are among the records (bool [m]).
        repeats: how often each of those is. With more than one, an audit is about the ε of a group of so many
            records, which no record-level guarantee is meant to bound.
    """

    texts: List[str]
    codes: np.ndarray
    included: np.ndarray
    repeats: int


def insert_canaries(
    texts: Sequence[str],
    codes: np.ndarray,
    *,
    canaries: int,
    words: Sequence[str],
    coins: np.random.Generator,
    length: int = 8,
    repeats: int = 1,
    values: int = 1,
) -> Tuple[List[str], np.ndarray, TextCanaries]:
    """Add each of ``canaries`` random texts to the records with probability 1/2, ``repeats`` times.

    Args:
        texts: the records' texts (N).
        codes: their control codes (int [N]).
        canaries: m, how many there are to guess about.
        words: public list that the canaries' words are drawn from.
        coins: draws words and codes and decides which canaries join.
        length: words per canary.
        values: number of control codes.

    Returns:
        Texts and codes of all records, canaries last, and the canaries.

    Raises:
        ExtensionError: E652 if the words do not make so many different texts.
    """
    written = random_texts(words, canaries, length, coins)
    drawn = coins.integers(values, size=canaries).astype(np.int32)
    joined = coins.random(canaries) < 0.5
    chosen = np.repeat(np.flatnonzero(joined), repeats)
    all_texts = [*texts, *(written[index] for index in chosen)]
    all_codes = np.concatenate([np.asarray(codes, dtype=np.int32), drawn[chosen]])
    return all_texts, all_codes, TextCanaries(written, drawn, joined, repeats)


def random_texts(words: Sequence[str], count: int, length: int, coins: np.random.Generator) -> List[str]:
    """``count`` different texts of ``length`` words each, every word drawn alike.

    Raises:
        ExtensionError: E652 if there are not a hundred times as many texts as asked for.
    """
    distinct = sorted(set(words))
    if not length * np.log(max(len(distinct), 1)) >= np.log(100.0 * count):
        raise ExtensionError("E652", count=count, length=length, words=len(distinct))
    found: Dict[str, None] = {}
    while len(found) < count:
        picked = coins.integers(len(distinct), size=length)
        found[" ".join(distinct[index] for index in picked)] = None
    return list(found)


def vocabulary_words(tokenizer: Any, least: int = 4) -> List[str]:
    """Words of at least ``least`` ASCII letters that are one token after a space: canaries of them are short."""
    marked = (token[1:] for token in tokenizer.get_vocab() if token[:1] in ("\u0120", "\u2581"))
    return sorted({word for word in marked if word.isascii() and word.isalpha() and len(word) >= least})


def exposure(canaries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Bits by which training made each canary easier to guess: log2(R + 1) - log2(rank), float64 [m].

    The rank, from 1, is that of the canary's likelihood among its own and those of R texts of the same kind that
    were never trained on; ties count against the canary. At most log2(R + 1); see :func:`chance_exposure`.

    Args:
        canaries: negative log-likelihood of each canary, [m].
        candidates: of the others, [R].
    """
    others = np.sort(np.asarray(candidates, dtype=np.float64))
    ranks = 1 + np.searchsorted(others, np.asarray(canaries, dtype=np.float64), side="right")
    bits: np.ndarray = np.log2(len(others) + 1) - np.log2(ranks)
    return bits


def chance_exposure(candidates: int) -> float:
    """Mean exposure of texts that were never trained on: about log2(e) = 1.44 bits for many candidates."""
    return float(np.log2(candidates + 1) - np.log2(np.arange(1, candidates + 2)).mean())


def synthetic_text_scores(canaries: Sequence[str], synthetic: Sequence[str]) -> np.ndarray:
    """How much of each canary comes through in synthetic texts, from the texts alone; float64 [2, m].

    Row 0 is the longest run of words that the canary shares with a synthetic text, and as fraction the share of its
    pairs of neighbouring words that occur anywhere. Row 1 is the canary's mean log-likelihood per word under a
    bigram model of the synthetic texts. Words are compared without case and punctuation.
    """
    corpus = [split_words(text) for text in synthetic]
    asked = [split_words(text) for text in canaries]
    runs, shares = longest_runs(asked, corpus)
    return np.stack([runs + 0.5 * shares, _bigram_likelihood(asked, corpus)])


def split_words(text: str) -> List[str]:
    """Words without case and punctuation."""
    return _WORD.findall(text.casefold())


def longest_runs(canaries: Sequence[List[str]], corpus: Sequence[List[str]]) -> Tuple[np.ndarray, np.ndarray]:
    """Longest run of words of each canary that is in a text of the corpus, and the share of its bigrams that are."""
    runs, shares = np.zeros(len(canaries)), np.zeros(len(canaries))
    for size in range(1, max(map(len, canaries), default=0) + 1):
        wanted = set(chain.from_iterable(_grams(words, size) for words in canaries))
        found: Set[Tuple[str, ...]] = wanted.intersection(chain.from_iterable(_grams(words, size) for words in corpus))
        if not found:  # no longer run either
            break
        for index, words in enumerate(canaries):
            hits = sum(gram in found for gram in _grams(words, size))
            if hits:
                runs[index] = size
            if size == 2:
                shares[index] = hits / max(1, len(words) - 1)
    return runs, shares


def _grams(words: Sequence[str], size: int) -> List[Tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _bigram_likelihood(canaries: Sequence[List[str]], corpus: Sequence[List[str]]) -> np.ndarray:
    pairs = Counter(chain.from_iterable(_grams(words, 2) for words in corpus))
    firsts = Counter(chain.from_iterable(words[:-1] for words in corpus))
    words_known = len(set(chain.from_iterable(chain(corpus, canaries))))
    result = np.zeros(len(canaries))
    for index, words in enumerate(canaries):
        logs = [
            np.log((pairs[first, second] + _SMOOTHING) / (firsts[first] + _SMOOTHING * words_known))
            for first, second in zip(words, words[1:])
        ]
        result[index] = np.mean(logs) if logs else 0.0
    return result
