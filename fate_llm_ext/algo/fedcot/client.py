"""A client (guest or host) in FedCoT: the private table, what it asks in place of its prompts, and what comes back.

The phases, in order: read and plan, agree with the arbiter, learn to ask (from public prompts, for some strategies),
charge the ledger, ask, receive rationales, decode them, keep the good ones. Only the questions are computed from
private records, and they are in the ledger before they are made. The SLM learns afterwards
(:mod:`~fate_llm_ext.algo.fedcot.learning`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import numpy as np

from fate_llm_ext.algo.fedcot.adaptive import Adaptive
from fate_llm_ext.algo.fedcot.attacks import check_attack
from fate_llm_ext.algo.fedcot.checks import check_rationales
from fate_llm_ext.algo.fedcot.config import WORD_BY_WORD
from fate_llm_ext.algo.fedcot.generated import Generated
from fate_llm_ext.algo.fedcot.handshake import greet
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.protocol import Explained, Proxies, Questions, Rationales
from fate_llm_ext.algo.fedcot.quality import select
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.algo.fedcot.release import guarantee, plan
from fate_llm_ext.algo.fedcot.strategies import (
    Asked,
    Clear,
    FedCoTParty,
    PrivateRecords,
    Scene,
    Strategy,
    WordByWord,
)
from fate_llm_ext.algo.fedcot.student import Pair, RationaleModel
from fate_llm_ext.algo.messages import LONGEST_TEXT, pack_texts
from fate_llm_ext.algo.party import private_table
from fate_llm_ext.algo.private import charge
from fate_llm_ext.algo.session import untold
from fate_llm_ext.data.datasets import has_split, named, read_rows
from fate_llm_ext.data.formats import Row
from fate_llm_ext.data.templates import Example, get_template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import positions
from fate_llm_ext.progress import emit

Received = Tuple[np.ndarray, List[str], np.ndarray]  # question of each rationale, text, whether it was cut

STRATEGIES: Dict[str, Type[Strategy]] = {
    "exponential": WordByWord,
    "fixed_vocabulary": WordByWord,
    "metric": WordByWord,
    "adaptive_exponential": Adaptive,
    "dp_generator": Generated,
    "none": Clear,
}


class Client:
    """The client's side; it holds the private records and what they were planned to cost.

    Args:
        party: who and where.
        train_data: FATE's reader of the private table.
        generator: folder of a DP generator, if the task was given one.

    Attributes:
        records: the private records.
        generator: (ε, δ) that the generator's own statement gives, δ None without a guarantee.
        judged: records of the table's test split, if it has one; nothing of them is ever sent.
        student: the SLM, untrained as yet.
        strategy: how it asks.
        asked: the questions, once :meth:`ask` has run.
        rationales: what the SLM learns beside labels, once :meth:`receive` has run.
        note: why the LLM gave fewer rationales than were asked for; empty otherwise.

    Raises:
        ExtensionError: all that is wrong with table, budget, templates and model, before anything is charged.
    """

    def __init__(self, party: FedCoTParty, train_data: Any, generator: Optional[Path] = None) -> None:
        config = party.config
        self._party = party
        self._channel = party.channel
        self.generator = None if generator is None else Generated.guarantee(generator)
        table = private_table(party, train_data, functools.partial(plan, generator=self.generator))
        self.data, self.planned = table.data, table.planned
        party.phase("", "preparing the records")
        self.outgoing = Outgoing(config.task, config.question)
        with untold():
            self.records = self._records(table.rows, table.folder)
            self._refuse_untaught(table.folder)
            judged = read_rows(table.folder, "test") if has_split(table.folder, "test") else []
            self.judged = self._records(judged, table.folder)
        self.student = self._load_student()
        self._refuse_narrow()
        check_attack(config.attack, self.student, party.site)
        self._templates = Prompts(config.rationale, config.decoding)
        scene = Scene(
            party,
            self.outgoing,
            self.records,
            self.student,
            self._templates,
            self._explained,
            generator,
            judged=self.judged,
        )
        self.strategy = STRATEGIES[config.perturbation.strategy](scene)
        self.asked: Optional[Asked] = None
        self.rationales: List[Pair] = []
        self.note = ""
        self.dropped: Dict[str, int] = {}
        self._place: Dict[int, int] = {}  # number of a question on the wire -> its place among those asked
        self._received: Received = (np.zeros(0, dtype=np.int64), [], np.zeros(0, dtype=bool))

    @property
    def questions(self) -> int:
        """How many questions were asked; a record whose allow-listed fields are not there asks none."""
        return len(self._place)

    @property
    def received(self) -> int:
        """How many of them have a rationale."""
        return len(self._received[1])

    def _records(self, rows: Sequence[Row], folder: Path) -> PrivateRecords:
        """Rows as examples and allow-listed fields."""
        task = self._party.config.task
        template = get_template(task)
        flat = [
            template.canonical(row, number, str(folder))
            for number, row in enumerate(named(rows, task.columns, folder), 1)
        ]
        examples: List[Example] = list(template.examples(flat, str(folder)))
        return PrivateRecords(examples, [self.outgoing.pick(fields) for fields in flat])

    def _refuse_untaught(self, folder: Path) -> None:
        """E787: nothing can be learned from a record without an answer; E792: a field that may leave is the answer."""
        examples = self.records.examples
        lacking = [number for number, one in enumerate(examples, 1) if one.answer is None]
        if lacking:
            raise ExtensionError("E787", path=folder, count=len(lacking), rows=len(examples), row=lacking[0])
        field = self.outgoing.telling(self.records.fields, [one.answer for one in examples])
        if field is not None:
            raise ExtensionError("E792", field=field, rows=len(examples))

    def _refuse_narrow(self) -> None:
        """E665: an SLM that is to decode has no room for what it should read; half of its context is the least."""
        config, limit = self._party.config, positions(self.student.network.config)
        decodes = config.decoding.method == "model" and config.perturbation.strategy in WORD_BY_WORD
        if decodes and limit is not None and limit // 2 + config.decoding.max_new_tokens > limit:
            raise ExtensionError("E665", prompt=limit // 2, new=config.decoding.max_new_tokens, limit=limit)

    def _load_student(self) -> RationaleModel:
        party, config = self._party, self._party.config
        assert config.student is not None  # checks.role_problems
        folder = party.site.lookup("models", config.student.name)
        return RationaleModel(folder, config.student, config, party.device, party.channel.heartbeat)

    # -- before anything private leaves --------------------------------------------------------------

    def agree(self) -> None:
        """Handshake with the arbiter."""
        self._party.phase("", "waiting for the arbiter")
        greet(self._channel, self._party.config, guarantee(self.planned), self.outgoing.choices)

    def learn(self) -> None:
        """What the strategy learns from public prompts."""
        self.strategy.learn()

    def charge(self) -> None:
        """Write the release into the ledger; it is durable when this returns.

        Raises:
            ExtensionError: the ledger's, if the table's budget would be exceeded.
        """
        self._party.phase("", "charging the ledger")
        self.spending = charge(self._party.site, self.data, self.planned)

    def _explained(self, texts: List[str]) -> List[Optional[str]]:
        """The LLM's rationales for public prompts; None where there is none."""
        arbiter = self._channel.peers[0]
        codes = np.arange(len(texts))
        self._channel.send(arbiter, Proxies(**pack_texts(codes, texts)), 0)
        message = self._channel.receive(arbiter, Explained, 0)
        check_rationales(message, arbiter.name, codes)
        found: List[Optional[str]] = [None] * len(texts)
        for code, text in zip(message.codes.tolist(), message.texts()):
            found[code] = text
        return found

    # -- the arbiter's help --------------------------------------------------------------------------

    def ask(self) -> None:
        """Draw the questions and send them, by the alphabet: an order that says nothing about the table."""
        party, config = self._party, self._party.config
        party.phase("fedcot", "perturbing prompts")
        with untold():
            self.asked = self.strategy.ask()
            sent = self._fit_to_send(self.asked.texts)
        codes = sent if config.rationale.recorded else np.arange(len(sent))
        order = sent if config.rationale.recorded else _by_text(sent, self.asked.texts)
        party.phase("fedcot", "sending questions")
        texts = [self.asked.texts[index] for index in order]
        self._channel.send(self._channel.peers[0], Questions(**pack_texts(codes, texts)), 0)
        self._place = dict(zip(codes.tolist(), order.tolist()))
        party.metrics.log("fedcot", 0, "questions", self.questions)

    def _fit_to_send(self, texts: List[str]) -> np.ndarray:
        """Which questions can be asked (int [M]): a record may have none of the allow-listed fields."""
        sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        empty, long = int((sizes == 0).sum()), int((sizes > LONGEST_TEXT).sum())
        if empty or long:
            error = ExtensionError("E791", asked=len(texts), empty=empty, long=long, limit=LONGEST_TEXT)
            emit("warning", code=error.code, message=str(error))
        return np.flatnonzero((sizes > 0) & (sizes <= LONGEST_TEXT))

    def receive(self) -> None:
        """Rationales for the questions."""
        party = self._party
        arbiter = self._channel.peers[0]
        party.phase("fedcot", "waiting for the arbiter's rationales")
        message = self._channel.receive(arbiter, Rationales, 0)
        check_rationales(message, arbiter.name, np.array(list(self._place)))
        self.note = message.note
        for reason, count in message.dropped.items():
            party.metrics.log("fedcot", 0, f"rationales_dropped_{reason}", int(count))
        which = np.array([self._place[code] for code in message.codes.tolist()], dtype=np.int64)
        order, texts = np.argsort(which), message.texts()
        self._received = (which[order], [texts[index] for index in order], message.unfinished.astype(bool)[order])

    def decode(self) -> None:
        """Rationales for the own prompts, and those of them that are good enough to learn from."""
        party, config, asked = self._party, self._party.config, self.asked
        assert asked is not None  # ask has run
        which, texts, unfinished = self._received
        party.phase("fedcot", "decoding rationales")
        with untold():
            decoded = self.strategy.decode(asked, which, texts)
            kept = select(
                decoded,
                prompts=[asked.prompts[index] for index in which],
                labels=[asked.labels[index] for index in which],
                choices=[asked.choices[index] if asked.choices else () for index in which],
                unfinished=unfinished,
                config=config.quality,
                rationale=config.rationale,
                written=texts,
            )
            self.rationales = [Pair(asked.prompts[which[row]], text) for row, text in zip(kept.rows, kept.texts)]
        party.metrics.log("fedcot", 0, "rationales", len(texts))
        party.metrics.log("fedcot", 0, "rationales_kept", len(self.rationales))
        self.dropped = kept.dropped
        for reason, count in kept.dropped.items():
            party.metrics.log("fedcot", 0, f"rationales_{reason}", count)


def _by_text(which: np.ndarray, texts: List[str]) -> np.ndarray:
    return np.array(sorted(which.tolist(), key=texts.__getitem__), dtype=np.int64)
