"""What a task model reads and how it answers: labels written as words, or a classification head.

Of a text that is too long the end goes, never what stands behind it in the prompt: a model that is not asked cannot
answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.answering import ChoiceRow, watched_scorer
from fate_llm_ext.algo.control import Records, clean
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.prompts import PromptTemplate
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.encoding import EncodedPair, SpanTokenizer, encode_pairs
from fate_llm_ext.training.trainer import train_items

Settings = FDKTConfig
Sources = Sequence[Tuple[Records, float]]


class Head(ABC):
    """How a network of either kind learns labels of texts and gives their log-probabilities.

    Args:
        network: with or without an adapter; trained in place.
        heartbeat: called while something takes long.

    Attributes:
        labels: the C labels as the model reads them.
    """

    def __init__(self, network: Any, tokenizer: Any, settings: Settings, heartbeat: Callable[[str], None]) -> None:
        self.labels = [clean(label) for label in settings.control.values]
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


class GenerationHead(Head):
    """A causal LM writes the label as a word behind the prompt ``prompts.student``.

    It learns the label and the end token. Asked for probabilities, it scores the labels alone; with the end token
    where one label begins like another, which would never win without it.
    """

    def __init__(self, network: Any, tokenizer: Any, settings: Settings, heartbeat: Callable[[str], None]) -> None:
        super().__init__(network, tokenizer, settings, heartbeat)
        self._spans = SpanTokenizer(tokenizer)
        self._prompt = PromptTemplate("prompts.student", settings.prompts.student, ("text", "labels"))
        longest = max(len(one.ids) for one in self._spans.spans([" " + label for label in self.labels]))
        self._room = self._max_length - len(self._spans.prefix) - longest - 1  # the end token
        self._with_end = any(a != b and b.startswith(a) for a in self.labels for b in self.labels)

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
        prompts = self.prompts(texts)
        pairs = iter(self._pairs([prompt for prompt in prompts for _ in self.labels], [*self.labels] * len(prompts)))
        rows: List[ChoiceRow] = [[self._choice(next(pairs)) for _ in self.labels] for _ in prompts]
        return watched_scorer(self._network, self._tokenizer, self._batch_size, doing, self._heartbeat).choices(rows)

    def prompts(self, texts: Sequence[str]) -> List[str]:
        """The prompt of each text, with as much of the text as fits."""
        return fitting(self._spans, lambda text: self._prompt.render(text=text, labels=self.labels), texts, self._room)

    def _pairs(self, prompts: Sequence[str], labels: Sequence[str]) -> List[EncodedPair]:
        answers = [label if prompt[-1:].isspace() else " " + label for prompt, label in zip(prompts, labels)]
        return encode_pairs(self._spans, prompts, answers, self._max_length)

    def _choice(self, pair: EncodedPair) -> Tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(pair.answer)
        return (pair.ids, places) if self._with_end else (pair.ids[:-1], places[:-1])


def fitting(spans: SpanTokenizer, render: Callable[[str], str], texts: Sequence[str], room: int) -> List[str]:
    """The prompts of texts, in at most ``room`` tokens each; of a text that is too long for that the end goes.

    Raises:
        ExtensionError: E720 a prompt is too long without any text.
    """
    kept, prompts = list(texts), [render(text) for text in texts]
    open_ = list(range(len(prompts)))
    while open_:
        lengths = [len(one.ids) for one in spans.spans([prompts[i] for i in open_])]
        excess = {i: length - room for i, length in zip(open_, lengths) if length > room}
        open_ = list(excess)
        for i, tokens in zip(open_, spans.spans([kept[i] for i in open_])):
            if not kept[i]:
                raise ExtensionError("E720", tokens=room + excess[i], limit=room)
            left = len(tokens.ids) - excess[i]
            size = int(tokens.ends[left - 1]) if left > 0 else 0
            kept[i] = kept[i].encode()[:size].decode(errors="ignore").rstrip()
            prompts[i] = render(kept[i])
    return prompts
