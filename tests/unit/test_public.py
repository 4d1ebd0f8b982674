"""The public set: labelled, held-out and unlabelled rows, alike at every party."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.fedmkt.arms import main_arm, paper_arm, phase_seed
from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.fedmkt.public import PublicSet, load_public, load_test
from fate_llm_ext.errors import ExtensionError

LABELS = ("sales", "billing", "account", "shipping", "technical")


def config(**changes: Any) -> FedMKTConfig:
    common: dict[str, Any] = {"task": {"template": "tickets"}, "public": {"name": "p"}, "model": {"name": "m"}}
    return FedMKTConfig(**{**common, **changes})


def write(folder: Path, labelled: int, unlabelled: int = 0, split: str = "train") -> Path:
    """Rows in mixed order: an unlabelled one after each labelled one, as long as there are some."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, str]] = []
    for i in range(max(labelled, unlabelled)):
        if i < labelled:
            rows.append({"text": f"labelled {i}", "label": LABELS[i % 5]})
        if i < unlabelled:
            rows.append({"text": f"unlabelled {i}", **({"label": ""} if i % 2 else {})})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_are_numbered_labelled_first(tmp_path: Path) -> None:
    public, _ = load_public(write(tmp_path / "p", 10, 6), config())
    assert (len(public), len(public.labelled), len(public.unlabelled)) == (16, 10, 6)
    for row in range(10):
        assert f"labelled {row}" in public[row].prompt
        assert public[row].answer == " " + LABELS[row % 5]
    for row in range(6):
        assert f"unlabelled {row}" in public[10 + row].prompt
        assert public[10 + row].answer is None
    assert sorted(public.choices) == sorted(" " + label for label in LABELS)
    assert public.regions == 5
    assert [public.choices[c] for c in public.gold_choice(np.arange(10))] == [e.answer for e in public.labelled]


def test_held_out_rows_are_a_share_drawn_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "p", 40, 4)
    drawn = [load_public(path, config(seed=seed, distill={"calibration_share": 0.25}))[0] for seed in (0, 0, 1)]
    for public in drawn:
        assert len(public.calibration) == 10
        assert public.calibration.tolist() == sorted(set(public.calibration.tolist()))
        together = np.concatenate([public.calibration, public.training])
        assert sorted(together.tolist()) == list(range(40))
    np.testing.assert_array_equal(drawn[0].calibration, drawn[1].calibration)
    assert drawn[0].calibration.tolist() != drawn[2].calibration.tolist()


def test_without_unlabelled_rows_nothing_is_held_out(tmp_path: Path) -> None:
    public, _ = load_public(write(tmp_path / "p", 10), config())
    assert len(public.calibration) == 0
    assert public.training.tolist() == list(range(10))
    only_labelled, _ = load_public(write(tmp_path / "q", 10, 5), config(public={"name": "p", "unlabelled": 0}))
    assert len(only_labelled.unlabelled) == len(only_labelled.calibration) == 0
    assert main_arm(public).name == "fedmkt"
    assert not main_arm(public).unlabelled


def test_limits_take_the_first_rows(tmp_path: Path) -> None:
    limits = {"name": "p", "labelled": 6, "unlabelled": 2}
    public, fingerprint = load_public(write(tmp_path / "p", 10, 6), config(public=limits))
    assert (len(public.labelled), len(public.unlabelled)) == (6, 2)
    assert "unlabelled 1" in public[7].prompt
    assert fingerprint == load_public(write(tmp_path / "q", 6, 2), config())[1]


def test_the_fingerprint_sees_every_part(tmp_path: Path) -> None:
    path = write(tmp_path / "p", 10, 6)
    _, first = load_public(path, config())
    rows = (path / "train.jsonl").read_text().splitlines()
    changes = {
        "text": rows[0].replace("labelled 0", "labelled O"),
        "label": rows[0].replace("sales", "account"),
        "unlabelled": None,
    }
    for name, line in changes.items():
        other = tmp_path / name
        other.mkdir()
        text = [line, *rows[1:]] if line else [row for row in rows if "unlabelled 3" not in row]
        (other / "train.jsonl").write_text("\n".join(text) + "\n")
        assert load_public(other, config())[1] != first, name
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.jsonl").write_bytes((path / "train.jsonl").read_bytes())
    assert load_public(tmp_path / "copy", config(seed=3))[1] == first


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "share", "code"), [(0, 5, 0.2, "E330"), (2, 5, 0.1, "E331"), (1, 5, 0.6, "E331")]
)
def test_too_few_labelled_rows(tmp_path: Path, labelled: int, unlabelled: int, share: float, code: str) -> None:
    with pytest.raises(ExtensionError) as caught:
        load_public(write(tmp_path / "p", labelled, unlabelled), config(distill={"calibration_share": share}))
    assert caught.value.code == code


def test_test_rows_come_from_the_table_before_the_public_set(tmp_path: Path) -> None:
    table, public = write(tmp_path / "table", 3), write(tmp_path / "public", 3)
    assert load_test(table, public, config()) == []
    write(public, 4, 2, "test")
    assert len(load_test(table, public, config())) == 4, "rows without an answer cannot be judged"
    write(table, 7, 0, "test")
    assert len(load_test(table, public, config())) == 7
    assert len(load_test(table, public, config(evaluation={"max_rows": 2}))) == 2


# --- arms -------------------------------------------------------------------------------------------------


def test_arms(tmp_path: Path) -> None:
    public, _ = load_public(write(tmp_path / "p", 10, 6), config())
    main, paper = main_arm(public), paper_arm(public)
    assert (main.name, main.unlabelled, main.teachable) == ("fedmkt", True, 6)
    assert main.training.tolist() == public.training.tolist()
    assert (paper.name, paper.unlabelled, paper.teachable) == ("paper", False, 10)
    assert paper.training.tolist() == list(range(10))


def test_seeds_of_phases_differ_and_stay() -> None:
    seeds = {phase_seed(seed, round, phase) for seed in range(3) for round in range(4) for phase in range(2)}
    assert len(seeds) == 24
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert phase_seed(0, 0, 0) == phase_seed(0, 0, 0)


def test_free_text_has_one_region() -> None:
    public = PublicSet([], [], np.zeros(0, dtype=np.int64), ())
    assert public.regions == 1
    assert public.gold_choice(np.array([0, 0])).tolist() == [0, 0]
