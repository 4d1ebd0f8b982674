"""Noise for what an owner releases."""

from __future__ import annotations

import os

import numpy as np


def gaussian_noise(scale: float, size: int) -> np.ndarray:
    """N(0, scale²), float64 [size], from the operating system's entropy: a job's seed is public."""
    generator = np.random.default_rng(int.from_bytes(os.urandom(32), "big"))
    return generator.normal(0.0, scale, size)
