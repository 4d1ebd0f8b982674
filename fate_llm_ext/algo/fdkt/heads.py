"""What a task model reads and how it answers: a label written as a word, or a classification head.

Of a text that is too long the end goes, never what stands behind it in the prompt: a model that is not asked cannot
answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch

from fate_llm_ext.algo.answering import ChoiceRow, watched, watched_scorer
from fate_llm_ext.algo.control import Records, clean
from fate_llm_ext.algo.fdkt.config import FDKTConfig, PredictConfig
from fate_llm_ext.algo.fdkt.prompts import Prompts, one_line
from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import Item, pad_right
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.encoding import EncodedPair, SpanTokenizer, encode_pairs
from fate_llm_ext.training.classifier import Labelled, train_classifier
from fate_llm_ext.training.trainer import train_items

Settings = Union[FDKTConfig, PredictConfig]
Sources = Sequence[Tuple[Records, float]]


class Head(ABC):
    """How a network of either kind learns labels of texts, and gives their log-probabilities.

    Args:
        network: with or without an adapter; trained in place.
        settings: labels, prompt, longest sequence, batch size of answers.
        heartbeat: called while something takes long.
    """

    def __init__(self, network: Any, tokenizer: Any, settings: Settings, heartbeat: Callable[[str], None]) -> None:
        self.labels = label_words(settings)
        self._network = network
        self._tokenizer = tokenizer
        self._max_length = settings.control.max_length
        self._batch_size = settings.evaluation.batch_size
        self._heartbeat = heartbeat

    @abstractmethod
    def learn(self, sources: Sources, config: TrainConfig, seed: int, phase: str) -> float:
        """Train on records, each source with the weight of its samples' losses; mean loss."""

    @abstractmethod
    def log_probs(self, texts: Sequence[str], doing: str) -> np.ndarray:
        """Log-probability of each label, up to a constant per text (float32 [N, C])."""


def label_words(settings: Settings) -> List[str]:
    """The labels as a task model knows them."""
    return [one_line(clean(label)) for label in settings.control.values]


class GenerationHead(Head):
    """A causal LM writes the label as a word behind the prompt ``prompts.student``.

    It learns the label and the end token. Asked for probabilities, it scores the labels alone; with the end token
    where one label begins like another, which would never win without it.
    """

    def __init__(self, network: Any, tokenizer: Any, settings: Settings, heartbeat: Callable[[str], None]) -> None:
        super().__init__(network, tokenizer, settings, heartbeat)
        self._spans = SpanTokenizer(tokenizer)
        self._template = Prompts(settings.prompts)
        longest = max(len(one.ids) for one in self._spans.spans([" " + label for label in self.labels]))
        self._room = self._max_length - len(self._spans.prefix) - longest - 1  # the end token
        self._with_end = any(a != b and b.startswith(a) for a in self.labels for b in self.labels)
        self.prompts([""])  # a prompt without room for a text is found out before anything is paid for

    def learn(self, sources: Sources, config: TrainConfig, seed: int, phase: str) -> float:
        """See :meth:`Head.learn`."""
        return train_items(
            self._network,
            [item for records, weight in sources for item in self.items(records, weight)],
            config,
            epochs=config.epochs,
            seed=seed,
            pad_id=self._tokenizer.pad_token_id,
            phase=phase,
            heartbeat=self._heartbeat,
        )

    def items(self, records: Records, weight: float) -> List[Item]:
        """One item per record: the loss is on its label and the end token."""
        wanted = [self.labels[code] for code in records.codes.tolist()]
        pairs = self._pairs(self.prompts(records.texts), wanted)
        return [Item(pair.ids, np.flatnonzero(pair.answer), gold_weight=weight) for pair in pairs]

    def log_probs(self, texts: Sequence[str], doing: str) -> np.ndarray:
        """See :meth:`Head.log_probs`."""
        if not texts:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        prompts = [prompt for prompt in self.prompts(texts) for _ in self.labels]
        pairs = iter(self._pairs(prompts, [*self.labels] * len(texts)))
        rows: List[ChoiceRow] = [[self._choice(next(pairs)) for _ in self.labels] for _ in texts]
        return watched_scorer(self._network, self._tokenizer, self._batch_size, doing, self._heartbeat).choices(rows)

    def prompts(self, texts: Sequence[str]) -> List[str]:
        """The prompt of each text, with as much of the text as fits.

        Raises:
            ExtensionError: E720 nothing of a text fits, and the prompt is still too long.
        """
        return fitting(self._spans, lambda text: self._template.student(text, self.labels), texts, self._room)

    def _pairs(self, prompts: Sequence[str], labels: Sequence[str]) -> List[EncodedPair]:
        answers = [label if prompt[-1:].isspace() else " " + label for prompt, label in zip(prompts, labels)]
        return encode_pairs(self._spans, prompts, answers, self._max_length)

    def _choice(self, pair: EncodedPair) -> Tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(pair.answer)
        return (pair.ids, places) if self._with_end else (pair.ids[:-1], places[:-1])


class ClassificationHead(Head):
    """A sequence classifier; it reads the text alone, with the tokens that its tokenizer puts around one."""

    def learn(self, sources: Sources, config: TrainConfig, seed: int, phase: str) -> float:
        """See :meth:`Head.learn`."""
        rows = [
            Labelled(ids, code, weight)
            for records, weight in sources
            for ids, code in zip(self._encode(records.texts), records.codes.tolist())
        ]
        return train_classifier(
            self._network,
            rows,
            config,
            epochs=config.epochs,
            seed=seed,
            pad_id=self._tokenizer.pad_token_id,
            phase=phase,
            heartbeat=self._heartbeat,
        )

    def log_probs(self, texts: Sequence[str], doing: str) -> np.ndarray:
        """See :meth:`Head.log_probs`."""
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        rows = self._encode(texts)
        order = np.argsort([len(row) for row in rows], kind="stable")  # little padding in a batch
        step, device = watched(doing, self._heartbeat), next(self._network.parameters()).device
        self._network.eval()
        for start in range(0, len(rows), self._batch_size):
            part = order[start : start + self._batch_size]
            ids, mask = pad_right([rows[i] for i in part], self._tokenizer.pad_token_id)
            with torch.inference_mode():
                logits = self._network(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            result[part] = logits.float().log_softmax(dim=1).cpu().numpy()
            step(start + len(part), len(rows))
        return result

    def _encode(self, texts: Sequence[str]) -> List[np.ndarray]:
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)["input_ids"]
        return [np.array(ids, dtype=np.int32) for ids in encoded]


def fitting(spans: SpanTokenizer, render: Callable[[str], str], texts: Sequence[str], room: int) -> List[str]:
    """The prompts of texts, in at most ``room`` tokens each; of a text that is too long for that the end goes.

    Raises:
        ExtensionError: E720 a prompt is too long without any text.
    """
    kept, prompts = list(texts), [render(text) for text in texts]
    left = list(range(len(prompts)))
    while left:
        lengths = [len(one.ids) for one in spans.spans([prompts[i] for i in left])]
        excess = {i: length - room for i, length in zip(left, lengths) if length > room}
        left = list(excess)
        for i, tokens in zip(left, spans.spans([kept[i] for i in left])):
            if not kept[i]:
                raise ExtensionError("E720", tokens=room + excess[i], limit=room)
            count = len(tokens.ids) - excess[i]
            size = int(tokens.ends[count - 1]) if count > 0 else 0
            kept[i] = kept[i].encode()[:size].decode(errors="ignore").rstrip()
            prompts[i] = render(kept[i])
    return prompts


MakeHead = Callable[[Any, Any, Settings, Callable[[str], None]], Head]
HEADS: Dict[str, MakeHead] = {"generation": GenerationHead, "classification": ClassificationHead}
