"""The message table of FedCoT is complete, and messages are what they declare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.fedcot import protocol
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.protocol import MESSAGES, Explained, Hello, Proxies, Questions, Rationales
from fate_llm_ext.algo.fedcot.release import mechanism
from fate_llm_ext.algo.messages import pack_texts
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, decode, encode
from fate_llm_ext.privacy.events import LocalDP, NonPrivate, PostProcessing


def concrete(kind: Any) -> list[type[WireMessage]]:
    found = [kind] if "name" in vars(kind) else []
    return found + [one for child in kind.__subclasses__() for one in concrete(child)]


def test_every_message_is_in_the_table() -> None:
    defined = {one for one in concrete(WireMessage) if one.__module__ == protocol.__name__}
    assert defined == {row.type for row in MESSAGES}
    assert all(row.type is not None and row.name == row.type.name for row in MESSAGES)


def test_the_docstring_shows_the_table() -> None:
    lines = [line.split() for line in (protocol.__doc__ or "").splitlines() if " -> " in line]
    shown = [(words[i - 1], words[i + 1], words[i + 2]) for words in lines[1:] for i in [words.index("->")]]
    assert sorted(shown) == sorted((row.sender, row.receiver, row.name) for row in MESSAGES)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("exponential", NonPrivate),
        ("adaptive_exponential", NonPrivate),
        ("fixed_vocabulary", LocalDP),
        ("metric", LocalDP),
        ("dp_generator", PostProcessing),
        ("none", NonPrivate),
    ],
)
def test_what_derives_from_private_data_is_covered_by_what_is_charged(strategy: str, kind: Any) -> None:
    """The ledger's event under each strategy is one that the table names for the questions."""
    how: dict[str, Any] = {"strategy": strategy}
    if strategy not in ("dp_generator", "none"):
        how["epsilon"] = 3.0
    if strategy == "adaptive_exponential":
        how["proxy"] = "set"
    charged = mechanism(FedCoTConfig(task={"template": "tickets"}, perturbation=how))
    assert type(charged) is kind
    private = [row for row in MESSAGES if row.derives_from]
    assert {row.name for row in private} == {"questions", "rationales"}
    assert all(charged.kind in row.covered_by for row in private)
    assert not [row for row in MESSAGES if row.covered_by and not row.derives_from]


# --- hello ----------------------------------------------------------------------------------------------


def hello(**changes: Any) -> Hello:
    base: dict[str, Any] = {"version": "1", "parameters": {}, "epsilon": 1.0, "delta": 0.1, "choices": ["a", "b"]}
    return Hello(**{**base, "proxies": False, **changes})


@pytest.mark.parametrize("choices", [["gut", "sehr gut"], []])
def test_a_hello_travels_whole(choices: list[str]) -> None:
    one = hello(choices=choices, proxies=True)
    assert decode(encode(one), Hello, "guest 9999") == one


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": ["a", "a"]}, "2 choices, 1 different ones"),
        ({"choices": ["a", " "]}, "is empty"),
        ({"choices": ["a", "b" * 1001]}, "1001 of at most 1000 characters"),
        ({"choices": [str(number) for number in range(1001)]}, "1001 choices"),
        ({"proxies": 1}, "must be bool"),
        ({"epsilon": "1"}, "must be float"),
    ],
)
def test_a_hello_that_is_none(changes: dict[str, Any], reason: str) -> None:
    """A client could fill every prompt of the LLM with a choice of a million characters."""
    with pytest.raises(ExtensionError, match=f"E301 host 10000 .*{reason}"):
        decode(encode(hello(**changes)), Hello, "host 10000")


# --- questions and rationales ---------------------------------------------------------------------------


def rationales(kind: Any = Rationales, **changes: Any) -> Any:
    packed: dict[str, Any] = pack_texts(np.array([3, 0]), ["hello", "owls"])
    base = {"dropped": {"refused": "3"}, "note": "", "unfinished": np.array([1, 0], np.uint8)}
    return kind(**{**packed, **base, **changes})


@pytest.mark.parametrize("kind", [Questions, Proxies])
def test_questions_travel_whole(kind: Any) -> None:
    texts = ["plain", "zwölf Boxkämpfer", "猫\n\nund", " x" * 700]
    back = decode(encode(kind(**pack_texts(np.array([0, 1, 2, 70_000]), texts))), kind, "guest 9999")
    assert back.texts() == texts
    np.testing.assert_array_equal(back.codes, [0, 1, 2, 70_000])
    none = decode(encode(kind(**pack_texts(np.zeros(0, np.int32), []))), kind, "guest 9999")
    assert none.texts() == []


@pytest.mark.parametrize("kind", [Rationales, Explained])
def test_rationales_travel_whole(kind: Any) -> None:
    back = decode(encode(rationales(kind, note="only two")), kind, "arbiter 9998")
    assert back.texts() == ["hello", "owls"]
    assert (back.dropped, back.note) == ({"refused": "3"}, "only two")
    np.testing.assert_array_equal(back.codes, [3, 0])
    np.testing.assert_array_equal(back.unfinished, [1, 0])


def test_one_kind_is_not_taken_for_another() -> None:
    """Rationales for public prompts could pass for those of private ones."""
    with pytest.raises(ExtensionError, match=r"E301 arbiter 9998 .*'explained'"):
        decode(encode(rationales(Explained)), Rationales, "arbiter 9998")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": np.array([3, 3])}, "2 rationales for 1 questions"),
        ({"codes": np.array([0])}, "dimension S"),
        ({"unfinished": np.zeros(3, np.uint8)}, "dimension S"),
        ({"lengths": np.array([5, 3])}, "text lengths sum to 8, 9 bytes"),
        ({"lengths": np.array([9, 0])}, "text 1 of 2 is empty"),
        ({"blob": np.full(9, 0xFF, np.uint8)}, "invalid start byte"),
        ({"dropped": {"refused": "many"}}, "1 of them no numbers"),
        ({"dropped": {"a\x1b[31m": "1"}}, "1 of 1 reasons are no names"),
        ({"note": "two\nlines"}, "a note of 9 characters"),
        ({"note": "long" * 600}, "a note of 2400 characters"),
    ],
)
@pytest.mark.parametrize("kind", [Rationales, Explained])
def test_rationales_that_are_none(kind: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExtensionError, match=f"E301 arbiter 9998 .*{reason}"):
        decode(encode(rationales(kind, **changes)), kind, "arbiter 9998")
