"""The site check: what the clocks say, the protocol, and what is made of the findings."""

from __future__ import annotations

import dataclasses
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.site_check import findings as judge
from fate_llm_ext.algo.site_check import protocol
from fate_llm_ext.algo.site_check.clock import Offset, Stamps, clock_offset
from fate_llm_ext.algo.site_check.config import SiteCheckConfig
from fate_llm_ext.algo.site_check.protocol import MESSAGES, Findings, Hello, Load, Ping, Pong
from fate_llm_ext.algo.site_check.trips import Link, answer, measure
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, decode, encode
from fate_llm_ext.pipelines import catalog

# --- clocks ---------------------------------------------------------------------------------------------


def trips(offset: float, ways: list[tuple[float, float]], start: float = 1000.0, work: float = 0.003) -> list[Stamps]:
    """Round trips that took these times there and back, with a client's clock that is ``offset`` ahead."""
    found, now = [], start
    for there, back in ways:
        received = now + there
        returned = received + work + back
        found.append(Stamps(now, received + offset, received + work + offset, returned))
        now = returned + 0.01
    return found


def possible(stamps: list[Stamps], low: float, high: float, step: float) -> list[float]:
    """The obviously right way, slowly: every offset with which no message arrives before it was sent."""
    count = round((high - low) / step)
    return [
        theta
        for theta in (low + step * number for number in range(count + 1))
        if all(t.received - theta >= t.sent and t.returned >= t.answered - theta for t in stamps)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_offset_is_the_middle_of_what_is_possible(seed: int) -> None:
    dice = random.Random(seed)
    offset = dice.uniform(-2.0, 2.0)
    ways = [(dice.expovariate(20.0), dice.expovariate(5.0)) for _ in range(dice.randrange(1, 9))]
    stamps = trips(offset, ways)
    found = clock_offset(stamps)
    assert found.steady
    allowed = possible(stamps, offset - 3.0, offset + 3.0, 1e-4)
    assert found.seconds == pytest.approx((allowed[0] + allowed[-1]) / 2, abs=2e-4)
    assert found.uncertainty == pytest.approx((allowed[-1] - allowed[0]) / 2, abs=2e-4)
    assert abs(found.seconds - offset) <= found.uncertainty + 1e-9


def test_one_fast_way_each_is_enough() -> None:
    """The fast way there and the fast way back need not belong to the same trip."""
    found = clock_offset(trips(5.0, [(0.001, 0.9), (0.9, 0.001)]))
    assert found.seconds == pytest.approx(5.0)
    assert found.uncertainty == pytest.approx(0.001)


def test_all_delay_on_one_way_is_within_the_uncertainty() -> None:
    found = clock_offset(trips(-1.5, [(0.4, 0.0)] * 3))
    assert found.seconds == pytest.approx(-1.3)
    assert found.uncertainty == pytest.approx(0.2)


def test_a_clock_that_was_set_is_noticed() -> None:
    before, after = trips(0.0, [(0.01, 0.01)] * 2), trips(3.0, [(0.01, 0.01)], start=1001.0)
    found = clock_offset([*before, *after])
    assert not found.steady
    for offset in (0.0, 3.0):
        assert abs(found.seconds - offset) <= found.uncertainty


# --- protocol -------------------------------------------------------------------------------------------


def concrete(kind: Any) -> list[type[WireMessage]]:
    found = [kind] if "name" in vars(kind) else []
    return found + [one for child in kind.__subclasses__() for one in concrete(child)]


def test_every_message_is_in_the_table() -> None:
    defined = {one for one in concrete(WireMessage) if one.__module__ == protocol.__name__}
    assert defined == {row.type for row in MESSAGES}
    assert all(row.type is not None and row.name == row.type.name for row in MESSAGES)


def test_nothing_private_is_behind_any_message() -> None:
    """The component has no data input either."""
    assert all(row.derives_from == "" and row.covered_by == () for row in MESSAGES)
    whole = catalog.component("site_check")
    for kind in ("data", "model"):
        for direction in ("inputs", "outputs"):
            assert not getattr(whole.artifacts, f"{kind}_{direction}")


def test_the_docstring_shows_the_table() -> None:
    lines = [line.split() for line in (protocol.__doc__ or "").splitlines() if " -> " in line]
    shown = [(words[1], words[3], words[4]) for words in lines[1:]]
    assert sorted(shown) == sorted((row.sender, row.receiver, row.name) for row in MESSAGES)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello({"torch": "/home/ann"}, ""), "1 of 1 versions are none"),
        (Hello({"torch": "2", "peft": "0.1\nE101 all is well"}, ""), "1 of 2 versions are none"),
        (Hello({"a package": "1"}, ""), "1 of 1 packages are none"),
        (Hello({}, "E112: /srv/site.yaml"), "1 of 1 error codes are none"),
        (Hello({"torch": "1" * 65}, ""), "1 of 1 versions are none"),
    ],
)
def test_what_is_no_version_is_not_shown_to_anybody(hello: Hello, reason: str) -> None:
    with pytest.raises(ExtensionError, match=f"E301 host 10000 .*{reason}"):
        decode(encode(hello), Hello, "host 10000")


def versions(**changes: str) -> dict[str, str]:
    return {**dict.fromkeys(judge.PACKAGES, "1.0"), **{key.replace("_", "-"): value for key, value in changes.items()}}


def link(seconds: float = 0.0, uncertainty: float = 0.001, steady: bool = True, rate: float = 1e6) -> Link:
    return Link(Offset(seconds, uncertainty, steady), 0.01, 0.02, rate)


PARTIES = ["arbiter 10001", "guest 9999", "host 10000"]


def findings(
    hellos: list[Hello] | None = None, links: list[Link] | None = None, parties: list[str] | None = None
) -> Findings:
    same = Hello(versions(), "")
    made = judge.collect(parties or PARTIES, hellos or [same] * 3, links or [link(), link()])
    return decode(encode(made), Findings, "arbiter 10001")


def test_findings_travel_whole() -> None:
    hellos = [Hello(versions(), ""), Hello(versions(peft="0.9"), ""), Hello(versions(), "E112")]
    found = findings(hellos, [link(0.25), link(-3.0)])
    assert judge.versions_of(found, 1)["peft"] == "0.9"
    facts = list(judge.facts(found))
    assert [fact["party"] for fact in facts] == PARTIES
    assert [fact["offset"] for fact in facts] == [0.0, 0.25, -3.0]
    assert [fact["site_file"] for fact in facts] == ["", "", "E112"]
    assert facts[2]["versions"] == versions()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parties": [*PARTIES[:2], "guest 9999"]}, "2 parties, 3 were expected"),
        ({"parties": [*PARTIES, "host 10002"]}, "4 parties, 3 were expected"),
        ({"versions": ["1"]}, "1 versions, 18 were expected"),
        ({"versions": ["1.0"] * 17 + ["/home/ann"]}, "1 of 18 versions are none"),
        ({"site_files": ["", "", "/home/ann"]}, "1 of 3 error codes are none"),
        ({"site_files": []}, "0 site files, 3 were expected"),
        ({"parties": [*PARTIES[:2], "node7.example.org"]}, "1 of 3 parties are none"),
        ({"offset": np.array([0.0, np.nan, 0.0])}, "1 NaN or infinite values of 3"),
        ({"uncertainty": np.zeros(2)}, "dimension N"),
    ],
)
def test_findings_that_are_none(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExtensionError, match=f"E301 arbiter 10001 .*{reason}"):
        decode(encode(dataclasses.replace(findings(), **change)), Findings, "arbiter 10001")


# --- between two sites ----------------------------------------------------------------------------------


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


class Wire:
    """The channel's two verbs over queues; a message takes ``delay`` seconds, and is encoded and decoded."""

    def __init__(self, own: queue.Queue[bytes], other: queue.Queue[bytes], delay: float) -> None:
        self._own, self._other, self._delay = own, other, delay
        self.received: list[WireMessage] = []

    def send(self, peer: Any, message: Any, round: int) -> None:
        blob = encode(message)
        threading.Timer(self._delay, self._other.put, [blob]).start()

    def receive(self, peer: Any, expected: Any, round: int) -> Any:
        message = decode(self._own.get(timeout=30), expected, peer.name)
        self.received.append(message)
        return message


def between(
    skew: float,
    there: float = 0.0,
    back: float = 0.0,
    round_trips: int = 4,
    load: int = 0,
    client: Callable[..., None] = answer,
) -> tuple[Link, Wire]:
    boxes: list[queue.Queue[bytes]] = [queue.Queue(), queue.Queue()]
    arbiter, site = Wire(boxes[0], boxes[1], there), Wire(boxes[1], boxes[0], back)
    clock = lambda: time.time() + skew  # noqa: E731
    thread = threading.Thread(target=client, args=(site, Named("arbiter 10001"), clock), daemon=True)
    thread.start()
    found = measure(arbiter, Named("guest 9999"), round_trips, load)  # type: ignore[arg-type]
    thread.join(30)
    assert not thread.is_alive()
    return found, site


@pytest.mark.parametrize(
    ("skew", "there", "back"), [(0.0, 0.0, 0.0), (42.5, 0.02, 0.02), (-3600.0, 0.08, 0.0), (0.7, 0.0, 0.08)]
)
def test_a_skewed_clock_is_found_however_unequal_the_ways_are(skew: float, there: float, back: float) -> None:
    found, _ = between(skew, there, back)
    assert found.offset.steady
    assert abs(found.offset.seconds - skew) <= found.offset.uncertainty
    assert there + back <= found.round_trip_min <= found.round_trip_median
    # No wider than half of the fastest round trip.
    assert found.offset.uncertainty <= found.round_trip_min / 2 + 1e-3


def test_as_many_messages_as_were_asked_for() -> None:
    found, site = between(0.0, round_trips=3, load=70_000)
    assert [type(one) for one in site.received] == [Ping, Ping, Ping, Load]
    assert [one.left for one in site.received if isinstance(one, Ping)] == [2, 1, 0]
    assert len(site.received[-1].blob) == 70_000  # type: ignore[attr-defined]
    assert found.bytes_per_second > 0


def test_without_a_load_there_is_no_rate() -> None:
    found, site = between(0.0, round_trips=1)
    assert [type(one) for one in site.received] == [Ping]
    assert found.bytes_per_second == 0


def test_the_rate_counts_both_ways() -> None:
    """0.4 s each way for 1,000 bytes: 2,000 bytes in 0.8 s, or a little more."""
    found, _ = between(0.0, 0.4, 0.4, 1, 1000)
    assert 1_300 < found.bytes_per_second <= 2_500


def test_what_the_site_does_meanwhile_does_not_count() -> None:
    """A site that thinks for 0.2 s before it answers: no uncertainty comes from that."""

    def slow(channel: Any, arbiter: Any, clock: Callable[[], float]) -> None:
        readings = iter([clock, lambda: time.sleep(0.2) or clock()] * 4)  # type: ignore[func-returns-value]
        answer(channel, arbiter, lambda: next(readings)())

    found, _ = between(3.0, client=slow)
    assert found.round_trip_min >= 0.2
    assert found.offset.uncertainty < 0.1
    assert abs(found.offset.seconds - 3.0) <= found.offset.uncertainty


def test_bytes_that_were_changed_on_the_way_are_noticed() -> None:
    def careless(channel: Any, arbiter: Any, clock: Callable[[], float]) -> None:
        channel.receive(arbiter, Ping, 0)
        channel.send(arbiter, Pong(clock(), clock()), 0)
        blob = channel.receive(arbiter, Load, 0).blob.copy()
        blob[7] ^= 1
        channel.send(arbiter, Load(blob), 0)

    with pytest.raises(ExtensionError, match=r"E301 guest 9999 .*10 bytes that are not the 10"):
        between(0.0, round_trips=1, load=10, client=careless)


def test_another_load_than_announced_is_refused() -> None:
    inbox: list[Any] = [Ping(0, 9), Load(np.zeros(8, np.uint8))]

    class Given:
        def send(self, peer: Any, message: Any, round: int) -> None:
            assert isinstance(message, Pong)

        def receive(self, peer: Any, expected: Any, round: int) -> Any:
            return inbox.pop(0)

    with pytest.raises(ExtensionError, match=r"E301 arbiter 10001 .*8 bytes, 9 were announced"):
        answer(Given(), Named("arbiter 10001"))  # type: ignore[arg-type]


# --- what is made of it ---------------------------------------------------------------------------------


def test_sites_that_are_alike_have_no_problem() -> None:
    assert judge.problems(findings()) == []
    assert judge.warnings(findings(), 1.0) == []


def test_all_that_is_wrong_is_said_at_once() -> None:
    hellos = [Hello(versions(), ""), Hello(versions(fate_llm_ext="0.9", pyfate=""), ""), Hello(versions(), "E112")]
    (problem,) = judge.problems(findings(hellos))
    assert problem.code == "E835"
    assert problem.shared
    for words in (
        "3 thing(s)",
        "fate-llm-ext: 0.9 (guest 9999), 1.0 (arbiter 10001, host 10000)",
        "pyfate: 1.0 (arbiter 10001, host 10000), not installed (guest 9999)",
        "host 10000 cannot use its site file (E112",
    ):
        assert words in problem.problem, problem.problem


def test_other_versions_are_a_warning() -> None:
    found = findings([Hello(versions(), ""), Hello(versions(torch="2.1+cu121"), ""), Hello(versions(), "")])
    assert judge.problems(found) == []
    (warning,) = judge.warnings(found, 1.0)
    assert warning.code == "E836"
    assert "torch: 1.0 (arbiter 10001, host 10000), 2.1+cu121 (guest 9999)" in warning.problem


@pytest.mark.parametrize(
    ("seconds", "uncertainty", "codes"),
    [(1.5, 0.1, ["E837"]), (-1.5, 0.1, ["E837"]), (1.5, 0.6, []), (0.9, 0.0, []), (-1.0, 0.0, [])],
)
def test_a_clock_is_wrong_if_it_must_be(seconds: float, uncertainty: float, codes: list[str]) -> None:
    found = judge.warnings(findings(links=[link(), link(seconds, uncertainty)]), 1.0)
    assert [one.code for one in found] == codes
    assert all("host 10000" in one.problem and "1.500 s ± 0.100 s" in one.problem for one in found)


def test_a_clock_that_moved_is_a_warning() -> None:
    (warning,) = judge.warnings(findings(links=[link(1.5, 1.5, steady=False), link()]), 1.0)
    assert warning.code == "E838"
    assert "guest 9999" in warning.problem
    assert "3.000 s" in warning.problem


def test_each_party_gets_the_numbers_of_its_own_ways() -> None:
    found = findings(links=[link(0.25), link(-3.0, rate=0.0)])
    of_arbiter = dict(judge.results(found, "arbiter 10001"))
    assert set(of_arbiter) == {"guest 9999", "host 10000"}
    assert of_arbiter["guest 9999"]["clock_offset_seconds"] == 0.25
    assert "bytes_per_second" not in of_arbiter["host 10000"]
    of_host = dict(judge.results(found, "host 10000"))
    assert set(of_host) == {"arbiter 10001"}
    assert of_host["arbiter 10001"]["clock_offset_seconds"] == 3.0  # of the arbiter, seen from here


def test_own_versions_are_known_without_an_import() -> None:
    own = judge.own_versions()
    assert set(own) == set(judge.PACKAGES)
    assert own["fate-llm-ext"]
    assert own["python"].startswith("3.")
    decode(encode(Hello(own, "")), Hello, "guest 9999")


def test_component_and_config_have_the_same_parameters() -> None:
    declared = catalog.component("site_check").parameters.mapping
    fields = SiteCheckConfig.__fields__
    assert set(declared) == set(fields)
    for name in set(fields) - {"network"}:
        assert declared[name].default == fields[name].default


def test_what_runs_imports_nothing_heavy() -> None:
    code = "import fate_llm_ext.algo.site_check.entry, sys; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded.intersection(["torch", "transformers", "accelerate", "peft", "pandas", "sklearn", "scipy"])
