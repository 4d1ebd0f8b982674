"""Selection of teachers, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_llm_ext.algo.fedmkt.selection import (
    RunningMinimum,
    dual_min_ce,
    region_skill,
)
from fate_llm_ext.errors import ExtensionError

# few distinct values, so that ties are frequent
LOSS = st.sampled_from([0.0, 0.5, 1.0, 1.5, -2.0, math.nan, math.inf, -math.inf])
TABLE = st.integers(0, 4).flatmap(
    lambda sources: st.integers(0, 5).flatmap(
        lambda samples: st.tuples(
            st.lists(LOSS, min_size=samples, max_size=samples),
            st.lists(st.lists(LOSS, min_size=samples, max_size=samples), min_size=sources, max_size=sources),
        )
    )
)


def loop(own: list[float], others: list[list[float]]) -> list[int]:
    chosen = []
    for sample, mine in enumerate(own):
        best, winner = math.inf if math.isnan(mine) else mine, -1
        for source, losses in enumerate(others):
            if math.isfinite(losses[sample]) and losses[sample] < best:
                best, winner = losses[sample], source
        chosen.append(winner)
    return chosen


def table(own: list[float], others: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(own, float), np.array(others, float).reshape(len(others), len(own))


@given(TABLE)
def test_dual_min_ce(case: tuple[list[float], list[list[float]]]) -> None:
    own, others = table(*case)
    chosen = dual_min_ce(own, others)
    assert chosen.dtype == np.int32
    assert chosen.tolist() == loop(*case)


@given(TABLE, st.randoms(use_true_random=False))
def test_running_minimum_does_not_depend_on_the_order(case, random) -> None:  # type: ignore[no-untyped-def]
    own, others = table(*case)
    before = own.copy()
    running = RunningMinimum(own)
    order = list(range(len(others)))
    random.shuffle(order)
    for source in order:
        wins = running.add(source, others[source])
        assert (running.chosen[wins] == source).all()
    assert running.chosen.tolist() == loop(*case)
    np.testing.assert_array_equal(own, before)


def test_equal_loss_is_not_better() -> None:
    assert dual_min_ce(np.array([1.0, 1.0]), np.array([[1.0, 0.9], [1.0, 0.9]])).tolist() == [-1, 0]


def test_region_skill() -> None:
    predicted, correct = np.array([0, 0, 0, 2, 2, -1, 3]), np.array([1, 1, 0, 1, 1, 1, 1], bool)
    np.testing.assert_allclose(region_skill(predicted, correct, 3), [3 / 5, 1 / 2, 3 / 4])
    np.testing.assert_allclose(region_skill(predicted, correct, 3, prior=0.25, strength=4), [3 / 7, 1 / 4, 3 / 6])
    np.testing.assert_allclose(region_skill(np.zeros(4, int), np.array([1, 0, 0, 0], bool), 1), [2 / 6])
    np.testing.assert_allclose(region_skill(np.zeros(0, int), np.zeros(0, bool), 2), [0.5, 0.5])


def test_shapes_are_checked() -> None:
    for call in (
        lambda: dual_min_ce(np.zeros(3), np.zeros((2, 4))),
        lambda: dual_min_ce(np.zeros(3), np.zeros(3)),
        lambda: RunningMinimum(np.zeros(3)).add(0, np.zeros(4)),
        lambda: region_skill(np.zeros(3, int), np.zeros(2, bool), 2),
    ):
        with pytest.raises(ExtensionError) as caught:
            call()
        assert caught.value.code == "E325"
