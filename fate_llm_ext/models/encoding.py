"""Where tokens lie in a text, to the byte; prompts and answers as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Union

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.backends import plain_backend
from fate_llm_ext.models.vocabulary import Vocabulary, read_vocabulary

Array = np.ndarray[Any, Any]


class SpanTokenizer:
    """A tokenizer that knows its tokens' bytes. Building one reads the whole vocabulary (0.1 s): build it once.

    Args:
        dummy_prefix: False: texts are the middle of longer ones, SentencePiece puts no space before them.

    Attributes:
        vocabulary: the tokens' bytes.
        prefix: ids that the tokenizer puts before every text (``<s>`` for Llama, ``</s>`` for OPT), int32.
        eos_id: the end token.
        spaced: it takes a text as if a space stood before it.

    Raises:
        ExtensionError: E446 the tokenizer has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, dummy_prefix: bool = True) -> None:
        self.vocabulary: Vocabulary = read_vocabulary(tokenizer)
        self.eos_id: int = self.vocabulary.eos_id
        if self.eos_id < 0:
            raise ExtensionError("E446", size=len(self.vocabulary))
        probe = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
        leading = next((i for i, special in enumerate(probe.special_tokens_mask) if not special), 0)
        self.prefix: Array = np.array(probe.ids[:leading], np.int32)
        self._backend = plain_backend(tokenizer, dummy_prefix)
        self._lengths = self.vocabulary.lengths
        (first,) = self.spans(["a"])
        self.spaced: bool = bool(len(first.ids) and first.starts[0] < 0)

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """See :func:`token_spans`; all texts at once."""
        encodings: list[Encoding] = self._backend.encode_batch(list(texts), add_special_tokens=False)
        raw = [text.encode() for text in texts]
        counts = np.array([len(encoding) for encoding in encodings], np.int64)
        ids = _concatenate([encoding.ids for encoding in encodings], int(counts.sum()))
        edges = np.concatenate([[0], np.cumsum(counts)])
        ends = np.concatenate([[0], np.cumsum(self._lengths[ids])])
        written = self._bytes(ids, ends).tobytes()
        result = []
        for index, text in enumerate(raw):
            first, last = int(edges[index]), int(edges[index + 1])
            content = written[ends[first] : ends[last]]
            mine = ids[first:last]
            if content == text:
                bounds = ends[first : last + 1] - ends[first]
            elif content == b" " + text:
                bounds = ends[first : last + 1] - ends[first] - 1
            else:
                bounds = self._bounds_by_offsets(texts[index], text, encodings[index], mine)
            result.append(Spans(mine, bounds[:-1].astype(np.int32), bounds[1:].astype(np.int32)))
        return result

    def _bytes(self, ids: Array, ends: Array) -> Array:
        """What ``ids`` write, uint8 [ends[-1]]."""
        shift = np.repeat(self.vocabulary.offsets[ids] - ends[:-1], self._lengths[ids])
        return self.vocabulary.blob[shift + np.arange(int(ends[-1]))]

    def _bounds_by_offsets(self, text: str, raw: bytes, encoding: Encoding, ids: Array) -> Array:
        """Token bounds, int64 [T + 1], of a text whose tokens do not spell it (special tokens, NFC, word pieces).

        Runs of tokens that share characters are placed by their own bytes when they spell the text there (after at
        most one virtual space). Otherwise the normaliser rewrote these characters: the run's first token gets them
        all and the others start behind them, where they align with nothing.
        """
        place = np.concatenate([[0], np.cumsum([len(letter.encode()) for letter in text])]).astype(np.int64)
        blob, offsets = self.vocabulary.blob, self.vocabulary.offsets
        words = [blob[offsets[i] : offsets[i + 1]].tobytes() for i in ids]
        offered: list[tuple[int, int]] = encoding.offsets
        bounds = np.empty(len(ids) + 1, np.int64)
        bounds[-1] = len(raw)
        at = 0
        while at < len(ids):
            begin, reach = offered[at]
            after = at + 1
            while after < len(ids) and offered[after][0] < reach:
                reach = max(reach, offered[after][1])
                after += 1
            start = int(place[begin])
            steps = np.cumsum([0, *(len(word) for word in words[at : after - 1])])
            content = b"".join(words[at:after])
            if raw.startswith(content, start):
                bounds[at:after] = start + steps
            elif raw.startswith(content[1:], start) and content[:1] == b" ":
                bounds[at:after] = start - (at == 0) + np.maximum(steps - (at > 0), 0)
            else:
                bounds[at], bounds[at + 1 : after] = start, place[reach]
            at = after
        return np.maximum.accumulate(bounds)


@dataclass(frozen=True, eq=False)
class Spans:
    """Tokens of one text: ``ids`` int32 [T], first byte ``starts`` int32 [T], end ``ends`` int32 [T] (exclusive).

    Spans cover the text without gaps. A dummy prefix (SentencePiece) lies before byte 0, so its token starts at -1.
    """

    ids: Array
    starts: Array
    ends: Array


AnyTokenizer = Union[SpanTokenizer, PreTrainedTokenizerFast]


def _prepared(tokenizer: AnyTokenizer) -> SpanTokenizer:
    return tokenizer if isinstance(tokenizer, SpanTokenizer) else SpanTokenizer(tokenizer)


def _concatenate(lists: Iterable[Sequence[int]], count: int) -> Array:
    return np.fromiter(chain.from_iterable(lists), np.int32, count)


def token_spans(tokenizer: AnyTokenizer, text: str, *, bos: bool = False, eos: bool = False) -> Spans:
    """Token ids of ``text`` with their byte spans, exact for split UTF-8, byte fallback and leading spaces.

    ``bos`` puts the tokenizer's usual prefix before the text, ``eos`` its end token behind it, both of zero length.
    Pass a :class:`SpanTokenizer` when there is more than one call.
    """
    prepared = _prepared(tokenizer)
    spans = prepared.spans([text])[0]
    before, after = prepared.prefix if bos else prepared.prefix[:0], [prepared.eos_id] if eos else []
    if not len(before) and not after:
        return spans
    head = spans.starts[0] if len(spans.ids) else 0
    size = len(text.encode())
    edges = [np.full(len(before), head, np.int32), np.full(len(after), size, np.int32)]
    return Spans(
        np.concatenate([before, spans.ids, np.array(after, np.int32)]),
        np.concatenate([edges[0], spans.starts, edges[1]]),
        np.concatenate([edges[0], spans.ends, edges[1]]),
    )


# --- prompt and answer -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """One training sample of ``T`` tokens, ``A`` of them the answer's.

    Attributes:
        ids: int32 [T], prefix + prompt + answer + end token.
        answer: bool [T], true for the answer's tokens (the last ones), the end token included.
        starts: int32 [A], first byte of each answer token relative to the answer's first byte. Negative for a token
            that begins in the prompt; the end token starts at the answer's size in bytes.
    """

    ids: Array
    answer: Array
    starts: Array


def encode_pair(tokenizer: AnyTokenizer, prompt: str, answer: str, max_length: int) -> EncodedPair:
    """Tokenise ``prompt + answer`` jointly, as the model will see them when it generates. See :func:`encode_pairs`."""
    return encode_pairs(tokenizer, [prompt], [answer], max_length)[0]


def encode_pairs(
    tokenizer: AnyTokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int,
    *,
    keep: str = "",
    share: float = 1.0,
    apart: bool = False,
) -> list[EncodedPair]:
    """Tokenise many pairs. A token that straddles the boundary belongs to the answer.

    A pair longer than ``max_length`` tokens loses the beginning of its prompt. Only if the answer alone is too
    long, the answer's tail and the end token go. An empty answer is the end token alone.

    Args:
        keep: with this every prompt begins; its tokens stay when what follows them is cut.
        share: below 1: an answer of more tokens than this share of ``max_length`` is cut to that, or to what its
            prompt leaves if that is more.
        apart: for an encoder, which reads the prompt and an end token, and a decoder, which writes the answer and
            another one: tokenised each by itself, each in at most ``max_length`` tokens.

    Raises:
        ExtensionError: E325 as many prompts as answers are needed.
    """
    if len(prompts) != len(answers):
        raise ExtensionError("E325", what="prompts and answers", got=len(prompts), expected=len(answers))
    prepared = _prepared(tokenizer)
    if apart:
        read = encode_prompts(prepared, prompts, keep=keep, room=max_length, apart=True)
        written = prepared.spans([alone(prepared, answer) for answer in answers])
        return [_side_by_side(prepared, *sides, max_length) for sides in zip(read, written)]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
    boundaries = [len(prompt.encode()) for prompt in prompts]
    sizes = [len(answer.encode()) for answer in answers]
    limits = (max_length, int(max_length * share), len(keep.encode()))
    return [
        _assemble(prepared, spans, boundary, size, *limits)
        for spans, boundary, size in zip(prepared.spans(texts), boundaries, sizes)
    ]


def _assemble(
    tokenizer: SpanTokenizer, spans: Spans, boundary: int, size: int, max_length: int, most: int, keep: int
) -> EncodedPair:
    """One pair from the tokens of prompt and answer.

    Args:
        boundary: where the answer of ``size`` bytes begins, in bytes.
        most: tokens of an answer, unless the prompt leaves more.
        keep: bytes at the prompt's beginning that stay.
    """
    cut = int(np.searchsorted((spans.ends > boundary) | (spans.starts >= boundary), True))
    longest = max(most, max_length - len(tokenizer.prefix) - cut)
    ids = np.append(spans.ids[cut:], np.int32(tokenizer.eos_id))[:longest]
    starts = np.append(spans.starts[cut:] - boundary, np.int32(size))[:longest]
    room = max_length - len(ids)
    prefix = tokenizer.prefix if len(tokenizer.prefix) <= room else tokenizer.prefix[:0]
    head = np.concatenate([prefix, shorten(spans, cut, keep, room - len(prefix))])
    mask = np.arange(len(head) + len(ids)) >= len(head)
    return EncodedPair(np.concatenate([head, ids]).astype(np.int32), mask, starts.astype(np.int32))


def alone(tokenizer: SpanTokenizer, answer: str) -> str:
    """An answer without what separates it from its prompt, if the tokenizer puts a space of its own before a text."""
    return answer.lstrip() if tokenizer.spaced else answer


def _side_by_side(tokenizer: SpanTokenizer, read: Array, written: Spans, max_length: int) -> EncodedPair:
    size = int(written.ends[-1]) if len(written.ends) else 0
    ids = np.append(written.ids, np.int32(tokenizer.eos_id))[:max_length]
    starts = np.append(written.starts, np.int32(size))[:max_length]
    mask = np.arange(len(read) + len(ids)) >= len(read)
    return EncodedPair(np.concatenate([read, ids]).astype(np.int32), mask, starts.astype(np.int32))


def encode_prompts(
    tokenizer: AnyTokenizer, prompts: Sequence[str], *, keep: str = "", room: int | None = None, apart: bool = False
) -> list[Array]:
    """Token ids of prompts to be continued (int32 [T_i]), as the tokenizer begins every text.

    Args:
        keep: with this every prompt begins; its tokens stay when what follows them is cut.
        room: a prompt of more tokens loses its beginning; None: none does.
        apart: for an encoder, which sees an end token behind them.
    """
    prepared = _prepared(tokenizer)
    size, before = len(keep.encode()), prepared.prefix
    after = np.array([prepared.eos_id] if apart else [], dtype=np.int32)
    encoded = []
    for spans in prepared.spans(prompts):
        count = len(spans.ids)
        left = count if room is None else max(room - len(before) - len(after), 0)
        encoded.append(np.concatenate([before, shorten(spans, count, size, left), after]).astype(np.int32))
    return encoded


def shorten(spans: Spans, count: int, keep: int, room: int) -> Array:
    """The first ``count`` tokens, or ``room`` of them: those within the first ``keep`` bytes, and the last ones."""
    if count <= room:
        return spans.ids[:count]
    fixed = min(int(np.searchsorted(spans.ends[:count], keep, side="right")) if keep else 0, room)
    return np.concatenate([spans.ids[:fixed], spans.ids[count - (room - fixed) : count]])
