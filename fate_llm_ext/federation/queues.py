"""FATE's transports, made ready for one sending and several reading threads.

FATE opens tables (standalone engine) and makes queues (message brokers) on first use. Done by several threads at once,
either goes wrong now and then; so all of them are opened here, one after the other.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Sequence, Tuple

from fate_llm_ext.errors import ExtensionError

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 1  # between brokers; RabbitMQ's own 5 s are the whole time of a short job
_ATTEMPTS = 20


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
