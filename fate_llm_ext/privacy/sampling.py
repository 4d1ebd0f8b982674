"""Secret randomness of DP-SGD: which records a step takes, the noise, the dropout masks.

ε holds only if nobody else can tell the sample and the noise, so none of it comes from the job's seed, which
every party knows. Dropout is secret, too: a record's mask depends on its place in the batch, so with public
masks one record more would change what the others contribute.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Dict, Optional, Union

import numpy as np
import torch

# Noise is drawn in pieces of this many numbers, so that it never exists twice in memory.
_PIECE = 1 << 20

# Generators and the bits of the seeds that they use.
_NUMPY, _PHILOX, _MERSENNE = "numpy PCG64DXSM, 256 bits", "torch Philox, 63 bits", "torch mt19937, 32 bits"


@dataclass
class Randomness:
    """The generators of one training run; without arguments use :meth:`secret`.

    Attributes:
        sampling: draws the records of a step.
        noise: draws the Gaussian noise; numpy's on a CPU (torch's is seeded with 32 bits there), torch's on a GPU.
        dropout: masks; torch's, hence seeded with 32 bits on a CPU. It replaces torch's global generator while a step
            runs.
    """

    sampling: np.random.Generator
    noise: Union[np.random.Generator, torch.Generator]
    dropout: torch.Generator

    @classmethod
    def secret(cls, device: Union[str, torch.device] = "cpu") -> Randomness:
        """Seeded from the operating system's entropy: 256 bits for numpy's generators; torch's take 63, 32 on a CPU."""
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
        noise = _NUMPY if isinstance(self.noise, np.random.Generator) else _PHILOX
        dropout = _MERSENNE if self.dropout.device.type == "cpu" else _PHILOX
        return f"sampling: {_NUMPY}; noise: {noise}; dropout: {dropout}"

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


def poisson_p_value(inclusions: np.ndarray, sampling_rate: float) -> float:
    """Whether steps took their records by Poisson sampling with probability q: p-value of that hypothesis.

    The smallest of five two-sided p-values, times five (Bonferroni): how many inclusions there are at all, how much
    the records' counts vary, how much the steps' sizes vary (all records' covariances within a step together), and
    the covariances of a record with itself some steps later, and of a record with its neighbours in the table.
    Passing over a shuffled table in batches makes sizes and counts too even.

    Args:
        inclusions: bool [T, N], whether step t took record i.
        sampling_rate: q.

    Returns:
        Near 0 if it was something else.
    """
    from scipy import stats

    q = sampling_rate
    taken = np.asarray(inclusions, dtype=np.float64)
    steps, records = taken.shape
    if not 0.0 < q < 1.0:
        return float(np.all(taken == q))
    centred = (taken - q) / math.sqrt(q * (1.0 - q))
    z_values = [
        centred.sum() / math.sqrt(steps * records),
        _lagged(centred, min(steps - 1, math.ceil(2.0 / q), 64)),
        _lagged(centred.T, min(records - 1, 64)),
    ]
    p_values = [2.0 * float(stats.norm.sf(abs(z))) for z in z_values]
    p_values += [_spread(centred.sum(0), steps, q), _spread(centred.sum(1), records, q)]
    return min(1.0, len(p_values) * min(p_values))


def _lagged(centred: np.ndarray, lags: int) -> float:
    """Mean product of numbers that are 1 to ``lags`` rows apart, over its standard deviation."""
    if lags < 1:
        return 0.0
    total, count = 0.0, 0
    for lag in range(1, lags + 1):
        total += float((centred[lag:] * centred[:-lag]).sum())
        count += centred[lag:].size
    return total / math.sqrt(count)


def _spread(sums: np.ndarray, trials: int, q: float) -> float:
    """Two-sided p-value of the sums' variance; each sum is one of ``trials`` standardised Bernoulli(q)."""
    from scipy import stats

    statistic = float((sums**2 / trials).sum())
    # A squared standardised binomial has mean 1 and this variance; a sum of them is nearly a scaled chi-square.
    variance = 2.0 + (1.0 - 6.0 * q * (1.0 - q)) / (trials * q * (1.0 - q))
    scale, freedom = variance / 2.0, 2.0 * len(sums) / variance
    lower = float(stats.chi2.cdf(statistic / scale, freedom))
    return 2.0 * min(lower, float(stats.chi2.sf(statistic / scale, freedom)))
