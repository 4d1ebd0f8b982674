"""transformers' Trainer on flat answer positions, with gold and teacher terms in one loss."""

from __future__ import annotations

import logging
import math
import tempfile
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import BESIDE, Batch, Beside, Collator, Item
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import decoder_start, split_head
from fate_llm_ext.training.hooks import PhaseCallback
from fate_llm_ext.training.losses import Tail, chunked_head_loss, weighted_nll_and_kd

logger = logging.getLogger(__name__)

# Logits of one chunk of answer positions: at most this many floats (256 MB in fp32).
_CHUNK_FLOATS = 1 << 26
_READ = ("input_ids", "attention_mask", "decoder_input_ids")


def train_items(
    model: torch.nn.Module,
    items: Sequence[Item],
    config: TrainConfig,
    *,
    epochs: int,
    seed: int,
    pad_id: int,
    phase: str,
    temperature: float = 1.0,
    tail: Tail = "bucket",
    heartbeat: Callable[[str], None] = lambda doing: None,
    extra: Optional[torch.nn.Module] = None,
) -> float:
    """Train on items and return the mean loss.

    Equations 8 and 9 of FedMKT per item: gold_weight * CE + teacher_weight * KD, each a mean over its
    positions, averaged over the batch.

    Args:
        model: language model whose trainable parameters are trained in place.
        heartbeat: called between steps with what is being done.
        extra: one more term, (batch, hidden states [P, d] at its ``flat`` places) -> scalar. Its parameters are trained
            along (not clipped, not decayed) and are of no use afterwards.

    Raises:
        ExtensionError: E406 as soon as the loss is not finite; E666 no item has an answer to learn.
    """
    items = _with_answers(items, phase)
    collator = Collator(pad_id, decoder_start(model))
    trainer = _trainer(model, items, collator, config, epochs, seed, phase, heartbeat)
    trainer.prepare(config, phase, temperature, tail, extra)
    return trainer.run()


def train_together(
    model: torch.nn.Module,
    items: Sequence[Item],
    beside: Sequence[Item],
    config: TrainConfig,
    *,
    epochs: int,
    seed: int,
    pad_id: int,
    phase: str,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Tuple[float, float]:
    """Train on two tasks at once: the loss of a batch is the mean over its items plus the mean over those beside them.

    Batches and epochs are those of ``items``, as if these were alone; ``beside`` is spread over the same batches, see
    :class:`~fate_llm_ext.data.collate.Beside`. Each of the two has its own forward pass, padded to its own length.

    Returns:
        The mean loss of each task over the batches that hold it, with the weights of the items.

    Raises:
        ExtensionError: E406 as soon as the loss is not finite; E666 no item of one of the tasks has an answer to learn.
    """
    items, beside = _with_answers(items, phase), _with_answers(beside, phase)
    collator = Beside(Collator(pad_id, decoder_start(model)), beside, len(items), config.batch_size, seed)
    trainer = _trainer(model, items, collator, config, epochs, seed, phase, heartbeat)
    trainer.prepare(config, phase, 1.0, "bucket", None)
    trainer.run()
    return trainer.means()


def _trainer(
    model: torch.nn.Module,
    items: List[Item],
    collator: Callable[[Sequence[Item]], Any],
    config: TrainConfig,
    epochs: int,
    seed: int,
    phase: str,
    heartbeat: Callable[[str], None],
) -> _Trainer:
    steps = epochs * math.ceil(len(items) / (config.batch_size * config.gradient_accumulation))
    scratch = tempfile.TemporaryDirectory()
    trainer = _Trainer(
        model=model,
        args=training_arguments(config, epochs, steps, seed, scratch.name, next(model.parameters())),
        train_dataset=items,
        data_collator=collator,
        callbacks=[PhaseCallback(phase, steps, heartbeat)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.scratch = scratch
    return trainer


def _with_answers(items: Sequence[Item], phase: str) -> List[Item]:
    kept = [item for item in items if len(item.answer)]
    if not kept:
        raise ExtensionError("E666", items=len(items), phase=phase)
    if len(kept) < len(items):
        logger.warning(
            "%s: %d of %d sequences have no answer and are left out", phase, len(items) - len(kept), len(items)
        )
    return kept


def training_arguments(
    config: TrainConfig, epochs: int, steps: int, seed: int, scratch: str, parameter: torch.Tensor
) -> transformers.TrainingArguments:
    """The Trainer's settings for ``steps`` steps on the device and in the type of ``parameter``."""
    arguments = _Arguments(
        output_dir=scratch,
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        # Rounded down: the first step of a warm-up has the rate 0, and a phase may have one step only.
        warmup_steps=int(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta1=0.9,
        adam_beta2=0.95,
        seed=seed,
        use_cpu=parameter.device.type == "cpu",
        bf16=parameter.device.type == "cuda" and parameter.dtype == torch.bfloat16,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments.stay_on(parameter.device)
    return arguments


class _Arguments(transformers.TrainingArguments):
    """Stays on the device where the model is; the library takes the first one, or all of them at once."""

    _only: Any = None

    def stay_on(self, device: torch.device) -> None:
        """The model's device is the only one."""
        self._only = device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # the library has set the first one

    @property
    def device(self) -> torch.device:
        return self._only if self._only is not None else super().device

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class _Trainer(transformers.Trainer):
    """Adds the loss; everything else is the library's."""

    def prepare(
        self, config: TrainConfig, phase: str, temperature: float, tail: Tail, extra: Optional[torch.nn.Module]
    ) -> None:
        # The weights of the batch hold the means, so the Trainer has to divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._backbone, self._head = split_head(self.model)
        self._learning_rate = config.learning_rate
        self._phase = phase
        self._temperature = temperature
        self._tail = tail
        self._extra = extra
        self._seen: Dict[str, List[torch.Tensor]] = {"": [], BESIDE: []}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        parameters = list(self._extra.parameters()) if self._extra is not None else []
        if parameters:
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return optimizer

    def run(self) -> float:
        """Train; mean loss."""
        with self.scratch:
            return float(self.train().training_loss)

    def means(self) -> Tuple[float, float]:
        """Mean loss of the items, and of those beside them (0 if no batch had any)."""
        totals = [float(torch.stack(self._seen[name]).mean()) if self._seen[name] else 0.0 for name in ("", BESIDE)]
        return totals[0], totals[1]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss = self._loss(inputs)
        self._seen[""].append(loss.detach())
        if BESIDE in inputs:
            other = self._loss(inputs[BESIDE])
            self._seen[BESIDE].append(other.detach())
            loss = loss + other
        if not torch.isfinite(loss):
            raise ExtensionError(
                "E406",
                value=float(loss.detach()),
                step=self.state.global_step + 1,
                phase=self._phase,
                learning_rate=self._learning_rate,
            )
        return (loss, None) if return_outputs else loss

    def _loss(self, inputs: Batch) -> torch.Tensor:
        """The mean over one batch, with the weights of its items."""
        hidden = self._backbone(**{name: inputs[name] for name in _READ if name in inputs})
        hidden = hidden.reshape(-1, hidden.shape[-1])[inputs["flat"]]
        chunk = max(1, _CHUNK_FLOATS // self.model.config.vocab_size)
        if len(hidden) <= chunk:
            loss = self._weighted(self._head(hidden), inputs, slice(None)).sum()
        else:
            loss = chunked_head_loss(
                hidden, self._head, chunk, lambda logits, part: self._weighted(logits, inputs, part)
            ).sum()
        return loss if self._extra is None else loss + self._extra(inputs, hidden)

    def _weighted(self, logits: torch.Tensor, inputs: Batch, part: slice) -> torch.Tensor:
        return weighted_nll_and_kd(logits, inputs, part, self._temperature, self._tail)
