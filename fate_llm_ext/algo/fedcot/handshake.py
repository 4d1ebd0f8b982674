"""Before anything is charged or trained: do both ends of each pair run the same job?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from fate_llm_ext import __version__
from fate_llm_ext.algo.agreement import agree
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.protocol import Hello, Welcome
from fate_llm_ext.federation.channel import Channel, Peer

_NO_GUARANTEE = -1.0  # ε = ∞ on the wire, which knows finite numbers only


@dataclass(frozen=True)
class Agreed:
    """What the arbiter knows about a client after the handshake.

    Attributes:
        choices: the client's public list of answers; empty if each of its rows has its own.
        epsilon: per record, of what it will release; ``inf`` without differential privacy.
        delta: at this δ.
        proxies: it will ask about public prompts first.
    """

    peer: Peer
    choices: Tuple[str, ...]
    epsilon: float
    delta: float
    proxies: bool


def greet(channel: Channel, config: FedCoTConfig, guarantee: Tuple[float, float], choices: Sequence[str]) -> Welcome:
    """A client introduces itself.

    Args:
        guarantee: ε and δ of what it will release, per record.
        choices: the task's closed list of answers.
    """
    epsilon, delta = guarantee
    hello = Hello(
        version=__version__,
        parameters=common_parameters(config),
        epsilon=epsilon if math.isfinite(epsilon) else _NO_GUARANTEE,
        delta=delta,
        choices=list(choices),
        proxies=config.perturbation.proxy is not None,
    )
    channel.send(channel.peers[0], hello, 0)
    return channel.receive(channel.peers[0], Welcome, 0)


def welcome(channel: Channel, config: FedCoTConfig, llm: str) -> List[Agreed]:
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
        agreed.append(Agreed(peer, tuple(hello.choices), epsilon, hello.delta, hello.proxies))
    for peer in channel.peers:
        channel.send(peer, Welcome(len(channel.peers), llm), 0)
    return agreed


def common_parameters(config: FedCoTConfig) -> Dict[str, str]:
    """The parameters that a client and the arbiter must have alike, as text."""
    return {"rationale.recorded": json.dumps(config.rationale.recorded)}
