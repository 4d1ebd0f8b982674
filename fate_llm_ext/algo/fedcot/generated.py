"""``dp_generator``: questions about texts of a DP generator, in place of the private prompts.

    p' ~ generator(. | label)        for every question, whatever the records are

The generator is what FDKT leaves behind (:mod:`~fate_llm_ext.algo.fdkt.generator`). Its training was charged to the
ledger when it ran, with (ε, δ) per record; texts that are sampled from it, questions about them and rationales for them
are post-processing, however many there are. No private record is looked at here: not even their number.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import ValidityConfig
from fate_llm_ext.algo.fdkt.generator import load_generator, read_generator, sample_valid
from fate_llm_ext.algo.fedcot.inputs import text_field
from fate_llm_ext.algo.fedcot.strategies import Asked, Scene, Strategy, first_words
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.synthesis import code_counts
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.templates import Template, get_template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.progress import emit

_SAMPLING = 11  # salt of the seed: not that of FDKT's own texts, so that these are others


class _Writer(NamedTuple):
    """What texts are sampled from."""

    network: Any
    tokenizer: Any


class Generated(Strategy):
    """Asks about ``perturbation.samples`` texts of the generator, as many of each of its labels.

    A label that is one of the task's choices, up to case and white space, is the answer that a rationale has to give.
    Longer texts end after ``question.max_words`` words.

    Raises:
        ExtensionError: E778 the task's prompt is made of more than one text; E731 to E733 the folder holds no
            generator; E110, E111 the site does not know its base model; E402 to E408 it cannot be loaded.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        assert scene.generator is not None  # inputs.input_problems
        self._field = text_field(self.config)
        self._saved = read_generator(scene.generator)
        self._writer = self._load(scene.generator)

    @staticmethod
    def guarantee(folder: Path) -> Tuple[float, Optional[float]]:
        """(ε, δ) of a generator and of all that is sampled from it; (inf, None) without privacy.

        Raises:
            ExtensionError: E731 to E733, the folder holds no generator.
        """
        return read_generator(folder).guarantee

    def _load(self, folder: Path) -> _Writer:
        party, name = self.scene.party, self._saved.base_model
        party.phase("", "loading the generator")
        base = party.site.lookup("models", name) if self._saved.weights == "lora" else folder
        return _Writer(*load_generator(folder, base, ModelConfig(name=name), party.device))

    def ask(self) -> Asked:
        """See :meth:`Strategy.ask`; if no text of the generator is valid, nothing is asked, and a warning says so."""
        template, outgoing = get_template(self.config.task), self.scene.outgoing
        records = self._sample()
        own = list(template.examples(({self._field: text} for text in records.texts), "the generator's texts"))
        answers = [_answer(template, value) for value in self._saved.control.values]
        return Asked(
            texts=[outgoing.render({self._field: text}) for text in records.texts],
            prompts=[one.prompt for one in own],
            labels=[answers[code] for code in records.codes.tolist()],
            choices=[one.choices or () for one in own],
        )

    def _sample(self) -> Records:
        """Valid texts, at most ``question.max_words`` words of each."""
        party, config, saved = self.scene.party, self.config, self._saved
        counts = code_counts(config.perturbation.samples, None, len(saved.control.values))
        dropped: Dict[str, int] = {}
        records = Records(np.zeros(0, dtype=np.int32), [])
        party.phase("fedcot", "sampling texts")
        try:
            records, dropped = sample_valid(
                self._writer,
                saved.control,
                counts,
                saved.synthesis,
                ValidityConfig(),
                seed=derived_seed(config.seed, _SAMPLING),
                heartbeat=party.saying("sampling texts"),
            )
        except ExtensionError as error:
            if error.code != "E730":
                raise
            emit("warning", code=error.code, message=str(error))
        party.metrics.log("fedcot", 0, "texts", len(records))
        for reason, count in dropped.items():
            party.metrics.log("fedcot", 0, f"texts_dropped_{reason}", count)
        limit, field = config.question.max_words, self._field
        return Records(records.codes, [first_words({field: text}, limit)[field] for text in records.texts])


def _answer(template: Template, label: str) -> Optional[str]:
    """The task's choice of the same words as a label of the generator, with its separator; None if there is none."""
    same = [choice for choice in template.choices or () if _words(choice) == _words(label)]
    return same[0] if len(same) == 1 else None


def _words(text: str) -> List[str]:
    return unicodedata.normalize("NFKC", text).casefold().split()
