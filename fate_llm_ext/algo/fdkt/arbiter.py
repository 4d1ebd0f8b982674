"""The arbiter in FDKT: chooses demonstrations among each client's texts and has the LLM write more.

No private data here: what comes in is differentially private, or the client's ledger says that it is not. What one
client has sent serves that client alone.
"""

from __future__ import annotations

import math
from typing import Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.augmentation import Augmentation, augment
from fate_llm_ext.algo.fdkt.checks import check_votes
from fate_llm_ext.algo.fdkt.client import FDKTParty
from fate_llm_ext.algo.fdkt.feedback import best
from fate_llm_ext.algo.fdkt.filtering import select_demonstrations
from fate_llm_ext.algo.fdkt.handshake import Agreed, welcome
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.algo.fdkt.protocol import Augmented, Synthetic, Votes
from fate_llm_ext.algo.messages import check_texts, pack_texts, printable
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.models.embeddings import open_embedder
from fate_llm_ext.models.engines import open_engine

_CHOOSING, _WRITING = 1, 2  # salts of seeds


class Arbiter:
    """The arbiter's side.

    Args:
        party: who and where.
    """

    def __init__(self, party: FDKTParty) -> None:
        config = party.config
        assert config.llm is not None  # checks.role_problems
        self._party = party
        self._channel = party.channel
        self._prompts = Prompts(config.prompts)
        self._engine = open_engine(party.site, config.llm, party.device, heartbeat=party.channel.heartbeat)
        self._embedder = open_embedder(party.site, config.embedder, self._engine, party.device)
        self._clients: List[Agreed] = []

    @property
    def guarantee(self) -> Tuple[float, float]:
        """ε and δ that hold for every record of every client, as the clients say."""
        return (
            max((one.epsilon for one in self._clients), default=math.inf),
            max((one.delta for one in self._clients), default=1.0),
        )

    def agree(self) -> None:
        """Handshake with the clients."""
        self._party.phase("", "waiting for the clients")
        self._clients = welcome(self._channel, self._party.config, self._engine.name)

    def serve(self) -> None:
        """Texts for every client, then further ones after their votes."""
        try:
            written = [self._first(client, rank) for rank, client in enumerate(self._clients)]
            for round in range(self._party.config.feedback.rounds):
                for rank, client in enumerate(self._clients):
                    written[rank] = self._next(client, rank, written[rank], round)
        finally:
            self._engine.close()

    def _first(self, client: Agreed, rank: int) -> Records:
        """After a client's own texts."""
        config = self._party.config
        self._party.phase("fdkt", f"waiting for the texts of {client.peer.name}")
        message = self._channel.receive(client.peer, Synthetic, 0)
        check_texts(message, client.peer.name, len(client.labels), config.synthesis.samples, "label")
        texts = Records(message.codes.astype(np.int32), message.texts())
        kept, dropped = self._choose(client, rank, texts)
        made = self._write(client, rank, texts.take(np.flatnonzero(kept)), 0)
        return self._send(client, made, {**dropped, **made.dropped}, kept, 0)

    def _next(self, client: Agreed, rank: int, texts: Records, round: int) -> Records:
        """After those of the last round that are nearest to the client's records."""
        self._party.phase("fdkt", f"waiting for the votes of {client.peer.name}", round)
        message = self._channel.receive(client.peer, Votes, round)
        check_votes(message, client.peer.name, len(texts))
        rows = best(message.counts, texts.codes, self._party.config.feedback.share)
        made = self._write(client, rank, texts.take(rows), round + 1)
        return self._send(client, made, made.dropped, np.zeros(0, dtype=bool), round + 1)

    def _choose(self, client: Agreed, rank: int, texts: Records) -> Tuple[np.ndarray, Dict[str, int]]:
        """Which texts may be demonstrations (bool [S]), and why the others may not."""
        if not len(texts):
            return np.zeros(0, dtype=bool), {}
        party, config = self._party, self._party.config
        party.phase("fdkt", f"choosing demonstrations for {client.peer.name}")
        doing = party.saying("choosing demonstrations")
        found = select_demonstrations(
            texts,
            client.labels,
            self._embedder.embed(texts.texts, lambda done, total: doing("")),
            self._engine,
            self._prompts,
            config.filter,
            description=client.description,
            seed=derived_seed(config.seed, _CHOOSING, rank),
            heartbeat=doing,
        )
        self._log(client, 0, {"demonstrations": int(found.kept.sum()), "clusters": found.clusters})
        self._log(client, 0, {"clusters_unread": found.unread})
        return found.kept, {f"filter_{reason}": count for reason, count in found.dropped.items()}

    def _write(self, client: Agreed, rank: int, demonstrations: Records, round: int) -> Augmentation:
        party, config = self._party, self._party.config
        party.phase("fdkt", f"writing texts for {client.peer.name}", round)
        made = augment(
            demonstrations,
            client.labels,
            self._engine,
            self._prompts,
            config.augmentation,
            description=client.description,
            seed=derived_seed(config.seed, _WRITING, rank, round),
            heartbeat=party.saying("writing texts"),
        )
        self._log(client, round, {"asked": made.asked, "augmented": len(made.records)})
        return made

    def _send(
        self, client: Agreed, made: Augmentation, dropped: Dict[str, int], kept: np.ndarray, round: int
    ) -> Records:
        """The texts to their client; returns them."""
        counts = {reason: str(count) for reason, count in dropped.items()}
        texts = pack_texts(made.records.codes, made.records.texts)
        message = Augmented(**texts, dropped=counts, note=printable(made.note), kept=kept.astype(np.uint8))
        self._channel.send(client.peer, message, round)
        return made.records

    def _log(self, client: Agreed, round: int, values: Dict[str, int]) -> None:
        """Counts about one client's texts."""
        name = client.peer.name.replace(" ", "_")
        for what, value in values.items():
            self._party.metrics.log("fdkt", round, f"{what}_{name}", value)
