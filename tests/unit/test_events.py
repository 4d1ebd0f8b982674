"""Mechanisms as facts: there and back, what is refused, fingerprints."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.data.datasets import read_rows, write_jsonl
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.events import (
    Gaussian,
    LocalDP,
    Mechanism,
    NonPrivate,
    PoissonGaussian,
    PostProcessing,
    PureDP,
    Release,
    check_mechanism,
    fingerprint_records,
    mechanism_from_dict,
    mechanism_to_dict,
)

amount = st.floats(min_value=0, allow_nan=False)
times = st.integers(min_value=0, max_value=10**9)
mechanisms = st.one_of(
    st.builds(PoissonGaussian, st.floats(0, 1), amount, times),
    st.builds(Gaussian, amount, times),
    st.builds(PureDP, amount, times),
    st.builds(LocalDP, amount, times),
    st.builds(PostProcessing, amount, st.floats(0, 1)),
    st.just(NonPrivate()),
)


@given(mechanisms)
def test_there_and_back_through_json(mechanism: Mechanism) -> None:
    assert mechanism_from_dict(json.loads(json.dumps(mechanism_to_dict(mechanism)))) == mechanism


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": "shuffled_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10},
        {"kind": "gaussian"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "sensitivity": 2.0},
        {"kind": None},
        {"kind": "non_private", "epsilon": 1.0},
        {"kind": "local", "epsilon": 1.0},
        {"kind": "post_processing", "epsilon": 1.0},
    ],
)
def test_what_is_no_known_mechanism_is_refused(value: Dict[str, Any]) -> None:
    with pytest.raises(ExtensionError) as caught:
        mechanism_from_dict(value)
    assert caught.value.code == "E601"
    assert "poisson_gaussian" in caught.value.problem


@pytest.mark.parametrize(
    ("mechanism", "name"),
    [
        (PoissonGaussian(1.1, 1.0, 10), "sampling_rate"),
        (PoissonGaussian(-0.1, 1.0, 10), "sampling_rate"),
        (PoissonGaussian(0.1, -1.0, 10), "noise_multiplier"),
        (PoissonGaussian(0.1, math.nan, 10), "noise_multiplier"),
        (PoissonGaussian(0.1, 1.0, -1), "steps"),
        (PoissonGaussian(0.1, 1.0, True), "steps"),
        (PoissonGaussian(0.1, "1", 10), "noise_multiplier"),  # type: ignore[arg-type]
        (Gaussian(-1.0), "noise_multiplier"),
        (Gaussian(1.0, -1), "count"),
        (PureDP(-1.0), "epsilon"),
        (PureDP(math.nan), "epsilon"),
        (LocalDP(-1.0, 3), "epsilon"),
        (LocalDP(math.nan, 3), "epsilon"),
        (LocalDP(1.0, -1), "words"),
        (PostProcessing(-1.0, 0.1), "epsilon"),
        (PostProcessing(1.0, 1.5), "delta"),
        (PostProcessing(1.0, None), "delta"),  # type: ignore[arg-type]
    ],
)
def test_values_that_make_no_sense_are_refused(mechanism: Mechanism, name: str) -> None:
    with pytest.raises(ExtensionError) as caught:
        check_mechanism(mechanism)
    assert caught.value.code == "E602"
    assert caught.value.problem.startswith(f"{name} of a {mechanism.kind}")
    with pytest.raises(ExtensionError):
        mechanism_from_dict(mechanism_to_dict(mechanism))


def test_facts_are_frozen_and_one_open_release_makes_all_open() -> None:
    release = Release("dpkd", "1", "adapter", (), (Gaussian(1.0), PureDP(0.1)))
    assert release.private
    assert not dataclasses.replace(release, mechanisms=(Gaussian(1.0), NonPrivate())).private
    with pytest.raises(dataclasses.FrozenInstanceError):
        release.mechanisms = ()  # type: ignore[misc]


def test_fingerprint_of_records() -> None:
    rows = [{"text": f"row {i}", "label": i % 3} for i in range(20)]
    shuffled = random.Random(0).sample(rows, len(rows))
    first = fingerprint_records(rows)
    assert len(first) == 64
    assert first == fingerprint_records(shuffled) == fingerprint_records(dict(reversed(row.items())) for row in rows)
    others = [rows[1:], [*rows, rows[0]], [{**rows[0], "label": 2}, *rows[1:]], [{**rows[0], "id": 1}, *rows[1:]], []]
    assert len({first, *map(fingerprint_records, others)}) == 6


def test_fingerprint_does_not_depend_on_the_format(tmp_path: Path) -> None:
    """JSONL with numbers, CSV with and without header, TSV and Parquet hold the same records."""
    rows = [
        {"text": f'a, "{i}" ü', "label": i, "score": i / 3, "good": i % 2 == 0, "note": None if i % 3 else "x"}
        for i in range(9)
    ]
    first = fingerprint_records(rows)
    made = [tmp_path / name for name in ("a.jsonl", "b.csv", "c.csv", "d.tsv", "e.parquet")]
    write_jsonl(made[0], [{name: value for name, value in row.items() if value is not None} for row in rows])
    for path, header in zip(made[1:4], (True, False, True)):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([list(rows[0])] * header + [list(row.values()) for row in rows])
    pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), made[4])
    assert [fingerprint_records(read_rows(path)) for path in made] == [first] * 5
    assert fingerprint_records([{**rows[0], "label": 1}, *rows[1:]]) != first


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, "1", True),
        (0.1, "0.1", True),
        (True, "True", True),
        (True, "true", True),
        (True, 1, False),
        (None, "", True),
        (None, float("nan"), True),
        (None, "None", False),
        (["a", 1], ["a", 1], True),
        (["a", 1], ["1", "a"], False),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, True),
    ],
)
def test_values_are_compared_as_text(one: Any, other: Any, same: bool) -> None:
    first, second = (fingerprint_records([{"text": "t", "value": value}]) for value in (one, other))
    assert (first == second) is same


def test_columns_cannot_run_together() -> None:
    assert fingerprint_records([{"a": "x", "b": "yz"}]) != fingerprint_records([{"a": "xy", "b": "z"}])
    assert fingerprint_records([{"a": "x"}, {"a": "y"}]) != fingerprint_records([{"a": "x", "b": "y"}])
