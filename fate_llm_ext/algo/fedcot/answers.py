"""The SLM asked: for a label, which is cheap, for a rationale, or for any text."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Union

import numpy as np

from fate_llm_ext.algo.answering import Answerer, watched
from fate_llm_ext.algo.fedcot.config import FedCoTConfig, PredictConfig
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines.local import LocalEngine
from fate_llm_ext.models.loading import is_encoder_decoder, positions

Settings = Union[FedCoTConfig, PredictConfig]


class Reasoner:
    """A model of two tasks, told apart by what stands before a prompt: ``learning.predict`` or ``learning.explain``.

    A sequence of prompt and what follows takes at most ``task.max_length`` tokens; a prompt that is too long loses its
    beginning, never what stands before it. Of an answer or rationale that is to be written, ``max_new_tokens`` are
    reserved, and at most half of the sequence: that much of each prompt the model always reads. An encoder-decoder has
    ``task.max_length`` tokens for either side.

    Args:
        network: a causal LM or an encoder-decoder, with or without an adapter.
        settings: task, the two prefixes, batch size of answers.
        heartbeat: called while something takes long.

    Attributes:
        network: as given.
        tokenizer: its tokenizer.
        apart: it is an encoder-decoder.

    Raises:
        ExtensionError: E762 a prefix leaves too little room for prompts.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        settings: Settings,
        heartbeat: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self._task, self._learning, self._evaluation = settings.task, settings.learning, settings.evaluation
        self.apart = is_encoder_decoder(network)
        self._heartbeat = heartbeat
        self._engine = LocalEngine(network, tokenizer, "the SLM")
        self._labels = Answerer(
            network, tokenizer, settings.task, settings.evaluation, heartbeat, settings.learning.predict
        )
        for name in ("predict", "explain"):
            (prefix,) = self._engine.encode([getattr(self._learning, name)])
            if 2 * len(prefix) > self._task.max_length:
                raise ExtensionError(
                    "E762", parameter=f"learning.{name}", tokens=len(prefix), limit=self._task.max_length // 2
                )

    def log_probs(self, examples: Sequence[Example], doing: str) -> np.ndarray:
        """Log-probability of each choice of examples that have some (float32 [N, C]; -inf where there is none).

        Raises:
            ExtensionError: E407 the model's scores are no numbers.
        """
        rows = self._labels.encode_choices(examples)
        found = self._labels.choice_log_probs(rows, doing)
        bad = sum(not np.isfinite(scores[: len(row)]).all() for scores, row in zip(found, rows))
        if bad:
            raise ExtensionError("E407", bad=bad, total=len(rows), what="the answers of records")
        return found

    def choices(self, examples: Sequence[Example], doing: str = "answering") -> List[int]:
        """Index of the most probable choice of each example; all of them have choices."""
        if not examples:
            return []
        best: List[int] = self.log_probs(examples, doing).argmax(axis=1).tolist()
        return best

    def answers(self, examples: Sequence[Example], doing: str = "answering") -> List[str]:
        """The answer to each example, without separator: the most probable choice, or else the greedy text."""
        closed = [i for i, one in enumerate(examples) if one.choices]
        found = [""] * len(examples)
        for i, choice in zip(closed, self.choices([examples[i] for i in closed], doing)):
            found[i] = (examples[i].choices or ())[choice].strip()
        free = [i for i, one in enumerate(examples) if not one.choices]
        greedy = GenerationConfig(
            top_k=1, max_new_tokens=self._learning.answer_tokens, batch_size=self._evaluation.batch_size
        )
        written = self._write(self._learning.predict, [examples[i] for i in free], greedy, 0, doing)
        for i, text in zip(free, written):
            found[i] = text
        return found

    def evaluate(self, examples: Sequence[Example]) -> Dict[str, float]:
        """Accuracy and mean NLL per byte of the right answers (of ``evaluation.max_rows`` the first with an answer).

        Where there are no choices, an answer is right if it is word for word that of the record.
        """
        judged = [one for one in examples if one.answer is not None][: self._evaluation.max_rows]
        if not judged:
            return {}
        nll = self._labels.nll_per_byte(self._labels.encode_gold(judged), "evaluation")
        answers = self.answers(judged, "evaluation")
        right = [one.split() == (example.answer or "").split() for one, example in zip(answers, judged)]
        return {"accuracy": float(np.mean(right)), "nll_per_byte": float(nll.mean())}

    def explain(
        self, examples: Sequence[Example], config: GenerationConfig, *, seed: int, doing: str = "explaining"
    ) -> List[str]:
        """A rationale for each example; the label does not depend on it."""
        return self._write(self._learning.explain, examples, config, seed, doing)

    def write(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        doing: str = "writing",
        stop: Sequence[str] = (),
    ) -> List[str]:
        """What the model writes behind prompts as they are; a prompt too long for its context loses its beginning.

        Raises:
            ExtensionError: E665 ``config.max_new_tokens`` alone does not fit into the context.
        """
        limit = positions(self.network.config)
        room = limit if limit is None or self.apart else max(1, limit - config.max_new_tokens)
        return self._proceed(self._engine.encode(prompts, room=room), config, seed, doing, stop)

    def _write(
        self, lead: str, examples: Sequence[Example], config: GenerationConfig, seed: int, doing: str
    ) -> List[str]:
        longest = self._task.max_length
        room = longest if self.apart else room_for_prompts(longest, config.max_new_tokens)
        prompts = self._engine.encode([lead + one.prompt for one in examples], keep=lead, room=room)
        return [text.strip() for text in self._proceed(prompts, config, seed, doing)]

    def _proceed(
        self,
        prompts: List[np.ndarray],
        config: GenerationConfig,
        seed: int,
        doing: str,
        stop: Sequence[str] = (),
    ) -> List[str]:
        step = watched(doing, self._heartbeat)
        return [one.text for one in self._engine.proceed(prompts, config, seed=seed, stop=stop, step=step)]


def room_for_prompts(max_length: int, max_new_tokens: int) -> int:
    """Tokens of a prompt behind which ``max_new_tokens`` are to be written: at least half of the sequence."""
    return max(max_length - max_new_tokens, max_length - max_length // 2)
