"""Before anything is charged or trained: do all parties run the same job, on the same base model?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from fate_llm_ext import __version__
from fate_llm_ext.algo.agreement import agree, vocabulary_fields, vocabulary_of
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.protocol import Hello, Welcome
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.models.vocabulary import Vocabulary

_NO_VOCABULARY: Dict[str, Any] = {
    "eos_id": -1,
    "blob": np.zeros(0, np.uint8),
    "lengths": np.zeros(0, np.uint16),
    "kind": np.zeros(0, np.uint8),
}


@dataclass(frozen=True)
class Agreed:
    """What the arbiter knows after the handshake.

    Attributes:
        vocabulary: the teacher's, if signals will come in it.
        epsilon: the largest of the owners'. It holds for every record that stands at one owner only; one that stands
            at several pays at each of them, and their runs compose.
        delta: likewise.
    """

    vocabulary: Optional[Vocabulary]
    epsilon: float
    delta: float


def greet(
    channel: Channel, config: DPKDConfig, teacher: str, vocabulary: Vocabulary, guarantee: Tuple[float, float]
) -> Welcome:
    """An owner introduces itself; returns its rank among the owners.

    Args:
        teacher: fingerprint of the base model and of what is trained of it.
        vocabulary: the teacher's; it is sent if the arbiter will get signals in it.
        guarantee: ε and δ of what this owner will release.
    """
    fields = vocabulary_fields(vocabulary) if config.student_at == "arbiter" else _NO_VOCABULARY
    facts: Dict[str, Any] = {"teacher": teacher, "epsilon": guarantee[0], "delta": guarantee[1]}
    hello = Hello(version=__version__, parameters=common_parameters(config), **facts, **fields)
    channel.send(channel.peers[0], hello, 0)
    return channel.receive(channel.peers[0], Welcome, 0)


def welcome(channel: Channel, config: DPKDConfig) -> Agreed:
    """The arbiter checks every owner and answers.

    Raises:
        ExtensionError: E301 the vocabulary is malformed, E306 parameters differ, E307 versions differ, E672 the
            owners' teachers differ.
    """
    hellos: List[Hello] = []
    for peer in channel.peers:
        hello = channel.receive(peer, Hello, 0)
        agree(peer.name, hello.version, hello.parameters, common_parameters(config))
        hellos.append(hello)
    first = channel.peers[0].name
    for peer, hello in zip(channel.peers, hellos):
        if hello.teacher != hellos[0].teacher:
            raise ExtensionError(
                "E672", party=peer.name, got=hello.teacher[:8], other=first, expected=hellos[0].teacher[:8]
            )
    vocabulary = vocabulary_of(hellos[0], first) if config.student_at == "arbiter" else None
    for rank, peer in enumerate(channel.peers):
        channel.send(peer, Welcome(rank, len(channel.peers)), 0)
    return Agreed(vocabulary, max(one.epsilon for one in hellos), max(one.delta for one in hellos))


def common_parameters(config: DPKDConfig) -> Dict[str, str]:
    """The parameters that every party must have alike, as text."""
    values: Dict[str, Any] = {
        "seed": config.seed,
        "rounds": config.rounds,
        "control.values": config.control.values,
        "control.frequencies": config.control.frequencies,
        "control.max_length": config.control.max_length,
        "student_at": config.student_at,
        "teacher_weights": config.teacher_weights,
        "synthesis": config.synthesis.dict(exclude={"batch_size"}),
        "distill.temperature": config.distill.temperature,
        "distill.top_k": config.distill.top_k,
        "distill.on_policy_rounds": config.distill.on_policy_rounds,
        "distill.on_policy_samples": config.distill.on_policy_samples,
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
