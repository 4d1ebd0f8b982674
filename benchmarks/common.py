"""What the benchmarks share: the closing JSON line, time, memory, and one model on both sides of a comparison.

Imports nothing but the standard library at module level: it also runs in the environment of the peer, and what
a process holds before the measurement must not depend on it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def children_cpu() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def finish(benchmark: str, figures: dict[str, Any], **environment: Any) -> None:
    """Print the last line: one JSON object."""
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": benchmark, "figures": figures, "environment": {**machine, **environment}}))


def versions(*names: str) -> dict[str, str]:
    """Versions of the installed distributions among ``names``."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def measure(command: list[str], **variables: str) -> dict[str, Any]:
    """Run one measurement in a fresh process; its last line is the JSON object that it found."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Meter:
    """Wall and CPU seconds of each optimizer step, and the most memory that training held beyond the imports.

    Memory on CPU is the kernel's high-water mark of the resident set, reset before the first step, less the
    resident set after the imports: weights, optimizer, gradients, activations. On CUDA it is the allocator's.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._imports = status_kib("VmRSS")
        self._times: list[tuple[float, float]] = []

    def start(self) -> None:
        """Model and data are there; training begins."""
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM := VmRSS

    def lap(self, *_: Any) -> None:
        """An optimizer step has ended."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        self._times.append((time.perf_counter(), time.process_time()))

    def report(self, tokens: int, **facts: str) -> None:
        """Print what was found; the first step is left out. ``tokens`` are those of all steps."""
        if self.device == "cpu":
            peak = (status_kib("VmHWM") - self._imports) / 1024
        else:
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
        pairs = list(zip(self._times, self._times[1:]))
        wall, cpu = ([after[i] - before[i] for before, after in pairs] for i in (0, 1))
        found = {"steps": len(self._times), "tokens": tokens, "wall": wall, "cpu": cpu, "peak_mb": peak}
        print(json.dumps({**found, **facts}))


def status_kib(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")))


def gpt2(layers: int, width: int, vocab: int, context: int) -> Any:
    """A GPT-2 with the same random weights under every release of transformers: drawn in order of name."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    heads = width // 64
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            vocab_size=vocab,
            n_positions=context,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "ln_" in name and name.endswith("weight"):
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02, generator=generator)
    return model


def sequences(count: int, length: int, vocab: int) -> Any:
    """Random token ids, int32 [count, length]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab, size=(count, length), dtype=np.int32)
