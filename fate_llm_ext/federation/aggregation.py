"""Means of arrays over the data owners by FATE's secure aggregation, with the deadlines of our channel.

Each pair of owners agrees on a secret (Diffie-Hellman) and adds masks made of it that cancel in the sum, so
the arbiter sees masked arrays and their mean. FATE's masks are floating-point numbers of limited size: they
hide a value well, not perfectly; nothing here relies on them for a privacy guarantee.

Two names on the wire serve a whole job: FATE's protocol is used itself, not the aggregator that FATE builds on it,
which makes six, one pair for weights that are always equal here and one for losses.

FATE's receive waits for ever. Its calls therefore run in a thread of their own, while the main thread keeps
the channel alive and ends the wait when a peer aborts or falls silent.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.federation.queues import open_all
from fate_llm_ext.progress import emit

WEIGHTS_MESSAGE = "aggregation"
KEYS_MESSAGE = "aggregation_keys"
DOING = "secure aggregation"

_WEIGHT_BYTES = 8  # with each masked message goes how much the owner weighs
_MASKED_BYTES = 16  # per number: FATE sends a masked integer and a masked fraction, in double precision
_MEAN_BYTES = 8
# FATE sends what is larger than 1 MiB as a table: four new names on the wire, twice the bytes, a copy in memory.
_PIECE = 60_000  # numbers in one message
_MOST_PIECES = 1 << 20

# Each new name is a set of queues on every broker: what owners send to the arbiter goes under that of their keys, which
# go from owner to owner.
_OWNERS_NAME = "dh_pubkey"
_NAMES = (_OWNERS_NAME, "aggregated_values")

_LARGEST = float(np.finfo(np.float32).max)  # the mean becomes weights again
_SAME = 1e-3  # masks leave rounding errors


class SecureMean:
    """The mean over all owners, round by round; the arbiter has one too and serves it.

    Args:
        ctx: FATE's context of the task.
        channel: to the peers; all of them must have been heard of, because tables of FATE's standalone
            engine are opened on first use, which is not safe in two threads.

    Attributes:
        bytes_sent: of masked arrays, means and keys, without FATE's packing.
        bytes_received: likewise.
    """

    def __init__(self, ctx: Any, channel: Channel) -> None:
        self._ctx = ctx.sub_ctx("fate_llm_ext_aggregation")
        self._channel = channel
        self._aggregator: Any = None
        self._exchanges = 0
        parties = [tuple(party) for party in ctx.federation.parties]
        self._local = tuple(ctx.federation.local_party)
        self._ranks = [rank for rank, party in enumerate(parties) if party[0] != "arbiter"]
        self._others = [parties[rank] for rank in self._ranks if parties[rank] != self._local]
        self._partners = [party for party in parties if (party[0] == "arbiter") != channel.is_arbiter]
        self.bytes_sent = 0
        self.bytes_received = 0

    def average(self, arrays: Sequence[np.ndarray], round: int) -> List[np.ndarray]:
        """An owner's part: give its arrays, get the mean.

        Args:
            arrays: of any shapes, the same at all owners; FATE computes in double precision.
            round: each round once.

        Returns:
            The means, float64.

        Raises:
            ExtensionError: E301 if the owners' arrays have different shapes or the mean is not finite in float32,
                E303, E304 and E305 as in :meth:`Channel.receive`, E308 if the broker does not give a queue.
        """
        shapes = [np.shape(one) for one in arrays]
        given = np.concatenate([np.zeros(0), *(np.asarray(one, dtype=np.float64).ravel() for one in arrays)])
        pieces = [given[start : start + _PIECE] for start in range(0, given.size, _PIECE)]
        # FATE would add up what does not belong together.
        head = np.array([_digest(shapes), float(len(pieces))])
        if self._aggregator is None:
            self._join(round)
        arbiter, size = self._channel.peers[0].name, head.size + given.size
        heads = self._exchange(head)
        if heads.shape != head.shape or not np.abs(heads - head).max() < _SAME:
            reason = f"the {len(shapes)} arrays of this owner do not have the shapes of another owner's"
            raise ExtensionError("E301", sender=arbiter, message=WEIGHTS_MESSAGE, reason=reason)
        means = np.concatenate([np.zeros(0), *(self._exchange(piece) for piece in pieces)])
        sent = _MASKED_BYTES * size + _WEIGHT_BYTES * (1 + len(pieces))
        self._count("sent", arbiter, WEIGHTS_MESSAGE, round, sent)
        self._check(means, given.size)
        self._count("received", arbiter, WEIGHTS_MESSAGE, round, _MEAN_BYTES * size)
        ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(means, ends[:-1]), shapes)]

    def serve(self, round: int) -> None:
        """The arbiter's part: add up what the owners give, hand the mean to all of them. Errors: as :meth:`average`."""
        from fate.arch.protocol.secure_aggregation import SecureAggregatorServer

        if self._aggregator is None:
            open_all(self._ctx.federation, self._partners, _NAMES)
            self._aggregator = SecureAggregatorServer(self._ranks)
            self._aggregator._send_name = _OWNERS_NAME
        head = self._exchange()
        if head.shape != (2,) or not 0.0 <= head[1] <= _MOST_PIECES:
            reason = f"the owners announce {head[1:].tolist()} messages, the limit is {_MOST_PIECES}"
            raise ExtensionError("E301", sender="all owners together", message=WEIGHTS_MESSAGE, reason=reason)
        # Owners whose shapes differ do not go on, so what their mean says of the pieces does not matter.
        pieces = int(np.rint(head[1]))
        size = head.size + sum(self._exchange().size for _ in range(pieces))
        for peer in self._channel.peers:
            received = _MASKED_BYTES * size + _WEIGHT_BYTES * (1 + pieces)
            self._count("received", peer.name, WEIGHTS_MESSAGE, round, received)
            self._count("sent", peer.name, WEIGHTS_MESSAGE, round, _MEAN_BYTES * size)

    def _join(self, round: int) -> None:
        """An owner's queues, and its secrets with all other owners."""
        from fate.arch.protocol.secure_aggregation import SecureAggregatorClient

        open_all(self._ctx.federation, self._partners, _NAMES)
        open_all(self._ctx.federation, self._others, (_OWNERS_NAME,))
        self._aggregator = SecureAggregatorClient()
        self._aggregator._send_name = _OWNERS_NAME
        self._beside(lambda: self._aggregator.dh_exchange(self._ctx, self._ranks))
        self._count_keys(round)

    def _exchange(self, piece: Optional[np.ndarray] = None) -> np.ndarray:
        """One message of each owner and the mean of all; the arbiter gives no ``piece``."""
        context = self._ctx.indexed_ctx(self._exchanges)
        self._exchanges += 1
        if piece is None:
            means = self._beside(lambda: self._aggregator.secure_aggregate(context))
        else:
            weight = 1.0 / len(self._ranks)
            means = self._beside(lambda: self._aggregator.secure_aggregate(context, [piece], weight))
        return np.asarray(means[0], dtype=np.float64)

    def _beside(self, call: Callable[[], Any]) -> Any:
        """The result of a blocking call to FATE, made in a thread that may be left behind."""
        finished = threading.Event()
        results: List[Any] = []
        errors: List[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
                errors.append(error)
            finally:
                finished.set()

        threading.Thread(target=work, name="secure aggregation", daemon=True).start()
        self._channel.wait_until(finished, WEIGHTS_MESSAGE, DOING)
        if errors:
            names = ", ".join(peer.name for peer in self._channel.peers)
            reason = f"{type(errors[0]).__name__}: {errors[0]}"[:300]
            raise ExtensionError("E305", party=names, message=WEIGHTS_MESSAGE, reason=reason) from errors[0]
        return results[0]

    def _check(self, means: np.ndarray, size: int) -> None:
        reason = ""
        if means.shape != (size,):
            reason = f"the mean holds {means.size} numbers, this owner gave {size}"
        elif not (np.abs(means) <= _LARGEST).all():
            reason = "the mean holds NaN, infinite values or numbers beyond single precision"
        if reason:
            sender = self._channel.peers[0].name
            raise ExtensionError("E301", sender=sender, message=WEIGHTS_MESSAGE, reason=reason)

    def _count_keys(self, round: int) -> None:
        from fate.arch.protocol.diffie_hellman import DiffieHellman

        size = len(DiffieHellman().get_public_key())
        for role, party_id in self._others:
            self._count("sent", f"{role} {party_id}", KEYS_MESSAGE, round, size)
            self._count("received", f"{role} {party_id}", KEYS_MESSAGE, round, size)

    def _count(self, direction: str, peer: str, name: str, round: int, size: int) -> None:
        if direction == "sent":
            self.bytes_sent += size
        else:
            self.bytes_received += size
        emit("message", direction=direction, peer=peer, name=name, round=round, bytes=size)


def _digest(shapes: Sequence[Tuple[int, ...]]) -> float:
    """A whole number below 2^20 that is the same for the same shapes."""
    return float(zlib.crc32(repr([tuple(shape) for shape in shapes]).encode()) % (1 << 20))
