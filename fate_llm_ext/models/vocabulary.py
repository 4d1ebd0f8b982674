"""What every token of a vocabulary writes, as bytes, and the map from one vocabulary to another.

FedMKT (arXiv 2406.02224) moves a distribution from one model's tokens to another's. Two tables:

``span``
    a token maps to the target token with the same bytes, else to the first token the target writes
    for these bytes in running text. (ours)
``min_ed``
    a token maps to the target token of minimum edit distance. (the paper)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.backends import byte_alphabet, is_byte_level, plain_backend

Array = np.ndarray[Any, Any]
HOLE, SPECIAL, REGULAR, BYTE, ADDED = range(5)  # Vocabulary.kind; also the order of preference among equal bytes

_MARK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHUNK = 512  # queries per edit-distance matrix: 512 x 50k bytes = 25 MB


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of every token id. ``V`` ids, ``B`` bytes in all.

    Attributes:
        blob: uint8 [B], the tokens' bytes one after the other.
        offsets: int64 [V + 1]; token ``i`` is ``blob[offsets[i]:offsets[i + 1]]``. Special tokens are empty.
        kind: uint8 [V], one of HOLE, SPECIAL, REGULAR, BYTE (``<0xNN>``), ADDED (matched before the model runs).
        eos_id: id of the end token, -1 if there is none.
    """

    blob: Array
    offsets: Array
    kind: Array
    eos_id: int

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def lengths(self) -> Array:
        """Bytes per token, int64 [V]."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all fields: equal for equal vocabularies on every platform."""
        digest = hashlib.sha256()
        for name, array in sorted(self.to_arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def tokens(self) -> list[bytes]:
        """Every token's bytes, by id."""
        blob, edges = self.blob.tobytes(), self.offsets.tolist()
        return [blob[start:end] for start, end in zip(edges, edges[1:])]

    def to_arrays(self) -> dict[str, Array]:
        """Plain arrays for the wire: blob uint8 [B], offsets int64 [V + 1], kind uint8 [V], eos_id int64 [1]."""
        eos = np.array([self.eos_id], np.int64)
        return {"blob": self.blob, "offsets": self.offsets, "kind": self.kind, "eos_id": eos}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Vocabulary:
        """Inverse of :meth:`to_arrays`; the arrays come from a peer and are checked.

        Raises:
            ExtensionError: E320 fields are missing, have wrong types, or do not fit together.
        """
        expected = {"blob": "u1", "offsets": "i8", "kind": "u1", "eos_id": "i8"}
        for name, dtype in expected.items():
            array = arrays.get(name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.dtype(dtype):
                raise ExtensionError("E320", problem=f"field {name} is not a {dtype} vector")
        blob, offsets, kind, eos = (arrays[name] for name in expected)
        if len(offsets) != len(kind) + 1 or offsets[0] != 0 or offsets[-1] != len(blob) or np.any(np.diff(offsets) < 0):
            raise ExtensionError("E320", problem=f"{len(kind)} tokens, {len(offsets)} offsets, {len(blob)} bytes")
        if len(eos) != 1 or not -1 <= eos[0] < len(kind) or np.any(kind > ADDED):
            raise ExtensionError("E320", problem="the end token or a token kind is out of range")
        return cls(blob, offsets, kind, int(eos[0]))


def read_vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The bytes behind every id of a fast tokenizer.

    Byte-level BPE is decoded through GPT-2's byte alphabet, SentencePiece-like vocabularies through their
    space marker and ``<0xNN>`` bytes; any other token stands for its text, without WordPiece's ``##``.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    added = backend.get_added_tokens_decoder()
    special = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    byte_level = is_byte_level(backend)
    alphabet = byte_alphabet()
    joint = backend.model.continuing_subword_prefix if isinstance(backend.model, WordPiece) else ""
    written, kind = [b""] * size, np.zeros(size, np.uint8)
    for token, index in ids.items():
        if index in special:
            kind[index] = SPECIAL
        elif index in added:
            written[index], kind[index] = token.encode(), ADDED
        elif byte_level:
            written[index], kind[index] = _byte_level(token, alphabet), REGULAR
        elif found := _BYTE_TOKEN.fullmatch(token):
            written[index], kind[index] = bytes([int(found[1], 16)]), BYTE
        else:
            written[index], kind[index] = (
                token[len(joint) if token.startswith(joint) else 0 :].replace(_MARK, " ").encode(),
                REGULAR,
            )
    offsets = np.zeros(size + 1, np.int64)
    np.cumsum([len(token) for token in written], out=offsets[1:])
    eos = tokenizer.eos_token_id
    return Vocabulary(np.frombuffer(b"".join(written), np.uint8), offsets, kind, -1 if eos is None else int(eos))


def map_vocabulary(
    source: Vocabulary,
    target: Vocabulary,
    target_tokenizer: PreTrainedTokenizerFast,
    method: Literal["span", "min_ed"] = "span",
    step: Callable[[], None] = lambda: None,
) -> Array:
    """Target id of every source id: int32 [V_source], -1 where nothing corresponds.

    End maps to end; other special tokens map to nothing. The source's tokenizer is not needed.
    ``step`` is called now and then, for signs of life.

    Raises:
        ExtensionError: E321 ``target`` was not read from ``target_tokenizer``; E322 unknown method.
    """
    size = max(target_tokenizer.get_vocab().values(), default=-1) + 1
    if len(target) != size:
        raise ExtensionError("E321", vocabulary=len(target), tokenizer=size)
    if method not in ("span", "min_ed"):
        raise ExtensionError("E322", method=method)
    table = np.full(len(source), -1, np.int32)
    known = _ids_by_bytes(target)
    words = source.tokens()
    table[:] = [known.get(word, -1) if word else -1 for word in words]
    open_ids = [index for index in np.flatnonzero(table < 0).tolist() if words[index]]
    missing = [words[index] for index in open_ids]
    if missing and method == "span":
        table[open_ids] = _first_tokens(missing, target, known, target_tokenizer)
    elif missing:
        table[open_ids] = _nearest_tokens(missing, target, known, step)
    if source.eos_id >= 0:
        table[source.eos_id] = target.eos_id
    return table


def _byte_level(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[letter] for letter in token])
    except KeyError:
        return token.encode()


# --- span --------------------------------------------------------------------------------------------


def _ids_by_bytes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Of several ids with the same bytes, the one the tokenizer writes: added, then regular, then byte tokens."""
    rank = np.select([vocabulary.kind == ADDED, vocabulary.kind == REGULAR], [2, 1], 0)
    words, found = vocabulary.tokens(), {}
    for index in np.lexsort((-np.arange(len(rank)), rank)).tolist():
        if words[index]:
            found[words[index]] = index
    return found


def _first_tokens(
    words: Sequence[bytes], target: Vocabulary, known: Mapping[bytes, int], tokenizer: PreTrainedTokenizerFast
) -> list[int]:
    """First id the target writes for each byte string in the middle of a text; -1 for a special or no token."""
    backend = plain_backend(tokenizer, dummy_prefix=False)
    byte_level = is_byte_level(backend)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    firsts, texts, where = [-1] * len(words), [], []
    for index, word in enumerate(words):
        readable = _readable(word)
        if len(readable.encode()) < len(word) and byte_level:
            pieces = backend.model.tokenize("".join(letters[byte] for byte in word))
            firsts[index] = pieces[0].id if pieces else -1
        elif readable:
            texts.append(readable)
            where.append(index)
        else:
            firsts[index] = known.get(word[:1], -1)
    for index, encoding in zip(where, backend.encode_batch(texts, add_special_tokens=False)):
        firsts[index] = next(iter(encoding.ids), -1)
    return [first if first >= 0 and target.kind[first] != SPECIAL else -1 for first in firsts]


def _readable(word: bytes) -> str:
    """The longest prefix that is whole UTF-8."""
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        return word[: error.start].decode()


# --- minimum edit distance ---------------------------------------------------------------------------


def _nearest_tokens(
    words: Sequence[bytes], target: Vocabulary, known: Mapping[bytes, int], step: Callable[[], None]
) -> list[int]:
    """The argmin over the target of the Levenshtein distance between texts; ties go to the smaller text.

    Texts have their space markers and byte escapes undone; a byte that is no character of its own counts as one
    letter. The cut-off is raised step by step, so that the many words with a near neighbour are cheap.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    choices = sorted((word.decode("utf-8", "surrogateescape"), index) for word, index in known.items())
    if not choices:
        return [-1] * len(words)
    texts = [text for text, _ in choices]
    queries = [word.decode("utf-8", "surrogateescape") for word in words]
    nearest = np.full(len(words), -1, np.int64)
    cutoff = 1
    while (waiting := np.flatnonzero(nearest < 0)).size:
        for start in range(0, waiting.size, _CHUNK):
            step()
            rows = waiting[start : start + _CHUNK]
            scores = cdist(
                [queries[row] for row in rows], texts, scorer=Levenshtein.distance, score_cutoff=cutoff, dtype=np.uint16
            )
            best = scores.argmin(axis=1)
            hit = scores[np.arange(len(rows)), best] <= cutoff
            nearest[rows[hit]] = best[hit]
        cutoff *= 2
    return [choices[index][1] for index in nearest.tolist()]
