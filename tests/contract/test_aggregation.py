"""Secure aggregation over FATE's own standalone federation, one process per party, with the channel's deadlines."""

from __future__ import annotations

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

from fate_llm_ext.algo.session import federated_task
from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation import aggregation
from fate_llm_ext.federation.aggregation import DOING, SecureMean
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.federation.codec import WireMessage, array

GUEST, HOST, ARBITER = ("guest", "9999"), ("host", "10000"), ("arbiter", "9998")
EVERYONE = [GUEST, HOST, ARBITER]
SHAPES = ((30, 40), (7,), ())
NUMBERS = 30 * 40 + 7 + 1
ROUNDS = 3
Outcome = Dict[str, Any]


@dataclass(frozen=True)
class Start(WireMessage):
    name: ClassVar[str] = "start"
    values: np.ndarray = array("i4", "N")


def weights(party: str, round: int) -> List[np.ndarray]:
    """What a party's model holds in a round; of very unlike sizes, as weights and norms are."""
    rng = np.random.default_rng([len(party), round])
    scales = (0.02, 300.0, 1.0)
    return [(rng.normal(size=shape) * scale).astype(np.float32) for shape, scale in zip(SHAPES, scales)]


def shake_hands(channel: Channel) -> None:
    for peer in channel.peers:
        channel.send(peer, Start(np.zeros(1, np.int32)), 0)
    channel.receive_all(Start, 0)


# --- what the parties do: executed in their processes ---------------------------------------------------


def averages(ctx: Any, channel: Channel) -> Outcome:
    shake_hands(channel)
    mean = SecureMean(ctx, channel)
    results = []
    for round in range(ROUNDS):
        if channel.is_arbiter:
            mean.serve(round)
        else:
            results.append(mean.average(weights(channel.local, round), round))
    return {"results": results, "bytes": (mean.bytes_sent, mean.bytes_received)}


def watched_averages(ctx: Any, channel: Channel) -> Outcome:
    """As before; the arbiter notes all that FATE hands to it."""
    from fate.arch.context._parties import Party

    seen: List[Any] = []
    get = Party.get

    def noting(self: Any, name: str) -> Any:
        value = get(self, name)
        if name == aggregation._OWNERS_NAME:
            seen.append((self.name, value))
        return value

    if channel.is_arbiter:
        Party.get = noting
    try:
        outcome = averages(ctx, channel)
    finally:
        Party.get = get
    return {**outcome, "seen": seen}


def pieces(ctx: Any, channel: Channel) -> Outcome:
    """More numbers than one message takes, and a last message that is not full."""
    whole, aggregation._PIECE = aggregation._PIECE, 500
    try:
        return watched_averages(ctx, channel)
    finally:
        aggregation._PIECE = whole


def slow_host(ctx: Any, channel: Channel) -> Outcome:
    """The host trains for longer than the limit on silence, and says so."""
    shake_hands(channel)
    if channel.local == "host 10000":
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            time.sleep(0.05)
            channel.heartbeat("training the teacher")
    mean = SecureMean(ctx, channel)
    mean.serve(0) if channel.is_arbiter else mean.average(weights(channel.local, 0), 0)
    return {}


def silent_host(ctx: Any, channel: Channel) -> Outcome:
    """The host hangs; guest and arbiter are in FATE's own receive, which has no limit."""
    shake_hands(channel)
    if channel.local == "host 10000":
        time.sleep(6.0)
        return {}
    mean = SecureMean(ctx, channel)
    mean.serve(0) if channel.is_arbiter else mean.average(weights(channel.local, 0), 0)
    return {}


def failing_host(ctx: Any, channel: Channel) -> Outcome:
    shake_hands(channel)
    if channel.local == "host 10000":
        time.sleep(1.0)
        raise ExtensionError("E406", value=float("nan"), step=3, phase="training", learning_rate=1.0)
    mean = SecureMean(ctx, channel)
    mean.serve(0) if channel.is_arbiter else mean.average(weights(channel.local, 0), 0)
    return {}


def stuck_host(ctx: Any, channel: Channel) -> Outcome:
    """The host is alive and says that it takes part, but nothing of it ever arrives."""
    shake_hands(channel)
    if channel.local == "host 10000":
        while True:
            time.sleep(0.05)
            channel.heartbeat(DOING)
    mean = SecureMean(ctx, channel)
    mean.serve(0) if channel.is_arbiter else mean.average(weights(channel.local, 0), 0)
    return {}


def unlike_shapes(ctx: Any, channel: Channel) -> Outcome:
    """What cannot be added up ends in an error, not in a hang."""
    shake_hands(channel)
    mean = SecureMean(ctx, channel)
    if channel.is_arbiter:
        mean.serve(0)
    else:
        mean.average(weights(channel.local, 0)[: 3 if channel.local == "guest 9999" else 1], 0)
    return {}


def beyond_single_precision(ctx: Any, channel: Channel) -> Outcome:
    """Finite in FATE's double precision, infinite as weights."""
    shake_hands(channel)
    mean = SecureMean(ctx, channel)
    if channel.is_arbiter:
        mean.serve(0)
    else:
        mean.average([np.full(4, 1e200)], 0)
    return {}


# --- processes ------------------------------------------------------------------------------------------


def party_process(party: Any, pipe: Any, folder: str) -> None:
    import fate.ml.aggregator  # noqa: F401 - the limits of the scenarios are no limits on imports
    from fate.arch.computing.backends.standalone import CSession
    from fate.arch.context import Context
    from fate.arch.federation.backends.standalone import StandaloneFederation

    session = CSession(session_id=f"computing_{party[0]}_{party[1]}", data_dir=folder, options={"task_cores": 1})
    pipe.send("ready")
    for scenario, federation_id, network in iter(pipe.recv, None):
        ctx = Context(computing=session, federation=StandaloneFederation(session, federation_id, party, EVERYONE))
        began = time.monotonic()
        outcome: Outcome = {"error": None}
        try:
            with federated_task(ctx, NetworkConfig(**network)) as channel:
                outcome.update(globals()[scenario](ctx, channel))
        except ExtensionError as error:
            outcome.update(error=error.code, facts=error.facts, text=str(error))
        except BaseException as error:  # noqa: BLE001 - the test judges it
            outcome.update(error=type(error).__name__, text=traceback.format_exc())
        pipe.send({**outcome, "seconds": time.monotonic() - began})


class Parties:
    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for party in EVERYONE:
            self.pipes[party], theirs = context.Pipe()
            self.processes.append(context.Process(target=party_process, args=(party, theirs, str(folder))))
            self.processes[-1].start()
        for pipe in self.pipes.values():
            assert pipe.recv() == "ready"

    def run(self, scenario: Any, **network: float) -> Dict[Any, Outcome]:
        federation_id = uuid.uuid4().hex
        settings = {"silence_seconds": 60.0, "heartbeat_seconds": 0.2, **network}
        for pipe in self.pipes.values():
            pipe.send((scenario.__name__, federation_id, settings))
        for party, pipe in self.pipes.items():
            assert pipe.poll(90), f"{party} hangs in {scenario.__name__}"
        return {party: pipe.recv() for party, pipe in self.pipes.items()}

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
    yield started
    started.stop()


def fine(outcomes: Dict[Any, Outcome]) -> None:
    for party, outcome in outcomes.items():
        assert outcome["error"] is None, f"{party}: {outcome['text']}"


# --- contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [averages, pieces])
def test_the_mean_is_right_in_every_round(parties: Parties, scenario: Any) -> None:
    outcomes = parties.run(scenario)
    fine(outcomes)
    for owner in (GUEST, HOST):
        for round, means in enumerate(outcomes[owner]["results"]):
            pairs = zip(weights("guest 9999", round), weights("host 10000", round))
            for mean, (one, other) in zip(means, pairs):
                expected = (one.astype(np.float64) + other) / 2
                assert mean.shape == expected.shape
                np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-9)


def test_the_bytes_of_both_sides_agree(parties: Parties) -> None:
    outcomes = parties.run(averages)
    fine(outcomes)
    numbers = 2 + NUMBERS  # two tell of the shapes
    keys = 32
    for owner in (GUEST, HOST):
        sent, received = outcomes[owner]["bytes"]
        assert sent == ROUNDS * (16 * numbers + 2 * 8) + keys
        assert received == ROUNDS * 8 * numbers + keys
    (sent, received) = outcomes[ARBITER]["bytes"]
    assert sent + 2 * keys == sum(outcomes[owner]["bytes"][1] for owner in (GUEST, HOST))
    assert received + 2 * keys == sum(outcomes[owner]["bytes"][0] for owner in (GUEST, HOST))


def test_the_arbiter_sees_masked_weights_only(parties: Parties) -> None:
    outcomes = parties.run(watched_averages)
    fine(outcomes)
    seen = outcomes[ARBITER]["seen"]
    assert [name for name, _ in seen] == ["guest_9999", "host_10000"] * 2 * ROUNDS, "shapes, then numbers"
    for number, (name, ((mixed,), weight)) in enumerate(seen):
        assert weight == 0.5
        if number % 4 < 2:
            continue
        plain = weights(name.replace("_", " "), number // 4)
        own = np.concatenate([one.ravel() for one in plain])
        fraction, integer = map(np.asarray, mixed)
        masked = fraction + integer
        assert masked.shape == own.shape
        assert not np.isclose(masked, weight * own, rtol=1e-3, atol=1.0).any()
        assert masked.std() > 1e5 * own.std()
        first = plain[0].size  # 1,200 numbers of one size: five standard errors
        assert abs(np.corrcoef(masked[:first], own[:first])[0, 1]) < 0.15
        assert abs(np.corrcoef(fraction[:first], own[:first])[0, 1]) < 0.15, "nor does the fraction show it"


def test_no_message_is_larger_than_a_piece(parties: Parties) -> None:
    outcomes = parties.run(pieces)
    fine(outcomes)
    sizes = [np.size(mixed[0]) for _, ((mixed,), _) in outcomes[ARBITER]["seen"]]
    assert sizes == [2, 2, 500, 500, 500, 500, 208, 208] * ROUNDS


def test_a_mask_is_used_once(parties: Parties) -> None:
    """Else the difference of two rounds would show how the weights moved."""
    outcomes = parties.run(watched_averages)
    fine(outcomes)
    mine = [mixed for name, ((mixed,), _) in outcomes[ARBITER]["seen"] if name == "guest_9999"]
    first, second = (sum(map(np.asarray, one)) for one in (mine[1], mine[3]))
    assert np.abs(first - second).min() > 1e-3
    assert (first - second).std() > 1e5


def test_a_slow_owner_is_waited_for(parties: Parties) -> None:
    fine(parties.run(slow_host, silence_seconds=1.0))


def test_a_silent_owner_ends_the_wait(parties: Parties) -> None:
    outcomes = parties.run(silent_host, silence_seconds=1.5, startup_seconds=1.5)
    arbiter = outcomes[ARBITER]
    assert (arbiter["error"], arbiter["facts"]["party"]) == ("E304", "host 10000"), arbiter
    assert "'aggregation'" in arbiter["text"]
    assert outcomes[GUEST]["error"] == "E303", outcomes[GUEST]
    assert "host 10000" in outcomes[GUEST]["text"]
    for party in (GUEST, ARBITER):
        assert outcomes[party]["seconds"] < 6


def test_a_failing_owner_ends_the_wait_with_its_cause(parties: Parties) -> None:
    outcomes = parties.run(failing_host)
    for party in (GUEST, ARBITER):
        assert outcomes[party]["error"] == "E303", outcomes[party]
        assert "E406 The loss is nan at step 3" in outcomes[party]["text"]
        assert outcomes[party]["seconds"] < 6


def test_an_exchange_in_which_nothing_moves_ends(parties: Parties) -> None:
    """All are alive and in it, but FATE delivers nothing: a broken way between two owners looks like this."""
    outcomes = parties.run(stuck_host, startup_seconds=2.0)
    assert outcomes[ARBITER]["error"] == "E305", outcomes[ARBITER]
    assert "all parties have been in it for 2 s" in outcomes[ARBITER]["text"]
    for party in (GUEST, HOST):
        assert outcomes[party]["error"] == "E303", outcomes[party]


def test_a_mean_that_would_be_infinite_as_weights_is_refused(parties: Parties) -> None:
    outcomes = parties.run(beyond_single_precision)
    for owner in (GUEST, HOST):
        assert outcomes[owner]["error"] == "E301", outcomes[owner]
        assert "beyond single precision" in outcomes[owner]["text"]


def test_unlike_models_are_an_error_for_everybody(parties: Parties) -> None:
    outcomes = parties.run(unlike_shapes)
    for owner in (GUEST, HOST):
        assert outcomes[owner]["error"] == "E301", outcomes[owner]
        assert "do not have the shapes" in outcomes[owner]["text"]
