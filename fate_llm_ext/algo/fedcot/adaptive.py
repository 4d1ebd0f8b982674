"""``adaptive_exponential`` (FedCoT-A): a small model learns to rewrite prompts and to take rationales back.

    L = ½ L_enc + ½ L_dec,    L_enc = -log P(p' | p),    L_dec = -log P(r | p, p', r')        (arXiv 2406.12403)

p' is p with each word replaced by the exponential mechanism, r and r' are the LLM's rationales for p and p'. All four
come from *public* prompts (``perturbation.proxy``): rationales for clear prompts mean that the LLM reads these.
Private prompts are then rewritten by sampling from the SLM, and the same SLM decodes their rationales.

This is a heuristic, not differential privacy. What it keeps: only words of the closed vocabulary leave, as many as the
record has; names, numbers and all else that the vocabulary lacks are one placeholder before the SLM reads them.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar

import numpy as np

from fate_llm_ext.algo.fdkt.validity import words
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import UNKNOWN
from fate_llm_ext.algo.fedcot.perturbation.words import split
from fate_llm_ext.algo.fedcot.strategies import (
    Asked,
    PrivateRecords,
    Scene,
    WordByWord,
    about_records,
    first_words,
    put_together,
    units_of,
)
from fate_llm_ext.algo.fedcot.student import Pair
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.session import untold
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import AdapterState
from fate_llm_ext.privacy.mechanisms import fresh_generator
from fate_llm_ext.progress import emit

REWRITE = "Rewrite: "  # before a prompt that the SLM is to rewrite
PLACEHOLDER = "_"  # for every unit that the vocabulary lacks
BETWEEN = "|"  # fields of a record
LEARNING = "learning to rewrite prompts"

_PERTURBING, _TRAINING = 21, 22  # salts of seeds
_SAMPLING = GenerationConfig(temperature=1.0, top_k=0, top_p=1.0)  # from the model as it is

Units = Dict[str, List[str]]  # of a record, by field
T = TypeVar("T")


class Adaptive(WordByWord):
    """A model that has learned from public prompts rewrites the private ones.

    Args:
        generator: for tests; by default the operating system's entropy decides what is sampled.

    Raises:
        ExtensionError: E779 rows of the public set are private records; E110, E111 the site does not know it; those of
            its file and of the task's template; E750 to E753 there is no vocabulary.
    """

    def __init__(self, scene: Scene, generator: Optional[np.random.Generator] = None) -> None:
        super().__init__(scene)
        self._generator = generator
        self._proxies = self._read_proxies()
        self._learned: Optional[AdapterState] = None
        self._tokens_per_word = 1.0

    def _read_proxies(self) -> PrivateRecords:
        """The public prompts; what they share with the private table is an error that nobody else hears of."""
        config, party = self.config, self.scene.party
        assert config.perturbation.proxy is not None  # FedCoTConfig
        path = party.site.lookup("public", config.perturbation.proxy)
        template = get_template(config.task)
        rows = [template.canonical(row) for row in read_rows(path, "train", config.task.columns)]
        fields = [self.scene.outgoing.pick(row) for row in rows]
        with untold():
            judged = [] if self.scene.judged is None else self.scene.judged.fields
            private = {_key(one) for one in [*self.scene.records.fields, *judged]} - {""}
            shared = sum(_key(one) in private for one in fields)
            if shared:
                facts = {"name": config.perturbation.proxy, "shared": shared, "rows": len(rows)}
                raise ExtensionError("E779", **facts, records=len(self.scene.records) + len(judged))
        used = rows[: config.perturbation.proxy_rows]
        return PrivateRecords(list(template.examples(used, path.name)), fields[: len(used)])

    # -- learning ------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Train the SLM to rewrite and to decode, on public prompts and the LLM's rationales for them."""
        config, scene = self.config, self.scene
        units = [units_of(fields, config.question.max_words) for fields in self._proxies.fields]
        generator = np.random.default_rng(derived_seed(config.seed, _PERTURBING))  # nothing private is perturbed here
        drawn = self._perturber.draw([one for record in units for one in record.values()], generator)
        perturbed, _ = put_together(scene.outgoing, units, drawn)
        clear = [scene.outgoing.render(first_words(one, config.question.max_words)) for one in self._proxies.fields]
        scene.party.phase("fedcot", "waiting for rationales for public prompts")
        found = scene.explained([*clear, *perturbed])
        pairs = balanced(
            self._encoding(units, drawn), self._decoding(perturbed, found[: len(clear)], found[len(clear) :])
        )
        scene.party.phase("fedcot", LEARNING)
        seed = derived_seed(config.seed, _TRAINING)
        scene.student.restore()
        loss = scene.student.learn(pairs, config.train, seed=seed, phase=LEARNING)
        scene.party.metrics.log("fedcot", 0, "proxy_loss", loss)
        self._learned = scene.student.model.state()
        scene.student.restore()

    def _encoding(self, units: Sequence[Units], drawn: Perturbed) -> List[Pair]:
        """Pairs p -> p'."""
        targets = [f" {BETWEEN} ".join(own) for own in _by_record(units, drawn.texts)]
        tokens = self.scene.student.tokenizer(targets, add_special_tokens=False)["input_ids"]
        self._tokens_per_word = max(len(ids) / len(text.split()) for ids, text in zip(tokens, targets))
        return [Pair(prompt, text) for prompt, text in zip(self._prompts(units, drawn.ids), targets)]

    def _decoding(
        self, perturbed: Sequence[str], clear: Sequence[Optional[str]], other: Sequence[Optional[str]]
    ) -> List[Pair]:
        """Pairs (p, p', r') -> r, where the LLM gave both rationales."""
        asked, templates = [one.prompt for one in self._proxies.examples], self.scene.prompts
        pairs = [
            Pair(templates.decode(text, behind, question), target)
            for text, behind, question, target in zip(perturbed, other, asked, clear)
            if behind and target
        ]
        self.scene.party.metrics.log("fedcot", 0, "proxy_rationales", len(pairs))
        if not pairs:
            error = ExtensionError("E780", rows=len(asked))
            emit("warning", code=error.code, message=str(error))
        return pairs

    def _prompts(self, units: Sequence[Units], ids: Sequence[np.ndarray]) -> List[str]:
        """What the SLM reads of each record: words of the vocabulary and placeholders, and nothing else.

        Args:
            ids: places of the units in the vocabulary, per record and field.
        """
        return [
            REWRITE + f" {BETWEEN} ".join(" ".join(map(self._word, field.tolist())) for field in record)
            for record in _by_record(units, ids)
        ]

    def _word(self, place: int) -> str:
        assert self.vocabulary is not None  # WordByWord
        return PLACEHOLDER if place == UNKNOWN else self.vocabulary.words[place]

    # -- private prompts -----------------------------------------------------------------------------

    def ask(self) -> Asked:
        """See :meth:`Strategy.ask`."""
        assert self.vocabulary is not None  # WordByWord
        scene, generator = self.scene, self._generator or fresh_generator()
        units = [units_of(fields, self.config.question.max_words) for fields in scene.records.fields]
        filled = [list(one) or [""] for record in units for one in record.values()]
        ids = [self.vocabulary.ids(one) for one in filled]
        written = self._write(self._prompts(units, ids), generator)
        parts = (part for text, record in zip(written, units) for part in _parts(text, len(record)))
        drawn = [self._closed(part, len(one), generator) for part, one in zip(parts, filled)]
        texts = [" ".join(map(self._word, one.tolist())) for one in drawn]
        return about_records(scene.records, *put_together(scene.outgoing, units, Perturbed(filled, ids, drawn, texts)))

    def _write(self, prompts: Sequence[str], generator: np.random.Generator) -> List[str]:
        """A sample of the SLM for each prompt; the seed of the sampling is drawn, for the job's is public."""
        scene = self.scene
        longest = max((len(prompt.split()) for prompt in prompts), default=1)
        room = min(math.ceil(longest * self._tokens_per_word), self.config.task.max_length // 2)
        scene.student.model.restore(self._learned)
        try:
            return scene.student.write(
                prompts,
                _SAMPLING.copy(update={"max_new_tokens": room}),
                seed=int(generator.integers(1 << 31)),
                doing="rewriting prompts",
            )
        finally:
            scene.student.restore()

    def _closed(self, text: str, count: int, generator: np.random.Generator) -> np.ndarray:
        """``count`` places in the vocabulary (int32): the text's words, by chance where it has another one or none."""
        assert self.vocabulary is not None  # WordByWord
        places = np.full(count, UNKNOWN, dtype=np.int32)
        found = self.vocabulary.ids(split(text)[:count])
        places[: len(found)] = found
        by_chance = generator.integers(len(self.vocabulary), size=count, dtype=np.int32)
        closed: np.ndarray = np.where(places == UNKNOWN, by_chance, places)
        return closed

    def decode(self, asked: Asked, which: np.ndarray, rationales: Sequence[str]) -> List[str]:
        """See :meth:`Strategy.decode`; ``decoding.method`` ``model`` is the SLM that has learned it here."""
        self.scene.student.model.restore(self._learned)
        try:
            return super().decode(asked, which, rationales)
        finally:
            self.scene.student.restore()


def balanced(encoding: Sequence[Pair], decoding: Sequence[Pair]) -> List[Pair]:
    """All pairs, weighted so that both tasks have half of the mean loss; the weights have the mean 1."""
    tasks = [task for task in (encoding, decoding) if task]
    total = sum(map(len, tasks))
    return [pair._replace(weight=total / (len(tasks) * len(task))) for task in tasks for pair in task]


def _by_record(units: Sequence[Units], values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values of each record's fields; there is one value per record and field."""
    start = 0
    for record in units:
        yield values[start : start + len(record)]
        start += len(record)


def _parts(text: str, fields: int) -> Tuple[str, ...]:
    """What the SLM wrote for each field; nothing for those that it left out, and what it adds goes."""
    parts = text.split(BETWEEN)[:fields]
    return (*parts, *[""] * (fields - len(parts)))


def _key(fields: Dict[str, str]) -> str:
    """A record's text as it is compared: its words in the fields' order, without case and punctuation."""
    return " ".join(words(unicodedata.normalize("NFKC", " ".join(fields.values()))))
