"""Synthetic tokens per second on CPU: this package beside fate-llm 2.2's `slm_text_generate`.

    make peer                        # once: the environment of fate-llm 2.2
    python benchmarks/generation.py [--parts same,small,large,ends,shots] [--repetitions 3] [--new 64]

Two GPT-2 of random weights: `small` (2 layers, 64 wide) and `large` (6 layers, 768 wide, 82 million weights), 50,257
tokens each, sampled with top_k 50, top_p 0.9, temperature 1. Every measurement is a fresh process of its own
environment and the sides take turns; loading and a short warm-up are outside, decoding is inside. A token counts up to
the end of its text. A ratio is the median over the repetitions, each of neighbours in time.

Parts: `small`, `large` - 2 label prompts, 64 texts each, none of which ends early; this package in its default batches
of 64, the peer in those of its documentation (32) and in ours. `ends` - the large model, its texts end after 32
tokens on average and 64 at most. `shots` - the large model, prompts of 200 to 300 tokens, all different, in the peer's
default batches (2) and in ours, through its `general_text_generate`. `same` - whether both sides sample from one
distribution: p-values of chi-square tests on a vocabulary of 64 tokens.
`speedup` is the smallest ratio of `small`, `large` and `ends`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from common import ROOT, finish, measure, versions

SMALL, LARGE, TINY = "2,64,50257", "6,768,50257", "2,64,64"
OURS = 64  # texts at a time, the default of this package
DOCUMENTED = {"labels": 32, "shots": 2}  # the peer's: its FDKT tutorial, and its default

Run = dict[str, Any]


class Bench:
    """Measurements with the options of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._variables = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}

    def run(self, side: str, batch: int, **settings: Any) -> Run:
        """One measurement of ``side`` (ours or peer)."""
        python = sys.executable if side == "ours" else str(self._options.peer)
        command = [python, str(ROOT / f"benchmarks/generation_{side}.py"), f"--batch={batch}"]
        command += [f"--{name}={value}" if value is not True else f"--{name}" for name, value in settings.items()]
        return measure(command, **self._variables)

    def compare(self, part: str, **settings: Any) -> dict[str, float]:
        """Tokens per second of the sides in turns."""
        documented = DOCUMENTED[settings["prompts"]]
        sides = {"ours": ("ours", OURS), "upstream": ("peer", documented), "upstream_same_batch": ("peer", OURS)}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for repetition in range(1, self._options.repetitions + 1):
            for name, (side, batch) in sides.items():
                one = self.run(side, batch, new=self._options.new, **settings)
                speeds[name].append(one["tokens"] / one[self._options.clock])
                print(
                    f"{part} {repetition}  {name:20} {speeds[name][-1]:8.1f} tokens/s  {one['cpu']:6.2f} s CPU"
                    f" {one['wall']:6.2f} s wall  {one['tokens']} tokens, mean length {one['length']:.1f}",
                    flush=True,
                )
        figures = {f"{part}_{name}_tokens_per_second": round(statistics.median(v), 1) for name, v in speeds.items()}
        for name in list(sides)[1:]:
            ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[name])]
            figures[f"{part}_over_{name}"] = round(statistics.median(ratios), 2)
        return figures

    def small(self) -> dict[str, float]:
        """Sampling itself: the model costs next to nothing beside its vocabulary."""
        return self.compare("small", shape=SMALL, prompts="labels", texts=128)

    def large(self) -> dict[str, float]:
        """A model of the size of DistilGPT-2."""
        return self.compare("large", shape=LARGE, prompts="labels", texts=128)

    def ends(self) -> dict[str, float]:
        """Texts of unlike lengths."""
        return self.compare("ends", shape=LARGE, prompts="labels", texts=128, ends=self._options.new // 2)

    def shots(self) -> dict[str, float]:
        """Long prompts, all different."""
        return self.compare("shots", shape=LARGE, prompts="shots", texts=16)

    def same(self) -> dict[str, float]:
        """p-values: tokens at the first, second and middle place, and lengths, of 8,000 texts a side."""
        from scipy.stats import chi2_contingency

        work = {"shape": TINY, "prompts": "labels", "texts": 8000, "new": 32, "ends": 16, "firsts": True}
        work["top-k"] = 20
        found = [self.run(side, 500, **work) for side in ("ours", "peer")]
        figures = {}
        for what in ("tokens_0", "tokens_1", "tokens_16", "lengths"):
            table = merged([one[what] for one in found])
            figures[f"same_{what}_p"] = round(float(chi2_contingency(table).pvalue), 4)
        print(f"same: {figures}", flush=True)
        return figures


def merged(rows: list[list[int]]) -> list[list[int]]:
    """Two rows of counts; rare columns are joined, so that the chi-square distribution holds."""
    columns = list(zip(*rows))
    often = [column for column in columns if sum(column) >= 10]
    rest = [sum(column[side] for column in columns if sum(column) < 10) for side in (0, 1)]
    return [[*(column[side] for column in often), *([rest[side]] if sum(rest) else [])] for side in (0, 1)]


def main() -> None:
    """Measure the parts that were asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="same,small,large,ends,shots", help="of same, small, large, ends, shots")
    parser.add_argument("--repetitions", type=int, default=3, help="fresh processes per side")
    parser.add_argument("--new", type=int, default=64, help="longest text in tokens")
    parser.add_argument("--threads", type=int, help="of each process; default: all cores")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu, on a busy machine: --threads 1")
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-peer/bin/python", help="Python of the peer")
    options = parser.parse_args()
    if not options.peer.exists():
        raise SystemExit(f"{options.peer} is not there. Next: make peer.")
    bench = Bench(options)
    figures: dict[str, float] = {}
    for part in options.parts.split(","):
        figures.update(getattr(bench, part)())
    ratios = [value for name, value in figures.items() if "_over_" in name and not name.startswith("shots")]
    if ratios:
        figures = {"speedup": min(ratios), **figures}
    settings = {"threads": options.threads or os.cpu_count(), "clock": options.clock, "new": options.new}
    finish("generation", figures, **settings, repetitions=options.repetitions, **versions("torch", "transformers"))


if __name__ == "__main__":
    main()
