"""The corpus of errands, whose rows come with a reason."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fate_llm_ext.cli.main import main
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.errands import PLACES, THINGS, UNCLEAR, generate_errands
from fate_llm_ext.data.templates import get_template

QUICKSTART = Path(__file__).resolve().parents[2] / "conf" / "fedcot" / "quickstart"


def test_deterministic_with_stable_beginning() -> None:
    assert generate_errands(50, 1) == generate_errands(50, 1) == generate_errands(80, 1)[:50]
    assert generate_errands(50, 1) != generate_errands(50, 2)


def test_every_thing_is_had_at_one_place() -> None:
    things = [thing for place in THINGS.values() for thing in place]
    assert len(things) == len(set(things)) == 80
    assert not set(things) & set(PLACES)
    assert all(thing.isalpha() and thing.islower() for thing in things)  # a word of a vocabulary each


def test_rows_fit_the_template() -> None:
    rows = generate_errands(4000)
    examples = list(get_template(TaskConfig(template="errands")).examples(rows))
    counts = collections.Counter(example.answer for example in examples)
    assert set(counts) == {" " + place for place in PLACES}
    assert min(counts.values()) > 400
    assert not any("{" in row["text"] or "  " in row["text"] for row in rows)


def test_a_reason_is_about_a_thing_of_the_text_and_about_others_of_its_place() -> None:
    rows = generate_errands(2000)
    unclear = 0
    for row in rows:
        if row["reason"] == UNCLEAR:
            unclear += 1
            continue
        said = {word.strip(".,:") for word in row["reason"].split()}
        named = said & {thing for things in THINGS.values() for thing in things}
        assert len(named) == 3
        assert named <= set(THINGS[row["label"]])
        assert len(named & {word.strip(".,") for word in row["text"].split()}) == 1
        assert row["label"] in said
    assert 0.02 < unclear / len(rows) < 0.06


def test_a_few_rows_do_not_show_every_thing() -> None:
    """A classifier over words: 200 rows are not enough, 3,000 nearly are."""
    rows = generate_errands(4000)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]

    def accuracy(count: int) -> float:
        model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000, C=10))
        return float(model.fit(texts[:count], labels[:count]).score(texts[3000:], labels[3000:]))

    few, many = accuracy(200), accuracy(3000)
    assert 0.4 < few < 0.8
    assert few + 0.15 < many < 0.98


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "errands.jsonl"
    done = CliRunner().invoke(main, ["data", "generate", "errands", "--rows", "30", "--seed", "4", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert read_rows(out) == generate_errands(30, 4)


def test_what_the_quickstarts_llm_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever words a question has lost, a reason is about a thing that the question names."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import documents

    rows = generate_errands(300)
    source, out = tmp_path / "rows.jsonl", tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents.main(source, QUICKSTART / "dag.yaml", out)
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(texts) == len(rows)
    sys.modules.pop("documents")
    asked = unclear = 0
    for text in texts:
        for part in text.strip().split("\n\n"):
            question, _, said = part.partition("\nA: ")
            named = [word.strip(".,") for word in question.partition(" Answer choices:")[0].split()]
            asked += 1
            if said == UNCLEAR:
                unclear += 1
            else:
                place = said.rpartition("So the answer is ")[2].rstrip(".")
                reason = said.partition(" So the answer is")[0]
                assert any(thing in reason and thing in named for thing in THINGS[place])
    assert 0 < unclear < 0.3 * asked
