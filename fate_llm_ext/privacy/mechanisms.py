"""Randomness of what an owner releases."""

from __future__ import annotations

import os

import numpy as np


def fresh_generator() -> np.random.Generator:
    """A generator seeded from the operating system's entropy: a job's seed is public."""
    return np.random.default_rng(int.from_bytes(os.urandom(32), "big"))


def gaussian_noise(scale: float, size: int) -> np.ndarray:
    """N(0, scale²), float64 [size], from the operating system's entropy."""
    return fresh_generator().normal(0.0, scale, size)
