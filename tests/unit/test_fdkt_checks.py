"""What each role needs, and which messages fit the job."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pydantic
import pytest

from fate_llm_ext.algo.fdkt.checks import check_kept, check_votes, looked_up, role_problems
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.protocol import Augmented, Synthetic, Votes
from fate_llm_ext.algo.messages import check_texts, pack_texts
from fate_llm_ext.errors import ExtensionError


def config(**changes: Any) -> FDKTConfig:
    base = {
        "control": {"code": "{{ label }}", "values": ["a", "b"]},
        "privacy": {"epsilon": 2.0},
        "generator": {"name": "small"},
        "student": {"name": "small"},
        "llm": {"name": "large"},
    }
    return FDKTConfig(**{**base, **changes})


# --- roles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("guest", {"generator", "student"}),
        ("host", {"generator", "student"}),
        ("arbiter", {"llm", "embedder"}),
    ],
)
def test_what_a_party_looks_up(role: str, expected: set[str]) -> None:
    assert looked_up(config(), role) == expected


@pytest.mark.parametrize(
    ("changes", "role", "missing"),
    [
        ({}, "guest", []),
        ({}, "arbiter", []),
        ({"generator": None}, "guest", ["generator"]),
        ({"generator": None}, "arbiter", []),
        ({"generator": None, "student": None}, "host", ["generator", "student"]),
        ({"llm": None}, "arbiter", ["llm"]),
        ({"llm": None}, "host", []),
    ],
)
def test_all_that_is_missing_is_said_at_once(changes: dict[str, Any], role: str, missing: list[str]) -> None:
    problems = role_problems(config(**changes), role)
    assert [problem.facts["parameter"] for problem in problems] == missing
    assert all(problem.code == "E670" for problem in problems)


# --- parameters together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"control": {"code": "{{ label }}", "values": ["a"]}}, "1 label"),
        ({"control": {"code": "{{ label }}", "values": ["a", "a"]}}, "2 control codes, 1 different"),
        ({"control": {"code": "{{ label }}", "values": ["a", "b"], "max_length": 32}}, "64 must be below"),
        ({"augmentation": {"attempts": 0.5}}, "greater than or equal to 1"),
        ({"feedback": {"rounds": 1, "noise": 0}}, "greater than 0"),
        ({"compare": ["locl"]}, "unexpected value"),
        ({"head": "regression"}, "unexpected value"),
        ({"promts": {}}, "extra fields"),
    ],
)
def test_parameters_that_cannot_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=re.escape(reason)):
        config(**changes)


# --- messages -------------------------------------------------------------------------------------------


def refused(reason: str) -> Any:
    return pytest.raises(
        ExtensionError, match=f"E301 host 10000 sent an invalid '[a-z]+' message: .*{re.escape(reason)}"
    )


def augmented(texts: int, kept: list[int]) -> Augmented:
    packed: dict[str, Any] = pack_texts(np.zeros(texts, np.int32), ["text"] * texts)
    return Augmented(**packed, dropped={}, note="", kept=np.array(kept, np.uint8))


def test_texts() -> None:
    for codes in ([0, 1, 1], []):
        packed: dict[str, Any] = pack_texts(np.array(codes, np.int32), ["text"] * len(codes))
        check_texts(Synthetic(**packed), "host 10000", codes=2, limit=3, what="label")
    check_texts(augmented(3, []), "host 10000", codes=1, limit=3, what="label")
    with refused("label 1 of 1"):
        check_texts(Synthetic(**pack_texts(np.array([0, 1]), ["a", "b"])), "host 10000", codes=1, limit=3, what="label")
    with refused("3 texts, at most 2 were asked for"):
        check_texts(augmented(3, []), "host 10000", codes=1, limit=2, what="label")


def test_marks_of_kept_texts() -> None:
    check_kept(augmented(1, [1, 0, 1]), "host 10000", 3)
    check_kept(augmented(1, []), "host 10000", 0)
    with refused("2 marks, 3 texts were sent"):
        check_kept(augmented(1, [1, 0]), "host 10000", 3)


def test_votes() -> None:
    check_votes(Votes(np.array([3.5, -1.0])), "host 10000", 2)
    check_votes(Votes(np.zeros(0)), "host 10000", 0)
    with refused("2 counts, there are 3 augmented texts"):
        check_votes(Votes(np.array([3.5, -1.0])), "host 10000", 3)
