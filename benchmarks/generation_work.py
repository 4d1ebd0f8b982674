"""The work that both sides of `generation.py` do: model, tokenizer, prompts, and what is reported.

Runs in both environments. The last line that :func:`report` prints is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any, Callable

import numpy as np
from common import gpt2

LABELS = 2
END = 0
_LONGEST = 512


def options(description: str) -> argparse.Namespace:
    """The command line of a side."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", required=True, help="layers,width,vocabulary")
    parser.add_argument("--prompts", choices=["labels", "shots"], required=True)
    parser.add_argument("--texts", type=int, required=True, help="of all prompts together")
    parser.add_argument("--new", type=int, required=True, help="longest text in tokens")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--ends", type=int, default=0, help="a text ends about every so many tokens; 0: as it happens")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--firsts", action="store_true", help="report which tokens stand where, and all lengths")
    return parser.parse_args()


def model_of(shape: str, ends: int, top_k: int) -> Any:
    """A GPT-2 of random weights; ``ends`` lifts the end token to about 1 / ends of what is sampled among ``top_k``."""
    import torch

    layers, width, vocab = map(int, shape.split(","))
    model = gpt2(layers, width, vocab, _LONGEST)
    if ends:
        # A constant of the last layer norm and a row of the tied embedding along it: the same logit at every place.
        with torch.no_grad():
            norm, weight = model.transformer.ln_f, model.get_input_embeddings().weight
            norm.bias.fill_(0.1)
            others = torch.randn(2000, width, generator=torch.Generator().manual_seed(1)) @ weight[1:].T
            kept = others.topk(min(top_k, vocab - 1), dim=1).values
            level = float(kept.logsumexp(1).mean()) - math.log(ends - 1)
            weight[END].fill_(level / (0.1 * width))
    return model.eval()


def tokenizer_of(vocab: int) -> Any:
    """A tokenizer of made-up words: both sides also decode what they sampled."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": END, **{f"w{index}": index for index in range(1, vocab)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", padding_side="left", model_max_length=_LONGEST
    )


def label_prompts(vocab: int) -> list[np.ndarray]:
    """A prompt per label, 12 tokens each."""
    return list(np.random.default_rng(0).integers(1, vocab, size=(LABELS, 12)))


def shot_prompts(texts: int, vocab: int) -> list[np.ndarray]:
    """Prompts with demonstrations: 200 to 300 tokens, all different."""
    draw = np.random.default_rng(0)
    return [draw.integers(1, vocab, size=draw.integers(200, 301)) for _ in range(texts)]


class Clock:
    """Wall and CPU seconds of one call."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def time(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` and remember what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return result


def report(clock: Clock, rows: list[np.ndarray], settings: argparse.Namespace) -> None:
    """Print what was found; ``rows`` are the written tokens of each text without the end token."""
    lengths = [len(row) for row in rows]
    # the end token counts: it was sampled, too
    tokens = sum(min(length + 1, settings.new) for length in lengths)
    found: dict[str, Any] = {**clock.found, "texts": len(rows), "tokens": tokens, "length": float(np.mean(lengths))}
    if settings.firsts:
        vocab = int(settings.shape.split(",")[2])
        found["lengths"] = np.bincount(lengths, minlength=settings.new + 1).tolist()
        for place in (0, 1, settings.new // 2):
            there = [row[place] for row in rows if len(row) > place]
            found[f"tokens_{place}"] = np.bincount(there, minlength=vocab).tolist()
    print(json.dumps(found))


def until_end(rows: np.ndarray) -> list[np.ndarray]:
    """Each row [new] before its first end token."""
    return [row[: np.flatnonzero(row == END)[0]] if (row == END).any() else row for row in rows]
