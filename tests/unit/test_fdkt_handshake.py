"""Parties that run another job are found out before anything is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fate_llm_ext import __version__
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.handshake import common_parameters, greet, welcome
from fate_llm_ext.algo.fdkt.protocol import Hello, Welcome
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import decode, encode


def config(**changes: Any) -> FDKTConfig:
    base = {"control": {"code": "{{ label }}", "values": ["a", "b"]}, "privacy": {"epsilon": 2.0}}
    return FDKTConfig(**{**base, **changes})


@dataclasses.dataclass
class Named:
    name: str


class Wire:
    """The channel's two verbs, without a wire: what was sent, and what shall be received."""

    def __init__(self, *peers: str, inbox: tuple[Any, ...] = ()) -> None:
        self.peers = [Named(name) for name in peers]
        self.inbox = list(inbox)
        self.sent: list[Any] = []

    def send(self, peer: Named, message: Any, round: int) -> None:
        self.sent.append((peer.name, message))

    def receive(self, peer: Named, expected: Any, round: int) -> Any:
        return decode(encode(self.inbox.pop(0)), expected, peer.name)


def hello(job: FDKTConfig, guarantee: tuple[float, float] = (2.0, 1e-4)) -> Hello:
    wire: Any = Wire("arbiter 9998", inbox=(Welcome(1, "llm"),))
    assert greet(wire, job, guarantee) == Welcome(1, "llm")
    ((peer, message),) = wire.sent
    assert peer == "arbiter 9998"
    return message


def test_the_arbiter_learns_each_clients_task() -> None:
    other = config(
        control={"code": "{{ label }}", "values": [" good ", "bad", "so so"]}, description="reviews of restaurants"
    )
    wire: Any = Wire("guest 9999", "host 10000", inbox=(hello(config()), hello(other, (3.0, 1e-5))))
    first, second = welcome(wire, config(), "gpt")
    assert (first.peer.name, first.labels, first.description) == ("guest 9999", ("a", "b"), "a text")
    assert (second.labels, second.description) == (("good", "bad", "so so"), "reviews of restaurants")
    assert (second.epsilon, second.delta) == (3.0, 1e-5)
    assert wire.sent == [("guest 9999", Welcome(2, "gpt")), ("host 10000", Welcome(2, "gpt"))]


def test_no_guarantee_is_no_guarantee_at_the_other_end() -> None:
    wire: Any = Wire("guest 9999", inbox=(hello(config(), (math.inf, 0.0)),))
    (agreed,) = welcome(wire, config(), "gpt")
    assert agreed.epsilon == math.inf


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"synthesis": {"samples": 7}}, "synthesis.samples is 7 there and 1000 here"),
        ({"augmentation": {"samples": 7}}, "augmentation.samples is 7 there and 1000 here"),
        ({"feedback": {"rounds": 1}}, "feedback.rounds is 1 there and 0 here"),
    ],
)
def test_parameters_that_must_be_common(changes: dict[str, Any], named: str) -> None:
    wire: Any = Wire("guest 9999", "host 10000", inbox=(hello(config()), hello(config(**changes))))
    with pytest.raises(ExtensionError, match=f"E306 host 10000 .*{named}"):
        welcome(wire, config(), "gpt")
    assert not wire.sent, "nobody is welcome before all have been heard"


def test_parameters_of_a_site_may_differ() -> None:
    """Each client has its own task, guarantee, models and memory."""
    own = config(
        seed=3,
        control={"code": "{{ other }}", "values": ["x", "y", "z"], "columns": {"other": "x"}},
        privacy={"epsilon": 1.0, "physical_batch_size": 2},
        generator={"name": "own"},
        head="classification",
        synthesis={"samples": 1000, "top_k": 3},
        feedback={"rounds": 0, "noise": 33},
        compare=["local"],
        evaluation={"batch_size": 3},
    )
    assert common_parameters(own) == common_parameters(config(synthesis={"samples": 1000}))


def test_versions() -> None:
    other = dataclasses.replace(hello(config()), version="0.0.9")
    with pytest.raises(ExtensionError, match=f"E307 guest 9999 .*0.0.9.*{__version__}"):
        welcome(Wire("guest 9999", inbox=(other,)), config(), "gpt")  # type: ignore[arg-type]


def test_labels_that_no_prompt_could_hold() -> None:
    broken = dataclasses.replace(hello(config()), labels=["a", ""])
    with pytest.raises(ExtensionError, match="E301 guest 9999 sent an invalid 'hello' message"):
        welcome(Wire("guest 9999", inbox=(broken,)), config(), "gpt")  # type: ignore[arg-type]
