"""What mechanisms cost together: three ways to bound ε at a δ, all of them from above.

A :class:`Composition` holds the mechanisms in the form the mathematics wants: full-batch Gaussians as one
(their precisions add up), equal subsampled Gaussians counted together, pure mechanisms as the worst case
of their ε, randomised response (Kairouz, Oh and Viswanath 2015, theorem 3.3).

Neighbours differ by adding or removing one record. The record is there in all steps or in none, so the two
directions are composed one by one and the larger ε counts; Opacus' accountant composes one of them only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Callable, Tuple

import numpy as np

# Orders of Rényi divergence: Opacus' own, then larger ones, without which no ε below about 0.2 can be shown.
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1000)
MAX_POINTS = 1 << 22  # of the discretised privacy loss: 32 MB for each array of it
MAX_LOSS = 500.0  # exp() of a larger privacy loss leaves float64
MAX_ATOMS = 1 << 20


@dataclass(frozen=True)
class Composition:
    """Mechanisms that cost something, sorted and merged.

    Attributes:
        subsampled: (q, σ, steps) of Poisson subsampled Gaussians, 0 < q < 1.
        mu: of all full-batch Gaussians together: μ² = Σ count / σ²; 0 is none.
        pure: (ε, count) of pure mechanisms.
    """

    subsampled: Tuple[Tuple[float, float, int], ...] = ()
    mu: float = 0.0
    pure: Tuple[Tuple[float, int], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing costs anything."""
        return not (self.subsampled or self.mu or self.pure)


def smallest_epsilon(delta_of: Callable[[float], float], delta: float, limit: float) -> float:
    """The smallest ε in [0, limit] whose δ is not above ``delta``, rounded up; δ falls with ε, δ(limit) <= delta."""
    if delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, limit
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if delta_of(middle) <= delta else (middle, high)
    return high


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact ε of a Gaussian mechanism with sensitivity / σ = μ (Balle and Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr

    def delta_of(epsilon: float) -> float:
        gain, loss = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return float(-math.exp(gain) * math.expm1(min(0.0, loss - gain)))

    return smallest_epsilon(delta_of, delta, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta)))


def pure_atoms(pure: Tuple[Tuple[float, int], ...]) -> Tuple[np.ndarray, np.ndarray]:
    """Privacy losses of composed randomised responses and their probabilities: two float64 [A]."""
    from scipy.special import expit
    from scipy.stats import binom

    losses, masses = np.zeros(1), np.ones(1)
    for epsilon, count in pure:
        hits = np.arange(count + 1)
        own = binom.pmf(hits, count, expit(epsilon))
        losses = np.add.outer(losses, epsilon * (2.0 * hits - count)).ravel()
        masses = np.multiply.outer(masses, own).ravel()
    return losses, masses


def pure_epsilon(pure: Tuple[Tuple[float, int], ...], delta: float) -> float:
    """Exact ε of pure mechanisms together; never above the sum of their ε."""
    losses, masses = pure_atoms(pure)

    def delta_of(epsilon: float) -> float:
        return float(np.sum(masses * -np.expm1(np.minimum(0.0, epsilon - losses))))

    return smallest_epsilon(delta_of, delta, math.fsum(epsilon * count for epsilon, count in pure))


# Rényi ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _rdp_of_step(q: float, sigma: float) -> np.ndarray:
    """Rényi divergences of one subsampled step, float64 [orders]; inf where an order cannot be computed."""
    from opacus.accountants.analysis.rdp import compute_rdp

    values = np.full(len(ORDERS), np.inf)
    for index, order in enumerate(ORDERS):
        try:
            values[index] = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order))
        except (ValueError, OverflowError):
            continue
    # D_α rises with α: what cannot be computed is bounded by the next order, and no order by less than the one before.
    values[~np.isfinite(values)] = np.inf
    values = np.minimum.accumulate(values[::-1])[::-1] if np.isinf(values).any() else values
    return np.maximum.accumulate(np.maximum(values, 0.0))


def _rdp_of_pure(epsilon: float) -> np.ndarray:
    """Rényi divergences of randomised response, float64 [orders]."""
    orders = np.asarray(ORDERS)
    hit, miss = -np.log1p(np.exp(-epsilon)), -epsilon - np.log1p(np.exp(-epsilon))
    return np.logaddexp(orders * hit + (1 - orders) * miss, orders * miss + (1 - orders) * hit) / (orders - 1)


def rdp_epsilon(composition: Composition, delta: float) -> float:
    """ε by Rényi DP with the conversion of Balle et al. 2020 (theorem 21): always a bound, 9-19 % above the truth."""
    orders = np.asarray(ORDERS)
    bounds = _rdp(composition) - (math.log(delta) + np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.min(bounds)))


def _rdp(composition: Composition) -> np.ndarray:
    """Rényi divergences of all together, float64 [orders]."""
    rdp = np.asarray(ORDERS) * composition.mu**2 / 2
    for q, sigma, steps in composition.subsampled:
        rdp = rdp + steps * _rdp_of_step(q, sigma)
    for epsilon, count in composition.pure:
        rdp = rdp + count * _rdp_of_pure(epsilon)
    return rdp


# Privacy random variables ---------------------------------------------------------------------------------


class _GaussianLoss:
    """Privacy loss of a subsampled Gaussian, of which Opacus' class has one direction and less of the tails.

    With P = (1 - q) N(0, σ²) + q N(1, σ²) and Q = N(0, σ²) it is log(P/Q)(x) for x ~ P when a record is removed,
    and -log(P/Q)(x) for x ~ Q when one is added; log(P/Q)(x) = log(1 - q + q exp((2x - 1) / 2σ²)) rises with x.
    """

    def __init__(self, q: float, sigma: float, adding: bool) -> None:
        self.q = q
        self.sigma = sigma
        self.adding = adding

    def _below(self, x: np.ndarray) -> np.ndarray:
        """Probability of what lies below x, under Q or P."""
        from scipy.special import ndtr

        if self.adding:
            return ndtr(x / self.sigma)
        return (1 - self.q) * ndtr(x / self.sigma) + self.q * ndtr((x - 1) / self.sigma)

    def _above(self, x: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr

        if self.adding:
            return ndtr(-x / self.sigma)
        return (1 - self.q) * ndtr(-x / self.sigma) + self.q * ndtr((1 - x) / self.sigma)

    def masses(self, edges: np.ndarray) -> np.ndarray:
        """Probabilities of the cells between rising ``edges``, float64 [E - 1]; exact far out in both tails."""
        ratio = (np.expm1(-edges if self.adding else edges) + self.q) / self.q
        x = np.where(ratio > 0, self.sigma**2 * np.log(np.maximum(ratio, 1e-300)) + 0.5, -np.inf)
        below, above = np.diff(self._below(x)), -np.diff(self._above(x))
        cells = np.where(x[:-1] + x[1:] < 0, below, above)
        return -cells if self.adding else cells

    def mean(self) -> float:
        """Exact to float64: the trapezoid rule converges exponentially for what is smooth in x."""
        x = np.arange(-13 * self.sigma, 1 + 13 * self.sigma, self.sigma / 200)
        density = np.exp(-((x / self.sigma) ** 2) / 2)
        if not self.adding:
            density = (1 - self.q) * density + self.q * np.exp(-(((x - 1) / self.sigma) ** 2) / 2)
        ratio = np.logaddexp(np.log1p(-self.q), np.log(self.q) + (2 * x - 1) / (2 * self.sigma**2))
        return float(np.dot(density, -ratio if self.adding else ratio) / density.sum())

    def discretized(self, domain: Any) -> Any:
        """On the domain's grid, shifted so that the mean is right (Gopi et al., algorithm 2)."""
        from opacus.accountants.analysis.prv import DiscretePRV

        points = domain.ts
        edges = np.append(points - domain.dt / 2, points[-1] + domain.dt / 2)
        pmf = self.masses(edges)
        shift = self.mean() - float(np.dot(points, pmf))
        if not abs(shift) <= 0.501 * domain.dt:
            raise ArithmeticError(f"the grid moves the mean privacy loss by {shift:.1e}")
        return DiscretePRV(pmf=pmf, domain=domain.shift_right(shift))


def prv_epsilon(composition: Composition, delta: float, eps_error: float) -> float:
    """ε by numerical composition of privacy random variables (Gopi, Lee and Wutschitz 2021), the upper end.

    Args:
        composition: what to compose, not empty.
        delta: δ.
        eps_error: how far the result may lie above the truth, about; enlarged where the grid would become too fine.

    Raises:
        ArithmeticError: if float64 cannot carry the computation; take a looser bound then.
    """
    delta_error = delta / 1000
    steps = sum(count for _, _, count in composition.subsampled) + bool(composition.mu)
    half_width = _half_width(composition, delta_error / 16, steps) + 2 * eps_error
    if not half_width < MAX_LOSS:
        raise ArithmeticError(f"privacy losses up to {half_width:.0f}")
    spread = math.sqrt(max(1, steps) * math.log(12 / delta_error) / 2)
    eps_error = max(eps_error, 2 * half_width * spread / MAX_POINTS)
    with np.errstate(all="ignore"):  # log(0) at q = 1, underflow in the tails
        return max(
            _one_direction(composition, delta, delta_error, eps_error, eps_error / spread, half_width, adding)
            for adding in ([False, True] if composition.subsampled else [False])
        )


def _half_width(composition: Composition, mass: float, steps: int) -> float:
    """L: the privacy loss of all, or that of any step, leaves [-L, L] with a probability below ``mass``.

    Chernoff: E[exp((α - 1) loss)] = exp((α - 1) D_α), and the lower tail is the lighter one.
    """
    orders = np.asarray(ORDERS)

    def tail(part: Composition, own: float) -> float:
        return float(np.min(_rdp(part) + math.log(1 / own) / (orders - 1)))

    parts = [Composition(subsampled=((q, sigma, 1),)) for q, sigma, _ in composition.subsampled]
    parts += [Composition(mu=composition.mu)] if composition.mu else []
    return max([tail(composition, mass), *(tail(part, mass / steps) for part in parts)])


def _one_direction(
    composition: Composition,
    delta: float,
    delta_error: float,
    eps_error: float,
    mesh: float,
    half_width: float,
    adding: bool,
) -> float:
    from opacus.accountants.analysis.prv import DiscretePRV, Domain, compose_heterogeneous

    gaussians = list(composition.subsampled) + ([(1.0, 1 / composition.mu, 1)] if composition.mu else [])
    outside = 0.0
    try:
        domain = Domain.create_aligned(-half_width, half_width, mesh)
        discrete = [_GaussianLoss(q, sigma, adding).discretized(domain) for q, sigma, _ in gaussians]
        counts = [count for _, _, count in gaussians]
        if composition.pure:
            # Rounding every loss up to the grid can only make it larger.
            pmf, outside = _on_grid(composition.pure, domain)
            discrete.append(DiscretePRV(pmf=pmf, domain=domain))
            counts.append(1)
        composed = compose_heterogeneous(dprvs=discrete, num_self_compositions=counts)
        # What the Fourier transform's rounding may hide counts as lost.
        lost = outside - 2 * float(np.minimum(composed.pmf, 0.0).sum())
        if lost > delta / 10 or not abs(float(composed.pmf.sum()) + outside - 1) < 1e-6:
            raise ArithmeticError(f"rounding errors of {lost:.1e}")
        upper = float(composed.compute_epsilon(delta - lost, delta_error, eps_error)[2])
    except (RuntimeError, ValueError, IndexError) as error:
        raise ArithmeticError(str(error)) from error
    if math.isnan(upper):
        raise ArithmeticError("the result is not a number")
    return max(0.0, upper)


def _on_grid(pure: Tuple[Tuple[float, int], ...], domain: Any) -> Tuple[np.ndarray, float]:
    """Pure mechanisms as probabilities of the grid's points, float64 [domain.size], and the mass beyond its end."""
    pmf, outside = np.zeros(domain.size), 0.0
    losses, masses = pure_atoms(pure)
    index = np.maximum(np.ceil((losses - domain.t_min) / domain.dt).astype(np.int64), 0)
    inside = index < domain.size
    np.add.at(pmf, index[inside], masses[inside])
    outside = float(masses[~inside].sum())
    return pmf, outside


# Privacy loss distributions -------------------------------------------------------------------------------


def pld_epsilon(composition: Composition, delta: float, eps_error: float) -> float:
    """ε by Google's dp-accounting, pessimistic estimate.

    Args:
        composition: what to compose, not empty.
        delta: δ.
        eps_error: how far the result may lie above the truth, about.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    steps = sum(count for _, _, count in composition.subsampled) + 1
    widest = max([20 / sigma + 1 / sigma**2 for _, sigma, _ in composition.subsampled] + [20 * composition.mu + 1])
    interval = max(eps_error / math.sqrt(steps), widest / (2 * MAX_POINTS))
    parts = [
        pld.from_gaussian_mechanism(sigma, value_discretization_interval=interval, sampling_prob=q).self_compose(steps)
        for q, sigma, steps in composition.subsampled
    ]
    if composition.mu:
        parts.append(pld.from_gaussian_mechanism(1 / composition.mu, value_discretization_interval=interval))
    if composition.pure:
        losses, masses = pure_atoms(composition.pure)
        rounded: dict[int, float] = {}
        for loss, mass in zip(losses, masses):
            index = math.ceil(loss / interval)
            rounded[index] = rounded.get(index, 0.0) + float(mass)
        parts.append(pld.PrivacyLossDistribution.create_from_rounded_probability(rounded, 0.0, interval))
    composed = parts[0]
    for part in parts[1:]:
        composed = composed.compose(part)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


def atoms(composition: Composition) -> int:
    """How many different privacy losses the pure mechanisms have together, at most."""
    return math.prod(count + 1 for _, count in composition.pure)
