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
from fate_llm_ext.privacy.events import Mechanism, NonPrivate, PoissonGaussian, PureDP, check_mechanism

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
    return 0.0 if composition.empty else _epsilon(composition, float(delta), accountant)


def compose(mechanisms: Sequence[Mechanism]) -> Composition | None:
    """Mechanisms sorted and merged, those without cost left out; None if one of them is not private."""
    subsampled: Dict[Tuple[float, float], int] = {}
    pure: Dict[float, int] = {}
    precisions: List[float] = []
    for one in map(check_mechanism, mechanisms):
        if isinstance(one, NonPrivate):
            return None
        if isinstance(one, PureDP):
            if one.epsilon and one.count:
                pure[float(one.epsilon)] = pure.get(float(one.epsilon), 0) + math.ceil(one.count)
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
    if atoms(composition) > MAX_ATOMS:  # many unlike pure mechanisms: their ε as if all were one
        total = math.fsum(one * count for one, count in composition.pure)
        composition = Composition(composition.subsampled, composition.mu, ((total, 1),))
        logger.warning("%d unlike pure mechanisms: their ε are added up", len(composition.pure))
    limit = _with_package(accountant, lambda: rdp_epsilon(composition, delta))
    if not (composition.subsampled or composition.mu):
        limit = min(limit, math.fsum(one * count for one, count in composition.pure))
    if accountant == "rdp" or not math.isfinite(limit):
        return limit
    if not composition.subsampled and not composition.pure:
        return min(limit, gaussian_epsilon(composition.mu, delta))
    if not composition.subsampled and not composition.mu:
        return min(limit, pure_epsilon(composition.pure, delta))
    return min(limit, _numerical(composition, delta, accountant, limit))


def _numerical(composition: Composition, delta: float, accountant: Accountant, limit: float) -> float:
    """ε by prv or pld; ``limit``, a valid bound, where they cannot be trusted."""
    compute = prv_epsilon if accountant == "prv" else pld_epsilon
    error = _precision(limit)
    try:
        result = _with_package(accountant, lambda: compute(composition, delta, error))
        if error > 2 * _precision(result):  # the limit was far off, so was the precision derived from it
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
    return _secant(spend, target_epsilon, high)


def _bisect(enough: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The smallest σ in [low, high], to a relative ``tolerance``, that is enough; ``high`` is."""
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _secant(spend: Callable[[float], float], target: float, high: float) -> float:
    """As :func:`_bisect` from a good first guess, with few of the dear evaluations: log ε over log σ is smooth."""
    low, factor = high, 1.15
    at_low = at_high = spend(high)
    while at_low <= target:
        if low <= LEAST_NOISE:
            return LEAST_NOISE
        high, at_high = low, at_low
        low = max(LEAST_NOISE, low / factor)
        at_low, factor = spend(low), factor * 1.3
    for _ in range(60):
        if high <= low * (1 + TOLERANCE):
            break
        guess = math.sqrt(low * high)
        if at_high > 0 and math.isfinite(at_low) and at_low > at_high:
            share = math.log(at_low / target) / math.log(at_low / at_high)
            # A little beyond the crossing, on the safe side first: the next step then closes the bracket from below.
            guess = low * (high / low) ** share * (1 + TOLERANCE / 3)
            if not low * (1 + TOLERANCE / 3) < guess < high:
                guess = max(low * (1 + TOLERANCE / 2), high / (1 + TOLERANCE * 0.9))
        at_guess = spend(guess)
        if at_guess <= target:
            high, at_high = guess, at_guess
            closer = guess / (1 + TOLERANCE * 0.9)
            if closer > low:
                at_closer = spend(closer)
                if at_closer > target:
                    return guess
                high, at_high = closer, at_closer
        else:
            low, at_low = guess, at_guess
    return high


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
    if delta * records >= 1:
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


def _with_package(accountant: Accountant, compute: Callable[[], float]) -> float:
    try:
        return compute()
    except ImportError as error:
        raise ExtensionError("E604", accountant=accountant, package=PACKAGES[accountant], reason=error) from error
