"""Secret randomness of DP-SGD: which records a step takes, the noise, the dropout masks.

ε holds only if nobody else can tell the sample and the noise, so none of it comes from the job's seed, which
every party knows. Dropout is secret, too: a record's mask depends on its place in the batch, so with public
masks one record more would change what the others contribute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, Optional, Union

import numpy as np
import torch

# Noise is drawn in pieces of this many numbers, so that it never exists twice in memory.
_PIECE = 1 << 20


@dataclass
class Randomness:
    """The generators of one training run; without arguments use :meth:`secret`.

    Attributes:
        sampling: draws the records of a step.
        noise: draws the Gaussian noise; numpy's on a CPU (torch's is seeded with 32 bits there), torch's on a GPU.
        dropout: masks; it replaces torch's global generator while a step runs.
    """

    sampling: np.random.Generator
    noise: Union[np.random.Generator, torch.Generator]
    dropout: torch.Generator

    @classmethod
    def secret(cls, device: Union[str, torch.device] = "cpu") -> Randomness:
        """Seeded from the operating system's entropy: 256 bits each on a CPU, 64 bits for torch's generators."""
        return cls._make(torch.device(device), None)

    @classmethod
    def seeded(cls, seed: int, device: Union[str, torch.device] = "cpu") -> Randomness:
        """Reproducible, hence without any privacy: for tests."""
        return cls._make(torch.device(device), np.random.SeedSequence(seed))

    @classmethod
    def _make(cls, device: torch.device, root: Optional[np.random.SeedSequence]) -> Randomness:
        seeds = (root or np.random.SeedSequence(int.from_bytes(os.urandom(32), "big"))).spawn(3)
        sampling, noise, dropout = (np.random.Generator(np.random.PCG64DXSM(seed)) for seed in seeds)
        return cls(sampling, noise if device.type == "cpu" else _torch(noise, device), _torch(dropout, device))

    def describe(self) -> str:
        """For the privacy report: the generators and their seeding, never their state."""
        noise = "numpy PCG64DXSM, 256 bits" if isinstance(self.noise, np.random.Generator) else "torch Philox, 64 bits"
        return f"sampling: numpy PCG64DXSM, 256 bits; noise: {noise}"

    def add_noise(self, values: torch.Tensor, std: float) -> None:
        """Add independent N(0, std²) to each number of a contiguous tensor, in place."""
        flat = values.view(-1)
        for start in range(0, len(flat), _PIECE):
            part = flat[start : start + _PIECE]
            if isinstance(self.noise, torch.Generator):
                drawn = torch.randn(len(part), generator=self.noise, device=part.device, dtype=part.dtype)
            else:
                double = values.dtype == torch.float64
                drawn = torch.from_numpy(self.noise.standard_normal(len(part), np.float64 if double else np.float32))
            part.add_(drawn, alpha=std)

    def state_dict(self) -> Dict[str, Any]:
        """Exact state. Who has it can undo the noise: it stays with the private records."""
        noise = self.noise.get_state() if isinstance(self.noise, torch.Generator) else self.noise.bit_generator.state
        return {
            "sampling": self.sampling.bit_generator.state,
            "noise": noise,
            "dropout": self.dropout.get_state(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.sampling.bit_generator.state = state["sampling"]
        if isinstance(self.noise, torch.Generator):
            self.noise.set_state(state["noise"])
        else:
            self.noise.bit_generator.state = state["noise"]
        self.dropout.set_state(state["dropout"])


def _torch(source: np.random.Generator, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    generator.manual_seed(int(source.integers(0, 1 << 63)))
    return generator


def poisson_sample(generator: np.random.Generator, records: int, sampling_rate: float) -> np.ndarray:
    """One step's records: each is taken with probability q, independently of all others (int64 [B], B may be 0)."""
    return np.flatnonzero(generator.random(records) < sampling_rate)
