from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fate_llm_ext.data.collate import Item, TeacherTargets
from fate_llm_ext.data.fingerprint import fingerprint_examples, fingerprint_file, fingerprint_items, short
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError

ONE, TWO = Example("p", " a", (" a", " b")), Example("q\u00e9", None, None)


def test_value_is_stable():
    expected = hashlib.sha256(b'["p"," a",[" a"," b"]]\n["q\\u00e9",null,null]\n').hexdigest()
    assert fingerprint_examples(iter([ONE, TWO])) == expected
    assert short(expected) == expected[:16]


@pytest.mark.parametrize(
    "other",
    [
        [TWO, ONE],
        [ONE],
        [ONE, TWO, TWO],
        [Example("p ", "a", (" a", " b")), TWO],
        [Example("p", " b", (" a", " b")), TWO],
        [Example("p", " a", (" b", " a")), TWO],
        [Example("p", " a", None), TWO],
        [ONE, Example("q\u00e9", "", None)],
    ],
)
def test_every_part_and_the_order_count(other):
    assert fingerprint_examples(other) != fingerprint_examples([ONE, TWO])


def test_file():
    source = Path(__file__).resolve().parents[3] / "shared" / "assets" / "data" / "ag_news" / "test.csv"
    assert fingerprint_file(source) == "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
    with pytest.raises(ExtensionError, match="E201"):
        fingerprint_file(source.parent)


def test_items_differ_in_every_part():
    ids, places = np.array([5, 6, 7], dtype=np.int32), np.array([1, 2], dtype=np.int32)
    slots, known = np.array([0], dtype=np.int32), np.array([[3, 4]], dtype=np.int32)
    teacher = TeacherTargets(slots, known, np.array([[-1.0, -2.0]], dtype=np.float32))
    sharper = TeacherTargets(slots, known, np.array([[-0.5, -2.0]], dtype=np.float32))
    one, longer = Item(ids, places), Item(np.append(ids, ids[:1]), places)
    lists = [
        [one], [longer], [one, longer], [longer, one], [Item(ids, places[:1])], [Item(ids, places, 0.5)],
        [Item(ids, places, 1.0, None, 0.5)], [Item(ids, places, 1.0, teacher)], [Item(ids, places, 1.0, sharper)],
    ]  # fmt: skip
    assert len({fingerprint_items(items) for items in lists}) == len(lists)
    assert fingerprint_items([Item(ids.copy(), places.copy())]) == fingerprint_items([one])
