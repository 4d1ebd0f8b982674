"""Poisson sampling and the secret randomness."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from fate_llm_ext.privacy.sampling import Randomness, poisson_p_value, poisson_sample

STEPS, RECORDS, RATE = 120, 300, 0.1
LEVEL = 1e-3


def poisson(seed: int, steps: int = STEPS, records: int = RECORDS, rate: float = RATE) -> np.ndarray:
    generator = np.random.default_rng(seed)
    inclusions = np.zeros((steps, records), dtype=bool)
    for row in inclusions:
        row[poisson_sample(generator, records, rate)] = True
    return inclusions


def shuffled(seed: int) -> np.ndarray:
    """Batches of one size from a new order in each epoch, as a DataLoader does."""
    generator, size = np.random.default_rng(seed), int(RATE * RECORDS)
    inclusions = np.zeros((STEPS, RECORDS), dtype=bool)
    for step in range(STEPS):
        if step % (RECORDS // size) == 0:
            order = generator.permutation(RECORDS)
        start = step % (RECORDS // size) * size
        inclusions[step, order[start : start + size]] = True
    return inclusions


def fixed_size(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(RECORDS) < RATE * RECORDS for _ in range(STEPS)])


def partitioned(seed: int) -> np.ndarray:
    """Each record once per epoch, in a step drawn for it: sizes vary as they should, counts do not."""
    generator, per_epoch = np.random.default_rng(seed), int(1 / RATE)
    places = [generator.integers(0, per_epoch, RECORDS) for _ in range(STEPS // per_epoch)]
    return np.concatenate([np.arange(per_epoch)[:, None] == place for place in places])


def blocks(seed: int) -> np.ndarray:
    """Right rates, but neighbours are taken together."""
    return np.repeat(poisson(seed, records=RECORDS // 2), 2, axis=1)


def sticky(seed: int) -> np.ndarray:
    """Right rates, but every sample is used twice."""
    return np.repeat(poisson(seed, steps=STEPS // 2), 2, axis=0)


def test_p_values_of_the_sampler_are_those_of_a_true_hypothesis() -> None:
    p_values = np.array([poisson_p_value(poisson(seed), RATE) for seed in range(300)])
    assert (p_values < 0.05).mean() < 0.09  # Bonferroni errs to the safe side
    assert (p_values < LEVEL).sum() <= 2
    assert np.median(p_values) > 0.3


@pytest.mark.parametrize(
    ("steps", "records", "rate"), [(20, 2000, 0.02), (400, 40, 0.5), (30, 60, 0.2), (60, 500, 0.9)]
)
def test_accepts_the_sampler_at_other_sizes(steps: int, records: int, rate: float) -> None:
    p_values = [poisson_p_value(poisson(seed, steps, records, rate), rate) for seed in range(40)]
    assert min(p_values) > LEVEL / 10
    assert np.mean(np.array(p_values) < 0.05) < 0.15


@pytest.mark.parametrize("sampler", [shuffled, fixed_size, partitioned, blocks, sticky])
def test_anything_else_is_found_out(sampler: Callable[[int], np.ndarray]) -> None:
    assert max(poisson_p_value(sampler(seed), RATE) for seed in range(5)) < LEVEL


def test_a_wrong_rate_is_found_out() -> None:
    assert poisson_p_value(poisson(0), RATE * 1.15) < LEVEL


def test_certain_and_impossible_records() -> None:
    everything = np.ones((3, 4), dtype=bool)
    assert poisson_p_value(everything, 1.0) == 1.0
    assert poisson_p_value(~everything, 1.0) == 0.0
    assert len(poisson_sample(np.random.default_rng(0), 50, 1.0)) == 50


def test_batch_sizes_are_binomial_and_records_alike() -> None:
    generator = np.random.default_rng(5)
    draws = [poisson_sample(generator, 50, 0.1) for _ in range(5000)]
    sizes = np.array([len(draw) for draw in draws])
    assert abs(sizes.mean() - 5.0) < 4 * np.sqrt(4.5 / 5000)
    assert abs(sizes.var() / 4.5 - 1.0) < 4 * np.sqrt(2 / 5000)
    expected = stats.binom.pmf(np.arange(12), 50, 0.1) * 5000
    observed = np.bincount(np.minimum(sizes, 11), minlength=12)
    expected[11] = 5000 - expected[:11].sum()
    assert stats.chisquare(observed, expected).pvalue > LEVEL
    assert (sizes == 0).any()
    counts = np.bincount(np.concatenate(draws), minlength=50)
    assert stats.chi2.sf(((counts - 500) ** 2 / 450).sum(), 50) > LEVEL


def test_noise_has_the_right_spread_and_shape() -> None:
    values = torch.zeros(3, 700_001)  # more than one piece
    Randomness.seeded(1).add_noise(values, 2.5)
    sample = values.flatten().numpy()
    assert stats.kstest(sample / 2.5, "norm").pvalue > LEVEL
    assert abs(sample.std() / 2.5 - 1) < 3e-3
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5e-3
    assert len(np.unique(sample[: 1 << 16])) > 65_000
    halves = sample[: 1 << 20], sample[1 << 20 : 2 << 20]
    assert abs(np.corrcoef(*halves)[0, 1]) < 5e-3  # the pieces are not one and the same


def test_secret_randomness_never_repeats_and_ignores_every_seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    one = Randomness.secret()
    torch.manual_seed(0)
    np.random.seed(0)
    other = Randomness.secret()
    assert not np.array_equal(one.sampling.random(4), other.sampling.random(4))
    noises = [torch.zeros(4), torch.zeros(4)]
    for randomness, noise in zip((one, other), noises):
        randomness.add_noise(noise, 1.0)
    assert not torch.equal(*noises)
    assert not torch.equal(one.dropout.get_state(), other.dropout.get_state())


def test_state_is_exact() -> None:
    one, other = Randomness.seeded(3), Randomness.seeded(4)
    one.sampling.random(7)
    one.add_noise(torch.zeros(5), 1.0)
    other.load_state_dict(one.state_dict())
    results = []
    for randomness in (one, other):
        noise = torch.zeros(5)
        randomness.add_noise(noise, 1.0)
        results.append(
            (randomness.sampling.random(3).tolist(), noise.tolist(), randomness.dropout.get_state().tolist())
        )
    assert results[0] == results[1]


def test_the_generators_are_described_as_they_are() -> None:
    text = Randomness.seeded(0).describe()
    assert text.count("numpy PCG64DXSM, 256 bits") == 2
    assert text.endswith("dropout: torch mt19937, 32 bits")
    one, other = torch.Generator(), torch.Generator()
    one.manual_seed(5)
    other.manual_seed(5 + (1 << 40))  # only the low 32 bits count on a CPU
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))
