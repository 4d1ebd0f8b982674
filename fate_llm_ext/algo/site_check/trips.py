"""Messages there and back between the arbiter and one client, and what they tell about the way between them."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Callable

import numpy as np

from fate_llm_ext.algo.messages import invalid
from fate_llm_ext.algo.site_check.clock import Offset, Stamps, clock_offset
from fate_llm_ext.algo.site_check.protocol import Load, Ping, Pong
from fate_llm_ext.federation.channel import Channel, Peer

Clock = Callable[[], float]


@dataclass(frozen=True)
class Link:
    """The way between the arbiter and a client; seconds, bytes per second (0: no large message was sent)."""

    offset: Offset
    round_trip_min: float
    round_trip_median: float
    bytes_per_second: float


def measure(channel: Channel, peer: Peer, round_trips: int, load: int, clock: Clock = time.time) -> Link:
    """The arbiter's side, with one client.

    Args:
        round_trips: small messages there and back.
        load: bytes of the large message there and back; 0 for none.
        clock: seconds since the epoch.

    Raises:
        ExtensionError: E301 the large message came back as another one.
    """
    stamps, seconds = [], []
    for left in reversed(range(round_trips)):
        began, sent = time.perf_counter(), clock()
        channel.send(peer, Ping(left, load), 0)
        pong = channel.receive(peer, Pong, 0)
        stamps.append(Stamps(sent, pong.received, pong.answered, clock()))
        seconds.append(time.perf_counter() - began)
    rate = _exchange(channel, peer, load) if load else 0.0
    return Link(clock_offset(stamps), min(seconds), statistics.median(seconds), rate)


def answer(channel: Channel, arbiter: Peer, clock: Clock = time.time) -> None:
    """The client's side."""
    ping = Ping(1, 0)
    while ping.left > 0:
        ping = channel.receive(arbiter, Ping, 0)
        received = clock()
        channel.send(arbiter, Pong(received, clock()), 0)
    if ping.load > 0:
        load = channel.receive(arbiter, Load, 0)
        if len(load.blob) != ping.load:
            raise invalid(arbiter.name, Load.name, f"{len(load.blob)} bytes, {ping.load} were announced")
        channel.send(arbiter, load, 0)


def _exchange(channel: Channel, peer: Peer, size: int) -> float:
    """Bytes per second of a large message there and then back, what is lost in waiting included."""
    load = Load(np.frombuffer(os.urandom(size), np.uint8))  # random: nothing on the way can make it smaller
    began = time.perf_counter()
    channel.send(peer, load, 0)
    back = channel.receive(peer, Load, 0)
    seconds = time.perf_counter() - began
    if not np.array_equal(load.blob, back.blob):
        raise invalid(peer.name, Load.name, f"{len(back.blob)} bytes that are not the {size} that were sent")
    return 2 * size / seconds
