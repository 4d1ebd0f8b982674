"""What each role needs, and which messages fit the job."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.dpkd.checks import (
    check_counts,
    check_signals,
    compares,
    looked_up,
    role_problems,
    trains_student,
)
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.party import split_counts, split_steps
from fate_llm_ext.algo.dpkd.protocol import Histogram, Signals, Synthetic
from fate_llm_ext.algo.messages import check_texts, pack_texts
from fate_llm_ext.errors import ExtensionError


def config(**changes: Any) -> DPKDConfig:
    base = {
        "control": {"code": "{{ label }}", "values": ["a", "b"]},
        "privacy": {"epsilon": 2.0},
        "teacher": {"name": "large"},
        "student": {"name": "small"},
        "public": {"name": "judged"},
    }
    return DPKDConfig(**{**base, **changes})


# --- roles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student_at", "compare", "role", "expected"),
    [
        ("arbiter", [], "arbiter", {"student", "public"}),
        ("arbiter", [], "guest", {"teacher"}),
        ("arbiter", ["synthetic_ce"], "guest", {"teacher"}),
        ("arbiter", ["dpkd"], "guest", {"teacher", "student", "public"}),
        ("arbiter", ["dpkd"], "host", {"teacher", "student", "public"}),
        ("guest", [], "guest", {"teacher", "student", "public"}),
        ("guest", [], "host", {"teacher"}),
        ("guest", ["non_private"], "arbiter", set()),
    ],
)
def test_what_a_party_looks_up(student_at: str, compare: list[str], role: str, expected: set[str]) -> None:
    assert looked_up(config(student_at=student_at, compare=compare), role) == expected


def test_who_trains_and_who_compares() -> None:
    job = config(student_at="guest", compare=["dp_sgd_student"])
    assert [trains_student(job, role) for role in ("guest", "host", "arbiter")] == [True, False, False]
    assert [compares(job, role) for role in ("guest", "host", "arbiter")] == [True, True, False]
    assert not compares(config(student=None, compare=["dpkd"]), "host"), "a host without a student compares nothing"


@pytest.mark.parametrize(
    ("changes", "role", "missing"),
    [
        ({"teacher": None}, "guest", ["teacher"]),
        ({"teacher": None}, "host", ["teacher"]),
        ({"teacher": None}, "arbiter", []),
        ({"student": None}, "arbiter", ["student"]),
        ({"student": None}, "guest", []),
        ({"student": None, "student_at": "guest"}, "guest", ["student"]),
        ({"student": None, "student_at": "guest"}, "arbiter", []),
        ({"student": None, "compare": ["dpkd"]}, "guest", ["student"]),
        ({"student": None, "teacher": None, "student_at": "guest"}, "guest", ["teacher", "student"]),
    ],
)
def test_all_that_is_missing_is_said_at_once(changes: dict[str, Any], role: str, missing: list[str]) -> None:
    problems = role_problems(config(**changes), role)
    assert [problem.facts["parameter"] for problem in problems] == missing
    assert all(problem.code == "E670" for problem in problems)


# --- who does what --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "rounds"), [(1, 1), (7, 1), (7, 3), (100, 7), (5, 5), (3, 5)])
def test_the_steps_of_the_rounds_are_all_and_no_more(steps: int, rounds: int) -> None:
    parts = split_steps(steps, rounds)
    assert (len(parts), sum(parts)) == (rounds, steps)
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("owners", [1, 2, 3, 7])
def test_the_texts_of_the_owners_are_all_and_no_more(owners: int) -> None:
    rng = np.random.default_rng(owners)
    for _ in range(20):
        counts = rng.integers(0, 9, size=rng.integers(1, 30))
        shares = [split_counts(counts, owners, rank) for rank in range(owners)]
        np.testing.assert_array_equal(sum(shares), counts)
        assert all((share >= 0).all() for share in shares)
        sizes = [int(share.sum()) for share in shares]
        assert max(sizes) - min(sizes) <= 1


# --- messages -------------------------------------------------------------------------------------------


def texts(codes: list[int]) -> Synthetic:
    return Synthetic(**pack_texts(np.array(codes), ["text"] * len(codes)))


def signals(first: int = 0, texts_in_block: int = 2, top: int = 3) -> Signals:
    return Signals(
        first,
        np.ones(texts_in_block, np.uint16),
        np.zeros(texts_in_block, np.int16),
        np.full((texts_in_block, 1), top, np.uint16),
        np.full((texts_in_block, 1), -0.5, np.float16),
    )


def refused(reason: str) -> Any:
    return pytest.raises(
        ExtensionError, match=f"E301 host 10000 sent an invalid '[a-z]+' message: .*{re.escape(reason)}"
    )


def test_texts() -> None:
    check_texts(texts([0, 1, 1]), "host 10000", codes=2, limit=3)
    check_texts(texts([]), "host 10000", codes=2, limit=3)
    with refused("control code 2 of 2"):
        check_texts(texts([0, 2]), "host 10000", codes=2, limit=3)
    with refused("3 texts, at most 2 were asked for"):
        check_texts(texts([0, 0, 1]), "host 10000", codes=2, limit=2)


def test_counts() -> None:
    np.testing.assert_array_equal(check_counts(Histogram(np.array([3.5, -1.0])), "host 10000", 2), [3.5, -1.0])
    with refused("3 counts, there are 2 control codes"):
        check_counts(Histogram(np.zeros(3)), "host 10000", 2)


def test_signals_come_block_by_block() -> None:
    check_signals(signals(first=2), "host 10000", first=2, texts=4, vocabulary=4)
    with refused("a block from text 2, the next one is 0"):
        check_signals(signals(first=2), "host 10000", first=0, texts=4, vocabulary=4)
    with refused("2 texts from text 3, there are 4"):
        check_signals(signals(first=3), "host 10000", first=3, texts=4, vocabulary=4)
    with refused("token id 3 of 3"):
        check_signals(signals(), "host 10000", first=0, texts=2, vocabulary=3)
    with refused("0 texts from text 0"):
        check_signals(signals(texts_in_block=0), "host 10000", first=0, texts=2, vocabulary=9)
