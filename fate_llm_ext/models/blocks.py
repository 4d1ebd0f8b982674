"""Training blocks for small models: documents packed into sequences of one length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

_COUNTED_DOCUMENTS = 4000
_CHUNK = 256  # documents encoded at a time


class PackedBlocks:
    """Endless batches [B, T] of packed documents, each ended by EOS; every epoch in a new order.

    Documents are encoded when they are first needed: a corpus of 60 MB costs nothing that is not read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], context: int, seed: int) -> None:
        self.tokenizer, self.texts, self.context = tokenizer, texts, context
        self._encoded: dict[int, np.ndarray[Any, Any]] = {}
        self._random = random.Random(seed)
        self._prefix = _begin_ids(tokenizer)
        self._stream = self._tokens()
        self._left = np.zeros(0, dtype=np.int64)
        self.seen = 0

    def encode(self, indices: Sequence[int]) -> np.ndarray[Any, Any]:
        """The documents' ids, one after another."""
        new = [index for index in indices if index not in self._encoded]
        if new:
            batch = self.tokenizer([self.texts[i] for i in new], add_special_tokens=False, verbose=False)["input_ids"]
            for index, ids in zip(new, batch):
                self._encoded[index] = np.asarray([*self._prefix, *ids, self.tokenizer.eos_token_id], dtype=np.int32)
        return np.concatenate([self._encoded[index] for index in indices]).astype(np.int64)

    def counts(self, size: int) -> torch.Tensor:
        """Token counts [size] over the first documents."""
        ids = self.encode(range(min(len(self.texts), _COUNTED_DOCUMENTS)))
        return torch.as_tensor(np.bincount(ids, minlength=size), dtype=torch.float32)

    def batch(self, rows: int) -> torch.Tensor:
        """The next ``rows`` blocks."""
        need = rows * self.context
        while len(self._left) < need:
            self._left = np.concatenate([self._left, next(self._stream)])
        block, self._left = self._left[:need], self._left[need:]
        return torch.from_numpy(block.reshape(rows, self.context))

    def _tokens(self) -> Iterator[np.ndarray[Any, Any]]:
        while True:
            order = list(range(len(self.texts)))
            self._random.shuffle(order)
            for start in range(0, len(order), _CHUNK):
                self.seen += len(order[start : start + _CHUNK])
                yield self.encode(order[start : start + _CHUNK])


def _begin_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before a text (Llama's ``<s>``), unless it is the end token anyway."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] and first != [tokenizer.eos_token_id] else []
