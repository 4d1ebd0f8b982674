"""What a client in FDKT releases about its private table; everything else follows from it."""

from __future__ import annotations

import math
from typing import List, Sequence

from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.private import Planned
from fate_llm_ext.privacy.events import DataSet, Gaussian, Mechanism, NonPrivate, PoissonGaussian, Release


def other_mechanisms(config: FDKTConfig) -> List[Mechanism]:
    """What shares the job's ε with the training of the generator: label histogram and votes, if asked for."""
    others: List[Mechanism] = []
    if config.control.frequencies == "histogram":
        others.append(Gaussian(config.control.histogram_noise))
    if config.feedback.rounds:
        others.append(Gaussian(config.feedback.noise, config.feedback.rounds))
    return others


def release(config: FDKTConfig, training: PoissonGaussian, job: str, recipients: Sequence[str]) -> Release:
    """The generator's texts, and all else that leaves, as one release.

    Args:
        config: of the job.
        training: the generator's whole training.
        job: the job's id.
        recipients: all other parties of the task.
    """
    private = training.noise_multiplier > 0  # without noise nothing is, whatever clipping and sampling do
    parts = [f"texts of the {'DP ' if private else ''}generator with their labels"]
    if config.control.frequencies == "histogram":
        parts.append("noisy counts of the labels")
    if config.feedback.rounds:
        parts.append(f"noisy votes for augmented texts (rounds: {config.feedback.rounds})")
    mechanisms: List[Mechanism] = [training, *other_mechanisms(config)] if private else [NonPrivate()]
    return Release("fdkt", job, ", ".join(parts), tuple(recipients), tuple(mechanisms))


def plan(config: FDKTConfig, data: DataSet, job: str, others: Sequence[str]) -> Planned:
    """What the train stage would release; ``others`` are all other parties of the task.

    Raises:
        ExtensionError: as :func:`~fate_llm_ext.privacy.dp_training.plan_training`.
    """
    from fate_llm_ext.privacy.dp_training import plan_training

    training = plan_training(config.privacy, data.records, other_mechanisms(config))
    charged = release(config, training.mechanism(), job, others)
    delta = None if math.isinf(config.privacy.epsilon) else training.delta
    return Planned(charged, delta, config.privacy.accountant, training)
