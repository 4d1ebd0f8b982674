"""FedCoT: parties that run another job are found out before anything is charged."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fate_llm_ext import __version__
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.handshake import common_parameters, greet, welcome
from fate_llm_ext.algo.fedcot.protocol import Hello, Welcome
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import decode, encode


def config(**changes: Any) -> FedCoTConfig:
    base = {"task": {"template": "tickets"}, "perturbation": {"strategy": "fixed_vocabulary", "epsilon": 2.0}}
    return FedCoTConfig(**{**base, **changes})


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


def hello(job: FedCoTConfig, guarantee: tuple[float, float] = (2.0, 1e-4), choices: tuple[str, ...] = ("a",)) -> Hello:
    wire: Any = Wire("arbiter 9998", inbox=(Welcome(1, "llm"),))
    assert greet(wire, job, guarantee, choices) == Welcome(1, "llm")
    ((peer, message),) = wire.sent
    assert peer == "arbiter 9998"
    return message


def test_the_arbiter_learns_what_its_prompts_need() -> None:
    adaptive = config(perturbation={"strategy": "adaptive_exponential", "epsilon": 2.0, "proxy": "set"})
    said = hello(config(), choices=("billing", "sales")), hello(adaptive, (math.inf, 1.0), ())
    wire: Any = Wire("guest 9999", "host 10000", inbox=said)
    first, second = welcome(wire, config(), "gpt")
    assert (first.peer.name, first.choices, first.proxies) == ("guest 9999", ("billing", "sales"), False)
    assert (first.epsilon, first.delta) == (2.0, 1e-4)
    assert (second.choices, second.proxies, second.epsilon) == ((), True, math.inf)
    assert wire.sent == [("guest 9999", Welcome(2, "gpt")), ("host 10000", Welcome(2, "gpt"))]


def test_nothing_of_the_table_is_in_a_hello() -> None:
    names = {field.name for field in dataclasses.fields(Hello)}
    assert names == {"version", "parameters", "epsilon", "delta", "choices", "proxies"}
    assert hello(config()).parameters == {"rationale.recorded": "false"}


def test_a_recording_needs_both_ends() -> None:
    """A client that shuffles would get the recorded rationales of other rows."""
    other = hello(config(rationale={"recorded": True}))
    wire: Any = Wire("guest 9999", "host 10000", inbox=(hello(config()), other))
    with pytest.raises(ExtensionError, match=r"E306 host 10000 .*rationale\.recorded is true there and false here"):
        welcome(wire, config(), "gpt")
    assert not wire.sent, "nobody is welcome before all have been heard"


def test_parameters_of_a_site_may_differ() -> None:
    """Each client has its own task, strategy, model and memory."""
    own = config(
        seed=3,
        task={"template": "reviews"},
        perturbation={"strategy": "none"},
        question={"max_words": 7},
        student={"name": "own"},
        rationale={"max_new_tokens": 7},
        learning={"alpha": 0.1},
        evaluation={"batch_size": 3},
        compare=["standalone"],
    )
    assert common_parameters(own) == common_parameters(config())


def test_versions() -> None:
    other = dataclasses.replace(hello(config()), version="0.0.9")
    with pytest.raises(ExtensionError, match=f"E307 guest 9999 .*0.0.9.*{__version__}"):
        welcome(Wire("guest 9999", inbox=(other,)), config(), "gpt")  # type: ignore[arg-type]


def test_choices_that_no_prompt_could_hold() -> None:
    broken = dataclasses.replace(hello(config()), choices=["a", ""])
    with pytest.raises(ExtensionError, match="E301 guest 9999 sent an invalid 'hello' message"):
        welcome(Wire("guest 9999", inbox=(broken,)), config(), "gpt")  # type: ignore[arg-type]
