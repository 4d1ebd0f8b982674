"""FATE's transports, made ready for one sending and several reading threads, and for a broker that restarts.

FATE opens tables (standalone engine) and makes queues (message brokers) on first use. Done by several threads at once,
either goes wrong now and then; so all of them are opened here, one after the other.
"""

from __future__ import annotations

import importlib
import logging
import socket
import time
from typing import Any, Sequence, Set, Tuple

from fate_llm_ext.errors import ExtensionError

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 1  # between brokers; RabbitMQ's own 5 s are the whole time of a short job
_ATTEMPTS = 20
_PAUSE_SECONDS = 1.0
_SEPARATOR = "^"  # of FATE's names of received messages


class Broker:
    """This site's RabbitMQ, for a federation over it: sending and reading outlive its restart.

    FATE's own reader raises then, its sender gives up after 10 s. What a broker held does not outlive its restart; a
    reader cannot tell a lost message from one that is yet to come, so :meth:`lost` counts what came after it.
    With another transport, nothing here does anything.

    Args:
        federation: FATE's federation of the task.
        seconds: how long the broker may be away while a message is sent.
    """

    def __init__(self, federation: Any, seconds: float) -> None:
        self._federation = federation if hasattr(federation, "_rabbit_manager") else None
        self.seconds = seconds
        self._handed: Set[str] = set()
        if self._federation is not None:
            self._errors = importlib.import_module("pika.exceptions")
            self._push = federation._push_bytes
            federation._push_bytes = self._send
            federation._receive_obj = self._receive

    def away(self) -> str:
        """Why the broker does not answer, "" if it does."""
        if self._federation is None:
            return ""
        try:
            socket.create_connection((self._federation._mq.host, self._federation._mq.port), timeout=2).close()
        except OSError as error:
            return str(error)
        return ""

    def lost(self, party: Tuple[str, str], name: str) -> int:
        """How many messages of a party under a name are here though an earlier one, which should be, is not."""
        if self._federation is None:
            return 0
        start, end = name + _SEPARATOR, _SEPARATOR.join(("", party[1], party[0]))
        return sum(key.startswith(start) and key.endswith(end) for key in list(self._federation._message_cache))

    def _send(self, *arguments: Any, **named: Any) -> None:
        began = time.monotonic()
        while True:
            try:
                self._push(*arguments, **named)
                return
            except (self._errors.AMQPError, OSError) as error:
                # A repeated message that had gone out is no matter: its receiver knows it by name and number.
                if time.monotonic() - began > self.seconds:
                    reason = " ".join(f"{type(error).__name__} {error}".split())
                    raise ExtensionError("E865", seconds=int(time.monotonic() - began), reason=reason) from error
                logger.warning("the message broker does not take a message", exc_info=True)
                time.sleep(_PAUSE_SECONDS)

    def _receive(self, line: Any, name: str, tag: str) -> bytes:
        """One message of a queue, by name and tag; the others in it are kept for later.

        As long as nobody else ends the waiting, it lasts. A consumer is kept between messages, which saves each of
        them two round trips to the broker.
        """
        assert self._federation is not None
        received = self._federation._message_cache
        sender = (line._dst_party_id, line._dst_role)
        wanted = _SEPARATOR.join((name, tag, *sender))
        while wanted not in received:
            try:
                line._get_channel()
                for delivery, properties, body in line._channel.consume(line._receive_queue_name):
                    key = _SEPARATOR.join((properties.message_id, properties.correlation_id, *sender))
                    if key not in self._handed:  # a sender repeats what it was not told had arrived
                        received[key] = body  # first: an acknowledgement may fail, and the broker forgets after it
                    line._channel.basic_ack(delivery.delivery_tag)
                    if wanted in received:
                        break
            except (self._errors.ChannelClosedByBroker, self._errors.ProbableAuthenticationError):
                raise  # the queue or the user is gone: this task has been cleaned up
            except (self._errors.AMQPError, OSError):
                logger.warning("the message broker cannot be read", exc_info=True)
                time.sleep(_PAUSE_SECONDS)
        self._handed.add(wanted)
        message: bytes = received.pop(wanted)
        return message


def open_all(federation: Any, parties: Sequence[Tuple[str, str]], names: Sequence[str]) -> None:
    """Open what messages under ``names`` to and from ``parties`` travel through.

    Raises:
        ExtensionError: E308 if the broker of this site does not give a queue.
    """
    _open_tables(federation)
    if not hasattr(federation, "_get_or_create_topic"):
        return
    from fate.arch.federation.message_queue import Party

    manager = getattr(federation, "_rabbit_manager", None)
    if manager is not None:
        manager.runtime_config.setdefault("upstream", {}).setdefault("reconnect-delay", RECONNECT_SECONDS)
    for role, party_id in parties:
        for name in names:
            _open_queue(federation, Party(role, party_id), name, manager)


def _open_queue(federation: Any, party: Any, name: str, manager: Any) -> None:
    """Have FATE make the queues of one name, until they are there: it does not look whether its request was granted.

    A queue that is missing when the first message is sent swallows that message without a word, and the receiver
    waits for it for ever: RabbitMQ may refuse a queue in a virtual host that it has only just made.
    """
    for attempt in range(_ATTEMPTS):
        _, _, pair = federation._get_or_create_topic(party, name)
        if manager is None:
            return
        missing = [queue for queue in (pair.send, pair.receive) if not manager.get_queue(pair.vhost, queue).ok]
        if not missing:
            return
        logger.info("attempt %d: no queue yet for %s", attempt + 1, missing)
        federation._topic_map.pop((party, name), None)
        time.sleep(0.1 + 0.1 * attempt)
    raise ExtensionError("E308", party=f"{party.role} {party.party_id}", queues=" and ".join(missing))


def _open_tables(federation: Any) -> None:
    """Have FATE's standalone engine open this party's two tables now.

    It would open them on first use, in each reading thread, and LMDB allows a process to open a table once
    only: with two peers or more, reading fails now and then ("mdb_txn_begin: Invalid argument").
    """
    tables = getattr(getattr(federation, "_federation", None), "_meta", None)
    if tables is not None:
        tables.get_status(b"none")
        tables.get_object(b"none")
