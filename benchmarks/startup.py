"""How long the command line and FATE's look-up of our components take to start.

    python benchmarks/startup.py [--runs 7]

FATE imports every component module in each of its processes, and `fate-llm-ext --help` is the first thing
a user sees: both have to stay far below what `import torch` costs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from common import children_cpu, finish, versions

CASES = {
    "python": [sys.executable, "-c", "pass"],
    "help": [sys.executable, "-m", "fate_llm_ext.cli.main", "--help"],
    "fate_components": [sys.executable, "-c", "import fate.components.core"],
    "component_import": [sys.executable, "-c", "import fate_llm_ext.components.fedmkt"],
    "doctor": [sys.executable, "-m", "fate_llm_ext.cli.main", "doctor", "--json"],
}


def measure(command: list[str], runs: int) -> tuple[float, float]:
    """Median wall and CPU seconds of a command, after one run that warms the file cache."""
    wall, cpu = [], []
    for _ in range(runs + 1):
        before, start = children_cpu(), time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        wall.append(time.perf_counter() - start)
        cpu.append(children_cpu() - before)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def main() -> None:
    """Measure every case and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="runs per case, after one to warm up")
    runs = parser.parse_args().runs
    figures = {}
    for name, command in CASES.items():
        wall, cpu = measure(command, runs)
        figures[f"{name}_wall_seconds"] = round(wall, 3)
        figures[f"{name}_cpu_seconds"] = round(cpu, 3)
        print(f"{name:18} {wall:6.3f} s wall  {cpu:6.3f} s CPU")
    finish("startup", figures, runs=runs, **versions("pyfate"))


if __name__ == "__main__":
    main()
