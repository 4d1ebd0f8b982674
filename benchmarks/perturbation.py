"""Perturbed words per second on CPU: this package beside fate-llm 2.2's `InferDPTKit`.

    make peer                        # once: the environment of fate-llm 2.2
    python benchmarks/perturbation.py --model MODEL [--repetitions 3] [--parts upstream,strategies,linear,memory]

The first 2,000 rows of the input embedding of MODEL stand for 2,000 made-up words; texts of 64 of them, which are as
often as Zipf says, are the same on both sides. One thread; every measurement is a fresh process of its own environment
and the sides take turns. Inside: splitting a text, looking up its words, drawing, joining. Outside: what is made once
of a vocabulary (similarities, calibration). A ratio is the median over the repetitions, each of neighbours in time.

Parts: `upstream` - `exponential` at ε 1, 3 and 8 beside the peer; `speedup_v2000` is that at ε 3. `strategies` - all
others of this package. `linear` - time of twice as many words over time. `memory` - 50,000 words with 768 numbers each:
the most memory over that of the process with this table. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, finish, measure, versions

EPSILONS = (1, 3, 8)
STRATEGIES = (("fixed_vocabulary", 3), ("metric", 3))
WORDS, MANY = 2000, 50_000

Run = dict[str, Any]


class Bench:
    """Measurements with the options of the command line, on tables in ``folder``."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._table, self._large = folder / "table.npy", folder / "large.npy"
        np.save(self._table, embedding(options.model)[:WORDS])

    def upstream(self) -> dict[str, float]:
        """Both sides in turns."""
        figures = {}
        for epsilon in EPSILONS:
            speeds: dict[str, list[float]] = {"ours": [], "peer": []}
            for repetition in range(1, self._options.repetitions + 1):
                for side, found in speeds.items():
                    tokens = self._options.tokens if side == "ours" else self._options.peer_tokens
                    found.append(self._speed(f"{epsilon} {repetition} {side}", side, tokens, epsilon=epsilon))
            figures[f"tokens_per_s_exponential_{epsilon}"] = round(statistics.median(speeds["ours"]))
            figures[f"upstream_tokens_per_s_{epsilon}"] = round(statistics.median(speeds["peer"]))
            ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["ours"], speeds["peer"]))
            figures[f"speedup_v2000_{epsilon}"] = round(ratio, 1)
        figures["speedup_v2000"] = figures["speedup_v2000_3"]
        return figures

    def strategies(self) -> dict[str, float]:
        """The strategies that the peer does not have."""
        figures = {}
        for strategy, epsilon in STRATEGIES:
            found = [
                self._speed(strategy, "ours", self._options.tokens, strategy=strategy, epsilon=epsilon)
                for _ in range(self._options.repetitions)
            ]
            figures[f"tokens_per_s_{strategy}"] = round(statistics.median(found))
        return figures

    def linear(self) -> dict[str, float]:
        """Twice as many words, which are many enough for each to have come up."""
        ratios = []
        for _ in range(self._options.repetitions):
            one, two = (self._run("ours", times * 100_000, self._table) for times in (1, 2))
            ratios.append(two[self._options.clock] / one[self._options.clock])
        return {"linear_ratio": round(statistics.median(ratios), 2)}

    def memory(self) -> dict[str, float]:
        """A large vocabulary; its vectors are random, which changes no size."""
        draw = np.random.default_rng(0)
        np.save(self._large, draw.standard_normal((MANY, 768), dtype=np.float32))
        figures = {}
        for strategy in ("exponential", "fixed_vocabulary"):
            found = self._run("ours", 5000, self._large, strategy=strategy)
            print(strategy, found, flush=True)
            figures[f"peak_gb_v50k_{strategy}"] = round(found["peak_gb_over_table"], 2)
            figures[f"peak_gb_v50k_{strategy}_whole_process"] = round(found["peak_gb"], 2)
        figures["peak_gb_v50k"] = max(figures[f"peak_gb_v50k_{name}"] for name in ("exponential", "fixed_vocabulary"))
        return figures

    def _speed(self, name: str, side: str, tokens: int, **settings: Any) -> float:
        one = self._run(side, tokens, self._table, **settings)
        speed: float = one["tokens"] / one[self._options.clock]
        print(
            f"{name:20} {speed:10.0f} tokens/s  {one['cpu']:6.2f} s CPU {one['wall']:6.2f} s wall"
            f"  {one['preparing']:5.2f} s CPU before  kept {one['kept']:.3f}",
            flush=True,
        )
        return speed

    def _run(self, side: str, tokens: int, table: Path, **settings: Any) -> Run:
        python = sys.executable if side == "ours" else str(self._options.peer)
        command = [python, str(ROOT / f"benchmarks/perturbation_{side}.py"), f"--table={table}", f"--tokens={tokens}"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        return measure(command, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")


def embedding(model: str) -> np.ndarray:
    """Its input embedding, float32 [T, d], without rows of zeros."""
    from transformers import AutoModelForCausalLM

    from fate_llm_ext.algo.fedcot.perturbation.vocabulary import embedding_table

    table = embedding_table(AutoModelForCausalLM.from_pretrained(model))
    return table[np.linalg.norm(table, axis=1) > 0]


def main() -> None:
    """Run the parts and print the closing JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model of 2,000 tokens or more")
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-peer/bin/python")
    parser.add_argument("--parts", default="upstream,strategies,linear,memory")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20_000, help="of a measurement of this package")
    parser.add_argument("--peer-tokens", type=int, default=20_000, help="of a measurement of the peer")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.parts.split(","):
            figures.update(getattr(bench, part)())
    finish("perturbation", figures, clock=options.clock, **versions("numpy"))


if __name__ == "__main__":
    main()
