"""transformers' Trainer for sequence classifiers, with a weight per sample."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import Any, Callable, List, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import Batch, pad_right
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.training.hooks import PhaseCallback
from fate_llm_ext.training.trainer import training_arguments


@dataclass(frozen=True)
class Labelled:
    """One sequence with its label: token ids (int [T]), index of the label, weight of its loss."""

    ids: np.ndarray
    label: int
    weight: float = 1.0


def train_classifier(
    model: torch.nn.Module,
    rows: Sequence[Labelled],
    config: TrainConfig,
    *,
    epochs: int,
    seed: int,
    pad_id: int,
    phase: str,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> float:
    """Train in place on the mean over a batch of weight * cross-entropy; returns the mean loss.

    Raises:
        ExtensionError: E406 as soon as the loss is not finite; E666 there are no sequences.
    """
    if not rows:
        raise ExtensionError("E666", items=0, phase=phase)
    steps = epochs * math.ceil(len(rows) / (config.batch_size * config.gradient_accumulation))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(
            model=model,
            args=training_arguments(config, epochs, steps, seed, scratch, next(model.parameters())),
            train_dataset=list(rows),
            data_collator=lambda batch: _collate(batch, pad_id),
            callbacks=[PhaseCallback(phase, steps, heartbeat)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.prepare(config, phase)
        return float(trainer.train().training_loss)


def _collate(rows: List[Labelled], pad_id: int) -> Batch:
    ids, mask = pad_right([row.ids for row in rows], pad_id)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "target": torch.tensor([row.label for row in rows]),
        "weight": torch.tensor([row.weight for row in rows], dtype=torch.float32),
    }


class _Trainer(transformers.Trainer):
    """Adds the weights; everything else is the library's."""

    def prepare(self, config: TrainConfig, phase: str) -> None:
        self.model_accepts_loss_kwargs = False  # the loss is a mean: the Trainer divides by the accumulation steps
        self._learning_rate = config.learning_rate
        self._phase = phase

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **kwargs: Any) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
        loss = (inputs["weight"] * F.cross_entropy(logits, inputs["target"], reduction="none")).mean()
        if not torch.isfinite(loss):
            raise ExtensionError(
                "E406",
                value=float(loss.detach()),
                step=self.state.global_step + 1,
                phase=self._phase,
                learning_rate=self._learning_rate,
            )
        return (loss, None) if return_outputs else loss
