"""From mechanisms to ε and back: composition at a δ, noise for a target, rules for δ.

Every number is an upper bound: where the chosen accountant meets its numerical limits, a looser bound is
taken and the log says so. ``prv`` is Opacus' code for privacy random variables, ``rdp`` Opacus' Rényi DP,
``pld`` Google's dp-accounting; prv and pld agree within 1 %, rdp reports more.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Callable, Dict, List, Sequence, Tuple

from typing_extensions import Literal

from fate_llm_ext._compat import installed_version
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.composition import (
    MAX_ATOMS,
    Composition,
    atoms,
    gaussian_epsilon,
    pld_epsilon,
    prv_epsilon,
    pure_epsilon,
    rdp_epsilon,
)
from fate_llm_ext.privacy.events import (
    LocalDP,
    Mechanism,
    NonPrivate,
    PoissonGaussian,
    PostProcessing,
    PureDP,
    check_mechanism,
)

Accountant = Literal["prv", "rdp", "pld"]

PACKAGES: Dict[str, str] = {"prv": "opacus", "rdp": "opacus", "pld": "dp-accounting"}
LEAST_NOISE, MOST_NOISE = 0.01, 1e6  # σ outside of this is of no use to anybody
TOLERANCE = 1e-3  # of a calibrated σ
PRECISION = 2e-3  # of ε: how far above the truth prv and pld may be, about

logger = logging.getLogger(__name__)


def epsilon(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant = "prv") -> float:
    """ε at which all mechanisms together are (ε, δ)-DP; inf if one of them is not private.

    Args:
        mechanisms: in any order; they may depend on each other's outputs.
        delta: δ in (0, 1).
        accountant: how to compose. What is exact in closed form (Gaussians on all records, pure mechanisms) is
            computed so for every accountant but ``rdp``.

    Raises:
        ExtensionError: E602 for a mechanism whose values make no sense, E603 for δ, E604 if the accountant's
            package is missing.
    """
    _check_range("delta", delta, 0.0, 1.0)
    if accountant not in PACKAGES:
        raise ExtensionError("E605", got=accountant, known=", ".join(PACKAGES))
    composition = compose(mechanisms)
    if composition is None:
        return math.inf
    if composition.empty:
        return 0.0
    try:
        return _epsilon(composition, float(delta), accountant)
    except ImportError as error:
        package = "dp-accounting" if (error.name or "").startswith("dp_accounting") else "opacus"
        raise ExtensionError("E604", accountant=accountant, package=package, reason=error) from error


def compose(mechanisms: Sequence[Mechanism]) -> Composition | None:
    """Mechanisms sorted and merged, those without cost left out; None if one of them is not private."""
    subsampled: Dict[Tuple[float, float], int] = {}
    pure: Dict[float, int] = {}
    precisions: List[float] = []
    for one in map(check_mechanism, mechanisms):
        if isinstance(one, NonPrivate):
            return None
        if isinstance(one, PostProcessing):
            if not math.isfinite(one.epsilon):
                return None
            continue
        if isinstance(one, (PureDP, LocalDP)):
            count = math.ceil(one.count if isinstance(one, PureDP) else one.words)
            if one.epsilon and count:
                pure[float(one.epsilon)] = pure.get(float(one.epsilon), 0) + count
            continue
        q, times = (one.sampling_rate, one.steps) if isinstance(one, PoissonGaussian) else (1.0, one.count)
        sigma = float(one.noise_multiplier)
        if not (q and times) or math.isinf(sigma):
            continue
        if not sigma:
            return None
        if q == 1:
            precisions += [times / sigma**2]
        else:
            subsampled[float(q), sigma] = subsampled.get((float(q), sigma), 0) + math.ceil(times)
    if any(map(math.isinf, pure)):
        return None
    return Composition(
        subsampled=tuple(sorted((q, sigma, steps) for (q, sigma), steps in subsampled.items())),
        mu=math.sqrt(math.fsum(sorted(precisions))),
        pure=tuple(sorted(pure.items())),
    )


@functools.lru_cache(maxsize=4096)
def _epsilon(composition: Composition, delta: float, accountant: Accountant) -> float:
    if atoms(composition) > MAX_ATOMS:
        return min(_epsilon(coarser, delta, accountant) for coarser in _coarser(composition))
    limit = rdp_epsilon(composition, delta)
    gaussian = bool(composition.subsampled or composition.mu)
    if not gaussian:
        limit = min(limit, math.fsum(one * count for one, count in composition.pure))
    if accountant == "rdp" or not math.isfinite(limit):
        return limit
    if not gaussian:
        return min(limit, pure_epsilon(composition.pure, delta))
    if not composition.subsampled and not composition.pure:
        return min(limit, gaussian_epsilon(composition.mu, delta))
    return min(limit, _numerical(composition, delta, accountant, limit))


def _coarser(composition: Composition) -> List[Composition]:
    """Ways to bound many unlike pure mechanisms: by one with the sum of their ε, or all by the largest ε."""
    total = math.fsum(one * count for one, count in composition.pure)
    count = sum(count for _, count in composition.pure)
    ways = [((total, 1),)] + ([((composition.pure[-1][0], count),)] if count < MAX_ATOMS else [])
    logger.info("%d pure mechanisms with %d different ε: bounded from above", count, len(composition.pure))
    return [Composition(composition.subsampled, composition.mu, way) for way in ways]


def _numerical(composition: Composition, delta: float, accountant: Accountant, limit: float) -> float:
    """ε by prv or pld; ``limit``, a valid bound, where they cannot be trusted."""
    compute = prv_epsilon if accountant == "prv" else pld_epsilon
    error = _precision(limit)
    try:
        result = compute(composition, delta, error)
        if error > 1.2 * _precision(result):  # the limit was far off, so was the precision derived from it
            result = compute(composition, delta, _precision(result))
    except (ArithmeticError, MemoryError) as failure:
        logger.warning("%s cannot compose at δ = %g (%s): Rényi DP's looser bound counts", accountant, delta, failure)
        return limit
    return result


def _precision(value: float) -> float:
    return min(0.1, max(1e-5, PRECISION * value))


def noise_multiplier(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: Accountant = "prv",
    others: Sequence[Mechanism] = (),
) -> float:
    """The smallest σ (to 0.1 %) with which DP-SGD, together with ``others``, spends no more than the target.

    Args:
        target_epsilon: ε of everything together.
        delta: δ of everything together.
        sampling_rate: q.
        steps: T.
        accountant: how to compose.
        others: what else is released from the same records.

    Raises:
        ExtensionError: E603 for a value outside its range, E606 if no σ reaches the target.
    """
    _check_range("target_epsilon", target_epsilon, 0.0, math.inf, closed=True)
    check_mechanism(PoissonGaussian(sampling_rate, 1.0, steps))

    def spend(sigma: float, by: Accountant = accountant) -> float:
        return epsilon([*others, PoissonGaussian(sampling_rate, sigma, steps)], delta, by)

    alone = epsilon(others, delta, accountant)
    if alone > target_epsilon or spend(MOST_NOISE) > target_epsilon:
        raise ExtensionError(
            "E606", target=f"{target_epsilon:g}", delta=f"{delta:g}", others=f"{alone:.4g}", most=f"{MOST_NOISE:g}"
        )
    if spend(LEAST_NOISE, "rdp") <= target_epsilon:
        return LEAST_NOISE
    high = _bisect(lambda sigma: spend(sigma, "rdp") <= target_epsilon, LEAST_NOISE, MOST_NOISE, 0.01)
    while spend(high) > target_epsilon:
        high = min(2 * high, MOST_NOISE)
    if accountant == "rdp":
        return _bisect(lambda sigma: spend(sigma) <= target_epsilon, high / 1.02, high, TOLERANCE)
    return _root(spend, target_epsilon, high)


def _bisect(enough: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The smallest σ in [low, high], to a relative ``tolerance``, that is enough; ``high`` is."""
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _root(spend: Callable[[float], float], target: float, high: float) -> float:
    """As :func:`_bisect` below ``high``, with few of the dear evaluations: log ε over log σ is nearly straight."""
    from scipy.optimize import brentq

    def excess(log_sigma: float) -> float:
        return math.log(max(spend(math.exp(log_sigma)), 1e-9) / target)

    low = high / 1.2
    while spend(low) <= target:
        if low <= LEAST_NOISE:
            return LEAST_NOISE
        low, high = max(low / 1.5, LEAST_NOISE), low
    sigma = math.exp(brentq(excess, math.log(low), math.log(high), xtol=TOLERANCE / 4))
    while sigma < high and spend(sigma) > target:
        sigma *= 1 + TOLERANCE / 4
    return min(sigma, high)


def default_delta(records: int) -> float:
    """δ = N^-1.1, below the 1 / N from which on one record in the clear would count as private."""
    _check_range("records", records, 2, math.inf, closed=True)
    return float(records) ** -1.1


def check_delta(delta: float, records: int) -> None:
    """Refuse a δ that allows to publish a record.

    Raises:
        ExtensionError: E607 if δ >= 1 / N, E603 if it is no probability.
    """
    _check_range("delta", delta, 0.0, 1.0)
    _check_range("records", records, 1, math.inf, closed=True)
    if delta >= 1 / records:
        raise ExtensionError(
            "E607",
            delta=f"{delta:g}",
            records=f"{records:,}",
            limit=f"{1 / records:.3g}",
            default=f"{max(records, 2) ** -1.1:.2g}",
        )


def version(accountant: Accountant) -> str:
    """The package that computes, with its version, e.g. ``opacus 1.6.0 (PRV)``."""
    package = PACKAGES[accountant]
    return f"{package} {installed_version(package) or 'not installed'} ({accountant.upper()})"


def _check_range(name: str, got: float, low: float, high: float, closed: bool = False) -> None:
    number = isinstance(got, (int, float)) and not isinstance(got, bool)
    if not number or not (low <= got <= high if closed else low < got < high):
        raise ExtensionError(
            "E603", name=name, got=got, between="from" if closed else "strictly between", low=low, high=high
        )
