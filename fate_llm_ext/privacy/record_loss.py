"""The loss of each record of a batch, so that each record's gradient can be clipped on its own."""

from __future__ import annotations

from typing import Any, List, Sequence

import numpy as np
import torch
from torch import Tensor

from fate_llm_ext.data.collate import Batch, Collator, Item
from fate_llm_ext.models.loading import split_head
from fate_llm_ext.training.losses import Tail, chunked_head_loss, weighted_nll_and_kd

# Logits of one chunk of answer positions: at most this many floats (256 MB in fp32).
_CHUNK_FLOATS = 1 << 26


class RecordLoss:
    """``gold_weight * CE + teacher_weight * KD`` of each record, each a mean over the record's own positions.

    Prompts and pads are outside; no record's loss depends on another record.

    Args:
        model: a causal LM, with or without an adapter.
        temperature: of the KD term, of teacher and student.
        tail: what becomes of the teacher's tail mass.

    Attributes:
        rectangular: give the output head as many positions of each record, so that its rows belong to records.
        head_trains: whether the output head has trainable parameters.
    """

    def __init__(self, model: Any, pad_id: int, temperature: float = 1.0, tail: Tail = "bucket") -> None:
        self.rectangular = False
        self._collate = Collator(pad_id)
        self._backbone, self._head = split_head(model)
        head: Any = model.get_output_embeddings()
        self.head_trains = head is not None and any(p.requires_grad for p in head.parameters())
        self._parameter = next(model.parameters())
        self._chunk = max(1, _CHUNK_FLOATS // model.config.vocab_size)
        self._temperature = temperature
        self._tail = tail
        bf16 = any(p.dtype == torch.bfloat16 for p in model.parameters())
        self._autocast = torch.autocast(self._parameter.device.type, torch.bfloat16, enabled=bf16)

    def __call__(self, items: Sequence[Item]) -> Tensor:
        """Losses of the records, float32 [B], with their graph."""
        counts = [len(item.answer) for item in items]
        owner = np.repeat(np.arange(len(items)), counts)
        batch = self._collate(items)
        if self.rectangular:
            batch = _rectangular(batch, counts)
            owner = np.repeat(np.arange(len(items)), max(counts))
        batch = {name: value.to(self._parameter.device) for name, value in batch.items()}
        with self._autocast:
            hidden = self._backbone(batch["input_ids"], batch["attention_mask"])
            hidden = hidden.reshape(-1, hidden.shape[-1])[batch["flat"]]
            if self.rectangular or len(hidden) <= self._chunk:
                values = self._positions(self._head(hidden), batch, slice(None))
            else:
                values = chunked_head_loss(
                    hidden, self._head, self._chunk, lambda logits, part: self._positions(logits, batch, part)
                )
        # The collator's weights contain the mean over the batch; a record's loss does not.
        values = values * len(items)
        return values.new_zeros(len(items)).index_add(0, torch.from_numpy(owner).to(values.device), values)

    def _positions(self, logits: Tensor, batch: Batch, part: slice) -> Tensor:
        return weighted_nll_and_kd(logits, batch, part, self._temperature, self._tail)


def _rectangular(batch: Batch, counts: List[int]) -> Batch:
    """As many positions of each record; those added have no weight.

    They are places of the record itself: zero times another record's loss need not be zero.
    """
    width = max(counts)
    if min(counts) == width:
        return batch
    places = torch.from_numpy(np.concatenate([b * width + np.arange(count) for b, count in enumerate(counts)]))
    wide = {}
    for name, value in batch.items():
        if name in ("input_ids", "attention_mask"):
            wide[name] = value
        else:
            wide[name] = value.new_zeros(len(counts) * width, *value.shape[1:])
            wide[name][places] = value
    length = batch["input_ids"].shape[1]
    first = torch.arange(len(counts), device=wide["flat"].device).repeat_interleave(width) * length
    added = torch.ones(len(first), dtype=torch.bool)
    added[places] = False
    wide["flat"][added] = first[added].to(wide["flat"].dtype)
    return wide
