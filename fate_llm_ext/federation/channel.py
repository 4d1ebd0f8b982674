"""A party's connection to its peers: ordered messages with deadlines, heartbeats and abort.

FATE's receive has no timeout and does not notice a lost party. So each direction between two parties
is one numbered sequence of frames. A frame is data, a heartbeat ("I am alive, training, 12 of 80"),
an abort ("I failed, because ...") or the closing word. One thread per peer reads that sequence ahead;
the caller waits with a limit on the peer's *silence*, so slow is fine and dead is noticed, and an
abort reaches whoever waits, for whatever message.

Two variable names serve a whole job (one per direction), because each new name costs time on a broker
and because a broker connection must not be shared by the sending and the receiving thread.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import struct
import threading
import time
from typing import Any, Dict, List, Optional, Sequence, Type, TypeVar

from fate_llm_ext import worker
from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, decode, encode
from fate_llm_ext.federation.queues import Broker, open_all
from fate_llm_ext.progress import emit

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=WireMessage)

_FRAME = struct.Struct("<B?")  # kind, more frames of this message follow
_DATA, _HEARTBEAT, _ABORT, _BYE = range(4)
# FATE splits larger values into a table, at twice the bytes; two frames are cheaper.
_PAYLOAD_BYTES = (1 << 20) - 8192
_READ_AHEAD = 2
_TEXT_LENGTH = 2_000  # of what a peer says about itself
_PASSED_ON = re.compile(r"(?P<party>(?:guest|host|arbiter) \S+) stopped: (?P<reason>.*)")
_POLL_SECONDS = 0.2
_LINGER_SECONDS = 8.0
_SILENT_HEARTBEATS = 3  # missed ones, before anything is said about it


def context_of(ctx: Any) -> Any:
    """The part of FATE's context that a channel's messages are under."""
    return ctx.sub_ctx("fate_llm_ext")


def abort_frame(reason: str) -> bytes:
    """The frame that tells a peer why this party stops."""
    return _FRAME.pack(_ABORT, False) + reason.encode()[:10_000]


class Peer:
    """One remote party: its sequence counters and what its reading thread delivered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent = 0
        self.unsure = False  # whether its last frame went out
        self.received = 0
        self.inbox: queue.Queue[bytes] = queue.Queue(_READ_AHEAD)
        self.last_sign = time.monotonic()
        self.doing = "nothing yet"
        self.heard = False
        self.closed = False
        self.abort_reason = ""
        self.broken = ""

    def __repr__(self) -> str:
        return f"Peer({self.name})"


class Channel:
    """Messages between this party and its peers over FATE's federation.

    Clients (guest, hosts) have the arbiter as their only peer; the arbiter has all clients.

    Args:
        ctx: FATE's context of the task.
        network: silence limits and heartbeat interval.

    Attributes:
        doing: what this party was last busy with.
        lost: name -> reason of each peer that was left out, or has not said goodbye.
    """

    def __init__(self, ctx: Any, network: NetworkConfig) -> None:
        self._network = network
        self._ctx = context_of(ctx)
        role, party_id = ctx.federation.local_party
        self.local = f"{role} {party_id}"
        self.is_arbiter = role == "arbiter"
        names = [tuple(party) for party in ctx.federation.parties]
        # Sorted, so that a tie between two clients does not depend on the order in which a job lists them.
        wanted = sorted(p for p in names if (p[0] != "arbiter") == self.is_arbiter)
        self.peers: List[Peer] = [Peer(f"{r} {i}") for r, i in wanted]
        self._ranks: Dict[str, int] = {f"{r} {i}": names.index((r, i)) for r, i in wanted}
        self._send_name = "to_clients" if self.is_arbiter else "to_arbiter"
        self._receive_name = "to_arbiter" if self.is_arbiter else "to_clients"
        self._last_heartbeat = -math.inf  # the first one always goes out: a party that hangs at once is named with it
        self._finished = False
        self._aborted = False
        self._sending = threading.RLock()
        self.doing = "starting"
        self._silent = ""
        self._tolerant = False
        self.lost: Dict[str, str] = {}
        self.bytes_sent = 0
        self.bytes_received = 0
        open_all(ctx.federation, wanted, (self._send_name, self._receive_name))
        self._broker = Broker(ctx.federation, network.silence_seconds)
        worker.note(channel=self._send_name, sent=dict.fromkeys(self._ranks.values(), 0))
        for peer in self.peers:
            threading.Thread(target=self._read, args=(peer,), name=f"from {peer.name}", daemon=True).start()

    # -- sending -----------------------------------------------------------------------------------

    def send(self, peer: Peer, message: WireMessage, round: int) -> None:
        """Send a message; returns when FATE has taken it."""
        blob = encode(message)
        parts = [blob[i : i + _PAYLOAD_BYTES] for i in range(0, len(blob), _PAYLOAD_BYTES)]
        for number, part in enumerate(parts):
            self._put(peer, _DATA, part, more=number + 1 < len(parts))
        self.bytes_sent += len(blob)
        emit("message", direction="sent", peer=peer.name, name=message.name, round=round, bytes=len(blob))

    def heartbeat(self, doing: str) -> None:
        """Tell every peer what this party is busy with, at most once per heartbeat interval.

        To be called from the main thread, between steps: a process that hangs must fall silent.

        Raises:
            ExtensionError: E303 if a peer has aborted, so that a busy party stops within a step.
        """
        if self._aborted:  # a reading thread has passed on what a peer said: this party stops, too
            self._raise_if_aborted()
        if self._finished:
            return
        self.doing = doing
        worker.note(doing=doing)
        self._raise_if_aborted()
        now = time.monotonic()
        if now - self._last_heartbeat < self._network.heartbeat_seconds:
            return
        self._last_heartbeat = now
        for peer in self.peers:  # also to those that have said goodbye: they wait for ours
            self._put(peer, _HEARTBEAT, doing.encode())

    def tolerate(self) -> None:
        """From now on leave out a peer that aborts while nobody waits for it: for peers that do not need each other."""
        self._tolerant = True
        emit("tolerant")  # who watches the parties is to let the others finish

    def leave_out(self, peer: Peer, reason: str) -> None:
        """Go on without a peer: it is told so, in case it lives, and nobody waits for it any longer."""
        if peer in self.peers:
            self.peers.remove(peer)
            self.lost[peer.name] = reason
            self._tell(peer, f"{self.local} goes on without it: {reason}")

    def abort(self, reason: str) -> None:
        """Tell every peer that this party has failed, so that none of them waits for it."""
        with self._sending:
            if self._finished:
                return
            self._finished = self._aborted = True
            self._broker.seconds = 0.0  # what failed may be the way to the others
            for peer in self.peers:
                self._tell(peer, reason)

    def linger(self) -> None:
        """Under FATE Flow, after an abort: wait a little until the peers have answered it with theirs.

        When this process has ended, FATE Flow kills those of the others, also one that has still to open its channel
        and would not learn why.
        """
        deadline = time.monotonic() + _LINGER_SECONDS
        while worker.current() is not None and time.monotonic() < deadline:
            deaf = [p for p in self.peers if not (p.closed or p.abort_reason or p.broken)]
            if all(self._silence(peer) > self._limit(peer) for peer in deaf):
                return
            time.sleep(0.05)

    def _tell(self, peer: Peer, reason: str) -> None:
        try:
            twice = peer.unsure  # the last frame may have gone out, or its number may be what the peer waits for
            for _ in range(2 if twice else 1):
                self._put(peer, _ABORT, abort_frame(reason)[_FRAME.size :])
        except Exception:  # the peer, or the way to it, may be what failed
            logger.warning("could not tell %s about the abort", peer.name, exc_info=True)

    def close(self) -> None:
        """Say goodbye to every peer and wait until all have done so, so that no sequence is left unread.

        A peer that still works is waited for as long as it gives signs of life.
        """
        self._finished = True
        for peer in self.peers:
            self._put(peer, _BYE, b"")
            self._grant_time(peer)
        while waiting := [p for p in self.peers if not (p.closed or p.abort_reason or p.broken)]:
            lost = [p for p in waiting if self._silence(p) > self._limit(p)]
            if lost == waiting:
                self.lost.update({p.name: f"silent for {self._silence(p):.0f} s" for p in lost})
                names = ", ".join(f"{p.name} ({self.lost[p.name]})" for p in lost)
                logger.warning("closed without the goodbye of %s", names)
                return
            time.sleep(0.01)

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, peer: Peer, expected: Type[M], round: int) -> M:
        """Wait for the peer's next message, which must be of type ``expected``.

        Raises:
            ExtensionError: E301 for an invalid message, E303 if any peer aborted, E304 if the awaited
                peer is silent for too long, E305 if reading from it failed, E865 or E866 if the message broker
                of this site is away for too long or has lost a message.
        """
        self._grant_time(peer)
        started = said = time.monotonic()
        while True:
            try:
                blob = peer.inbox.get(timeout=_POLL_SECONDS)
                break
            except queue.Empty:
                self._raise_if_lost(peer, expected.name)
            now = time.monotonic()
            self.heartbeat(f"waiting for {peer.name}")
            if now - said >= self._network.heartbeat_seconds:
                said = now
                emit("waiting", peer=peer.name, message=expected.name, seconds=int(now - started), doing=peer.doing)
        peer.heard = True
        self.bytes_received += len(blob)
        emit("message", direction="received", peer=peer.name, name=expected.name, round=round, bytes=len(blob))
        return decode(blob, expected, peer.name)

    def receive_all(self, expected: Type[M], round: int, peers: Sequence[Peer] | None = None) -> List[M]:
        """One message from each peer, in the order of the peers."""
        return [self.receive(peer, expected, round) for peer in (self.peers if peers is None else peers)]

    def wait_until(self, finished: threading.Event, message: str, doing: str) -> None:
        """Wait for an exchange that another thread makes with FATE itself, as :meth:`receive` waits.

        Args:
            finished: set by that thread.
            message: what the exchange is called.
            doing: what this party tells the others meanwhile; all of them say the same when they are in it.

        Raises:
            ExtensionError: E303 if any peer aborted, E304 if one is silent for too long, E305 if one cannot be
                read or if all have been in the exchange for longer than a start may take, which means that it
                is stuck.
        """
        for peer in self.peers:
            self._grant_time(peer)
        started = said = now = time.monotonic()
        together = math.inf
        while not finished.wait(_POLL_SECONDS):
            for peer in self.peers:
                self._raise_if_lost(peer, message, finished_is_lost=False)
            self.heartbeat(doing)
            now = time.monotonic()
            # Only the arbiter knows what all others do.
            together = min(together, now) if self.is_arbiter and all(p.doing == doing for p in self.peers) else math.inf
            if now - together > self._network.startup_seconds:
                names = ", ".join(peer.name for peer in self.peers)
                reason = f"all parties have been in it for {int(now - together)} s"
                raise ExtensionError("E305", party=names, message=message, reason=reason)
            if now - said >= self._network.heartbeat_seconds:
                said = now
                names = ", ".join(f"{peer.name} ({peer.doing})" for peer in self.peers)
                emit("waiting", peer=names, message=message, seconds=int(now - started), doing=doing)

    def _raise_if_lost(self, awaited: Peer, message: str, finished_is_lost: bool = True) -> None:
        self._raise_if_aborted(awaited)
        reason = awaited.broken or ("it has already finished" if awaited.closed and finished_is_lost else "")
        # Its last message may have come in since the caller looked.
        if reason and awaited.inbox.empty():
            raise ExtensionError("E305", party=awaited.name, message=message, reason=reason)
        silence, limit = self._silence(awaited), self._limit(awaited)
        self._note_silence(awaited, silence)
        if silence > limit:
            self._raise_if_the_broker_failed(awaited, message, silence)
            raise ExtensionError(
                "E304",
                party=awaited.name,
                message=message,
                silence=int(silence),
                limit=int(limit),
                doing=awaited.doing,
                setting="silence_seconds" if awaited.heard else "startup_seconds",
            )

    def _note_silence(self, awaited: Peer, silence: float) -> None:
        """Under FATE Flow, another party may lose patience first, and then this one is killed."""
        silent = awaited.name if silence > _SILENT_HEARTBEATS * self._network.heartbeat_seconds else ""
        if silent != self._silent:
            self._silent = silent
            worker.note(silent=silent, since=time.time() - silence)

    def _raise_if_the_broker_failed(self, awaited: Peer, message: str, silence: float) -> None:
        """Nothing was heard of a peer: is it the peer?"""
        if reason := self._broker.away():
            raise ExtensionError("E865", seconds=int(silence), reason=reason)
        role, party_id = awaited.name.split(" ", 1)
        if count := self._broker.lost((role, party_id), self._receive_name):
            raise ExtensionError("E866", party=awaited.name, message=message, count=count)

    def _raise_if_aborted(self, awaited: Optional[Peer] = None) -> None:
        for peer in list(self.peers):
            if peer.abort_reason and self._tolerant and peer is not awaited:
                self.leave_out(peer, peer.abort_reason)
            elif peer.abort_reason:
                raise self._stopped(peer)

    def _limit(self, peer: Peer) -> float:
        """Longest silence of a peer: before its first message it starts up, which may take minutes in one step."""
        silence = self._network.silence_seconds
        return silence if peer.heard else max(silence, self._network.startup_seconds)

    @staticmethod
    def _silence(peer: Peer) -> float:
        return time.monotonic() - peer.last_sign

    def _grant_time(self, peer: Peer) -> None:
        """Half of the limit is left from now on, even if the peer fell silent while nobody waited for it."""
        peer.last_sign = max(peer.last_sign, time.monotonic() - self._limit(peer) / 2)

    def _pass_on(self, peer: Peer) -> None:
        """Under FATE Flow, report and pass on an abort at once: in two seconds all parties of the job are killed."""
        if worker.current() is None or self._tolerant or self._finished:
            return
        error = self._stopped(peer)
        worker.report(str(error))
        self.abort(f"{error.facts['party']} stopped: {error.facts['reason']}")

    def _stopped(self, peer: Peer) -> ExtensionError:
        """E303, of the party where the trouble began: the arbiter, and nobody else, passes on what it heard."""
        told = None if self.is_arbiter else _PASSED_ON.match(peer.abort_reason)
        return ExtensionError(
            "E303", **(told.groupdict() if told else {"party": peer.name, "reason": peer.abort_reason})
        )

    # -- frames ------------------------------------------------------------------------------------

    def _put(self, peer: Peer, kind: int, payload: bytes, more: bool = False) -> None:
        rank = self._ranks[peer.name]
        with self._sending:
            party = self._ctx.indexed_ctx(peer.sent).parties[rank]
            worker.note(sending={rank: peer.sent})
            peer.unsure = True
            party.put(self._send_name, _FRAME.pack(kind, more) + payload)
            peer.unsure = False
            peer.sent += 1
            worker.note(sent={rank: peer.sent})

    def _read(self, peer: Peer) -> None:
        parts: List[bytes] = []
        try:
            while True:
                party = self._ctx.indexed_ctx(peer.received).parties[self._ranks[peer.name]]
                frame = party.get(self._receive_name)
                peer.received += 1
                peer.last_sign = time.monotonic()
                kind, more = _FRAME.unpack_from(frame)
                payload = frame[_FRAME.size :]
                if kind == _HEARTBEAT:
                    peer.doing = _one_line(payload)
                elif kind == _ABORT:
                    peer.abort_reason = _one_line(payload) or "it gave no reason"
                    self._pass_on(peer)
                    return
                elif kind == _BYE:
                    peer.closed = True
                    return
                else:
                    parts.append(payload)
                    if not more:
                        peer.inbox.put(b"".join(parts))
                        parts = []
        except Exception as error:  # reported by whoever waits for this peer
            logger.warning("reading from %s failed", peer.name, exc_info=True)
            peer.broken = f"{type(error).__name__}: {error}"


def _one_line(text: bytes) -> str:
    """What a peer says, as it may stand in reports, logs and terminals."""
    words = " ".join(text.decode(errors="replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in words[:_TEXT_LENGTH])
