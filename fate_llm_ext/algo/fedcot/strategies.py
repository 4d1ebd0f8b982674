"""What a client asks in place of its private prompts: one interface for all strategies.

``exponential``, ``fixed_vocabulary`` and ``metric`` replace each word by itself, ``none`` shows the prompt,
``adaptive_exponential`` (:mod:`~fate_llm_ext.algo.fedcot.adaptive`) has a model rewrite it, ``dp_generator``
(:mod:`~fate_llm_ext.algo.fedcot.generated`) asks about texts of a DP generator instead. What each guarantees stands in
:mod:`~fate_llm_ext.algo.fedcot.guarantees`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.decoding import decode
from fate_llm_ext.algo.fedcot.perturbation import words
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism, make_mechanism
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed, Perturber
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary, build_vocabulary, embedding_table
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.algo.fedcot.student import RationaleModel
from fate_llm_ext.algo.party import Party
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.templates import Example
from fate_llm_ext.models.loading import load_base

FedCoTParty = Party[FedCoTConfig]
Explain = Callable[[List[str]], List[Optional[str]]]


@dataclass(frozen=True, eq=False)
class PrivateRecords:
    """N private records.

    Attributes:
        examples: prompt, answer and choices of each.
        fields: its allow-listed fields, as they are.
    """

    examples: List[Example]
    fields: List[Dict[str, str]]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, eq=False)
class Asked:
    """S questions in place of private prompts.

    Attributes:
        texts: as they leave.
        prompts: the own prompt behind each, for which its rationale is learned.
        labels: the answer that the rationale should give, with its separator; None where nobody knows it.
        rows: the record behind each (int [S]); None if there is none behind any.
        perturbed: units of each, all fields together, and the words that stand for them; None where nothing was
            replaced word by word.
        choices: the options of each prompt, by letter or as a closed list; empty if it has none.
    """

    texts: List[str]
    prompts: List[str]
    labels: List[Optional[str]]
    rows: Optional[np.ndarray] = None
    perturbed: Optional[Perturbed] = None
    choices: Optional[List[Sequence[str]]] = None


@dataclass(frozen=True, eq=False)
class Scene:
    """What a strategy has to work with.

    Attributes:
        records: the private records.
        student: the SLM; whoever trains it restores it.
        explained: rationales of the arbiter's LLM for public questions, None where there is none.
        generator: folder of a DP generator, if the task was given one.
        judged: records of the table's test split, if it has one.
    """

    party: FedCoTParty
    outgoing: Outgoing
    records: PrivateRecords
    student: RationaleModel
    prompts: Prompts
    explained: Explain
    generator: Optional[Path] = None
    judged: Optional[PrivateRecords] = None


class Strategy(ABC):
    """One way to ask. What is wrong with it shows when it is made: before anything is charged or leaves."""

    mechanism: Optional[Mechanism] = None
    vocabulary: Optional[Vocabulary] = None

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.config = scene.party.config

    def learn(self) -> None:
        """What has to be learned from public data first."""
        return

    @abstractmethod
    def ask(self) -> Asked:
        """The questions, drawn once: another draw would be another release."""

    def decode(self, asked: Asked, which: np.ndarray, rationales: Sequence[str]) -> List[str]:
        """Rationales for the questions ``which`` (int [M]) as rationales for the own prompts."""
        return list(rationales)


class Clear(Strategy):
    """``none``: the allow-listed fields as they are. A release without privacy, an upper bound for the others."""

    def ask(self) -> Asked:
        """See :meth:`Strategy.ask`."""
        limit = self.config.question.max_words
        texts = [self.scene.outgoing.render(first_words(fields, limit)) for fields in self.scene.records.fields]
        return about_records(self.scene.records, texts)


class WordByWord(Strategy):
    """Each word through a mechanism over a closed public vocabulary."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.vocabulary = open_vocabulary(scene)
        self.mechanism = make_mechanism(self.config.perturbation, self.vocabulary.vectors)
        self._perturber = Perturber(self.vocabulary, self.mechanism)

    def ask(self) -> Asked:
        """See :meth:`Strategy.ask`."""
        units = [units_of(fields, self.config.question.max_words) for fields in self.scene.records.fields]
        drawn = self._perturber.draw([one for record in units for one in record.values()])
        return about_records(self.scene.records, *put_together(self.scene.outgoing, units, drawn))

    def decode(self, asked: Asked, which: np.ndarray, rationales: Sequence[str]) -> List[str]:
        """See :meth:`Strategy.decode`; by ``decoding.method``."""
        assert asked.perturbed is not None
        assert self.vocabulary is not None
        return decode(
            self.config.decoding,
            rationales,
            questions=[asked.texts[index] for index in which],
            prompts=[asked.prompts[index] for index in which],
            perturbed=[(asked.perturbed.units[index], asked.perturbed.drawn[index]) for index in which],
            vocabulary=self.vocabulary,
            model=self.scene.student,
            templates=self.scene.prompts,
            seed=self.config.seed,
            heartbeat=self.scene.party.saying("decoding rationales"),
        )


def units_of(
    fields: Dict[str, str], limit: int, split: Callable[[str], List[str]] = words.split
) -> Dict[str, List[str]]:
    """The units of a record's fields, at most ``limit``; where there are more, the longest fields lose their ends.

    An empty field takes one: it leaves as one unknown word.
    """
    units = {name: split(text) for name, text in fields.items()}
    room = limit
    for rank, name in enumerate(sorted(units, key=lambda name: len(units[name]))):
        units[name] = units[name][: room // (len(units) - rank)]
        room -= max(1, len(units[name]))
    return units


def first_words(fields: Dict[str, str], limit: int) -> Dict[str, str]:
    """The fields as they are, cut as :func:`units_of` does where there are more than ``limit`` words in them."""
    kept = units_of(fields, limit, str.split)
    return {
        name: text if len(kept[name]) == len(text.split()) else " ".join(kept[name]) for name, text in fields.items()
    }


def put_together(
    outgoing: Outgoing, units: Sequence[Dict[str, List[str]]], drawn: Perturbed
) -> Tuple[List[str], Perturbed]:
    """Questions of perturbed fields, and the words of each question in one piece.

    Args:
        units: of each record, by field.
        drawn: one entry per record and field, in that order.
    """
    texts: List[str] = []
    parts: List[range] = []
    start = 0
    for record in units:
        part = range(start, start + len(record))
        texts.append(outgoing.render(dict(zip(record, (drawn.texts[i] for i in part)))))
        parts.append(part)
        start = part.stop
    whole = Perturbed(
        units=[[unit for i in part for unit in drawn.units[i]] for part in parts],
        ids=[_joined([drawn.ids[i] for i in part]) for part in parts],
        drawn=[_joined([drawn.drawn[i] for i in part]) for part in parts],
        texts=[" ".join(drawn.texts[i] for i in part) for part in parts],
    )
    return texts, whole


def about_records(records: PrivateRecords, texts: List[str], perturbed: Optional[Perturbed] = None) -> Asked:
    """One question for each record, in their order."""
    examples = records.examples
    return Asked(
        texts,
        [one.prompt for one in examples],
        [one.answer for one in examples],
        np.arange(len(examples)),
        perturbed,
        [one.choices or () for one in examples],
    )


def open_vocabulary(scene: Scene) -> Vocabulary:
    """The closed vocabulary of the job, from the model and the public set that it names.

    Raises:
        ExtensionError: E750 there are too few words; E751, E407 the vectors are none; E110, E111 the site does not know
            a name.
    """
    party, config = scene.party, scene.party.config.vocabulary
    party.phase("", "building the vocabulary")
    network, tokenizer = scene.student.network, scene.student.tokenizer
    if config.model is not None:
        network, tokenizer = load_base(party.site.lookup("models", config.model.name), config.model, party.device)
    return build_vocabulary(tokenizer, embedding_table(network), config, public_texts(party))


def public_texts(party: FedCoTParty) -> Optional[Iterable[str]]:
    """The texts of the public set that the vocabulary comes from; None if it comes from the model's tokenizer."""
    public = party.config.vocabulary.public
    if public is None:
        return None
    rows = read_rows(party.site.lookup("public", public))
    return (value for row in rows for value in row.values() if isinstance(value, str))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts]).astype(np.int32)
