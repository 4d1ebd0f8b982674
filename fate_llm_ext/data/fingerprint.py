"""Fingerprints: whether two sites hold the same examples (or file) without showing them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Iterable

from fate_llm_ext.data.datasets import PathLike
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError

if TYPE_CHECKING:  # it imports torch
    from fate_llm_ext.data.collate import Item

_BLOCK = 1 << 20  # bytes


def fingerprint_examples(examples: Iterable[Example]) -> str:
    """SHA-256 (64 hex digits) over prompt, answer and choices of all examples, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        fields = [example.prompt, example.answer, example.choices]
        digest.update(json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n")
    return digest.hexdigest()


def fingerprint_items(items: Iterable[Item]) -> str:
    """SHA-256 (64 hex digits) over training items, in their order: token ids, places, weights, teachers."""
    digest = hashlib.sha256()
    for item in items:
        arrays = [item.ids, item.answer]
        if item.teacher is not None:
            arrays += [item.teacher.slots, item.teacher.ids, item.teacher.log_probs]
        facts = [item.gold_weight, item.teacher_weight, *((str(one.dtype), one.shape) for one in arrays)]
        digest.update(json.dumps(facts).encode())
        for one in arrays:
            digest.update(one.tobytes())
    return digest.hexdigest()


def fingerprint_file(path: PathLike) -> str:
    """SHA-256 (64 hex digits) of a file's bytes. E201 if there is no such file."""
    file = Path(path)
    if not file.is_file():
        raise ExtensionError("E201", path=path, hint="")
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def short(fingerprint: str) -> str:
    """The first 16 hex digits, for messages and tables."""
    return fingerprint[:16]
