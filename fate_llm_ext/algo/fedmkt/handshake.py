"""Before anything is trained: do all parties run the same job on the same public set?"""

from __future__ import annotations

import json
from typing import Any, Dict

from fate_llm_ext import __version__
from fate_llm_ext.algo.agreement import agree, vocabulary_fields, vocabulary_of
from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.fedmkt.learner import Learner
from fate_llm_ext.algo.fedmkt.protocol import Hello, Welcome
from fate_llm_ext.data.fingerprint import short
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.models.vocabulary import Vocabulary


def greet(channel: Channel, learner: Learner, fingerprint: str) -> Vocabulary:
    """A client introduces itself; returns the arbiter's vocabulary."""
    hello = Hello(
        version=__version__,
        public_rows=len(learner.public),
        public_fingerprint=fingerprint,
        parameters=common_parameters(learner.config),
        **vocabulary_fields(learner.answerer.vocabulary),
    )
    channel.send(channel.peers[0], hello, 0)
    arbiter = channel.peers[0]
    return vocabulary_of(channel.receive(arbiter, Welcome, 0), arbiter.name)


def welcome(channel: Channel, learner: Learner, fingerprint: str) -> Dict[str, Vocabulary]:
    """The arbiter checks every client and answers; returns the clients' vocabularies by peer name.

    Raises:
        ExtensionError: E301 a vocabulary is malformed, E302 public sets differ, E306 parameters differ,
            E307 versions differ.
    """
    vocabularies = {}
    for peer in channel.peers:
        hello = channel.receive(peer, Hello, 0)
        _compare(peer.name, hello, learner, fingerprint)
        vocabularies[peer.name] = vocabulary_of(hello, peer.name)
    for peer in channel.peers:
        channel.send(peer, Welcome(**vocabulary_fields(learner.answerer.vocabulary)), 0)
    return vocabularies


def common_parameters(config: FedMKTConfig) -> Dict[str, str]:
    """The parameters that every party must have alike, as text."""
    values: Dict[str, Any] = {
        "rounds": config.rounds,
        "seed": config.seed,
        "direction": config.direction,
        "compare": "paper" in config.compare,
        "task": config.task.dict(exclude={"columns", "max_length"}),
        "distill.temperature": config.distill.temperature,
        "distill.calibration_share": config.distill.calibration_share,
        "public.labelled": config.public.labelled,
        "public.unlabelled": config.public.unlabelled,
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def _compare(party: str, hello: Hello, learner: Learner, fingerprint: str) -> None:
    agree(party, hello.version, hello.parameters, common_parameters(learner.config))
    if hello.public_fingerprint != fingerprint:
        raise ExtensionError(
            "E302",
            party=party,
            got=hello.public_rows,
            got_hash=short(hello.public_fingerprint),
            expected=len(learner.public),
            expected_hash=short(fingerprint),
        )
