"""The SLM of a client: it learns two tasks at once, a record's label and the rationale behind it.

Distilling step-by-step (arXiv 2305.02301), as FedCoT uses it: the same prompt behind ``learning.predict`` is followed
by the answer, behind ``learning.explain`` by the rationale. Per optimizer step

    L = (1-α) L_label + α L_rationale,

each a mean over its task's samples in the step, and within a sample over the tokens of what follows the prompt, the end
token included. Epochs, steps and the order of the records are those of the labels alone; the rationales are spread
evenly over the same steps (:class:`~fate_llm_ext.data.collate.Beside`): a step never has more of them than records, and
where there are more rationales than records, it takes more than an epoch to see each. A record whose rationale was
dropped has the label task only, and a rationale needs no record. Without rationales, or with α = 0, training is
bit by bit that on labels alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from fate_llm_ext.algo.causal import Trainable
from fate_llm_ext.algo.facts import write_facts
from fate_llm_ext.algo.fedcot.answers import Reasoner, Settings
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.config import ModelConfig, TrainConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.encoding import encode_pairs
from fate_llm_ext.models.loading import is_encoder_decoder, load_base
from fate_llm_ext.models.lora import AdapterState
from fate_llm_ext.privacy import report
from fate_llm_ext.training.trainer import train_items, train_together

FACTS = "fedcot_model.json"
_SHARE = 0.5  # of a sequence, that a rationale may fill if its prompt is long


class Pair(NamedTuple):
    """Something to learn: what follows a prompt, and with which weight.

    A separator between the two is put in where neither has one.
    """

    prompt: str
    target: str
    weight: float = 1.0


class RationaleModel(Reasoner):
    """A client's SLM; it learns from private records and stays at the client.

    Args:
        folder: Hugging Face folder of the base model.
        settings: its name in the site file, and its precision.
        heartbeat: called while something takes long.

    Raises:
        ExtensionError: E402 to E408, E763 or E764, model or adapter cannot be loaded; E762 a prefix is too long.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelConfig,
        config: FedCoTConfig,
        device: torch.device,
        heartbeat: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._config = config
        self.model = _Base(folder, settings, config, device, heartbeat)
        super().__init__(self.model.network, self.model.tokenizer, config, heartbeat)

    def state(self) -> AdapterState:
        """A copy of the weights that are trained."""
        return self.model.state()

    def restore(self, state: Optional[AdapterState] = None) -> None:
        """Back to a state, by default to the untrained one, bit by bit."""
        self.model.restore(state)

    def train(
        self, examples: Sequence[Example], rationales: Sequence[Pair], *, seed: int, phase: str
    ) -> Dict[str, float]:
        """Train on answers and rationales for ``train.epochs`` epochs over the examples.

        Args:
            rationales: prompt (without prefix) and rationale; their weights are relative to α.

        Returns:
            Mean ``label_loss`` and, if there was any rationale to learn, ``rationale_loss``.

        Raises:
            ExtensionError: E406 the loss is not finite; E666 there are no examples.
        """
        train, alpha = self._config.train, self._config.learning.alpha if rationales else 0.0
        gold = self._labels.encode_gold(examples)
        labels = [Item(one.ids, one.places, gold_weight=1.0 - alpha) for one in gold]
        if alpha == 0.0:
            return {"label_loss": self._alone(labels, train, seed, phase)}
        beside = self._items(rationales, self._learning.explain, alpha)
        how = self._how(train, seed, phase)
        label_loss, rationale_loss = train_together(self.network, labels, beside, train, **how)
        return {"label_loss": label_loss / (1.0 - alpha), "rationale_loss": rationale_loss / alpha}

    def learn(self, pairs: Sequence[Pair], train: TrainConfig, *, seed: int, phase: str) -> float:
        """Train on pairs as they are, without prefix; mean (weighted) loss.

        Raises:
            ExtensionError: E406 the loss is not finite; E666 there are no pairs.
        """
        return self._alone(self._items(pairs, "", 1.0), train, seed, phase)

    def save(self, folder: Path, card: str, statement: Mapping[str, Any]) -> None:
        """Write model or adapter, tokenizer, card, privacy statement, and what the predict stage has to share."""
        self.model.save(folder, card)
        report.save(dict(statement), folder)
        write_facts(folder / FACTS, facts(self._config))

    def _alone(self, items: List[Item], train: TrainConfig, seed: int, phase: str) -> float:
        return train_items(self.network, items, train, **self._how(train, seed, phase))

    def _how(self, train: TrainConfig, seed: int, phase: str) -> Dict[str, Any]:
        given = {"epochs": train.epochs, "seed": seed, "phase": phase}
        return {**given, "pad_id": self.model.pad_id, "heartbeat": self._heartbeat}

    def _items(self, pairs: Sequence[Pair], lead: str, weight: float) -> List[Item]:
        """What follows the prompts, and the end token unless it had to be cut, in the order of the pairs."""
        if not pairs:
            return []
        prompts = [lead + one.prompt for one in pairs]
        targets = [separated(prompt, one.target) for prompt, one in zip(prompts, pairs)]
        encoded = encode_pairs(
            self._engine.spans,
            prompts,
            targets,
            self._task.max_length,
            keep=lead,
            share=_SHARE,
            apart=self.apart,
        )
        return [
            Item(found.ids, places[places > 0], gold_weight=weight * one.weight)  # nothing predicts the first token
            for one, found in zip(pairs, encoded)
            for places in [np.flatnonzero(found.answer)]
        ]


class _Base(Trainable):
    """The SLM's weights."""

    def __init__(
        self,
        folder: Path,
        settings: ModelConfig,
        config: FedCoTConfig,
        device: torch.device,
        heartbeat: Callable[[str], None],
    ) -> None:
        self._longest = config.task.max_length
        super().__init__(folder, settings, config.student_weights, config.lora, config.seed, device, heartbeat)

    def _load(self, folder: Path, settings: ModelConfig, seed: int, device: torch.device) -> Tuple[Any, Any]:
        network, tokenizer = load_base(folder, settings, device, self._longest, encoder_decoder=True)
        if is_encoder_decoder(network):
            self.task_type = "SEQ_2_SEQ_LM"
            if self.weights == "lora" and self.lora.embeddings:
                raise ExtensionError("E764")
        return network, tokenizer


def separated(prompt: str, target: str) -> str:
    """The target behind its prompt: with a space before it, if neither has one there."""
    return target if target[:1].isspace() or prompt[-1:].isspace() or not prompt else " " + target


def facts(settings: Settings) -> Dict[str, Any]:
    """What training and prediction must have in common, by the parameter that says it."""
    task, learning = settings.task, settings.learning
    return {
        "student_weights": settings.student_weights,
        "task.template": task.template,
        "task.prompt": task.prompt,
        "task.answer": task.answer,
        "task.choices": task.choices,
        "task.max_length": task.max_length,
        "learning.predict": learning.predict,
        "learning.explain": learning.explain,
    }
