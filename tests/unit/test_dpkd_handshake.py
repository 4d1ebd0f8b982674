"""Parties that run another job, or another teacher, are found out before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fate_llm_ext import __version__
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.handshake import common_parameters, greet, welcome
from fate_llm_ext.algo.dpkd.protocol import Hello, Welcome
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.models.vocabulary import Vocabulary, read_vocabulary


def config(**changes: Any) -> DPKDConfig:
    base = {"control": {"code": "{{ label }}", "values": ["a", "b"]}, "privacy": {"epsilon": 2.0}}
    return DPKDConfig(**{**base, **changes})


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
        message = self.inbox.pop(0)
        assert isinstance(message, expected)
        return message


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return read_vocabulary(train_tokenizer(["the cat sees a dog " * 9], 300))


def hello(
    vocabulary: Vocabulary, job: DPKDConfig, teacher: str = "1" * 64, guarantee: tuple[float, float] = (2.0, 1e-4)
) -> Hello:
    wire: Any = Wire("arbiter 9998", inbox=(Welcome(0, 1),))
    greet(wire, job, teacher, vocabulary, guarantee)
    ((_, message),) = wire.sent
    return message


def test_the_arbiter_gives_ranks_and_learns_the_vocabulary(vocabulary: Vocabulary) -> None:
    one = hello(vocabulary, config())
    wire: Any = Wire("guest 9999", "host 10000", inbox=(one, one))
    known = welcome(wire, config()).vocabulary
    assert known is not None
    assert known.tokens() == vocabulary.tokens()
    assert wire.sent == [("guest 9999", Welcome(0, 2)), ("host 10000", Welcome(1, 2))]


def test_without_signals_no_vocabulary_is_sent(vocabulary: Vocabulary) -> None:
    job = config(student_at="guest")
    one = hello(vocabulary, job)
    assert len(one.blob) == len(one.lengths) == 0
    assert welcome(Wire("guest 9999", inbox=(one,)), job).vocabulary is None  # type: ignore[arg-type]


def test_the_guarantee_is_the_weakest_of_the_owners(vocabulary: Vocabulary) -> None:
    inbox = tuple(hello(vocabulary, config(), guarantee=one) for one in ((2.0, 1e-4), (3.0, 1e-5)))
    agreed = welcome(Wire("guest 9999", "host 10000", inbox=inbox), config())  # type: ignore[arg-type]
    assert (agreed.epsilon, agreed.delta) == (3.0, 1e-4)


def test_owners_with_unlike_teachers(vocabulary: Vocabulary) -> None:
    wire: Any = Wire(
        "guest 9999", "host 10000", inbox=(hello(vocabulary, config()), hello(vocabulary, config(), "2" * 64))
    )
    with pytest.raises(ExtensionError, match=r"E672 host 10000 .*22222222.* than guest 9999 \(11111111\)"):
        welcome(wire, config())
    assert not wire.sent


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed is 3 there and 0 here"),
        ({"control": {"code": "{{ label }}", "values": ["a", "c"]}}, "control.values"),
        ({"synthesis": {"samples": 7}}, "synthesis"),
        ({"distill": {"top_k": 7}}, "distill.top_k is 7 there and 64 here"),
        ({"rounds": 2}, "rounds is 2 there and 1 here"),
    ],
)
def test_parameters_that_must_be_common(vocabulary: Vocabulary, changes: dict[str, Any], named: str) -> None:
    wire: Any = Wire("guest 9999", inbox=(hello(vocabulary, config(**changes)),))
    with pytest.raises(ExtensionError, match=f"E306 guest 9999 .*{named}"):
        welcome(wire, config())


def test_parameters_of_a_site_may_differ() -> None:
    """Each owner has its own guarantee, memory and columns."""
    control = {"code": "{{ other }}", "values": ["a", "b"], "columns": {"other": "x"}}
    own = config(control=control, privacy={"epsilon": 1.0, "physical_batch_size": 2}, evaluation={"batch_size": 3})
    assert common_parameters(own) == common_parameters(config())


def test_versions(vocabulary: Vocabulary) -> None:
    other = dataclasses.replace(hello(vocabulary, config()), version="0.0.9")
    with pytest.raises(ExtensionError, match=f"E307 guest 9999 .*0.0.9.*{__version__}"):
        welcome(Wire("guest 9999", inbox=(other,)), config())  # type: ignore[arg-type]


def test_a_malformed_vocabulary(vocabulary: Vocabulary) -> None:
    broken = dataclasses.replace(hello(vocabulary, config()), lengths=np.ones(3, np.uint16), kind=np.ones(3, np.uint8))
    with pytest.raises(ExtensionError, match="E301 guest 9999 sent an invalid 'hello' message"):
        welcome(Wire("guest 9999", inbox=(broken,)), config())  # type: ignore[arg-type]
