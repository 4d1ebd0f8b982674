"""The fixed cost of a local three-party FedMKT job: everything but learning.

    python benchmarks/overhead.py [--runs 3]

Three parties with models of a few thousand weights and a dozen rows run one round: start of the processes,
imports, FATE's set-up, handshake, every message of a round, saving, report. Beside it in the same run:
what `import torch, transformers, peft` alone costs three processes - the part that no plug-in can avoid.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import children_cpu, finish

CLI = [sys.executable, "-m", "fate_llm_ext.cli.main"]
IMPORTS = "import torch, transformers, peft; from transformers import Trainer, AutoModelForCausalLM"
PARTIES = {"guest_9999": "gpt2", "host_10000": "llama", "arbiter_9998": "gpt2"}
DAG = """
dag:
  parties:
  - {role: guest, party_id: ['9999']}
  - {role: host, party_id: ['10000']}
  - {role: arbiter, party_id: ['9998']}
  stage: train
  tasks:
    fedmkt_0:
      component_ref: fedmkt
      parameters:
        rounds: 1
        task: {template: tickets, max_length: 64}
        public: {name: tickets}
        model: {name: model}
        compare: []
      inputs:
        data:
          train_data:
            data_warehouse:
            - {namespace: b, name: t, parties: [{role: guest, party_id: ['9999']}, {role: host, party_id: ['10000']}]}
schema_version: 2.2.0
kind: fate
"""


def prepare(root: Path) -> None:
    """Data, models, job and site file under ``root``."""

    def run(*arguments: str) -> None:
        subprocess.run([*CLI, *arguments], check=True, capture_output=True)

    run("data", "generate", "tickets", "--rows", "200", "--out", str(root / "tickets.jsonl"))
    split = ["--parties", "guest_9999=12,host_10000=12", "--public", "12", "--unlabelled", "12", "--test", "12"]
    run("data", "split", str(root / "tickets.jsonl"), "--template", "tickets", "--out", str(root / "data"), *split)
    for arch in sorted(set(PARTIES.values())):
        small = ["--hidden", "16", "--layers", "1", "--vocab-size", "400", "--steps", "2"]
        run(
            "models", "tiny", "--corpus", str(root / "tickets.jsonl"), "--arch", arch, *small, "--out", str(root / arch)
        )
    (root / "dag.yaml").write_text(DAG, encoding="utf-8")
    sites = {
        party: {
            "models": {"model": arch},
            "public": {"tickets": "data/public"},
            **({"tables": {"b/t": f"data/{party}"}} if not party.startswith("arbiter") else {}),
        }
        for party, arch in PARTIES.items()
    }
    (root / "sites.yaml").write_text(json.dumps(sites), encoding="utf-8")


def measure(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of commands that run at the same time."""
    before, start = children_cpu(), time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    if any(process.wait() for process in processes):
        raise SystemExit(f"{commands[0]} failed")
    return time.perf_counter() - start, children_cpu() - before


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="counted runs, after one to warm up")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        job = [*CLI, "run", str(root / "dag.yaml"), "--sites", str(root / "sites.yaml"), "--out", str(root / "out")]
        pairs = [
            (measure([[*job, "--quiet"]]), measure([[sys.executable, "-c", IMPORTS]] * 3)) for _ in range(runs + 1)
        ]
    figures = {}
    for index, name in enumerate(("job", "imports")):
        for part, what in enumerate(("wall", "cpu")):
            figures[f"{name}_{what}_seconds"] = round(statistics.median(p[index][part] for p in pairs[1:]), 2)
    figures["cpu_over_imports"] = round(figures["job_cpu_seconds"] / figures["imports_cpu_seconds"], 2)
    finish("overhead", figures, runs=runs)


if __name__ == "__main__":
    main()
