"""The closed, public list of words that may leave a client, and their vectors.

Whatever is not in the list is *unknown*, one single input of the mechanism. A capital makes a word unknown, whatever it
is (but for :data:`~fate_llm_ext.algo.fedcot.perturbation.words.COMMON`), because "Mark" and "mark" are not the same;
words that are names more often than not ("anna") do not get into the list.

Dimensions: V words, d numbers of a vector, T tokens of a model.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from tokenizers.models import WordPiece

from fate_llm_ext.algo.fedcot.config import VocabularyConfig
from fate_llm_ext.algo.fedcot.perturbation.words import COMMON, capitalised, is_word, pieces
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.backends import plain_backend
from fate_llm_ext.models.vocabulary import REGULAR, read_vocabulary

UNKNOWN = -1

Source = Tuple[str, Sequence[int]]  # a word and the tokens that write it


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words that may leave.

    Attributes:
        words: V different words of small letters, in an order that only public facts decide.
        vectors: float32 [V, d] of length 1.
        left_out: reason -> how many words of the source are not in the list for it.
    """

    words: Tuple[str, ...]
    vectors: np.ndarray
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {word: index for index, word in enumerate(self.words)}
        known.update({capitalised(word): known[word] for word in self.words if word in COMMON})
        object.__setattr__(self, "_known", known)

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, units: Sequence[str]) -> np.ndarray:
        """The place of each unit in the list, int32 [n]; :data:`UNKNOWN` for all that is not a word of it.

        Args:
            units: as :func:`~fate_llm_ext.algo.fedcot.perturbation.words.split` gives them.
        """
        known: Dict[str, int] = self._known  # type: ignore[attr-defined]  # set in __post_init__
        return np.fromiter(map(known.get, units, itertools.repeat(UNKNOWN)), np.int32, len(units))


def build_vocabulary(
    tokenizer: Any, table: np.ndarray, config: VocabularyConfig, texts: Optional[Iterable[str]] = None
) -> Vocabulary:
    """The first ``config.size`` words of the source that have a vector.

    The source are the most frequent words of ``texts``, or the whole words of the tokenizer in the order of their
    tokens, which is about that of their frequency. A word's vector is its token's row of the table, or the mean over
    the tokens that write it in the middle of a text, normalised.

    Args:
        tokenizer: a fast one.
        table: float32 [T, d], the input embedding of the tokenizer's model.
        texts: of a public set.

    Raises:
        ExtensionError: E750 fewer than two words are left, E751 the table does not fit the tokenizer, E407 it holds
            no numbers.
    """
    left_out: Counter[str] = Counter()
    sources = _of_tokenizer(tokenizer, left_out) if texts is None else _of_texts(tokenizer, texts, config, left_out)
    words: List[str] = []
    vectors: List[np.ndarray] = []
    for word, tokens in sources:
        if len(words) == config.size:
            break
        vector = _vector(table, tokens)
        if vector is None:
            left_out["vector"] += 1
            continue
        words.append(word)
        vectors.append(vector)
    if len(words) < 2:
        what = "tokenizer" if texts is None else "public set"
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items())) or "none left out"
        raise ExtensionError("E750", source=what, words=len(words), left_out=counts)
    return Vocabulary(tuple(words), np.stack(vectors).astype(np.float32), dict(left_out))


def embedding_table(model: Any) -> np.ndarray:
    """A copy of the input embedding of a transformers model, float32 [T, d]."""
    weight = model.get_input_embeddings().weight
    table: np.ndarray = weight.detach().float().cpu().numpy().copy()
    return table


def _of_tokenizer(tokenizer: Any, left_out: Counter[str]) -> Iterator[Source]:
    """The whole words of a tokenizer: what is a plain word behind the marker of a word's beginning.

    A word whose form with a capital comes first ("Anna" before "anna") is a name.
    """
    whole: Dict[str, int] = {}
    for index, text in enumerate(_beginnings(tokenizer)):
        if text:
            whole.setdefault(text, index)
    words = sorted((index, text) for text, index in whole.items() if is_word(text))
    for index, word in words:
        if word not in COMMON and whole.get(capitalised(word), index) < index:
            left_out["name"] += 1
        elif _is_initial(word):
            left_out["letter"] += 1
        else:
            yield word, (index,)


def _beginnings(tokenizer: Any) -> List[str]:
    """What each token writes if a word begins with it, else nothing; by id."""
    backend = tokenizer.backend_tokenizer
    vocabulary = read_vocabulary(tokenizer)
    regular = (vocabulary.kind == REGULAR).tolist()
    written = [token.decode("utf-8", "replace") for token in vocabulary.tokens()]
    if isinstance(backend.model, WordPiece):  # it marks what goes on, not what begins
        joint = backend.model.continuing_subword_prefix
        marked = {index for token, index in backend.get_vocab().items() if token.startswith(joint)}
        return [
            text if usual and index not in marked else "" for index, (text, usual) in enumerate(zip(written, regular))
        ]
    return [text[1:] if usual and text[:1] == " " else "" for text, usual in zip(written, regular)]


def _of_texts(
    tokenizer: Any, texts: Iterable[str], config: VocabularyConfig, left_out: Counter[str]
) -> Iterator[Source]:
    """The plain words of texts, the most frequent first, equally frequent ones by the alphabet.

    A word that inside sentences has a capital more often than not, or is never seen without, is a name.
    """
    small: Counter[str] = Counter()
    large: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for text in texts:
        for unit, begins in pieces(text):
            word = unit.lower()
            if is_word(unit) or (word in COMMON and unit == capitalised(word)):
                small[word] += 1
            elif is_word(word) and unit == capitalised(word):
                (large if begins else named)[word] += 1
    counts = {word: small[word] + large[word] for word in {*small, *large, *named}}
    backend = plain_backend(tokenizer, dummy_prefix=False)
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        if small[word] <= named[word]:
            left_out["name"] += 1
        elif _is_initial(word):
            left_out["letter"] += 1
        else:
            yield word, _tokens(backend.encode(f" {word}", add_special_tokens=False).ids, tokenizer)


def _tokens(ids: Sequence[int], tokenizer: Any) -> Sequence[int]:
    """The tokens that write a word, none if one of them stands for something unknown."""
    special = set(tokenizer.all_special_ids)
    return () if special & set(ids) else ids


def _is_initial(word: str) -> bool:
    """Whether a word is a single Latin letter, which may well be somebody's initial."""
    return len(word) == 1 and word.isascii() and word not in COMMON


def _vector(table: np.ndarray, tokens: Sequence[int]) -> Optional[np.ndarray]:
    """The direction of the tokens' mean (float32 [d]), None if it has none."""
    if not len(tokens):
        return None
    if table.ndim != 2 or max(tokens) >= len(table):
        raise ExtensionError("E751", shape="x".join(map(str, table.shape)), needed=max(tokens) + 1)
    mean = table[list(tokens)].astype(np.float64).mean(axis=0)
    if not np.isfinite(mean).all():
        raise ExtensionError("E407", bad=int((~np.isfinite(table)).sum()), total=table.size, what="vectors of words")
    length = float(np.linalg.norm(mean))
    return mean / length if length > 0.0 else None
