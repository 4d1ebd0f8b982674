"""Documents that teach a small LLM to follow FDKT's prompts."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.algo.fdkt.config import PromptsConfig
from fate_llm_ext.algo.fdkt.documents import Amounts, Documents
from fate_llm_ext.algo.fdkt.labels import parse_label
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.cli.main import main
from fate_llm_ext.data.datasets import read_rows, write_jsonl
from fate_llm_ext.data.reviews import SENTIMENTS, generate_reviews
from fate_llm_ext.errors import ExtensionError

ROWS = generate_reviews(200, 3)
LABELS = list(SENTIMENTS)
LABEL_OF = {row["text"]: row["label"] for row in ROWS}
KIND = "reviews of restaurants"


def documents(**changes: Any) -> Documents:
    codes = np.array([LABELS.index(row["label"]) for row in ROWS])
    given: dict[str, Any] = {"shots": 1, "candidates": 6, "seed": 0, **changes}
    return Documents(Prompts(PromptsConfig()), KIND, LABELS, codes, [row["text"] for row in ROWS], **given)


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["data", "demonstrations", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return str(result.output)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "reviews.jsonl", ROWS)
    return tmp_path / "reviews.jsonl"


# --- the documents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2])
def test_a_text_after_labelled_ones(shots: int) -> None:
    """Read back, paragraph by paragraph: true labels, each label as often as it says, the answer not among them."""
    made = list(documents(shots=shots).write(len(ROWS)))
    assert sorted(one["completion"] for one in made) == sorted(LABEL_OF), "every row once"
    orders = set()
    for one in made:
        *shown, asked = one["prompt"].split("\n\n")
        pairs = [paragraph.split(": ", 1) for paragraph in shown]
        assert asked.endswith(":")
        assert LABEL_OF[one["completion"]] == asked[:-1]
        assert all(LABEL_OF[text] == label for label, text in pairs)
        assert one["completion"] not in [text for _, text in pairs]
        counts = collections.Counter(label for label, _ in pairs)
        assert set(counts) <= set(LABELS)
        assert max(counts.values()) <= shots
        orders.add((*(label for label, _ in pairs), asked))
    whole = [order for order in orders if len(order) == 3 * shots + 1]
    assert len(whole) > 12, "in any order, whatever is asked for"


def test_the_label_of_a_text() -> None:
    made = list(documents().label(len(ROWS) + 10))
    assert len(made) == len(ROWS) + 10
    for one in made:
        text = one["prompt"].split("\n")[0]
        assert LABELS[parse_label(one["completion"], LABELS) or 0] == LABEL_OF[text]
        assert one["prompt"] == Prompts(PromptsConfig()).label(KIND, LABELS, text)


def test_a_choice_among_texts() -> None:
    """What it names is a text of the corpus that stands there for the first time; what it does not name is neither."""
    made = list(documents().judge(150))
    answers = collections.Counter()
    for one in made:
        listed = [line.split("] ", 1)[1] for line in one["prompt"].splitlines() if line.startswith("[")]
        expected = [n for n, text in enumerate(listed, 1) if text in LABEL_OF and text not in listed[: n - 1]]
        named = [] if one["completion"] == "none" else [int(number) for number in one["completion"].split(", ")]
        assert named == expected
        assert KIND in one["prompt"]
        answers[len(named) == len(listed)] += 1
    assert min(answers.values()) > 20, "some clusters are whole, some are not"


def test_the_forms_are_mixed_and_seeded() -> None:
    amounts = Amounts(write=20, label=30, judge=10)
    made = documents().all(amounts)
    assert len(made) == 60
    assert made == documents().all(amounts) != documents(seed=1).all(amounts)
    forms = ["Answer:" in one["prompt"] for one in made]
    assert forms != sorted(forms)
    assert documents().all(Amounts(0, 0, 0)) == []


def test_a_label_with_too_few_texts() -> None:
    codes = np.array([0, 0, 1])
    with pytest.raises(ExtensionError, match=r"E212 2 public rows were asked for, 1 are there .*'bad'"):
        Documents(Prompts(PromptsConfig()), "texts", ["good", "bad"], codes, ["a", "b", "c"])


# --- the command --------------------------------------------------------------------------------------------


def test_the_command(reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "read.jsonl.gz"
    more = ["--template", "reviews", "--description", KIND, "--out", out]
    assert "430 documents" in run(reviews, *more, "--write", 300, "--label", 100, "--judge", 30)
    rows = read_rows(out)
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    same = documents(candidates=8).all(Amounts(300, 100, 30))
    assert rows == same
    assert "E213" in run(reviews, *more, code=1)
    assert "400 documents" in run(reviews, *more, "--force")


def test_no_excluded_row_is_read(reviews: Path, tmp_path: Path) -> None:
    """Neither as it is nor as a part of another one, nor in another writing; in no split of a folder."""
    private, judged = ROWS[:40], ROWS[40:60]
    write_jsonl(tmp_path / "held" / "train.jsonl", [{"body": row["text"].upper()} for row in private])
    write_jsonl(tmp_path / "held" / "test.jsonl", judged)
    longer = [{"text": "As I said. " + row["text"] + " So it was.", "label": row["label"]} for row in private]
    write_jsonl(tmp_path / "more.jsonl", longer)
    out = tmp_path / "read.jsonl"
    settings = ["--template", "reviews", "--description", KIND, "--exclude", tmp_path / "held", "--out", out]
    run(reviews, tmp_path / "more.jsonl", *settings)
    text = out.read_text()
    assert len(text) > 10_000
    long = [row["text"] for row in (*private, *judged) if len(row["text"].split()) >= 8]
    assert len(long) > 50
    assert not [one for one in long if json.dumps(one, ensure_ascii=False)[1:-1] in text]
    assert not [row for row in read_rows(out) if row["completion"] in {one["text"] for one in (*private, *judged)}]


def test_columns_labels_and_length(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(
        "body,stars\n"
        + "".join(f"the number {n} was fine,5\nthe number {n} was bad,1\n" for n in range(5))
        + f"{'long ' * 30},5\n"
    )
    out = tmp_path / "read.jsonl"
    columns = ["--text-column", "body", "--label-column", "stars", "--description", KIND, "--out", out, "--force"]
    assert "11 rows, 10 without" in run(table, *columns, "--max-words", 20)
    assert "Which of 1, 5?" in out.read_text()
    run(table, *columns, "--labels", "5,1", "--write", 0)
    assert "Which of 5, 1?" in out.read_text()
    assert "E211" in run(table, *columns, "--labels", "5,4", code=1)
    assert "E210" in run(table, "--description", KIND, "--out", out, "--force", code=1)
    assert "was bad" not in run(table, *columns, "--labels", "5,4", code=1)


def test_the_prompts_of_a_job(reviews: Path, tmp_path: Path) -> None:
    """Those of the arbiter, who uses them."""
    parties = [{"role": role, "party_id": ["1"]} for role in ("guest", "arbiter")]
    task: dict[str, Any] = {"component_ref": "fdkt", "parameters": {"prompts": {"label": "{{ text }} ?"}}}
    own = {"parties": [parties[1]], "tasks": {"fdkt_0": {"parameters": {"prompts": {"label": "{{ text }} IS"}}}}}
    dag = {"parties": parties, "stage": "train", "tasks": {"fdkt_0": task}, "party_tasks": {"arbiter_1": own}}
    job = tmp_path / "dag.yaml"
    out = tmp_path / "read.jsonl"
    more = ["--template", "reviews", "--description", KIND, "--out", out, "--force", "--job", job, "--write", 0]

    def write() -> None:
        job.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))

    write()
    run(reviews, *more)
    assert all(row["prompt"].endswith(" IS") for row in read_rows(out))
    own["tasks"]["fdkt_0"]["parameters"]["prompts"] = {"labels": "x"}  # type: ignore[index]
    write()
    assert "E220" in run(reviews, *more, code=1)
    own["tasks"]["fdkt_0"]["parameters"]["prompts"] = {"label": "no text"}  # type: ignore[index]
    write()
    assert "E209" in run(reviews, *more, code=1)
    task["component_ref"] = "dpkd"
    write()
    assert "E220" in run(reviews, *more, code=1)
    assert "0 tasks" in run(reviews, *more, code=1)
