"""Text to train small models on: the documents of a file, and leaving out those that give a test set away."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fate_llm_ext.data.datasets import iter_rows, split_file
from fate_llm_ext.data.formats import file_format, read_lines
from fate_llm_ext.errors import ExtensionError

WINDOW = 8  # words that a text must have to be searched for in the corpus

_TEXT_COLUMNS = ("text", "content", "document", "sentence", "story", "description")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"))
_END = "<|endoftext|>"


def read_documents(path: Path, columns: Sequence[str] = ()) -> Iterator[str]:
    """The documents of a file: rows of a table, or paragraphs of a text; two columns are joined.

    Raises:
        ExtensionError: E451 no such columns; E201 to E206 as `data.datasets.iter_rows`.
    """
    file = split_file(path)
    texts = _paragraphs(file) if file_format(file) == ".txt" else (_joined(file, r, columns) for r in iter_rows(file))
    for text in texts:
        document = text.replace(_END, "").strip()
        if document:
            yield document


def all_texts(path: Path) -> Iterator[str]:
    """Every string of a file: cells, values at any depth, lines.

    Raises:
        ExtensionError: E201 to E206 as `data.datasets.iter_rows`.
    """
    for row in iter_rows(path):
        yield from _strings(row)


def drop_containing(documents: Sequence[str], texts: Iterable[str]) -> tuple[list[str], int, int]:
    """Documents that contain none of ``texts``, compared by their words (case and punctuation aside).

    Returns:
        The documents kept, the number of texts searched for, the number of texts too short for that.
    """
    index: dict[str, set[str]] = defaultdict(set)
    ignored = 0
    for text in texts:
        words = _words(text)
        ignored += len(words) < WINDOW
        if len(words) >= WINDOW:
            index[" ".join(words[:WINDOW])].add(f" {' '.join(words)} ")
    kept = []
    for document in documents:
        words = _words(document)
        whole = f" {' '.join(words)} "
        starts = (" ".join(words[at : at + WINDOW]) for at in range(len(words) - WINDOW + 1))
        if not any(text in whole for start in starts if start in index for text in index[start]):
            kept.append(document)
    return kept, sum(map(len, index.values())), ignored


def _paragraphs(file: Path) -> list[str]:
    text = "".join(line for _, line in read_lines(file))
    return text.split(_END) if _END in text else re.split(r"\n\s*\n", text)


def _joined(file: Path, row: dict[str, Any], columns: Sequence[str]) -> str:
    chosen = columns or _choose(list(row))
    if not chosen or any(name not in row for name in chosen):
        wanted = " and ".join(columns) or f"named {', '.join(_TEXT_COLUMNS)} or prompt and completion"
        raise ExtensionError("E451", path=file, wanted=wanted, columns=", ".join(row))
    parts = ["" if row[name] is None else str(row[name]) for name in chosen]
    return parts[0] if len(parts) == 1 else parts[0] + ("" if parts[0][-1:].isspace() else " ") + parts[1]


def _choose(names: list[str]) -> tuple[str, ...]:
    pair = next((pair for pair in _PAIRS if set(pair) <= set(names)), None)
    return pair or tuple(name for name in _TEXT_COLUMNS if name in names)[:1]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
