"""Before anything is charged or trained: do both ends of each pair run the same job?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from fate_llm_ext import __version__
from fate_llm_ext.algo.agreement import agree
from fate_llm_ext.algo.control import clean
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.protocol import Hello, Welcome
from fate_llm_ext.federation.channel import Channel, Peer

_NO_GUARANTEE = -1.0  # ε = ∞ on the wire, which knows finite numbers only


@dataclass(frozen=True)
class Agreed:
    """What the arbiter knows about a client after the handshake.

    Attributes:
        labels: the client's public labels.
        description: what its texts are.
        epsilon: what its release will cost, ``inf`` without differential privacy.
        delta: at this δ.
    """

    peer: Peer
    labels: Tuple[str, ...]
    description: str
    epsilon: float
    delta: float


def greet(channel: Channel, config: FDKTConfig, guarantee: Tuple[float, float]) -> Welcome:
    """A client introduces itself.

    Args:
        guarantee: ε and δ of what it will release.
    """
    epsilon, delta = guarantee
    hello = Hello(
        version=__version__,
        parameters=common_parameters(config),
        epsilon=epsilon if math.isfinite(epsilon) else _NO_GUARANTEE,
        delta=delta,
        labels=[clean(value) for value in config.control.values],
        description=config.description,
    )
    channel.send(channel.peers[0], hello, 0)
    return channel.receive(channel.peers[0], Welcome, 0)


def welcome(channel: Channel, config: FDKTConfig, llm: str) -> List[Agreed]:
    """The arbiter checks every client and answers.

    Args:
        llm: what the job calls the LLM.

    Raises:
        ExtensionError: E301 a message is malformed, E306 parameters differ, E307 versions differ.
    """
    agreed: List[Agreed] = []
    for peer in channel.peers:
        hello = channel.receive(peer, Hello, 0)
        agree(peer.name, hello.version, hello.parameters, common_parameters(config))
        epsilon = math.inf if hello.epsilon < 0 else hello.epsilon
        agreed.append(Agreed(peer, tuple(hello.labels), hello.description, epsilon, hello.delta))
    for peer in channel.peers:
        channel.send(peer, Welcome(len(channel.peers), llm), 0)
    return agreed


def common_parameters(config: FDKTConfig) -> Dict[str, str]:
    """The parameters that a client and the arbiter must have alike, as text."""
    values: Dict[str, Any] = {
        "synthesis.samples": config.synthesis.samples,
        "augmentation.samples": config.augmentation.samples,
        "feedback.rounds": config.feedback.rounds,
    }
    return {name: json.dumps(value) for name, value in values.items()}
