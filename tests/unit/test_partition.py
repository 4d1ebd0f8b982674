from __future__ import annotations

import collections
from pathlib import Path

import pytest

from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.datasets import iter_rows
from fate_llm_ext.data.partition import (
    Pool,
    SplitRequest,
    exclude_rows,
    iid_partition,
    label_partition,
    plan_split,
    text_key,
    unique_rows,
)
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError

LABELS = [label for label in "abcd" for _ in range(250)]
SIZES = {"guest_1": 300, "host_1": 200, "host_2": 100}
AG_NEWS = Path(__file__).resolve().parents[3] / "shared" / "assets" / "data" / "ag_news"


def _check(parts, sizes):
    assert list(parts) == list(sizes)
    assert {party: len(rows) for party, rows in parts.items()} == sizes
    everything = [row for rows in parts.values() for row in rows]
    assert len(everything) == len(set(everything))


def _skew(parts):
    """Mean share of a party's most frequent label."""
    tops = [collections.Counter(LABELS[n] for n in rows).most_common(1)[0][1] / len(rows) for rows in parts.values()]
    return sum(tops) / len(tops)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("alpha", [1e-4, 0.05, 0.3, 5.0, 1e6])
def test_label_partition_is_exact(alpha, seed):
    _check(label_partition(LABELS, SIZES, alpha, seed), SIZES)


def test_classes_that_run_out():
    sizes = {"guest_1": 500, "host_1": 499, "host_2": 1}
    for seed in range(20):
        parts = label_partition(LABELS, sizes, 0.01, seed)
        _check(parts, sizes)
        assert sorted(row for rows in parts.values() for row in rows) == list(range(1000))


def test_alpha_sets_the_skew():
    def mean(alpha):
        return sum(_skew(label_partition(LABELS, SIZES, alpha, seed)) for seed in range(20)) / 20

    assert mean(0.02) > 0.8
    assert mean(0.02) > mean(0.5) > mean(100)
    assert mean(1e6) < 0.27


def test_seed_and_order_of_parties():
    turned = dict(reversed(list(SIZES.items())))
    for function in (
        lambda sizes, seed: iid_partition(1000, sizes, seed),
        lambda sizes, seed: label_partition(LABELS, sizes, 0.3, seed),
    ):
        assert function(SIZES, 1) == function(SIZES, 1) == function(turned, 1)
        assert function(SIZES, 1) != function(SIZES, 2)
        _check(function(SIZES, 1), SIZES)


def test_iid_mixes_the_labels():
    parts = iid_partition(1000, {"a": 500, "b": 500}, 0)
    assert _skew(parts) < 0.32


def test_errors_state_both_numbers():
    for call in (lambda: iid_partition(10, {"a": 6, "b": 5}), lambda: label_partition("x" * 10, {"a": 6, "b": 5}, 1)):
        with pytest.raises(ExtensionError, match=r"E212 11 .* 10 are there"):
            call()
    with pytest.raises(ExtensionError, match=r"E214 a: 3 rows, at least 5"):
        label_partition("x" * 10, {"a": 3}, 1.0, minimum=5)
    for alpha in (0, -1, float("nan")):
        with pytest.raises(ExtensionError, match="E214 alpha"):
            label_partition("x" * 10, {"a": 3}, alpha)


def test_text_key_unique_and_exclude():
    assert text_key("  The A&amp;B,\nCAF\u00c9! ") == "the a b caf\u00e9"
    assert unique_rows(["A b", "c", "a  B!", "C", "d"]) == [0, 1, 4]
    assert exclude_rows(["one two", "three", "four"], ["Three!", "five"]) == [0, 2]
    assert exclude_rows(["one"], ["one"]) == []
    assert exclude_rows(["one"], []) == [0]
    preamble = "please read the following text with care " * 5
    assert exclude_rows([preamble + "alpha", preamble + "beta"], [preamble + "beta"]) == [0]
    body = "word " * 30
    assert exclude_rows([body + "(Reuters)", "other"], [body + "(AP)"]) == [1]
    assert exclude_rows([body + "(Reuters)", "other"], [body + "(AP)"], prefix=1000) == [0, 1]


def test_real_training_rows_in_the_test_set_are_dropped():
    template = get_template(TaskConfig(template="ag_news"))

    def texts(name):
        return [example.prompt for example in template.examples(iter_rows(AG_NEWS / name))]

    train = [text for name in ("sample5000.csv", "train_first2000.csv", "sample4000.csv") for text in texts(name)]
    train = [train[n] for n in unique_rows(train)]
    test = texts("test.csv")
    kept = exclude_rows(train, test)
    assert 10 < len(train) - len(kept) < 40
    assert set(map(text_key, test)).isdisjoint(text_key(train[n]) for n in kept)


def _pool(count, labelled=True, tag="row"):
    rows = [{"text": f"{tag} {n}", **({"label": "ab"[n % 2]} if labelled else {})} for n in range(count)]
    return Pool(rows, [row["text"] for row in rows], [row.get("label") for row in rows])


def test_plan_split():
    pool = _pool(100) + _pool(7, labelled=False, tag="bare")
    request = SplitRequest({"guest": 30, "host": 20}, 0.5, public=15, unlabelled=12, test=10, seed=3)
    plan = plan_split(pool, request, ("label",))
    assert {name: len(splits["train"]) for name, splits in plan.items()} == {"guest": 30, "host": 20, "public": 27}
    assert all(splits["test"] == plan["guest"]["test"] and len(splits["test"]) == 10 for splits in plan.values())
    assert ["label" in row for row in plan["public"]["train"]] == [True] * 15 + [False] * 12
    assert sum(row["text"].startswith("bare") for row in plan["public"]["train"]) == 7
    rows = [row["text"] for splits in plan.values() for row in splits["train"]]
    rows += [row["text"] for row in plan["guest"]["test"]]
    assert len(rows) == len(set(rows)) == 87
    assert plan == plan_split(pool, request, ("label",))


def test_plan_split_counts_usable_rows():
    pool = _pool(10) + _pool(50, labelled=False, tag="bare")
    plan_split(pool, SplitRequest({"a": 10}, unlabelled=50), ("label",))
    with pytest.raises(ExtensionError, match=r"E212 11 usable .* 10 are there"):
        plan_split(pool, SplitRequest({"a": 11}), ("label",))
    with pytest.raises(ExtensionError, match="E212"):
        plan_split(pool, SplitRequest({"a": 5}, test=4), ("label",), _pool(3))
    with pytest.raises(ExtensionError, match="E214 --test-from"):
        plan_split(pool, SplitRequest({"a": 5}), ("label",), _pool(3, labelled=False))
    with pytest.raises(ExtensionError, match="E214 --unlabelled"):
        plan_split(pool, SplitRequest({"a": 5}, unlabelled=2), ("label", "text"))
