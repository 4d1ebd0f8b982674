"""What an owner in DP-KD releases about its private table; everything else follows from it."""

from __future__ import annotations

from typing import List, Sequence

from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.private import Planned
from fate_llm_ext.privacy.events import DataSet, Gaussian, Mechanism, PoissonGaussian, Release


def other_mechanisms(config: DPKDConfig) -> List[Mechanism]:
    """What shares the job's ε with the training of the teacher: the histogram of control codes, if asked for."""
    return [Gaussian(config.control.histogram_noise)] if config.control.frequencies == "histogram" else []


def release(config: DPKDConfig, training: PoissonGaussian, job: str, recipients: Sequence[str]) -> Release:
    """The teacher and what it writes as one release.

    Args:
        config: of the job.
        training: the teacher's whole training.
        job: the job's id.
        recipients: all other parties of the task.
    """
    histogram = ", noisy counts of the control codes" if other_mechanisms(config) else ""
    what = f"weights of the DP teacher, texts that it writes and their log-probabilities{histogram}"
    return Release("dpkd", job, what, tuple(recipients), (training, *other_mechanisms(config)))


def plan(config: DPKDConfig, data: DataSet, job: str, others: Sequence[str]) -> Planned:
    """What the train stage would release; ``others`` are all other parties of the task.

    Raises:
        ExtensionError: as :func:`~fate_llm_ext.privacy.dp_training.plan_training`.
    """
    from fate_llm_ext.privacy.dp_training import plan_training

    training = plan_training(config.privacy, data.records, other_mechanisms(config))
    charged = release(config, training.mechanism(), job, others)
    return Planned(charged, training.delta, config.privacy.accountant, training)
