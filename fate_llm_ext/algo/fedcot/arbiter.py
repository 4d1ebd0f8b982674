"""The arbiter in FedCoT: its LLM writes a rationale for every question of every client.

No private data here: a question is what the client's ledger says it is. What one client has asked serves that client
alone.
"""

from __future__ import annotations

from typing import Any, List, Type

import numpy as np

from fate_llm_ext.algo.fedcot.checks import check_questions
from fate_llm_ext.algo.fedcot.handshake import Agreed, welcome
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.protocol import Explained, Proxies, Questions, Rationales
from fate_llm_ext.algo.fedcot.rationales import explain
from fate_llm_ext.algo.fedcot.strategies import FedCoTParty
from fate_llm_ext.algo.messages import pack_texts, printable
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import open_engine
from fate_llm_ext.progress import emit

_PROXIES, _QUESTIONS = 1, 2  # salts of seeds
# It sent what is no message of the protocol; it aborted, it is silent, it cannot be read.
_LOST = {"E301": "sender", "E303": "party", "E304": "party", "E305": "party"}  # and which fact names it


class Arbiter:
    """The arbiter's side.

    Args:
        party: who and where.
    """

    def __init__(self, party: FedCoTParty) -> None:
        config = party.config
        assert config.llm is not None  # checks.role_problems
        self._party = party
        self._channel = party.channel
        self._prompts = Prompts(config.rationale, config.decoding)
        recorded, heartbeat = config.rationale.recorded, party.channel.heartbeat
        self._engine = open_engine(party.site, config.llm, party.device, recorded=recorded, heartbeat=heartbeat)
        self._clients: List[Agreed] = []

    def agree(self) -> None:
        """Handshake with the clients."""
        self._party.phase("", "waiting for the clients")
        self._clients = welcome(self._channel, self._party.config, self._engine.name)

    def serve(self) -> None:
        """Rationales for every client: for its public prompts, if it has some, and for its questions.

        A client that drops out is left out: the others need nothing of it.
        """
        self._channel.tolerate()
        try:
            for rank, client in enumerate(self._clients):
                if client.proxies:
                    self._try(client, rank, Proxies, Explained, _PROXIES)
            for rank, client in enumerate(self._clients):
                self._try(client, rank, Questions, Rationales, _QUESTIONS)
        finally:
            self._engine.close()

    def say_who_is_lost(self) -> None:
        """A warning that names the clients which have dropped out; to be said once the channel is closed.

        Raises:
            ExtensionError: E788 it is all of them.
        """
        gone = {peer.name: peer.abort_reason for peer in self._channel.peers if peer.abort_reason}
        lost = {**self._channel.lost, **gone}  # one may have failed after its rationales were sent
        self._party.metrics.log("fedcot", 0, "clients_lost", len(lost))
        if lost:
            told = "; ".join(f"{name}: {reason}" for name, reason in sorted(lost.items()))
            error = ExtensionError("E788", lost=len(lost), clients=len(self._clients), reasons=told)
            if len(lost) == len(self._clients):
                raise error
            emit("warning", code=error.code, message=str(error))

    def _try(self, client: Agreed, *what: Any) -> None:
        """One exchange with a client, unless it has dropped out or does so meanwhile."""
        if client.peer not in self._channel.peers:
            return
        try:
            self._answer(client, *what)
        except ExtensionError as error:
            if client.peer.name != error.facts.get(_LOST.get(error.code, "")):
                raise
            self._channel.leave_out(client.peer, str(error.facts.get("reason", error.problem)))

    def _answer(
        self,
        client: Agreed,
        rank: int,
        question: Type[Proxies] | Type[Questions],
        answer: Type[Explained] | Type[Rationales],
        salt: int,
    ) -> None:
        """One rationale for each question of a client, as far as the LLM gives one."""
        party, config = self._party, self._party.config
        party.phase("fedcot", f"waiting for the questions of {client.peer.name}")
        message = self._channel.receive(client.peer, question, 0)
        check_questions(message, client.peer.name)
        party.phase("fedcot", f"writing rationales for {client.peer.name}")
        made = explain(
            message.texts(),
            client.choices,
            [f"{client.peer.name}/{code}" for code in message.codes.tolist()],
            self._engine,
            self._prompts,
            config.rationale,
            seed=derived_seed(config.seed, salt, rank),
            heartbeat=lambda _: self._while_served(client),
        )
        texts = pack_texts(message.codes[made.codes], made.texts)
        dropped = {reason: str(count) for reason, count in made.dropped.items()}
        reply = answer(**texts, dropped=dropped, note=printable(made.note), unfinished=made.unfinished.astype(np.uint8))
        self._while_served(client)
        self._channel.send(client.peer, reply, 0)
        name = client.peer.name.replace(" ", "_")
        party.metrics.log("fedcot", 0, f"{question.name}_{name}", len(message.codes))
        party.metrics.log("fedcot", 0, f"{answer.name}_{name}", len(made.texts))
        party.metrics.log("fedcot", 0, f"{question.name}_shortened_{name}", made.shortened)

    def _while_served(self, client: Agreed) -> None:
        """A sign of life, as long as the client is there: nobody needs what is written for one that is not.

        Raises:
            ExtensionError: E303 it has aborted.
        """
        self._channel.heartbeat("writing rationales")
        if client.peer not in self._channel.peers:
            raise ExtensionError("E303", party=client.peer.name, reason=self._channel.lost[client.peer.name])
