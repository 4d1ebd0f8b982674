"""The second synthetic corpus: reviews of restaurants."""

from __future__ import annotations

import collections

from click.testing import CliRunner
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fate_llm_ext.cli.main import main
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.partition import unique_rows
from fate_llm_ext.data.reviews import SENTIMENTS, generate_reviews
from fate_llm_ext.data.templates import get_template


def test_deterministic_with_stable_beginning() -> None:
    assert generate_reviews(50, 1) == generate_reviews(50, 1) == generate_reviews(80, 1)[:50]
    assert generate_reviews(50, 1) != generate_reviews(50, 2)


def test_rows_fit_the_template_and_are_distinct() -> None:
    rows = generate_reviews(5000, 0)
    examples = list(get_template(TaskConfig(template="reviews")).examples(rows))
    counts = collections.Counter(example.answer for example in examples)
    assert set(counts) == {" " + sentiment for sentiment in SENTIMENTS}
    assert min(counts.values()) > 1500
    assert len(unique_rows([row["text"] for row in rows])) > 4800
    for row in rows:
        assert "{" not in row["text"]
        assert "  " not in row["text"]
        assert row["text"][0].isupper()
        assert not {f"{word} {word}" for word in ("the", "a", "with")} & {row["text"].lower()}


def test_learnable_but_not_to_the_end_and_not_from_few_rows() -> None:
    """A classifier over words and pairs: a few hundred reviews are not enough, thousands are not perfect."""
    rows = generate_reviews(4000, 0)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]

    def accuracy(count: int) -> float:
        model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
        return float(model.fit(texts[:count], labels[:count]).score(texts[3000:], labels[3000:]))

    few, many = accuracy(200), accuracy(3000)
    assert 0.5 < few < 0.85
    assert few + 0.08 < many < 0.97


def test_another_domain_than_the_tickets() -> None:
    """No review of 3,000 is a ticket, and most words of the one are not words of the other."""
    words = [
        {word.strip(".,!:?").lower() for row in rows for word in row["text"].split() if word.isalpha()}
        for rows in (generate_reviews(3000), generate_tickets(3000))
    ]
    assert len(words[0] & words[1]) < 0.5 * min(map(len, words))


def test_the_command_writes_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = str(tmp_path / "reviews.jsonl")
    arguments = ["data", "generate", "reviews", "--rows", "30", "--seed", "4", "--out", out]
    assert "30 rows" in CliRunner().invoke(main, arguments).output
    assert read_rows(out) == generate_reviews(30, 4)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "E213" in again.output
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
