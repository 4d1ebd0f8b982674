"""What DP-KD adds to the accountant's and the trainer's work: two halves of one ε, and the histogram's noise."""

from __future__ import annotations

import numpy as np
import pytest

from fate_llm_ext.algo.dpkd.baselines import half_plan
from fate_llm_ext.config import PrivacyConfig
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.dp_training import plan_training
from fate_llm_ext.privacy.mechanisms import gaussian_noise


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_teacher_and_student_together_cost_epsilon(target: float) -> None:
    config = PrivacyConfig(epsilon=target, batch_size=100, epochs=2)
    whole = plan_training(config, 1000)
    half = half_plan(whole)
    assert (half.steps, half.sampling_rate, half.max_grad_norm) == (whole.steps, whole.sampling_rate, 1.0)
    together = epsilon([half.mechanism(), half.mechanism()], whole.delta)
    assert 0.99 * target <= together <= target
    halved = plan_training(config.copy(update={"epsilon": target / 2}), 1000)
    assert half.noise_multiplier < halved.noise_multiplier, "composing is cheaper than adding"


def test_the_histogram_s_noise_is_gaussian_and_secret() -> None:
    np.random.seed(0)
    one = gaussian_noise(10.0, 40_000)
    np.random.seed(0)
    other = gaussian_noise(10.0, 40_000)
    assert (one != other).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert one.std() == pytest.approx(10.0, rel=0.02)
    assert abs(one.mean()) < 0.25
    assert np.mean(np.abs(one) < 10.0) == pytest.approx(0.6827, abs=0.015)
