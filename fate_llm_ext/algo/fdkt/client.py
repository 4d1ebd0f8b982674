"""A client (guest or host) in FDKT: the private table, the DP generator, and what it exchanges with the arbiter.

The phases, in order: read and plan, agree with the arbiter, charge the ledger, train the generator by DP-SGD, sample
labelled texts, send them, receive what the LLM has written after them, and, if asked for, vote on that. All that
leaves the party follows from the DP-SGD, the noisy histogram of labels and the noisy votes, and all are in the ledger
before the first step. The task model comes afterwards (:mod:`~fate_llm_ext.algo.fdkt.learning`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records, encode_prompts, items, to_records
from fate_llm_ext.algo.fdkt.checks import check_kept
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.feedback import nearest, noisy_votes
from fate_llm_ext.algo.fdkt.generator import sample_valid
from fate_llm_ext.algo.fdkt.handshake import greet
from fate_llm_ext.algo.fdkt.protocol import Augmented, Synthetic, Votes
from fate_llm_ext.algo.fdkt.release import plan
from fate_llm_ext.algo.messages import check_texts, pack_texts
from fate_llm_ext.algo.party import Party, derived_seed, private_table
from fate_llm_ext.algo.private import charge
from fate_llm_ext.algo.session import untold
from fate_llm_ext.algo.synthesis import code_counts, distinct
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.datasets import has_split, read_rows
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.embeddings import Embedder
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer
from fate_llm_ext.privacy.mechanisms import gaussian_noise
from fate_llm_ext.progress import emit

FDKTParty = Party[FDKTConfig]
TRAINING = "training the generator"
NO_TEXTS = Records(np.zeros(0, dtype=np.int32), [])

_SAMPLING = 0  # salt of a seed


class Client:
    """The client's side; it holds the private records and what they were planned to cost.

    Args:
        party: who and where.
        train_data: FATE's reader of the private table.

    Attributes:
        records: the private records.
        test: those of the table's test split, if it has one; nothing of them is ever sent.
        synthetic: texts of the DP generator, once :meth:`write` has run.
        kept: which of them became demonstrations (bool [S]), once :meth:`exchange` has run.
        augmented: what the LLM has written, all rounds together.
        note: why that is less than was asked for.

    Raises:
        ExtensionError: all that is wrong with table, budget, plan and model, before anything is charged.
    """

    def __init__(self, party: FDKTParty, train_data: Any) -> None:
        config = party.config
        self._party = party
        self._channel = party.channel
        table = private_table(party, train_data, plan)
        self.data, self.planned, self.plan = table.data, table.planned, table.plan
        party.phase("", "preparing the records")
        with untold():
            self.records = to_records(table.rows, config.control, table.folder)
            judged = read_rows(table.folder, "test") if has_split(table.folder, "test") else []
            self.test = to_records(judged, config.control, table.folder) if judged else NO_TEXTS
        self.generator = self._load_generator()
        encode_prompts(self.generator.tokenizer, config.control, config.synthesis.max_new_tokens)  # is there room?
        party.phase("", "tokenising the private records")
        with untold():
            self.private: List[Item] = items(self.generator.encode(self.records))
            self._trainer = self._new_trainer(self.plan)
        self.clipping = f"over all trained weights at once, per-record gradients by {self._trainer.per_sample}"
        self.synthetic = NO_TEXTS
        self.augmented = NO_TEXTS
        self.kept = np.zeros(0, dtype=bool)
        self.note = ""
        self._votes_base: Optional[np.ndarray] = None
        self._saying_vote = party.saying("comparing texts")

    def _load_generator(self) -> Model:
        party, config = self._party, self._party.config
        assert config.generator is not None  # checks.role_problems
        return Model(
            party.site.lookup("models", config.generator.name),
            config.generator,
            config.generator_weights,
            config.lora,
            config.control,
            config.seed,
            party.device,
            party.channel.heartbeat,
        )

    # -- before the first step -----------------------------------------------------------------------

    def agree(self) -> None:
        """Handshake with the arbiter."""
        self._party.phase("", "waiting for the arbiter")
        greet(self._channel, self._party.config, (self.plan.epsilon, self.plan.delta))

    def charge(self) -> None:
        """Write the release into the ledger; it is durable when this returns.

        Raises:
            ExtensionError: the ledger's, if the table's budget would be exceeded.
        """
        self._party.phase("", "charging the ledger")
        self.spending = charge(self._party.site, self.data, self.planned)

    # -- the generator -------------------------------------------------------------------------------

    def train(self) -> None:
        """DP-SGD of the generator on (label, text)."""
        party = self._party
        if party.config.feedback.rounds:
            self._embed_records()
        party.phase("generator", TRAINING)
        party.log_loss("generator", self._trainer.run(self.plan.steps))

    def train_without_privacy(self) -> None:
        """The generator anew, with neither noise nor clipping: for a comparison that never leaves the party."""
        self.generator.restore()
        plan = dataclasses.replace(self.plan, noise_multiplier=0.0, max_grad_norm=math.inf)
        self._new_trainer(plan).run(plan.steps)

    def _new_trainer(self, plan: DPPlan) -> DPTrainer:
        return DPTrainer(
            self.generator.network,
            self.private,
            plan,
            self._party.config.privacy,
            pad_id=self.generator.pad_id,
            phase=TRAINING,
            heartbeat=self._party.saying(TRAINING),
        )

    def write(self) -> None:
        """Sample labelled texts from the DP generator: post-processing, but for the histogram of labels.

        A generator of which no text is valid is bad luck for this client, and no reason to stop the others: it
        sends none.
        """
        config = self._party.config
        labels = len(config.control.values)
        shares = None
        if config.control.frequencies == "histogram":
            counts = np.bincount(self.records.codes, minlength=labels)
            shares = counts + gaussian_noise(config.control.histogram_noise, labels)
        try:
            self.synthetic = self.sample("local_synthetic", code_counts(config.synthesis.samples, shares, labels))
        except ExtensionError as error:
            if error.code != "E730":
                raise
            emit("warning", code=error.code, message=str(error))

    def sample(self, arm: str, counts: np.ndarray) -> Records:
        """Valid texts of the generator as it is now, at most ``counts`` [C] per label."""
        party, config = self._party, self._party.config
        party.phase(arm, "sampling texts")
        records, dropped = sample_valid(
            self.generator,
            config.control,
            counts,
            config.synthesis,
            config.validity,
            seed=derived_seed(config.seed, _SAMPLING),
            heartbeat=party.saying("sampling texts"),
        )
        self._count(arm, "texts", len(records), dropped)
        return records

    # -- the arbiter's help --------------------------------------------------------------------------

    def exchange(self) -> None:
        """Send the texts, receive the LLM's, vote on these as often as the job asks for."""
        party, rounds = self._party, self._party.config.feedback.rounds
        arbiter = self._channel.peers[0]
        party.phase("fdkt", "sending texts")
        self._channel.send(arbiter, Synthetic(**pack_texts(self.synthetic.codes, self.synthetic.texts)), 0)
        latest, self.kept = self._receive(0, len(self.synthetic))
        everything = latest
        for round in range(rounds):
            party.phase("fdkt", "voting", round)
            self._channel.send(arbiter, Votes(self._vote(latest)), round)
            latest, _ = self._receive(round + 1, 0)
            everything = joined(everything, latest)
        chosen, _ = distinct(everything.texts)
        self.augmented = everything.take(chosen)

    def _receive(self, round: int, sent: int) -> Tuple[Records, np.ndarray]:
        """The LLM's texts of a round, and which of the client's became demonstrations."""
        party, config = self._party, self._party.config
        arbiter = self._channel.peers[0]
        party.phase("fdkt", "waiting for the arbiter's texts", round)
        message = self._channel.receive(arbiter, Augmented, round)
        check_texts(message, arbiter.name, len(config.control.values), config.augmentation.samples, "label")
        check_kept(message, arbiter.name, sent)
        self.note = self.note or message.note
        dropped = {reason: int(count) for reason, count in message.dropped.items()}
        self._count("fdkt", "augmented", len(message.codes), dropped, round)
        return Records(message.codes.astype(np.int32), message.texts()), message.kept.astype(bool)

    def _embed_records(self) -> None:
        """The private records as the untrained generator sees them.

        An embedding that had learned from the records would move all votes when one record changes. So would one that
        is computed along with others: rounding depends on the batch, and texts that are nearly equal turn on it.
        """
        self._party.phase("", "embedding the private records")
        with untold():
            self._votes_base = self._embed(self.records.texts, 1)

    def _vote(self, texts: Records) -> np.ndarray:
        """Noisy number of records to which each text is the nearest (float64 [S])."""
        if not len(texts):
            return np.zeros(0)
        assert self._votes_base is not None  # train has run
        trained = self.generator.state()
        self.generator.restore()
        try:
            with untold():
                embedded = self._embed(texts.texts, self._party.config.evaluation.batch_size)
                found = nearest(self._votes_base, embedded, lambda done, total: self._saying_vote(""))
                return noisy_votes(found, len(texts), self._party.config.feedback.noise)
        finally:
            self.generator.restore(trained)

    def _embed(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Texts as the generator sees them as it is now (float32 [N, d])."""
        embedder = Embedder(self.generator.network, self.generator.tokenizer, batch_size)
        return embedder.embed(texts, lambda done, total: self._saying_vote(""))

    def _count(self, arm: str, what: str, kept: int, dropped: Dict[str, int], round: int = 0) -> None:
        metrics = self._party.metrics
        metrics.log(arm, round, what, kept)
        for reason, count in dropped.items():
            metrics.log(arm, round, f"{what}_dropped_{reason}", count)


def joined(first: Records, second: Records) -> Records:
    """All records of both."""
    return Records(np.concatenate([first.codes, second.codes]).astype(np.int32), [*first.texts, *second.texts])
