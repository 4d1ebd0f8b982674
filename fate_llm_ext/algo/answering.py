"""A model that answers prompts: scoring given answers, choosing, writing, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from fate_llm_ext.config import EvaluationConfig, TaskConfig
from fate_llm_ext.data.templates import Example
from fate_llm_ext.models.encoding import SpanTokenizer, alone, encode_pairs
from fate_llm_ext.models.loading import is_encoder_decoder
from fate_llm_ext.models.scoring import Scorer
from fate_llm_ext.progress import Progress


@dataclass(frozen=True)
class Encoded:
    """Prompt and answer as tokens.

    Attributes:
        ids: int32 [T]; for an encoder-decoder: what the encoder reads, then what the decoder is to write.
        places: where the answer's tokens (and the end token) are in ``ids``, all >= 1 (int64 [A]).
        starts: first byte of each of them, counted from the answer's first byte (int32 [A]).
        answer_bytes: size of the answer's text.
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    answer_bytes: int


ChoiceRow = List[Tuple[np.ndarray, np.ndarray]]


class Answerer:
    """A language model with its tokenizer, asked about examples.

    Args:
        model: a causal LM or an encoder-decoder, with or without an adapter.
        heartbeat: called between batches with what is being done.
        lead: stands before every prompt; it stays when the beginning of a long prompt is cut.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: TaskConfig,
        evaluation: EvaluationConfig,
        heartbeat: Callable[[str], None] = lambda doing: None,
        lead: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._spans = SpanTokenizer(tokenizer)
        self.vocabulary = self._spans.vocabulary
        self._max_length = task.max_length
        self._batch_size = evaluation.batch_size
        self._heartbeat = heartbeat
        self._lead = lead
        self._apart = model is not None and is_encoder_decoder(model)  # without one it can encode for a causal LM

    def encode(self, examples: Sequence[Example], answers: Sequence[str]) -> List[Encoded]:
        """Prompt + answer, tokenised jointly (for an encoder-decoder each by itself), ending with the end token."""
        if not examples:
            return []
        if self._apart:
            answers = [alone(self._spans, answer) for answer in answers]
        prompts = [self._lead + e.prompt for e in examples]
        pairs = encode_pairs(self._spans, prompts, answers, self._max_length, keep=self._lead, apart=self._apart)
        encoded = []
        for pair, answer in zip(pairs, answers):
            places = np.flatnonzero(pair.answer)
            predicted = places > 0  # nothing predicts the very first token
            encoded.append(Encoded(pair.ids, places[predicted], pair.starts[predicted], len(answer.encode())))
        return encoded

    def encode_gold(self, examples: Sequence[Example]) -> List[Encoded]:
        """The examples with their own answers."""
        return self.encode(examples, [e.answer or "" for e in examples])

    def encode_choices(self, examples: Sequence[Example]) -> List[ChoiceRow]:
        """Each example with each of its choices, without the end token: whether an answer ends is no part of it."""
        flat = [(e, choice) for e in examples for choice in e.choices or ()]
        pairs = iter(self.encode([e for e, _ in flat], [choice for _, choice in flat]))
        return [[self._without_end(p) for _, p in zip(e.choices or (), pairs)] for e in examples]

    def nll_per_byte(self, encoded: Sequence[Encoded], doing: str) -> np.ndarray:
        """NLL of each answer per byte, in nats (float32 [N]); the end token counts as one byte."""
        if not encoded:
            return np.zeros(0, dtype=np.float32)
        nll = self.scorer(doing).answers([p.ids for p in encoded], [p.places for p in encoded]).nll
        per_byte: np.ndarray = nll / np.array([p.answer_bytes + 1 for p in encoded], dtype=np.float32)
        return per_byte

    def choice_log_probs(self, rows: Sequence[ChoiceRow], doing: str) -> np.ndarray:
        """Log-probability of each choice (float32 [N, C])."""
        return self.scorer(doing).choices(rows)

    def write(self, examples: Sequence[Example], max_new_tokens: int, doing: str) -> List[str]:
        """Greedy answers of a causal LM, each with a leading separator."""
        if not examples:
            return []
        # Something must be there to continue: for an empty prompt and a tokenizer without prefix, the end token.
        prompts = [
            p.ids[: p.places[0]] if len(p.places) else p.ids[:1] for p in self.encode(examples, [""] * len(examples))
        ]
        texts = self.scorer(doing).write(self.tokenizer, prompts, max_new_tokens)
        return [text if text.startswith((" ", "\n")) else " " + text for text in texts]

    def evaluate(
        self, examples: Sequence[Example], gold: Sequence[Encoded], rows: Sequence[ChoiceRow]
    ) -> Dict[str, float]:
        """Accuracy (where the examples have choices) and mean NLL per byte of the gold answers."""
        result = {"nll_per_byte": float(self.nll_per_byte(gold, "evaluation").mean())}
        if examples[0].choices:
            predicted = self.choice_log_probs(rows, "evaluation").argmax(axis=1)
            result["accuracy"] = float(np.mean([(e.choices or ())[p] == e.answer for e, p in zip(examples, predicted)]))
        return result

    def _without_end(self, pair: Encoded) -> Tuple[np.ndarray, np.ndarray]:
        """Tokens and places without the end token; an answer that was cut at the maximal length has none."""
        ended = pair.ids[-1] == self._spans.eos_id and len(pair.starts) and pair.starts[-1] == pair.answer_bytes
        return (pair.ids[:-1], pair.places[:-1]) if ended else (pair.ids, pair.places)

    def scorer(self, doing: str) -> Scorer:
        """A scorer that shows progress and gives signs of life."""
        return watched_scorer(self.model, self.tokenizer, self._batch_size, doing, self._heartbeat)


def watched_scorer(model: Any, tokenizer: Any, batch_size: int, doing: str, heartbeat: Callable[[str], None]) -> Scorer:
    """A scorer that shows progress under the name ``doing`` and gives signs of life."""
    return Scorer(model, tokenizer.pad_token_id, batch_size, watched(doing, heartbeat))


def watched(doing: str, heartbeat: Callable[[str], None]) -> Callable[[int, int], None]:
    """A step function (done, total) that emits progress and a heartbeat."""
    bars: Dict[int, Progress] = {}

    def step(done: int, total: int) -> None:
        bars.setdefault(total, Progress(doing, total)).update(done)
        heartbeat(f"{doing}, {done} of {total}")

    return step
