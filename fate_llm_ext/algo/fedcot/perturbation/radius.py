"""The radius of RANTEXT: the length of Laplace noise, whose law does not depend on the word.

Dimensions: V words, d numbers of a vector, K steps of a law.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

FARTHEST = 2.0  # between vectors of length 1
NEAREST = 1e-6  # a distance of 0 is less than that after rounding: every word is its own candidate

_CELLS = 1 << 14
_EQUAL = 6  # 2⁶ steps of equal mass, the last of which is halved again and again ...
_SMALLEST = 36  # ... down to 2⁻³⁶


def rantext_scales(epsilon: float, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Scale of the Laplace noise in each dimension, float64 [d]: Δ_j / f(ε), Δ_j the range of dimension j.

    f(ε) is RANTEXT's (InferDPT, arXiv 2310.12214): ε below 2, a log(b ε + c) + d from 2 on, about 9.3 throughout. With
    Δ_j · 2/ε in its place every word is a candidate of every other up to ε of about 8, for the noise of all dimensions
    together is far longer than the vectors; so it is below 2, where outputs are nearly uniform.

    Args:
        vectors: [V, d]; their directions count.
        lengths: [V].
    """
    factor = epsilon if epsilon < 2 else 0.0165 * math.log(19.0648 * epsilon - 38.1294) + 9.3111
    scales: np.ndarray = np.array([np.ptp(column / lengths) for column in vectors.T]) / factor
    return scales


def radius_law(scales: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The law of r = |noise| for independent Laplace noise of these scales, float64 [d], in K steps.

    The law of r² = Σ (scale_j E_j)², E_j exponential, is the convolution of d laws, each on one lattice and with its
    mean kept; then it is cut into 63 parts of mass 1/64, and parts of mass 2⁻⁷, 2⁻⁸ ... 2⁻³⁶ and 2⁻³⁶ above them, each
    represented by its median. The last one is at least :data:`FARTHEST`: no word is out of reach, as in the law itself.
    The lattice has 2¹⁴ cells or more up to a sum that is exceeded with less than 1e-12.

    Returns:
        Radii, float64 [K], rising; how many of 2³⁶ each has, int64 [K].
    """
    tails = [1 - i / 2**_EQUAL for i in range(2**_EQUAL)] + [2.0**-i for i in range(_EQUAL + 1, _SMALLEST + 1)] + [0.0]
    masses = -np.diff(tails)
    squares = np.square(scales[scales > 0])
    if not len(squares):
        return np.array([FARTHEST]), np.array([2**_SMALLEST])  # all vectors are the same
    grid, beyond = _squares(squares)
    middles = (np.array(tails[:-1]) + np.array(tails[1:])) / 2
    radii = np.sqrt(np.interp(-middles, -beyond, grid))
    radii[-1] = max(radii[-1], FARTHEST)
    return np.maximum(radii, NEAREST), np.round(masses * 2**_SMALLEST).astype(np.int64)


def _squares(squares: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """P(Σ a_j E_j² > z) on a lattice of z, for a = ``squares``."""
    # mean and 10 standard deviations, and one E that is as large as the largest of d is with probability 1e-17
    most = 2 * squares.sum() + 10 * math.sqrt(20 * np.square(squares).sum())
    most += squares.max() * (40 + math.log(len(squares))) ** 2
    cells = _CELLS * max(1, min(16, 64 // len(squares)))  # few dimensions: much mass close to 0
    grid = np.arange(cells) * (most / (cells - 1))
    spectrum = np.ones(cells // 2 + 1, np.complex128)
    for square in squares:
        roots = np.sqrt(grid / square)
        excess = 2 * square * (1 + roots) * np.exp(-roots)  # E[max(X - z, 0)]
        mass = np.zeros(cells)
        slopes = np.diff(excess) / grid[1]
        mass[0], mass[1:-1] = 1 + slopes[0], np.diff(slopes)  # each X shared by its two neighbours, its mean kept
        spectrum *= np.fft.rfft(mass)
    mass = np.clip(np.fft.irfft(spectrum, cells), 0.0, None)
    beyond = np.cumsum(mass[::-1])[::-1] - mass / 2  # a cell's mass lies around its point
    return grid, beyond / mass.sum()
