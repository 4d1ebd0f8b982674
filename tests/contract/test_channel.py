"""The channel over FATE's own standalone federation: one process per party, contexts as FATE makes them.

The four party processes are started once; every scenario runs under a federation id of its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Dict, List

import numpy as np
import pytest

from fate_llm_ext.algo.session import federated_task, untold
from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel, Peer, _one_line
from fate_llm_ext.federation.codec import WireMessage, array, encode

GUEST, HOST, HOST2, ARBITER = ("guest", "9999"), ("host", "10000"), ("host", "10001"), ("arbiter", "9998")
EVERYONE = [GUEST, HOST, HOST2, ARBITER]
CALM = {"silence_seconds": 60.0, "heartbeat_seconds": 30.0}
Outcome = Dict[str, Any]


@dataclass(frozen=True)
class Numbers(WireMessage):
    name: ClassVar[str] = "numbers"
    label: str
    values: np.ndarray = array("i4", "N")


@dataclass(frozen=True)
class Other(WireMessage):
    name: ClassVar[str] = "other"
    values: np.ndarray = array("i4", "N")


def numbers(label: str, n: int = 3, seed: int = 0) -> Numbers:
    return Numbers(label, np.random.default_rng(seed).integers(0, 1 << 30, n, dtype=np.int32))


# --- what the parties do: executed in their processes ---------------------------------------------------


def nothing(channel: Channel) -> Outcome:
    """Come and go."""
    return {}


def peers(channel: Channel) -> Outcome:
    """Who the peers are, and whether messages go where they should."""
    if channel.is_arbiter:
        for peer in channel.peers:
            channel.send(peer, numbers(f"for {peer.name}"), 0)
        assert [m.label for m in channel.receive_all(Numbers, 0)] == [f"from {p.name}" for p in channel.peers]
    else:
        channel.send(channel.peers[0], numbers(f"from {channel.local}"), 0)
        assert channel.receive(channel.peers[0], Numbers, 0).label == f"for {channel.local}"
    return {"peers": [peer.name for peer in channel.peers]}


def ordered(channel: Channel) -> Outcome:
    """20 messages each way, interleaved with heartbeats; sizes around and beyond one frame."""
    sizes = [0, 1, 5, 250_000, 262_143, 262_144, 400_000, 1_000_000, *([7] * 12)]
    sent = received = 0
    for number, size in enumerate(sizes):
        for peer in channel.peers:
            message = numbers(f"{channel.local} {number}", size, seed=number)
            channel.send(peer, message, number)
            sent += len(encode(message))
        for peer in channel.peers:
            channel.heartbeat("counting")
            got = channel.receive(peer, Numbers, number)
            assert got.label == f"{peer.name} {number}"
            np.testing.assert_array_equal(got.values, numbers("", size, seed=number).values)
            received += len(encode(got))
    assert (channel.bytes_sent, channel.bytes_received) == (sent, received)
    return {"bytes": sent, "frames": [(peer.sent, peer.received) for peer in channel.peers]}


def wait_for_slow_guest(channel: Channel) -> Outcome:
    """The guest works for three times the limit, saying so now and then."""
    if channel.local == "guest 9999":
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            time.sleep(0.05)
            channel.heartbeat("training, step 3 of 9")
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
        for peer in channel.peers:
            channel.send(peer, numbers("thanks"), 0)
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
        channel.receive(channel.peers[0], Numbers, 0)
    return {"doing": [peer.doing for peer in channel.peers]}


def guest_hangs(channel: Channel) -> Outcome:
    """The guest says what it does, then its main thread hangs."""
    if channel.local == "guest 9999":
        channel.heartbeat("training, step 3 of 9")
        time.sleep(9.0)
        return {}
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
        channel.receive(channel.peers[0], Numbers, 0)
    return {}


def host_fails(channel: Channel) -> Outcome:
    """One host fails while the arbiter waits for the guest, which is busy, and the other host waits for the arbiter."""
    if channel.local == "host 10000":
        channel.send(channel.peers[0], numbers("a last message"), 0)
        channel.heartbeat("doing something slow")
        raise ExtensionError("E402", folder="models/slm", reason="config.json is missing")
    if channel.local == "guest 9999":
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            time.sleep(0.05)
            channel.heartbeat("training")
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
    else:
        channel.receive(channel.peers[0], Numbers, 0)
    return {}


def host_fails_and_is_left_out(channel: Channel) -> Outcome:
    """One host fails while the arbiter waits for the guest; the arbiter then serves those who are left."""
    if channel.local == "host 10000":
        channel.send(channel.peers[0], numbers("hello"), 0)
        time.sleep(0.5)
        raise ExtensionError("E402", folder="models/slm", reason="config.json is missing")
    if not channel.is_arbiter:
        channel.send(channel.peers[0], numbers("hello"), 0)
        time.sleep(1.5 if channel.local == "guest 9999" else 0.0)
        channel.send(channel.peers[0], numbers("question"), 1)
        return {"answer": channel.receive(channel.peers[0], Numbers, 1).label}
    channel.receive_all(Numbers, 0)
    channel.tolerate()
    for name in ("guest 9999", "host 10000", "host 10001"):
        peer = next((one for one in channel.peers if one.name == name), None)
        if peer is not None:
            channel.receive(peer, Numbers, 1)
            channel.send(peer, numbers(f"for {name}"), 1)
    return {"served": [peer.name for peer in channel.peers]}


def awaited_host_fails(channel: Channel) -> Outcome:
    """The arbiter waits for the very host that fails: whoever waits decides."""
    if channel.local == "host 10000":
        time.sleep(0.5)
        raise ExtensionError("E402", folder="models/slm", reason="config.json is missing")
    if not channel.is_arbiter:
        channel.send(channel.peers[0], numbers("hello"), 0)
        channel.receive(channel.peers[0], Numbers, 0)
        return {}
    channel.tolerate()
    for peer in list(channel.peers):
        try:
            channel.receive(peer, Numbers, 0)
            channel.send(peer, numbers("thanks"), 0)
        except ExtensionError as error:
            channel.leave_out(peer, f"{error.code} {error.facts['party']}")
            channel.leave_out(peer, "again")
    return {}


def guest_is_left_out(channel: Channel) -> Outcome:
    """The guest sends what is no message of the protocol, and then waits for an answer."""
    if channel.local == "guest 9999":
        channel.send(channel.peers[0], Other(np.arange(2, dtype=np.int32)), 0)
        channel.receive(channel.peers[0], Numbers, 0)
    elif channel.is_arbiter:
        channel.tolerate()
        for peer in list(channel.peers):
            try:
                channel.receive(peer, Numbers, 0)
            except ExtensionError as error:
                channel.leave_out(peer, error.code)
            else:
                channel.send(peer, numbers("thanks"), 0)
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
        channel.receive(channel.peers[0], Numbers, 0)
    return {}


def fails_at_once(channel: Channel) -> Outcome:
    """A party that raises before its first message."""
    if channel.local == "host 10001":
        raise ValueError("no rows")
    return host_fails(channel) if channel.local != "host 10000" else guest_hangs(channel)


def slow_start(channel: Channel) -> Outcome:
    """The guest loads its model in one step of three times the limit, then the arbiter's own first message is late."""
    if channel.local == "guest 9999":
        channel.heartbeat("loading the model")
        time.sleep(3.0)
    return wait_for_slow_guest(channel) if channel.local != "guest 9999" else hello_and_thanks(channel)


def hello_and_thanks(channel: Channel) -> Outcome:
    """A client's part: one message each way."""
    channel.send(channel.peers[0], numbers("x"), 0)
    channel.receive(channel.peers[0], Numbers, 0)
    return {}


def hangs_after_its_first_message(channel: Channel) -> Outcome:
    """The guest has started, says so, and hangs: the short limit counts."""
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
        channel.receive_all(Numbers, 1)
        return {}
    channel.send(channel.peers[0], numbers("x"), 0)
    if channel.local == "guest 9999":
        time.sleep(5.0)
        return {}
    channel.send(channel.peers[0], numbers("y"), 1)
    channel.receive(channel.peers[0], Numbers, 0)
    return {}


def host_fails_while_all_train(channel: Channel) -> Outcome:
    """Nobody waits for a message; every other party is busy for much longer than the test may take."""
    if channel.local == "host 10000":
        raise ExtensionError("E406", value="nan", step=3, phase="private training", learning_rate=1)
    until = time.monotonic() + 30.0
    steps = 0
    while time.monotonic() < until:
        time.sleep(0.05)
        steps += 1
        channel.heartbeat(f"training, step {steps}")
    return {}


def clients_are_done_long_before_the_arbiter(channel: Channel) -> Outcome:
    """The arbiter works on for three times the limit; the clients have said goodbye."""
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            time.sleep(0.05)
            channel.heartbeat("evaluation")
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
        channel.peers[0].heard = True
    return {}


def nobody_says_goodbye(channel: Channel) -> Outcome:
    """The guest hangs after its last message, the arbiter closes."""
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
        time.sleep(4.0)
    return {}


def arbiter_fails(channel: Channel) -> Outcome:
    """All clients wait for the arbiter."""
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
        raise KeyboardInterrupt
    channel.send(channel.peers[0], numbers("x"), 0)
    channel.receive(channel.peers[0], Numbers, 0)
    return {}


def leaves_early(channel: Channel) -> Outcome:
    """The guest believes that the protocol is over while the arbiter expects another message."""
    if channel.is_arbiter:
        channel.receive(channel.peers[0], Numbers, 0)
        channel.receive(channel.peers[0], Numbers, 1)
    elif channel.local == "guest 9999":
        channel.send(channel.peers[0], numbers("x"), 0)
    return {}


def wrong_message(channel: Channel) -> Outcome:
    """The guest sends something else than the arbiter expects."""
    if channel.is_arbiter:
        channel.receive(channel.peers[0], Other, 0)
    elif channel.local == "guest 9999":
        channel.send(channel.peers[0], numbers("x"), 0)
        channel.receive(channel.peers[0], Numbers, 0)
    return {}


def last_words_are_read(channel: Channel) -> Outcome:
    """A message and the goodbye right behind it: the message counts, however late it is asked for."""
    if channel.is_arbiter:
        time.sleep(1.0)
        assert [m.label for m in channel.receive_all(Numbers, 0)] == [p.name for p in channel.peers]
    else:
        channel.send(channel.peers[0], numbers(channel.local), 0)
    return {}


def read_ahead_is_bounded(channel: Channel) -> Outcome:
    """A fast sender does not fill the receiver's memory."""
    if not channel.is_arbiter:
        for number in range(8):
            channel.send(channel.peers[0], numbers(str(number)), 0)
        channel.receive(channel.peers[0], Numbers, 0)
        return {}
    time.sleep(1.0)
    waiting = [peer.inbox.qsize() for peer in channel.peers]
    for number in range(8):
        assert [m.label for m in channel.receive_all(Numbers, 0)] == [str(number)] * len(channel.peers)
    for peer in channel.peers:
        channel.send(peer, numbers("done"), 0)
    return {"waiting": waiting}


# --- processes ------------------------------------------------------------------------------------------


def host_cannot_read_its_rows(channel: Channel) -> Outcome:
    """Which error it is depends on a row."""
    if channel.local == "host 10000":
        with untold():
            channel.heartbeat("preparing the records")
            raise ExtensionError("E660", path="mail/train.jsonl", count=1, rows=9, codes=3, row=7)
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
    else:
        channel.receive(channel.peers[0], Numbers, 0)
    return {}


def owners_have_affairs_of_their_own(channel: Channel) -> Outcome:
    if channel.is_arbiter:
        channel.receive_all(Numbers, 0)
    else:
        channel.send(channel.peers[0], numbers("x"), 0)
    return {}


def the_host_fails_for_itself(channel: Channel) -> Outcome:
    return owners_have_affairs_of_their_own(channel)


def fails() -> None:
    raise ExtensionError("E407", bad=1, total=2, what="private rows")


def works() -> None:
    time.sleep(3.0)
    logging.getLogger("fate_llm_ext").warning("compared")


class Lines(logging.Handler):
    def __init__(self, lines: List[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def party_process(party: Any, pipe: Any, folder: str) -> None:
    from fate.arch.computing.backends.standalone import CSession
    from fate.arch.context import Context
    from fate.arch.federation.backends.standalone import StandaloneFederation

    session = CSession(session_id=f"computing_{party[0]}_{party[1]}", data_dir=folder, options={"task_cores": 1})
    for scenario, federation_id, parties, network in iter(pipe.recv, None):
        federation = StandaloneFederation(session, federation_id, party, parties)
        ctx = Context(computing=session, federation=federation)
        began = time.monotonic()
        outcome: Outcome = {"error": None}
        lines: List[str] = []
        handler = Lines(lines)
        logging.getLogger("fate_llm_ext").addHandler(handler)
        try:
            later: List[Any] = []
            own: List[Any] = []
            with federated_task(ctx, NetworkConfig(**network), later, own) as channel:
                later += [fails, works] if channel.local == "guest 9999" else []
                own += [fails] if channel.local == "host 10000" and scenario == "the_host_fails_for_itself" else []
                outcome.update(globals()[scenario](channel))
            ends = [(peer.sent, peer.received) for peer in channel.peers]
            outcome.update(ends=ends, left=[peer.inbox.qsize() for peer in channel.peers], lost=channel.lost)
        except ExtensionError as error:
            outcome.update(error=error.code, facts=error.facts, text=str(error))
        except BaseException as error:  # noqa: BLE001 - the test judges it
            outcome.update(error=type(error).__name__, text=traceback.format_exc())
        logging.getLogger("fate_llm_ext").removeHandler(handler)
        outcome["log"] = lines
        outcome["seconds"] = time.monotonic() - began
        pipe.send(outcome)


class Parties:
    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = folder
        self.pipes = {}
        self.processes = []
        for party in EVERYONE:
            self.pipes[party], theirs = context.Pipe()
            self.processes.append(
                context.Process(target=party_process, args=(party, theirs, str(folder)), daemon=False)
            )
            self.processes[-1].start()

    def run(self, scenario: Any, parties: List[Any] = EVERYONE, **network: float) -> Dict[Any, Outcome]:
        federation_id = uuid.uuid4().hex
        for party in parties:
            self.pipes[party].send((scenario.__name__, federation_id, parties, {**CALM, **network}))
        for party in parties:
            assert self.pipes[party].poll(90), f"{party} hangs in {scenario.__name__}"
        return {party: self.pipes[party].recv() for party in parties}

    def stop(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    started = Parties(tmp_path_factory.mktemp("federation"))
    fine(started.run(nothing))  # the limits of the scenarios are no limits on imports
    yield started
    started.stop()


def fine(outcomes: Dict[Any, Outcome]) -> None:
    for party, outcome in outcomes.items():
        assert outcome["error"] is None, f"{party}: {outcome['text']}"


# --- contract -------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_whole(parties: Parties) -> None:
    """Also those of several frames, with heartbeats in between; byte counts are those of the messages."""
    outcomes = parties.run(ordered, heartbeat_seconds=0.01)
    fine(outcomes)
    largest = len(encode(numbers("", 1_000_000)))
    assert largest > 3 * (1 << 20)
    sent = outcomes[GUEST]["bytes"]
    assert outcomes[ARBITER]["bytes"] > 2.9 * sent
    (frames, _) = outcomes[GUEST]["frames"][0]
    assert frames > 20 + 5, "large messages took several frames"


def test_closing_leaves_no_unread_frame(parties: Parties) -> None:
    outcomes = parties.run(ordered, heartbeat_seconds=0.01)
    fine(outcomes)
    for number, client in enumerate((GUEST, HOST, HOST2)):
        (sent, received) = outcomes[client]["ends"][0]
        assert outcomes[ARBITER]["ends"][number] == (received, sent)
        assert outcomes[client]["left"] == [0]
    assert outcomes[ARBITER]["left"] == [0, 0, 0]


@pytest.mark.parametrize("order", [EVERYONE, EVERYONE[::-1], [HOST2, ARBITER, GUEST, HOST]])
def test_the_order_of_the_parties_does_not_matter(parties: Parties, order: List[Any]) -> None:
    """The peers' order settles ties between teachers: it must not depend on how a job lists them."""
    outcomes = parties.run(peers, order)
    fine(outcomes)
    assert outcomes[ARBITER]["peers"] == ["guest 9999", "host 10000", "host 10001"]
    assert outcomes[GUEST]["peers"] == outcomes[HOST]["peers"] == ["arbiter 9998"]


def test_two_parties_are_enough(parties: Parties) -> None:
    fine(parties.run(ordered, [HOST, ARBITER]))


def test_a_slow_party_that_gives_signs_of_life_is_waited_for(parties: Parties) -> None:
    outcomes = parties.run(wait_for_slow_guest, silence_seconds=1.0, heartbeat_seconds=0.2)
    fine(outcomes)
    assert outcomes[ARBITER]["doing"][0] == "training, step 3 of 9"
    assert outcomes[HOST]["doing"] == ["waiting for guest 9999"], "who waits says for whom"


def test_loading_in_one_step_is_no_silence(parties: Parties) -> None:
    """Before a party's first message the limit is another one, whatever heartbeats came."""
    outcomes = parties.run(slow_start, silence_seconds=1.0, heartbeat_seconds=0.2)
    fine(outcomes)


def test_after_its_first_message_a_party_may_not_be_silent(parties: Parties) -> None:
    arbiter = parties.run(hangs_after_its_first_message, silence_seconds=1.0, heartbeat_seconds=0.2)[ARBITER]
    assert (arbiter["error"], arbiter["facts"]["party"]) == ("E304", "guest 9999")
    assert "network.silence_seconds" in arbiter["text"]
    assert arbiter["seconds"] < 3.0


def test_the_start_has_a_limit_too(parties: Parties) -> None:
    arbiter = parties.run(slow_start, silence_seconds=0.5, startup_seconds=1.0, heartbeat_seconds=0.2)[ARBITER]
    assert (arbiter["error"], arbiter["facts"]["limit"]) == ("E304", 1)
    assert "network.startup_seconds" in arbiter["text"]


def test_an_abort_stops_those_who_train(parties: Parties) -> None:
    outcomes = parties.run(host_fails_while_all_train, heartbeat_seconds=5.0)
    for party in (GUEST, HOST2, ARBITER):
        assert outcomes[party]["error"] == "E303", outcomes[party]
        assert "host 10000" in outcomes[party]["text"]
        assert "E406 The loss is nan at step 3" in outcomes[party]["text"], "numbers may be told"
        assert outcomes[party]["seconds"] < 3


def test_closing_waits_for_a_peer_that_still_works(parties: Parties) -> None:
    outcomes = parties.run(clients_are_done_long_before_the_arbiter, silence_seconds=1.0, heartbeat_seconds=0.2)
    fine(outcomes)
    for client in (GUEST, HOST, HOST2):
        assert outcomes[client]["seconds"] > 2.9
        assert not [line for line in outcomes[client]["log"] if "without the goodbye" in line]


def test_closing_gives_up_with_a_line_in_the_log(parties: Parties) -> None:
    arbiter = parties.run(nobody_says_goodbye, silence_seconds=1.0, heartbeat_seconds=0.2)[ARBITER]
    assert arbiter["error"] is None
    assert arbiter["seconds"] < 3
    (line,) = [line for line in arbiter["log"] if "without the goodbye" in line]
    assert "guest 9999 (silent for 1 s)" in line
    assert arbiter["lost"]["guest 9999"] == "silent for 1 s"


def test_a_party_that_drops_out_can_be_left_out(parties: Parties) -> None:
    """The arbiter and the others go on and come to a good end; nobody hears of it."""
    outcomes = parties.run(host_fails_and_is_left_out, heartbeat_seconds=0.1)
    assert outcomes.pop(HOST)["error"] == "E402"
    fine(outcomes)
    assert outcomes[ARBITER]["served"] == ["guest 9999", "host 10001"]
    assert set(outcomes[ARBITER]["lost"]) == {"host 10000"}
    assert outcomes[ARBITER]["lost"]["host 10000"].startswith("E402 while ")
    assert "models/slm" not in outcomes[ARBITER]["lost"]["host 10000"]
    for client in (GUEST, HOST2):
        assert outcomes[client]["answer"] == f"for {client[0]} {client[1]}"
        assert outcomes[client]["lost"] == {}
        assert outcomes[client]["left"] == [0]


def test_who_is_left_out_is_told(parties: Parties) -> None:
    """It need not wait until the silence is too long."""
    outcomes = parties.run(guest_is_left_out, heartbeat_seconds=0.1)
    guest = outcomes.pop(GUEST)
    assert (guest["error"], guest["facts"]["party"]) == ("E303", "arbiter 9998")
    assert guest["seconds"] < 20, "of 60"
    fine(outcomes)
    assert outcomes[ARBITER]["lost"] == {"guest 9999": "E301"}


def test_a_party_that_is_waited_for_is_not_left_out_unasked(parties: Parties) -> None:
    outcomes = parties.run(awaited_host_fails, heartbeat_seconds=0.1)
    assert outcomes.pop(HOST)["error"] == "E402"
    fine(outcomes)
    assert outcomes[ARBITER]["lost"] == {"host 10000": "E303 host 10000"}, "once"


def test_a_silent_party_is_named_with_what_it_last_did(parties: Parties) -> None:
    # A heartbeat within the interval after the start: the first one goes out all the same.
    outcomes = parties.run(guest_hangs, silence_seconds=4.0, startup_seconds=4.0, heartbeat_seconds=0.5)
    arbiter = outcomes[ARBITER]
    assert arbiter["error"] == "E304", arbiter
    assert arbiter["facts"]["party"] == "guest 9999"
    assert arbiter["facts"]["doing"] == "training, step 3 of 9"
    assert "'numbers'" in arbiter["text"]
    assert arbiter["seconds"] < 7.0
    for host in (HOST, HOST2):
        assert outcomes[host]["error"] == "E303"
        assert outcomes[host]["facts"]["party"] == "arbiter 9998"
        assert "guest 9999" in outcomes[host]["text"]
        assert "E304" in outcomes[host]["text"]
        assert outcomes[host]["seconds"] < 9.0


def test_an_abort_reaches_everyone_with_its_cause(parties: Parties) -> None:
    outcomes = parties.run(host_fails, heartbeat_seconds=0.1)
    assert outcomes[HOST]["error"] == "E402"
    arbiter = outcomes[ARBITER]
    assert arbiter["error"] == "E303", arbiter
    assert arbiter["facts"]["party"] == "host 10000", "though it waited for the guest"
    assert "E402" in arbiter["text"]
    assert arbiter["seconds"] < 1.8, "before the guest was done"
    for client in (GUEST, HOST2):
        assert outcomes[client]["error"] == "E303", outcomes[client]
        assert "host 10000" in outcomes[client]["text"]
        assert "E402 while doing something slow (see its own log)." in outcomes[client]["text"]
        assert "models/slm" not in outcomes[client]["text"], "paths are private"
        assert outcomes[client]["seconds"] < 4


def test_a_party_that_fails_before_its_first_message(parties: Parties) -> None:
    outcomes = parties.run(fails_at_once, heartbeat_seconds=0.1)
    assert outcomes[HOST2]["error"] == "ValueError"
    assert outcomes[ARBITER]["facts"]["party"] == "host 10001"
    for party in (GUEST, HOST, ARBITER):
        assert outcomes[party]["error"] == "E303", outcomes[party]
        assert "ValueError while starting (see its own log)." in outcomes[party]["text"]
        assert "no rows" not in outcomes[party]["text"], "what a foreign exception says may be private"
        assert outcomes[party]["seconds"] < 4


def test_what_fails_over_private_rows_is_told_in_one_constant_text(parties: Parties) -> None:
    outcomes = parties.run(host_cannot_read_its_rows, heartbeat_seconds=0.1)
    assert outcomes[HOST]["error"] == "E660"
    assert "row 7 first" in outcomes[HOST]["text"], "the party itself is told everything"
    # The arbiter passes on what it heard; everybody names the party where the trouble began.
    for party in (GUEST, HOST2, ARBITER):
        assert outcomes[party]["facts"] == {
            "party": "host 10000",
            "reason": "it could not prepare its data (see its own log).",
        }


def test_a_partys_own_affairs_are_nobody_elses(parties: Parties) -> None:
    """The guest's first one fails and its second takes long; the others neither hear of it nor wait."""
    outcomes = parties.run(owners_have_affairs_of_their_own, silence_seconds=1.0)
    for party in (GUEST, HOST, HOST2, ARBITER):
        assert outcomes[party]["error"] is None, outcomes[party]
        assert outcomes[party]["left"] == [0] * len(outcomes[party]["left"])
        if party != GUEST:
            assert outcomes[party]["seconds"] < 2.5
            assert not outcomes[party]["log"]
    assert outcomes[GUEST]["seconds"] > 3.0
    assert outcomes[GUEST]["log"] == ["what this party does for itself failed", "compared"]


def test_what_a_task_is_for_fails_it_alone(parties: Parties) -> None:
    """It comes when all messages are through: the party's own task fails, the others have done theirs."""
    outcomes = parties.run(the_host_fails_for_itself)
    host = outcomes.pop(("host", "10000"))
    assert host["error"] == "E407"
    assert all(outcome["error"] is None for outcome in outcomes.values())
    assert outcomes[GUEST]["log"] == ["what this party does for itself failed", "compared"]


def test_a_failed_task_has_nothing_after_it(parties: Parties) -> None:
    assert "compared" not in parties.run(host_fails, heartbeat_seconds=0.1)[GUEST]["log"]


def test_a_failing_arbiter(parties: Parties) -> None:
    outcomes = parties.run(arbiter_fails)
    assert outcomes[ARBITER]["error"] == "KeyboardInterrupt"
    for client in (GUEST, HOST, HOST2):
        assert outcomes[client]["error"] == "E303"
        assert outcomes[client]["facts"]["party"] == "arbiter 9998"
        assert outcomes[client]["facts"]["reason"].startswith("KeyboardInterrupt while ")
        assert outcomes[client]["seconds"] < 3


def test_a_party_that_leaves_too_early(parties: Parties) -> None:
    outcomes = parties.run(leaves_early, [GUEST, ARBITER])
    assert outcomes[ARBITER]["error"] == "E305"
    assert "already finished" in outcomes[ARBITER]["text"]
    assert outcomes[GUEST]["seconds"] < 5


def test_an_unexpected_message_is_refused(parties: Parties) -> None:
    outcomes = parties.run(wrong_message, [GUEST, ARBITER])
    assert (outcomes[ARBITER]["error"], outcomes[ARBITER]["facts"]["sender"]) == ("E301", "guest 9999")
    assert outcomes[GUEST]["error"] == "E303"
    assert "E301" in outcomes[GUEST]["text"]


def test_a_message_before_the_goodbye_counts(parties: Parties) -> None:
    fine(parties.run(last_words_are_read))


def test_read_ahead_is_bounded(parties: Parties) -> None:
    outcomes = parties.run(read_ahead_is_bounded)
    fine(outcomes)
    assert all(0 < waiting <= 2 for waiting in outcomes[ARBITER]["waiting"])


def test_the_last_message_wins_over_the_goodbye_that_follows_it() -> None:
    """Both may arrive between the receiver's look into the inbox and its look at the peer's state."""
    channel = object.__new__(Channel)
    channel._network = NetworkConfig(silence_seconds=60, heartbeat_seconds=60)
    channel._finished, channel._last_heartbeat, channel.bytes_received = False, time.monotonic(), 0
    channel._silent, channel._aborted = "", False
    peer = Peer("guest 9999")
    channel.peers = [peer]
    look = channel._raise_if_lost

    def late(awaited: Any, message: str) -> None:
        if peer.inbox.empty() and not peer.closed:
            peer.inbox.put(encode(numbers("last words")))
            peer.closed = True
        look(awaited, message)

    channel._raise_if_lost = late  # type: ignore[method-assign]
    assert channel.receive(peer, Numbers, 0).label == "last words"


def test_a_busy_party_stops_though_a_reading_thread_has_passed_the_abort_on() -> None:
    channel = object.__new__(Channel)
    channel._finished = channel._aborted = True
    channel._tolerant, channel.is_arbiter = False, True
    peer = Peer("guest 9999")
    peer.abort_reason = "E402 while training (see its own log)."
    channel.peers = [peer]
    with pytest.raises(ExtensionError) as caught:
        channel.heartbeat("training, 3 of 80")
    assert caught.value.code == "E303"


@pytest.mark.parametrize(("is_arbiter", "blamed"), [(False, "guest 9999"), (True, "host 10000")])
def test_only_the_arbiter_is_believed_about_others(is_arbiter: bool, blamed: str) -> None:
    channel = object.__new__(Channel)
    channel.is_arbiter = is_arbiter
    peer = Peer("host 10000" if is_arbiter else "arbiter 9998")
    peer.abort_reason = "guest 9999 stopped: for no reason"
    assert channel._stopped(peer).facts["party"] == blamed


def test_what_a_peer_says_is_one_printable_line_of_limited_length() -> None:
    hostile = "E303 \x1b[2J\x1b]0;title\x07\nRuntimeError: forged\r\u202e" + "x" * 100_000
    said = _one_line(hostile.encode() + b"\xff")
    assert said.startswith("E303 ?[2J?]0;title? RuntimeError: forged ?xxx")
    assert said.isprintable()
    assert len(said) == 2_000
