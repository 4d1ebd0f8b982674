"""What a client in FedCoT releases about its private table; everything else follows from it."""

from __future__ import annotations

import math
from typing import Optional, Sequence, Tuple

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.perturbation.bounds import word_bound
from fate_llm_ext.algo.private import Planned
from fate_llm_ext.privacy.accountants import default_delta
from fate_llm_ext.privacy.events import DataSet, LocalDP, Mechanism, NonPrivate, PostProcessing, Release

WHAT = {
    "exponential": "prompts with perturbed words (no guarantee)",
    "adaptive_exponential": "prompts as a model rewrote them (no guarantee)",
    "fixed_vocabulary": "prompts with perturbed words",
    "metric": "prompts with perturbed words",
    "dp_generator": "texts of a DP generator in place of prompts",
    "none": "prompts in clear",
}


def mechanism(config: FedCoTConfig, generator: Optional[Tuple[float, Optional[float]]] = None) -> Mechanism:
    """What hides the records under the job's strategy.

    Args:
        generator: (ε, δ) of the DP generator; None while it is not known. Its training has been charged by itself.
    """
    strategy = config.perturbation.strategy
    if strategy in ("fixed_vocabulary", "metric"):
        return LocalDP(word_bound(strategy, config.perturbation.epsilon), config.question.max_words)
    if strategy == "dp_generator":
        epsilon, delta = generator or (0.0, 0.0)
        return PostProcessing(epsilon, delta) if delta is not None and math.isfinite(epsilon) else NonPrivate()
    return NonPrivate()


def plan(
    config: FedCoTConfig,
    data: DataSet,
    job: str,
    others: Sequence[str],
    generator: Optional[Tuple[float, Optional[float]]] = None,
) -> Planned:
    """What the train stage would release; ``others`` are all other parties of the task."""
    chosen = mechanism(config, generator)
    what = WHAT[config.perturbation.strategy] + (", by position" if config.rationale.recorded else "")
    release = Release("fedcot", job, what, tuple(others), (chosen,))
    if not release.private:
        return Planned(release)
    own = isinstance(chosen, PostProcessing) and chosen.delta
    return Planned(release, own or default_delta(max(2, data.records)))


def guarantee(planned: Planned) -> Tuple[float, float]:
    """ε and δ of what leaves, per record; (inf, 1) without a guarantee. A generator's texts have the generator's."""
    from fate_llm_ext.privacy.accountants import epsilon

    (chosen,) = planned.release.mechanisms
    if planned.delta is None:
        return math.inf, 1.0
    if isinstance(chosen, PostProcessing):
        return chosen.epsilon, chosen.delta
    return epsilon(planned.release.mechanisms, planned.delta), planned.delta
