from __future__ import annotations

import collections
import math

from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.corpus import DEPARTMENTS, generate_tickets
from fate_llm_ext.data.partition import unique_rows
from fate_llm_ext.data.templates import get_template


def test_deterministic_with_stable_beginning():
    assert generate_tickets(50, 1) == generate_tickets(50, 1) == generate_tickets(80, 1)[:50]
    assert generate_tickets(50, 1) != generate_tickets(50, 2)


def test_rows_fit_the_template_and_are_distinct():
    rows = generate_tickets(5000, 0)
    examples = list(get_template(TaskConfig(template="tickets")).examples(rows))
    counts = collections.Counter(example.answer for example in examples)
    assert set(counts) == {" " + department for department in DEPARTMENTS}
    assert min(counts.values()) > 850
    assert len(unique_rows([row["text"] for row in rows])) > 4800
    assert not any("{" in row["text"] or "  " in row["text"] for row in rows)
    assert len({word for row in rows for word in row["text"].split()}) > 2000


def test_learnable_but_not_to_the_end():
    """Naive Bayes over words: well above chance, below what a corpus without ambiguity would give."""
    rows = generate_tickets(3000, 0)
    train, test = rows[:2000], rows[2000:]
    words = {label: collections.Counter() for label in DEPARTMENTS}
    for row in train:
        words[row["label"]].update(row["text"].lower().split())
    size = {label: sum(count.values()) for label, count in words.items()}

    def score(label, text):
        return sum(math.log((words[label][word] + 0.1) / (size[label] + 500)) for word in text.lower().split())

    right = sum(max(DEPARTMENTS, key=lambda label, row=row: score(label, row["text"])) == row["label"] for row in test)
    assert 0.75 < right / len(test) < 0.97
