"""Means of arrays over the data owners by FATE's secure aggregation, with the deadlines of our channel.

Each pair of owners agrees on a secret (Diffie-Hellman) and adds masks made of it that cancel in the sum, so
the arbiter sees masked arrays and their mean. FATE's masks are floating-point numbers of limited size: they
hide a value well, not perfectly; nothing here relies on them for a privacy guarantee.

FATE's receive waits for ever. Its calls therefore run in a thread of their own, while the main thread keeps
the channel alive and ends the wait when a peer aborts or falls silent.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.progress import emit

WEIGHTS_MESSAGE = "aggregation"
KEYS_MESSAGE = "aggregation_keys"
DOING = "secure aggregation"

_SHARE_BYTES = 8  # an owner tells how much it weighs, and hears its share
_MASKED_BYTES = 16  # per number: FATE sends a masked integer and a masked fraction, in double precision
_MEAN_BYTES = 8

_LARGEST = float(np.finfo(np.float32).max)  # the mean becomes weights again


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
        self._local = tuple(ctx.federation.local_party)
        self._owners = [f"{role} {party_id}" for role, party_id in ctx.federation.parties if role != "arbiter"]
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
                E303, E304 and E305 as in :meth:`Channel.receive`.
        """
        from fate.ml.aggregator import SecureAggregatorClient

        given = [np.asarray(one, dtype=np.float64, order="C") for one in arrays]
        # FATE would add up what does not belong together.
        given.insert(0, np.array([_digest([one.shape for one in given])]))
        if self._aggregator is None:
            self._aggregator = self._beside(
                lambda: SecureAggregatorClient(self._ctx, aggregator_name="mean", aggregate_type="mean")
            )
            self._count_keys(round)
        context = self._ctx.indexed_ctx(round)
        means = self._beside(lambda: self._aggregator.model_aggregation(context, given))
        size = sum(one.size for one in given)
        arbiter = self._channel.peers[0].name
        self._count("sent", arbiter, WEIGHTS_MESSAGE, round, _MASKED_BYTES * size + _SHARE_BYTES)
        self._check(means, given)
        self._count("received", arbiter, WEIGHTS_MESSAGE, round, _MEAN_BYTES * size + _SHARE_BYTES)
        return [np.asarray(one) for one in means[1:]]

    def serve(self, round: int) -> None:
        """The arbiter's part: add up what the owners give, hand the mean to all of them. Errors: as :meth:`average`."""
        from fate.ml.aggregator import SecureAggregatorServer

        if self._aggregator is None:
            self._aggregator = self._beside(lambda: SecureAggregatorServer(self._ctx, aggregator_name="mean"))
        context = self._ctx.indexed_ctx(round)
        means = self._beside(lambda: self._aggregator.model_aggregator.secure_aggregate(context))
        size = sum(int(np.size(one)) for one in means)
        for peer in self._channel.peers:
            self._count("received", peer.name, WEIGHTS_MESSAGE, round, _MASKED_BYTES * size + _SHARE_BYTES)
            self._count("sent", peer.name, WEIGHTS_MESSAGE, round, _MEAN_BYTES * size + _SHARE_BYTES)

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

    def _check(self, means: Any, given: Sequence[np.ndarray]) -> None:
        reason = ""
        if [np.shape(one) for one in means] != [one.shape for one in given] or abs(means[0] - given[0])[0] > 1e-3:
            reason = f"the {len(given) - 1} arrays of this owner do not have the shapes of another owner's"
        elif not all(bool((np.abs(one) <= _LARGEST).all()) for one in means):
            reason = "the mean holds NaN, infinite values or numbers beyond single precision"
        if reason:
            sender = self._channel.peers[0].name
            raise ExtensionError("E301", sender=sender, message=WEIGHTS_MESSAGE, reason=reason)

    def _count_keys(self, round: int) -> None:
        from fate.arch.protocol.diffie_hellman import DiffieHellman

        # FATE makes two sets of masks, one for losses, which are not aggregated here.
        size = 2 * len(DiffieHellman().get_public_key())
        own = f"{self._local[0]} {self._local[1]}"
        for owner in self._owners:
            if owner != own:
                self._count("sent", owner, KEYS_MESSAGE, round, size)
                self._count("received", owner, KEYS_MESSAGE, round, size)

    def _count(self, direction: str, peer: str, name: str, round: int, size: int) -> None:
        if direction == "sent":
            self.bytes_sent += size
        else:
            self.bytes_received += size
        emit("message", direction=direction, peer=peer, name=name, round=round, bytes=size)


def _digest(shapes: Sequence[Tuple[int, ...]]) -> float:
    """A whole number below 2^20 that is the same for the same shapes."""
    return float(zlib.crc32(repr([tuple(shape) for shape in shapes]).encode()) % (1 << 20))
