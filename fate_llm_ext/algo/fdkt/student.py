"""The task model: what a client wants in the end, trained on its own records and on texts made for it.

All arms of a job start from the same weights, draw their batches from the same seed and take ``train.epochs`` passes
over their own records, as in the paper (arXiv 2405.14212). An arm with more records therefore takes more steps; how
much of a difference is due to steps alone shows in a run of the smaller arm with ``train.epochs`` raised by the
same factor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Sequence, Tuple

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.facts import write_facts
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.heads import HEADS, Head, Settings, Sources, label_words
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.classification import load_classifier
from fate_llm_ext.privacy import report

FACTS = "fdkt_task_model.json"


class TaskModel:
    """A client's task model; it learns from private records and stays at the client.

    Args:
        folder: Hugging Face folder of the base model.
        settings: its name in the site file, and its precision.
        heartbeat: called while something takes long.

    Raises:
        ExtensionError: E402 to E408 or E722, the model or the adapter cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelConfig,
        config: FDKTConfig,
        device: torch.device,
        heartbeat: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._config = config
        weights, seed = config.student_weights, config.seed
        kind = Model if config.head == "generation" else _Classifier
        self.model = kind(folder, settings, weights, config.lora, config.control, seed, device, heartbeat)
        self.head: Head = HEADS[config.head](self.model.network, self.model.tokenizer, config, heartbeat)

    def restore(self) -> None:
        """Back to the untrained weights, bit by bit."""
        self.model.restore()

    def train(self, sources: Sources, seed: int, phase: str) -> float:
        """Train on records, each source with a weight of its samples' losses; mean (weighted) loss.

        The optimizer is indifferent to a factor common to all weights: only their ratio counts.

        Raises:
            ExtensionError: E406 the loss is not finite; E666 there are no records; E720 the prompt is too long.
        """
        return self.head.learn(sources, self._config.train, seed, phase)

    def label_probabilities(self, texts: Sequence[str], doing: str = "judging texts") -> np.ndarray:
        """Probability of each label of each text among the labels (float32 [N, C]).

        Raises:
            ExtensionError: E407 some are no numbers; E720 the prompt is too long.
        """
        return probabilities(self.head, texts, doing)

    def evaluate(self, records: Records) -> Dict[str, float]:
        """Accuracy and macro F1 on records (of ``evaluation.max_rows`` the first); nothing if there are none.

        Macro F1 is the mean over the labels that occur among truth or predictions.
        """
        rows = self._config.evaluation.max_rows
        records = records if rows is None else records.first(rows)
        if not len(records):
            return {}
        predicted = self.label_probabilities(records.texts, "evaluation").argmax(axis=1)
        return {
            "accuracy": float(accuracy_score(records.codes, predicted)),
            "macro_f1": float(f1_score(records.codes, predicted, average="macro", zero_division=0)),
        }

    def save(self, folder: Path, card: str, statement: Dict[str, Any]) -> None:
        """Write model or adapter, tokenizer, card, privacy statement, and what the predict stage has to share."""
        self.model.save(folder, card)
        report.save(statement, folder)
        write_facts(folder / FACTS, facts(self._config))


def facts(settings: Settings) -> Dict[str, Any]:
    """What training and prediction must have in common, by the parameter that says it."""
    common = {
        "control.values": label_words(settings),
        "control.max_length": settings.control.max_length,
        "head": settings.head,
        "student_weights": settings.student_weights,
    }
    return {**common, "prompts.student": settings.prompts.student} if settings.head == "generation" else common


def probabilities(head: Head, texts: Sequence[str], doing: str) -> np.ndarray:
    """Softmax over the labels' log-probabilities (float32 [N, C]).

    Raises:
        ExtensionError: E407 some are no numbers.
    """
    log_probs = head.log_probs(texts, doing).astype(np.float64)
    bad = int(log_probs.size - np.isfinite(log_probs).sum())
    if bad:
        raise ExtensionError("E407", bad=bad, total=log_probs.size, what="the labels of texts")
    weights = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    shares: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


class _Classifier(Model):
    """A sequence classifier in place of a causal LM: as a whole, or an adapter and the head."""

    task_type = "SEQ_CLS"

    def _load(self, folder: Path, settings: ModelConfig, seed: int, device: torch.device) -> Tuple[Any, Any]:
        return load_classifier(folder, settings, self.control.values, device, self.control.max_length, seed=seed)
