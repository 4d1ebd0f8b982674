"""The message table of FDKT is complete, and messages are what they declare."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.fdkt import protocol
from fate_llm_ext.algo.fdkt.protocol import MESSAGES, Augmented, Hello, Synthetic, Votes
from fate_llm_ext.algo.messages import pack_texts
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, decode, encode
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian


def concrete(kind: Any) -> list[type[WireMessage]]:
    found = [kind] if "name" in vars(kind) else []
    return found + [one for child in kind.__subclasses__() for one in concrete(child)]


def test_every_message_is_in_the_table() -> None:
    defined = {one for one in concrete(WireMessage) if one.__module__ == protocol.__name__}
    assert defined == {row.type for row in MESSAGES}
    assert all(row.type is not None and row.name == row.type.name for row in MESSAGES)


def test_what_derives_from_private_data_is_covered() -> None:
    """The arbiter may get DP outputs only, or nothing private at all."""
    dp = {PoissonGaussian.kind, Gaussian.kind}
    for row in MESSAGES:
        assert bool(row.derives_from) == bool(row.covered_by), row
        assert set(row.covered_by) <= dp, row
    assert {row.name for row in MESSAGES if row.receiver == "arbiter"} == {"hello", "synthetic", "votes"}


def test_the_docstring_shows_the_table() -> None:
    lines = [line.split() for line in (protocol.__doc__ or "").splitlines() if " -> " in line]
    shown = [(words[i - 1], words[i + 1], words[i + 2]) for words in lines[1:] for i in [words.index("->")]]
    assert sorted(shown) == sorted((row.sender, row.receiver, row.name) for row in MESSAGES)


def test_records_are_not_counted_on_the_wire() -> None:
    """No message has a field for how many records a party holds or a step has sampled."""
    fields = {field.name for row in MESSAGES if row.type for field in dataclasses.fields(row.type)}  # type: ignore[arg-type]
    assert not fields & {"records", "sampled", "batch", "loss", "steps", "embeddings"}


# --- hello ----------------------------------------------------------------------------------------------


def hello(**changes: Any) -> Hello:
    base: dict[str, Any] = {"version": "1", "parameters": {}, "epsilon": 1.0, "delta": 0.1, "labels": ["a", "b"]}
    return Hello(**{**base, "description": "texts", **changes})


def test_a_hello_travels_whole() -> None:
    one = hello(labels=["gut", "sehr gut"], description="Bewertungen für Hotels")
    assert decode(encode(one), Hello, "guest 9999") == one


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": ["a"]}, "1 labels"),
        ({"labels": ["a", "a"]}, "2 labels, 1 different ones"),
        ({"labels": ["a", " "]}, "is empty"),
        ({"description": ""}, "is empty"),
        ({"labels": ["a", "b" * 1001]}, "1001 of at most 1000 characters"),
        ({"description": "b" * 1001}, "1001 of at most 1000 characters"),
    ],
)
def test_a_hello_that_is_none(changes: dict[str, Any], reason: str) -> None:
    """A client could fill every prompt of the LLM with a label of a million characters."""
    with pytest.raises(ExtensionError, match=f"E301 host 10000 .*{reason}"):
        decode(encode(hello(**changes)), Hello, "host 10000")


# --- texts and votes ------------------------------------------------------------------------------------


def augmented(**changes: Any) -> Augmented:
    packed: dict[str, Any] = pack_texts(np.array([0, 1]), ["hello", "owls"])
    base = {"dropped": {"copied": "3"}, "note": "", "kept": np.array([1, 0, 1], np.uint8)}
    return Augmented(**{**packed, **base, **changes})


def test_texts_travel_whole() -> None:
    texts = ["plain", "zwölf Boxkämpfer", "猫\n\nund", " x" * 700]
    packed: dict[str, Any] = pack_texts(np.array([0, 1, 1, 300]), texts)
    back = decode(encode(Synthetic(**packed)), Synthetic, "guest 9999")
    assert back.texts() == texts
    other = decode(encode(augmented(**packed, note="only four")), Augmented, "arbiter 9998")
    assert other.texts() == texts
    assert (other.dropped, other.note) == ({"copied": "3"}, "only four")
    np.testing.assert_array_equal(other.codes, [0, 1, 1, 300])
    np.testing.assert_array_equal(other.kept, [1, 0, 1])


def test_no_texts_travel_too() -> None:
    packed: dict[str, Any] = pack_texts(np.zeros(0, np.int32), [])
    back = decode(encode(augmented(**packed, kept=np.zeros(0, np.uint8))), Augmented, "arbiter 9998")
    assert back.texts() == []
    assert len(back.kept) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lengths": np.array([5, 3])}, "text lengths sum to 8, 9 bytes"),
        ({"lengths": np.array([9, 0])}, "text 1 of 2 is empty"),
        ({"blob": np.full(9, 0xFF, np.uint8)}, "invalid start byte"),
        ({"codes": np.array([0])}, "dimension S"),
        ({"dropped": {"copied": "many"}}, "1 of them no numbers"),
        ({"dropped": {"copied": "-3"}}, "1 of them no numbers"),
        ({"dropped": {"copied": "٣"}}, "1 of them no numbers"),
        ({"dropped": {"copied": "9" * 13}}, "1 counts of dropped texts"),
        ({"dropped": {chr(97 + n % 26) * (1 + n // 26): "1" for n in range(65)}}, "65 counts"),
        ({"kept": np.array([1, 2], np.uint8)}, "a mark of 2"),
        ({"dropped": {"a\x1b[31m": "1"}}, "1 of 1 reasons are no names"),
        ({"note": "two\nlines"}, "a note of 9 characters"),
        ({"note": "long" * 600}, "a note of 2400 characters"),
    ],
)
def test_augmented_texts_that_are_none(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExtensionError, match=f"E301 arbiter 9998 .*{reason}"):
        decode(encode(augmented(**changes)), Augmented, "arbiter 9998")


def test_votes_keep_their_sign_and_digits() -> None:
    counts = np.array([-17.25, 0.1, 1e6])
    np.testing.assert_array_equal(decode(encode(Votes(counts)), Votes, "guest 9999").counts, counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_votes_that_are_none(bad: float) -> None:
    with pytest.raises(ExtensionError, match="E301 guest 9999"):
        decode(encode(Votes(np.array([1.0, bad]))), Votes, "guest 9999")
