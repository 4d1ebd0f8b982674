"""What a DP-SGD step costs: beside training without DP, and beside fate-llm 2.2's DPTrainer.

    make peer                        # once: the environment of fate-llm 2.2
    python benchmarks/dp_step.py [--parts lora,full,frozen,logical] [--repetitions 3] [--steps 1]

A GPT-2 of 82 million random weights (6 layers, 768 wide, 50,257 tokens), 8 records of 256 tokens per optimizer
step, 8 at a time. Every measurement is a fresh process of its own environment, the sides take turns, and all see
the same weights, tokens and number of optimizer steps; loading is outside, collation inside, the first step
is left out. A time is the median of the steps; a ratio is the median over the repetitions, each of neighbours
in time. Memory is the peak of the resident set during training less what the process holds after its imports.

Parts: `lora` - adapters under DP-SGD beside adapters under `train_items`. `full` - all weights under DP-SGD beside
the peer's DPTrainer and beside `train_items`. `frozen` - the same with the tied embedding frozen, which is
the peer's default. `logical` - 1,024 records per step beside 8, in a small GPT-2 and
of 64 tokens, as many records in all.
With --device cuda: adapters only, tokens per second under DP-SGD as a share of those without.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any, Callable

from common import ROOT, finish, measure, versions

LENGTH = 256
LARGE = "6,768,50257"  # layers, width, vocabulary
SMALL = "2,128,8192"

Run = dict[str, Any]
Sides = dict[str, list[Run]]


class Bench:
    """Measurements with the options of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._records = options.records
        self._variables = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}

    def ours(self, side: str, weights: str, small: bool = False, records: int = 0, steps: int = 0) -> Run:
        """A measurement of this package: ``side`` is dp or plain."""
        shape, length = (SMALL, LENGTH // 4) if small else (LARGE, LENGTH)
        command = [sys.executable, str(ROOT / "benchmarks/dp_step_ours.py"), f"--side={side}", f"--weights={weights}"]
        command += [f"--shape={shape}", f"--records={records or self._records}", f"--length={length}"]
        command += [f"--physical={8 if small else self._records}"]
        command += [f"--steps={steps or self._options.steps + 1}", f"--device={self._options.device}"]
        return measure(command, **self._variables)

    def peer(self, weights: str) -> Run:
        """A measurement of fate-llm 2.2 in its own environment."""
        command = [str(self._options.peer), str(ROOT / "benchmarks/dp_step_peer.py"), f"--shape={LARGE}"]
        command += [f"--records={self._records}", f"--length={LENGTH}", f"--steps={self._options.steps + 1}"]
        return measure(command + (["--freeze-embedding"] if weights == "frozen" else []), **self._variables)

    def compare(self, sides: dict[str, Callable[[], Run]]) -> Sides:
        """Measure the sides in turns. All have to do the same work."""
        found: Sides = {name: [] for name in sides}
        for repetition in range(1, self._options.repetitions + 1):
            for name, side in sides.items():
                one = side()
                one["seconds"] = statistics.median(one[self._options.clock])
                found[name].append(one)
                wall, cpu = statistics.median(one["wall"]), statistics.median(one["cpu"])
                print(
                    f"{repetition}  {name:9} {wall:7.2f} s wall {cpu:7.2f} s CPU a step {one['peak_mb']:7.0f} MB"
                    f"  {one.get('way', '')}",
                    flush=True,
                )
        work = {(one["steps"], one["tokens"]) for runs in found.values() for one in runs}
        if len(work) != 1:
            raise SystemExit(f"the sides did not do the same work, (steps, tokens): {sorted(work)}")
        return found

    def lora(self) -> dict[str, float]:
        """Adapters under DP-SGD beside adapters without."""
        found = self.compare({name: lambda name=name: self.ours(name, "lora") for name in ("dp", "plain")})  # type: ignore[misc]
        time, memory = ratio(found, "dp", "plain", "seconds"), ratio(found, "dp", "plain", "peak_mb")
        if self._options.device != "cpu":
            return {"dp_lora_share_of_plain": round(1 / time, 3), **absolute("lora", found)}
        return {"lora_time_over_plain": time, "lora_memory_over_plain": memory, **absolute("lora", found)}

    def full(self, weights: str = "full") -> dict[str, float]:
        """All weights (or all but the embedding) under DP-SGD beside the peer, and beside training without DP."""
        sides = {"dp": lambda: self.ours("dp", weights), "upstream": lambda: self.peer(weights)}
        if weights == "full":
            sides["plain"] = lambda: self.ours("plain", weights)
        found = self.compare(sides)
        figures = {}
        for other in list(found)[1:]:
            figures[f"{weights}_time_over_{other}"] = ratio(found, "dp", other, "seconds")
            figures[f"{weights}_memory_over_{other}"] = ratio(found, "dp", other, "peak_mb")
        return {**figures, **absolute(weights, found)}

    def frozen(self) -> dict[str, float]:
        """The peer's default: all weights but the tied embedding."""
        return self.full("frozen")

    def logical(self) -> dict[str, float]:
        """1,024 records per step beside 8, 8 at a time, 2,048 records each."""
        memory = {records: self.ours("dp", "full", True, records, 2048 // records)["peak_mb"] for records in (1024, 8)}
        print(f"logical batch of 1024: {memory[1024]:.0f} MB, of 8: {memory[8]:.0f} MB", flush=True)
        figures = {f"logical_{records}_mb": round(peak) for records, peak in memory.items()}
        return {"logical_1024_memory_over_8": round(memory[1024] / memory[8], 3), **figures}


def ratio(found: Sides, one: str, other: str, what: str) -> float:
    """Median over the repetitions of ``one`` / ``other``."""
    return round(statistics.median(a[what] / b[what] for a, b in zip(found[one], found[other])), 3)


def absolute(prefix: str, found: Sides) -> dict[str, float]:
    """Tokens per second and memory of each side."""
    figures: dict[str, float] = {}
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        tokens = runs[0]["tokens"] / runs[0]["steps"]
        figures[f"{prefix}_{name}_tokens_per_second"] = round(tokens / seconds, 1)
        figures[f"{prefix}_{name}_mb"] = round(statistics.median(run["peak_mb"] for run in runs))
    return figures


def main() -> None:
    """Measure the parts that were asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="lora,full,logical", help="of lora, full, frozen, logical")
    parser.add_argument("--repetitions", type=int, default=3, help="fresh processes per side")
    parser.add_argument("--steps", type=int, default=1, help="counted steps per process, after one to warm up")
    parser.add_argument("--records", type=int, default=8, help="per step, all at a time; more for a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of each process; default: all cores")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu, on a busy machine: --threads 1")
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-peer/bin/python", help="Python of the peer")
    options = parser.parse_args()
    parts = ["lora"] if options.device != "cpu" else options.parts.split(",")
    if {"full", "frozen"} & set(parts) and not options.peer.exists():
        raise SystemExit(f"{options.peer} is not there. Next: make peer, or leave full and frozen out of --parts.")
    bench = Bench(options)
    figures: dict[str, float] = {}
    for part in parts:
        figures.update(getattr(bench, part)())
    settings = {"threads": options.threads or os.cpu_count(), "clock": options.clock, "device": options.device}
    counts = {"repetitions": options.repetitions, "steps": options.steps}
    finish("dp_step", figures, **settings, **counts, **versions("torch", "transformers", "peft", "opacus"))


if __name__ == "__main__":
    main()
