"""The message table of DP-KD is complete, and messages are what they declare."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.dpkd import protocol
from fate_llm_ext.algo.dpkd.protocol import MESSAGES, Rollouts, Signals, Synthetic, Welcome
from fate_llm_ext.algo.messages import Texts, pack_texts
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.aggregation import KEYS_MESSAGE, WEIGHTS_MESSAGE
from fate_llm_ext.federation.codec import WireMessage, decode, encode
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian


def concrete(kind: Any) -> list[type[WireMessage]]:
    found = [kind] if "name" in vars(kind) else []
    return found + [one for child in kind.__subclasses__() for one in concrete(child)]


def test_every_message_is_in_the_table() -> None:
    defined = {one for one in concrete(WireMessage) if one.__module__ == protocol.__name__}
    listed = {row.type for row in MESSAGES} - {None}
    assert defined == listed
    assert {row.name for row in MESSAGES if row.type is None} == {WEIGHTS_MESSAGE, KEYS_MESSAGE}
    for row in MESSAGES:
        if row.type is not None:
            assert row.name == row.type.name


def test_what_derives_from_private_data_is_covered() -> None:
    """Towards the arbiter above all: it may get DP outputs only, or nothing private at all."""
    dp = {PoissonGaussian.kind, Gaussian.kind}
    for row in MESSAGES:
        assert bool(row.derives_from) == bool(row.covered_by), row
        assert set(row.covered_by) <= dp, row
    towards_arbiter = {row.name for row in MESSAGES if row.receiver == "arbiter"}
    assert towards_arbiter == {"hello", "aggregation", "histogram", "synthetic", "signals"}


def test_the_docstring_shows_the_table() -> None:
    lines = [line.replace("guest", "owner").split() for line in (protocol.__doc__ or "").splitlines() if " -> " in line]
    shown = [(words[i - 1], words[i + 1], words[i + 2]) for words in lines[1:] for i in [words.index("->")]]
    assert sorted(set(shown)) == sorted((row.sender, row.receiver, row.name) for row in MESSAGES)


def test_texts_travel_whole() -> None:
    texts = ["plain", "zwölf Boxkämpfer", "猫\n\nund", " x" * 700]
    for kind in (Synthetic, Rollouts):
        message = kind(**pack_texts(np.array([0, 1, 1, 300]), texts))
        back = decode(encode(message), kind, "guest 9999")
        assert back.texts() == texts
        np.testing.assert_array_equal(back.codes, [0, 1, 1, 300])


def test_no_texts_travel_too() -> None:
    back = decode(encode(Synthetic(**pack_texts(np.zeros(0, np.int32), []))), Synthetic, "guest 9999")
    assert back.texts() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lengths": np.array([5, 3])}, "text lengths sum to 8, 9 bytes"),
        ({"lengths": np.array([9, 0])}, "text 1 of 2 is empty"),
        ({"blob": np.full(9, 0xFF, np.uint8)}, "invalid start byte"),
        ({"codes": np.array([0])}, "dimension S"),
    ],
)
def test_texts_that_are_none(change: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = pack_texts(np.array([0, 1]), ["hello", "owls"])
    with pytest.raises(ExtensionError, match=f"E301 host 10000 .*{reason}"):
        decode(encode(Synthetic(**{**good, **change})), Synthetic, "host 10000")


def signals(**changes: Any) -> Signals:
    fields = {
        "first": 0,
        "tokens": np.array([2, 1]),
        "starts": np.array([0, 4, 0]),
        "ids": np.arange(6).reshape(3, 2),
        "log_probs": np.log(np.full((3, 2), 0.4)),
    }
    return Signals(**{**fields, **changes})


def test_signals_lose_only_the_last_digits() -> None:
    back = decode(encode(signals()), Signals, "guest 9999")
    np.testing.assert_array_equal(back.ids, np.arange(6).reshape(3, 2))
    np.testing.assert_allclose(back.log_probs, np.log(0.4), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": np.array([2, 2])}, "token counts sum to 4, 3 tokens"),
        ({"log_probs": np.full((3, 2), 0.1)}, "a log-probability of 0.100 is above 0"),
        ({"log_probs": np.log(np.full((3, 2), 0.7))}, "sum to 1.4"),
        ({"log_probs": np.full((3, 2), np.nan)}, "6 NaN or infinite values of 6"),
        ({"ids": np.zeros((3, 1))}, "dimension K"),
    ],
)
def test_signals_that_are_none(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExtensionError, match=f"E301 host 10000 .*{reason}"):
        decode(encode(signals(**change)), Signals, "host 10000")


@pytest.mark.parametrize(("rank", "owners"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_none(rank: int, owners: int) -> None:
    with pytest.raises(ExtensionError, match=f"E301 arbiter 9998 .*rank {rank} of {owners}"):
        decode(encode(Welcome(rank, owners)), Welcome, "arbiter 9998")


def test_records_are_not_counted_on_the_wire() -> None:
    """No message has a field for how many records a party holds or a step has sampled."""
    fields = {field.name for row in MESSAGES if row.type for field in dataclasses.fields(row.type)}  # type: ignore[arg-type]
    assert not fields & {"records", "sampled", "batch", "loss", "steps"}
    assert Texts in {row.type.__base__ for row in MESSAGES if row.type}
