"""One party's model in FedMKT: what clients and arbiter do alike. No federation in here."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch

from fate_llm_ext.algo.answering import Answerer, ChoiceRow, Encoded
from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.fedmkt.protocol import Scores, Signals
from fate_llm_ext.algo.fedmkt.public import PublicSet
from fate_llm_ext.data.collate import Item, TeacherTargets
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.earlier import load_earlier_adapter
from fate_llm_ext.models.loading import load_base
from fate_llm_ext.models.lora import adapter_state, add_lora, load_adapter_state
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.training.trainer import train_items

TaughtRow = Tuple[Encoded, TeacherTargets]

_SMALLEST_LOG_PROB = -60000.0  # float16 ends at -65504


class Learner:
    """A base model with an adapter, its tokenizer, and the party's examples.

    Args:
        folder: Hugging Face folder of the base model.
        config: all parameters of the job for this party.
        device: where the model lives.
        public: the public set.
        test: examples to evaluate on; may be empty.
        heartbeat: called between batches with what is being done.
        earlier: adapter to go on from, in place of a fresh one (warm start).
    """

    def __init__(
        self,
        folder: Path,
        config: FedMKTConfig,
        device: torch.device,
        public: PublicSet,
        test: List[Example],
        heartbeat: Callable[[str], None],
        earlier: Optional[Path] = None,
    ) -> None:
        heartbeat("loading the model")
        writes = 0 if public.choices else config.max_new_tokens
        base, tokenizer = load_base(folder, config.model, device, config.task.max_length, writes)
        heartbeat("placing the adapter")
        self.model = add_lora(base, config.lora, seed=config.seed)
        if earlier is not None:
            load_earlier_adapter(self.model, earlier, config.model.name, tokenizer)
        self.answerer = Answerer(self.model, tokenizer, config.task, config.evaluation, heartbeat)
        self.config = config
        self.public = public
        self.test = test
        self._heartbeat = heartbeat
        self._initial = adapter_state(self.model)
        heartbeat("tokenising the public set")
        self._gold = self.answerer.encode_gold(public.labelled)
        self._held_out = self.answerer.encode_choices([public.labelled[row] for row in public.calibration])
        heartbeat("tokenising the unlabelled rows")
        self._unlabelled = self.answerer.encode_choices(public.unlabelled)
        heartbeat("tokenising the test rows")
        self._test = self.answerer.encode_gold(test), self.answerer.encode_choices(test)
        heartbeat("ready")

    # -- data --------------------------------------------------------------------------------------

    def gold_items(self, examples: Sequence[Example]) -> List[Item]:
        """Items that train on gold answers only."""
        return [Item(p.ids, p.places) for p in self.answerer.encode_gold(examples)]

    def public_items(self, rows: np.ndarray, taught: Mapping[int, TaughtRow]) -> List[Item]:
        """Items of equations 5 to 9: gold terms of the labelled ``rows``, teacher terms of ``taught`` rows.

        Args:
            rows: labelled rows to train on.
            taught: public row -> its sequence and the teacher's distributions.
        """
        weight, distill = self.config.distill.supervised_weight, self.config.distill
        items = []
        for row in rows.tolist():
            _, teacher = taught.get(row, (None, None))
            pair = self._gold[row]
            items.append(Item(pair.ids, pair.places, weight, teacher, 1.0 - weight if teacher is not None else 0.0))
        for row in sorted(row for row in taught if row >= len(self.public.labelled)):
            pair, teacher = taught[row]
            items.append(Item(pair.ids, pair.places, 0.0, teacher, distill.unlabelled_weight))
        return items

    # -- training ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to the adapter that the task began with."""
        load_adapter_state(self.model, self._initial)

    def train(self, items: Sequence[Item], epochs: int, phase: str, seed: int) -> float:
        """Train the adapter; mean loss."""
        return train_items(
            self.model,
            items,
            self.config.train,
            epochs=epochs,
            seed=seed,
            pad_id=self.answerer.tokenizer.pad_token_id,
            phase=phase,
            temperature=self.config.distill.temperature,
            tail=self.config.distill.tail,
            heartbeat=self._heartbeat,
        )

    # -- scoring -----------------------------------------------------------------------------------

    def evaluate(self) -> Dict[str, float]:
        """Accuracy (where there are choices) and NLL per byte (nats) on the test examples."""
        if not self.test:
            return {}
        return self.answerer.evaluate(self.test, *self._test)

    def score_public(self, unlabelled: bool) -> Scores:
        """How this model does on the public set, as the selection needs it.

        Args:
            unlabelled: True: on unlabelled and calibration rows; False: on all labelled rows.

        Raises:
            ExtensionError: E407 if a score is NaN or infinite.
        """
        rows = np.zeros(0, dtype=np.int64) if unlabelled else np.arange(len(self._gold))
        calibration = self.public.calibration if unlabelled else np.zeros(0, dtype=np.int64)
        nll = self.answerer.nll_per_byte([self._gold[row] for row in rows], "scoring the public set")
        calibration_nll = self.answerer.nll_per_byte([self._gold[row] for row in calibration], "calibration")
        for what, values in (("the public set", nll), ("the calibration rows", calibration_nll)):
            bad = int(len(values) - np.isfinite(values).sum())
            if bad:
                raise ExtensionError("E407", bad=bad, total=len(values), what=what)
        return Scores(
            nll=nll,
            calibration_nll=calibration_nll,
            calibration_predicted=self._choose(self._held_out if unlabelled else [], "calibration"),
            predicted=self._choose(self._unlabelled if unlabelled else [], "answering unlabelled rows"),
        )

    def signals(self, rows: np.ndarray, predicted: np.ndarray) -> Signals:
        """This model's distributions over the gold answer (labelled) or its own answer (unlabelled) of rows.

        Args:
            rows: public rows.
            predicted: its answer to every unlabelled row, as in :class:`Scores`.
        """
        split = len(self.public.labelled)
        examples = [self.public[row] for row in rows]
        own = [e for e, row in zip(examples, rows) if row >= split]
        texts = self._answers(own, predicted[rows[rows >= split] - split])
        distinct = sorted(set(texts))
        index = {text: i for i, text in enumerate(distinct)}
        answer = np.full(len(rows), -1, dtype=np.int32)
        answer[rows >= split] = [index[text] for text in texts]
        pairs = self.answerer.encode(
            examples, [distinct[a] if a >= 0 else e.answer or "" for e, a in zip(examples, answer)]
        )
        known = len(self.answerer.vocabulary)
        scores = self.answerer.scorer("signals").answers(
            [p.ids for p in pairs],
            [p.places for p in pairs],
            min(self.config.distill.top_k, known),
            self.config.distill.temperature,
            known,
        )
        return Signals(
            answers=distinct,
            rows=rows,
            answer=answer,
            tokens=np.diff(scores.offsets),
            starts=np.concatenate([p.starts for p in pairs]) if pairs else np.zeros(0),
            ids=scores.ids,
            log_probs=np.clip(scores.log_probs, _SMALLEST_LOG_PROB, 0.0),
        )

    def _choose(self, rows: Sequence[ChoiceRow], doing: str) -> np.ndarray:
        if not self.public.choices or not rows:
            return np.zeros(len(rows), dtype=np.int16)
        return self.answerer.choice_log_probs(rows, doing).argmax(axis=1).astype(np.int16)

    def _answers(self, examples: Sequence[Example], predicted: np.ndarray) -> List[str]:
        if self.public.choices:
            return [(e.choices or ())[p] for e, p in zip(examples, predicted)]
        return self.answerer.write(examples, self.config.max_new_tokens, "writing answers")

    def save(self, folder: Path, card: str) -> None:
        """Write adapter, tokenizer and model card in Hugging Face layout."""
        # The folder travels to other people: no path of this machine in it.
        for settings in self.model.peft_config.values():
            settings.base_model_name_or_path = self.config.model.name
        with quiet():
            # Otherwise peft adds the frozen embedding of the base model as soon as it is adapted.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            self.answerer.tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
