"""The work that both sides of `perturbation.py` do: words, their vectors, texts, and what is reported.

Runs in both environments.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from typing import Any, Callable

import numpy as np

WORDS_OF_A_TEXT = 64


def options(description: str) -> argparse.ArgumentParser:
    """The command line of a side."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--table", required=True, help=".npy, float32 [V, d]: the words' vectors")
    parser.add_argument("--tokens", type=int, required=True, help="words to perturb")
    parser.add_argument("--epsilon", type=float, default=3.0)
    return parser


def words_of(count: int) -> list[str]:
    """Different words of small letters."""
    letters = string.ascii_lowercase
    return ["".join(letters[index // 26**place % 26] for place in (3, 2, 1, 0)) + "oo" for index in range(count)]


def texts_of(words: list[str], tokens: int) -> list[str]:
    """Texts of 64 words, which are as often as Zipf says."""
    shares = 1 / np.arange(1, len(words) + 1)
    drawn = np.random.default_rng(0).choice(len(words), tokens, p=shares / shares.sum())
    return [" ".join(words[index] for index in part) for part in np.split(drawn, range(64, tokens, WORDS_OF_A_TEXT))]


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What ``work`` gives, wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def report(before: list[str], after: list[str], seconds: dict[str, float], **facts: float) -> None:
    """Print the last line: what was found; texts have as many words as before."""
    pairs = [(one.split(), other.split()) for one, other in zip(before, after)]
    assert all(len(one) == len(other) for one, other in pairs)
    tokens = sum(len(one) for one, _ in pairs)
    kept = sum(a == b for one, other in pairs for a, b in zip(one, other))
    print(json.dumps({**seconds, "tokens": tokens, "kept": kept / tokens, **facts}))
