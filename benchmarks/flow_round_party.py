"""One party of the channel's measurement: opens, exchanges, closes, cleans up, and says how long each took.

    echo '{"engine": ..., "how": "channel" or "fate", "party": [role, id], ...}' | python flow_round_party.py

The arbiter sends to each client and hears from it again. ``fate`` is FATE's own put and get from one thread,
``channel`` this package's. The last line is one JSON object; times in seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import requests
from fate.arch.computing.backends.standalone import CSession
from fate.arch.context import Context

from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.federation.codec import WireMessage, array

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Load(WireMessage):
    """Bytes without meaning."""

    name: ClassVar[str] = "load"
    data: np.ndarray = array("u1", "B")  # noqa: RUF009  declares a field, as dataclasses.field() does


class Raw:
    """FATE's own messages, under one name for each direction."""

    def __init__(self, ctx: Context, arbiter: bool) -> None:
        self._ctx = ctx.sub_ctx("raw")
        self._names = ("there", "back") if arbiter else ("back", "there")
        self._numbers: Counter[tuple[str, int]] = Counter()

    def _party(self, direction: str, rank: int) -> Any:
        number = self._numbers[direction, rank]
        self._numbers[direction, rank] += 1
        return self._ctx.indexed_ctx(number).parties[rank]

    def send(self, rank: int, data: bytes) -> None:
        """Give FATE a message for the party."""
        self._party("put", rank).put(self._names[0], data)

    def receive(self, rank: int) -> bytes:
        """The party's next message."""
        return self._party("get", rank).get(self._names[1])


class Ours:
    """The same over this package's channel."""

    def __init__(self, ctx: Context) -> None:
        self._channel = Channel(ctx, NetworkConfig())
        self._peers = {ctx.federation.parties.index(tuple(peer.name.split())): peer for peer in self._channel.peers}

    def send(self, rank: int, data: bytes) -> None:
        """Send a message."""
        self._channel.send(self._peers[rank], Load(np.frombuffer(data, dtype=np.uint8)), 0)

    def receive(self, rank: int) -> bytes:
        """The party's next message."""
        return self._channel.receive(self._peers[rank], Load, 0).data.tobytes()

    def close(self) -> None:
        """Say goodbye."""
        self._channel.close()


def federation(spec: dict[str, Any], session: CSession, party: tuple[str, str], parties: list[tuple[str, str]]) -> Any:
    """FATE's federation of one party."""
    if spec["engine"] == "standalone":
        from fate.arch.federation.backends.standalone import StandaloneFederation

        return StandaloneFederation(session, spec["session"], party, parties)
    from fate.arch.federation.backends.rabbitmq import RabbitmqFederation

    broker = spec["brokers"][party[1]]
    return RabbitmqFederation.from_conf(
        federation_session_id=spec["session"],
        computing_session=session,
        party=party,
        parties=parties,
        route_table={name: {"host": one["host"], "port": one["port"]} for name, one in spec["brokers"].items()},
        host=broker["host"],
        port=broker["port"],
        mng_port=broker["management_port"],
        base_user="fate",
        base_password=broker["password"],
        mode="replication",
        max_message_size=None,
        rabbitmq_run={},
        connection={},
    )


def exchange(line: Any, ranks: list[int], first: bool, size: int) -> None:
    """One round trip with each of the parties; ``first``: this one begins."""
    for rank in ranks:
        if first:
            line.send(rank, bytes(size))
            line.receive(rank)
        else:
            line.receive(rank)
            line.send(rank, bytes(size))


def main(spec: dict[str, Any]) -> None:
    """Run the party and print its figures."""
    asked: Counter[str] = Counter()
    send = requests.Session.request

    def counted(self: Any, method: str, *given: Any, **named: Any) -> Any:
        asked[method.upper()] += 1
        return send(self, method, *given, **named)

    requests.Session.request = counted
    party, parties = tuple(spec["party"]), [tuple(one) for one in spec["parties"]]
    arbiter = party[0] == "arbiter"
    ranks = [rank for rank, one in enumerate(parties) if (one[0] == "arbiter") != arbiter]
    figures: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return work()
        finally:
            figures[name] = time.perf_counter() - began
            figures[f"{name}_cpu"] = time.process_time() - cpu

    session = CSession(session_id=f"{spec['session']}_{party[0]}", data_dir=spec["data"], options={"task_cores": 1})
    import torch  # noqa: F401  FATE imports it with the first message, in every job

    made = timed("connect", lambda: federation(spec, session, party, parties))
    ctx = Context(computing=session, federation=made)
    line = timed("open", lambda: Ours(ctx) if spec["how"] == "channel" else Raw(ctx, arbiter))
    timed("first", lambda: exchange(line, ranks, arbiter, 100))
    for name, size, times in (("small", 100, spec["small"]), ("megabyte", MEGABYTE, spec["megabyte"])):
        laps, cpu = [], time.process_time()
        for _ in range(times):
            began = time.perf_counter()
            exchange(line, ranks, arbiter, size)
            laps.append((time.perf_counter() - began) / len(ranks))
        figures[name], figures[f"{name}_cpu"] = (
            statistics.median(laps),
            (time.process_time() - cpu) / times / len(ranks),
        )
    if spec["how"] == "channel":
        timed("close", line.close)
    figures["names"] = sorted({name for name, *_ in made._push_history | made._pull_history})
    figures["puts"] = len(made._push_history)
    figures["requests"] = sum(asked.values())
    # The others may still be reading; FATE Flow cleans up after the job as well.
    time.sleep(1.0)
    timed("destroy", made.destroy)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(json.load(sys.stdin))  # not as an argument: it holds passwords
