"""Training items and their batches: flat answer positions, so that logits exist only where a loss is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np
import torch

Batch = Dict[str, torch.Tensor]
BESIDE = "beside"  # the key of a second task's batch within the first one's


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's distributions for some answer tokens of one item, in the student's vocabulary.

    Attributes:
        slots: which answer tokens, as indices into ``Item.answer`` (int32 [P]).
        ids: token ids, -1 where unused (int32 [P, K]).
        log_probs: their log-probabilities; what is missing to 1 is the tail (float32 [P, K]).
    """

    slots: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray


@dataclass(frozen=True)
class Item:
    """One sequence to train on.

    Attributes:
        ids: token ids of prompt and answer (int32 [T]); for an encoder-decoder: of what each of the two has.
        answer: places of the answer's tokens in ``ids``, each predicted from the place before (int32 [A]).
        gold_weight: weight of the mean cross-entropy of the answer (equations 5 and 6).
        teacher: distributions for the KD term, or None.
        teacher_weight: weight of the mean KD loss over the teacher's positions (equations 7 and 8).
    """

    ids: np.ndarray
    answer: np.ndarray
    gold_weight: float = 1.0
    teacher: Optional[TeacherTargets] = None
    teacher_weight: float = 0.0


class Collator:
    """Pad items to one batch (right padding) and flatten the answer positions.

    The batch holds ``input_ids``, ``attention_mask`` [B, T] and, for P answer positions in total:
    ``flat`` [P] places in the flattened [B * T] hidden states, ``target`` [P], ``mean_weight`` [P],
    ``gold_weight`` [P], ``teacher_weight`` [P], ``teacher_ids`` and ``teacher_log_probs`` [P, K]. Weights already
    contain the means over answer tokens and over the batch, so the loss is one weighted sum; ``mean_weight`` is
    nothing but these means. An item without answer positions adds nothing, and counts in the mean over the batch.

    For an encoder-decoder, ``input_ids`` and ``attention_mask`` are the prompts', ``decoder_input_ids`` [B, t] the
    answers' behind the start token, and ``flat`` says places in the decoder's [B * t].

    Args:
        pad_id: padding token.
        start_id: what a decoder begins with; None: there is none.
    """

    def __init__(self, pad_id: int, start_id: Optional[int] = None) -> None:
        self.pad_id = pad_id
        self.start_id = start_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Make the batch."""
        size = len(items)
        read, flat = read_batch(
            [item.ids for item in items], [item.answer - 1 for item in items], self.pad_id, self.start_id
        )
        width = max([item.teacher.ids.shape[1] for item in items if item.teacher is not None] or [1])
        counts = [len(item.answer) for item in items]
        total = sum(counts)
        target = np.concatenate([item.ids[item.answer] for item in items])
        mean = np.concatenate([np.full(n, 1.0 / max(n, 1) / size) for n in counts])
        gold = mean * np.repeat([item.gold_weight for item in items], counts)
        teacher_weight = np.zeros(total)
        teacher_ids = np.full((total, width), -1, dtype=np.int64)
        teacher_log_probs = np.full((total, width), -np.inf, dtype=np.float32)
        start = 0
        for n, item in zip(counts, items):
            if item.teacher is not None and len(item.teacher.slots):
                places = start + item.teacher.slots
                k = item.teacher.ids.shape[1]
                teacher_weight[places] = item.teacher_weight / len(places) / size
                teacher_ids[places, :k] = item.teacher.ids
                teacher_log_probs[places, :k] = item.teacher.log_probs
            start += n
        return {
            **read,
            "flat": flat,
            "target": torch.from_numpy(target.astype(np.int64)),
            "mean_weight": torch.from_numpy(mean.astype(np.float32)),
            "gold_weight": torch.from_numpy(gold.astype(np.float32)),
            "teacher_weight": torch.from_numpy(teacher_weight.astype(np.float32)),
            "teacher_ids": torch.from_numpy(teacher_ids),
            "teacher_log_probs": torch.from_numpy(teacher_log_probs),
        }


class Beside:
    """Batches of one task with items of a second one beside them, in a batch of its own under the key ``BESIDE``.

    Of the R items beside N others, min(R, N) are spread evenly over the batches of an epoch; which, says a random order
    of their own, that goes on through the epochs. So each one comes up once per epoch; where there are more of them
    than others, a batch never grows beyond two of its size and it takes more than an epoch to see all of them.

    Args:
        make: collator of either task.
        beside: items of the second task, at least one.
        items: N.
        batch_size: of the first task.
        seed: of the order.
    """

    def __init__(
        self, make: Callable[[Sequence[Item]], Batch], beside: Sequence[Item], items: int, batch_size: int, seed: int
    ) -> None:
        self._make = make
        self._beside = beside
        self._batches = -(-items // batch_size)
        self._per_epoch = min(len(beside), items)
        self._seed = seed
        self._order = np.zeros(0, dtype=np.int64)
        self._passes = self._calls = 0

    def __call__(self, items: Sequence[Item]) -> Dict[str, Any]:
        """The next batch; to be called in the order of training."""
        epoch, batch = divmod(self._calls, self._batches)
        self._calls += 1
        whole = epoch * self._per_epoch
        start = whole + batch * self._per_epoch // self._batches
        stop = whole + (batch + 1) * self._per_epoch // self._batches
        while len(self._order) < stop:
            order = np.random.default_rng([self._seed, self._passes]).permutation(len(self._beside))
            self._order = np.concatenate([self._order, order])
            self._passes += 1
        made: Dict[str, Any] = self._make(items)
        if stop > start:
            made[BESIDE] = self._make([self._beside[i] for i in self._order[start:stop]])
        return made


def read_batch(
    ids: Sequence[np.ndarray], places: Sequence[np.ndarray], pad_id: int, start_id: Optional[int] = None
) -> Tuple[Batch, torch.Tensor]:
    """What a model reads of sequences, and where its predictions are.

    Args:
        ids: tokens of each (int [T]).
        places: the places of each from which the next token is predicted (int [A]); they follow upon each other.
        start_id: what a decoder begins with: the encoder then has the tokens up to the first place, the decoder the
            others. None: one model has them all.

    Returns:
        The model's arguments, and the places in its flattened output (int64 [P]).
    """
    if start_id is None:
        input_ids, mask = pad_right(ids, pad_id)
        shifts, width = list(places), input_ids.shape[1]
        batch = {"input_ids": input_ids, "attention_mask": mask}
    else:
        cuts = [int(place[0]) + 1 if len(place) else len(row) for row, place in zip(ids, places)]
        input_ids, mask = pad_right([row[:cut] for row, cut in zip(ids, cuts)], pad_id)
        written = [row[cut : cut + max(len(place) - 1, 0)] for row, cut, place in zip(ids, cuts, places)]
        decoder_ids, _ = pad_right([np.append(np.int32(start_id), row) for row in written], pad_id)
        shifts, width = [place - cut + 1 for place, cut in zip(places, cuts)], decoder_ids.shape[1]
        batch = {"input_ids": input_ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
    flat = np.concatenate([number * width + shift for number, shift in enumerate(shifts)])
    return batch, torch.from_numpy(flat.astype(np.int64))


def pad_right(
    sequences: Sequence[np.ndarray], pad_id: int, length: Optional[int] = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, T] of sequences of unlike length."""
    length = max(map(len, sequences)) if length is None else length
    ids = np.full((len(sequences), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), length), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
