"""Jobs of the integration tests: what is written to disk, run as a user runs it, and looked at afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

PROGRAM = str(Path(sys.executable).with_name("fate-llm-ext"))
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
CLIENTS = [{"role": "guest", "party_id": ["9999"]}, {"role": "host", "party_id": ["10000"]}]
PARTIES = [*CLIENTS, {"role": "arbiter", "party_id": ["9998"]}]
KEYS = ("guest_9999", "host_10000", "arbiter_9998")


def program(*arguments: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, **kwargs)


def make(*arguments: str | Path) -> None:
    done = program(*arguments, timeout=240)
    assert done.returncode == 0, done.stderr


def make_world(root: Path) -> Path:
    """``tickets.jsonl``, ``data/{guest_9999,host_10000,public}``, ``models/{gpt2,llama,neox}``."""
    make("data", "generate", "tickets", "--rows", "600", "--out", root / "tickets.jsonl")
    sizes = ["--parties", "guest_9999=16,host_10000=16", "--public", "20", "--unlabelled", "12", "--test", "10"]
    make("data", "split", root / "tickets.jsonl", "--template", "tickets", "--out", root / "data", *sizes)
    small = ["--steps", "20", "--hidden", "16", "--vocab-size", "400", "--context", "192", "--threads", "1"]
    for arch, kind in (("gpt2", "byte_bpe"), ("llama", "sentencepiece_bpe"), ("neox", "byte_bpe")):
        place = ["--corpus", root / "tickets.jsonl", "--out", root / "models" / arch]
        make("models", "tiny", *place, "--arch", arch, "--tokenizer-kind", kind, *small)
    return root


@dataclass
class JobFiles:
    """A DAG and a site file that a test may change before it runs them."""

    soon: ClassVar[float] = 90.0  # seconds within which a failing job ends on a busy machine; a hang takes minutes

    folder: Path
    dag: dict[str, Any]
    sites: dict[str, Any]
    arguments: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.dag["dag"]["tasks"]["fedmkt_0"]["parameters"]

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    def write(self) -> list[str]:
        """The command that runs the job."""
        (self.folder / "dag.yaml").write_text(yaml.safe_dump(self.dag))
        (self.folder / "sites.yaml").write_text(yaml.safe_dump(self.sites))
        files = ["run", str(self.folder / "dag.yaml"), "--sites", str(self.folder / "sites.yaml")]
        return [*files, "--out", str(self.out), *self.arguments]

    def run(self) -> subprocess.CompletedProcess[str]:
        return program(*self.write(), timeout=240)

    def directory(self) -> Path:
        (found,) = self.out.iterdir()
        return found

    def alive(self) -> list[psutil.Process]:
        """Processes that still have something to do with this job."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            if str(self.folder) in " ".join(process.info["cmdline"] or []) and process.info["status"] != "zombie":
                found.append(process)
        return found


def failed(job: JobFiles, *words: str) -> str:
    """Run the job; it must fail with exactly one error that contains the words."""
    began = time.monotonic()
    done = job.run()
    assert time.monotonic() - began < job.soon
    assert done.returncode == 1, done.stdout + done.stderr
    return one_error(job, done.stderr, *words)


def one_error(job: JobFiles, stderr: str, *words: str) -> str:
    lines = [line for line in stderr.splitlines() if re.search(r"\bE\d{3} ", line)]
    assert len(lines) == 1, stderr
    assert "Next: " in lines[0]
    assert all(word in lines[0] for word in words), lines[0]
    assert "Traceback" not in stderr
    assert not job.alive()
    return lines[0]


def nothing_started(job: JobFiles) -> None:
    assert not job.out.exists()
