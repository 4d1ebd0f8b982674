"""DP-SGD training: the plan, the noise, the division, what is counted, what is refused."""

from __future__ import annotations

import dataclasses
import io
import logging
from typing import Any, List, Sequence

import numpy as np
import pytest
import torch
import transformers as hf

from fate_llm_ext.config import LoraConfig, PrivacyConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy import accountants
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer, plan_training
from fate_llm_ext.privacy.events import Gaussian, PoissonGaussian
from fate_llm_ext.privacy.sampling import Randomness

PLAN = DPPlan(8, 0.5, 40, 1.0, 1.0, 1e-3, 8.0, "prv")


def model(dropout: float = 0.0) -> Any:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 40}
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **rates, bos_token_id=1, eos_token_id=2))


def items(count: int = 8, silent: bool = False) -> List[Item]:
    """Records; silent ones have a gradient of zero."""
    numbers = np.random.default_rng(0)
    lengths = [10 - 2 * (row % 4) for row in range(count)]
    answers = [np.arange(size if silent else 2, size, dtype=np.int32) for size in lengths]
    return [Item(numbers.integers(3, 40, n).astype(np.int32), a) for n, a in zip(lengths, answers)]


def trainer(
    of: Any = None,
    plan: DPPlan = PLAN,
    records: Sequence[Item] = (),
    seed: Any = 1,
    heartbeat: Any = None,
    **config: Any,
) -> DPTrainer:
    return DPTrainer(
        model() if of is None else of,
        records or items(plan.records),
        plan,
        PrivacyConfig(**{"epsilon": 8.0, "physical_batch_size": 3, "warmup_ratio": 0.0, **config}),
        pad_id=0,
        phase="teacher",
        heartbeat=heartbeat or (lambda doing: None),
        randomness=None if seed is None else Randomness.seeded(seed),
    )


def flat(of: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.parameters()])


def gradients(of: DPTrainer, steps: int) -> torch.Tensor:
    """What the optimizer is given in each step, [steps, weights]."""
    seen: List[torch.Tensor] = []

    def look(optimizer: Any, *rest: Any) -> None:
        seen.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]).clone())

    handle = of._optimizer.register_step_pre_hook(look)
    of.run(steps)
    handle.remove()
    return torch.stack(seen)


def test_a_plan_spends_at_most_what_is_asked_for() -> None:
    config = PrivacyConfig(epsilon=3.0, delta=1e-5, batch_size=256, epochs=10, accountant="rdp")
    plan = plan_training(config, 2000)
    assert plan.sampling_rate == pytest.approx(0.128)
    assert plan.steps == 79  # 10 / 0.128 = 78.1, rounded up
    assert plan.expected_batch_size == pytest.approx(256)
    spent = accountants.epsilon([plan.mechanism()], 1e-5, "rdp")
    assert 0.98 * 3.0 < spent <= 3.0
    assert plan.mechanism() == PoissonGaussian(0.128, plan.noise_multiplier, 79)


def test_a_plan_leaves_room_for_what_it_is_composed_with() -> None:
    config = PrivacyConfig(epsilon=3.0, delta=1e-5, batch_size=256, epochs=1, accountant="rdp")
    histogram = Gaussian(5.0)
    alone, together = plan_training(config, 2000), plan_training(config, 2000, [histogram])
    assert together.noise_multiplier > alone.noise_multiplier
    assert accountants.epsilon([histogram, together.mechanism()], 1e-5, "rdp") <= 3.0


def test_the_default_delta_and_a_batch_of_everything() -> None:
    plan = plan_training(PrivacyConfig(epsilon=3.0, batch_size=100, epochs=2, accountant="rdp"), 100)
    assert plan.delta == pytest.approx(100**-1.1)
    assert plan.sampling_rate == 1.0
    assert plan.steps == 2


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"batch_size": 101}, "E630", ("101", "100")),
        ({"max_grad_norm": float("inf")}, "E631", ("inf",)),
        ({"delta": 0.01}, "E", ("0.01", "100")),
    ],
)
def test_a_plan_that_gives_no_privacy_is_refused(change: Any, code: str, facts: Any) -> None:
    with pytest.raises(ExtensionError) as caught:
        plan_training(PrivacyConfig(**{"epsilon": 3.0, "batch_size": 10, **change}), 100)
    assert caught.value.code.startswith(code)
    assert all(fact in str(caught.value) for fact in facts)


@pytest.mark.parametrize("norm", [1.0, 0.1])
def test_noise_of_sigma_c_over_the_expected_batch(norm: float) -> None:
    plan = dataclasses.replace(PLAN, noise_multiplier=0.7, max_grad_norm=norm)
    noise = gradients(trainer(plan=plan, records=items(silent=True)), 20)
    expected = 0.7 * norm / 4.0
    assert float(noise.std()) == pytest.approx(expected, rel=0.01)
    assert abs(float(noise.mean())) < 4 * expected / noise.numel() ** 0.5
    assert noise.std(1).numpy() == pytest.approx(expected, rel=0.05)  # every step has its own ...
    correlations = torch.corrcoef(noise)[~torch.eye(20, dtype=torch.bool)]
    assert float(correlations.abs().max()) < 5 / noise.shape[1] ** 0.5  # ... which no other step has
    halves = noise.flatten()[: noise.numel() // 2 * 2].reshape(2, -1)
    assert abs(float(torch.corrcoef(halves)[0, 1])) < 0.02


def test_an_empty_sample_gets_noise_and_a_step() -> None:
    of = model()
    before = flat(of)
    empty = trainer(of, dataclasses.replace(PLAN, sampling_rate=1e-12))
    noise = gradients(empty, 2)
    assert (noise != 0).all()
    assert not torch.equal(flat(of), before)
    assert empty.steps_done == 2
    assert np.isnan(empty.run(1))  # there was no loss to speak of


def test_the_sum_is_divided_by_the_expected_size_not_the_drawn_one() -> None:
    plan = dataclasses.replace(PLAN, noise_multiplier=0.0)
    of = trainer(plan=plan, learning_rate=1e-12)
    drawn, seen = [], []
    sample = of._sample
    of._sample = lambda: drawn.append(sample()) or drawn[-1]  # type: ignore[func-returns-value, method-assign]
    seen = gradients(of, 6)
    assert len({len(rows) for rows in drawn}) > 1
    for rows, gradient in zip(drawn, seen):
        one_by_one = trainer(plan=plan, per_sample="loop")
        one_by_one._sum_clipped(rows, _Silent())
        groups = one_by_one._optimizer.param_groups
        order = {id(p): total for p, total in zip(one_by_one._parameters, one_by_one._sums)}
        expected = torch.cat([order[id(p)].flatten() for group in groups for p in group["params"]]) / 4.0
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


class _Silent:
    def update(self, done: int) -> None:
        pass


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_half_precision_is_clipped_and_noised_in_single(kind: str) -> None:
    of = model().to(torch.bfloat16)
    if kind == "lora":
        of = add_lora(of, LoraConfig(dropout=0.0), seed=0)
    plan = dataclasses.replace(PLAN, sampling_rate=1.0, records=1, noise_multiplier=0.0, max_grad_norm=1e-3)
    running = trainer(of, plan)
    trained = [p for p in of.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert float(gradients(running, 1)[0].norm()) == pytest.approx(1e-3, rel=1e-6)
    noisy = gradients(trainer(of, dataclasses.replace(plan, noise_multiplier=1.0)), 1)
    assert noisy.dtype == torch.float32
    assert len(noisy.unique()) > 0.99 * noisy.numel()  # bf16 would have 256 values per octave


def test_training_learns() -> None:
    records = items(4) * 10
    plan = DPPlan(40, 0.5, 60, 0.05, 1.0, 1e-3, 8.0, "prv")
    of = trainer(plan=plan, records=records, learning_rate=1e-2)
    first = of.run(5)
    of.run(50)
    assert of.run(5) < first - 1.0


def test_only_steps_done_are_spent() -> None:
    of = trainer()
    assert of.spent() == PoissonGaussian(0.5, 1.0, 0)
    of.run(3)
    assert of.spent() == PoissonGaussian(0.5, 1.0, 3)
    with pytest.raises(ExtensionError, match=r"E633 38 more steps after 3 .* 40"):
        of.run(38)
    of.run(37)
    assert of.spent() == of.plan.mechanism()


def test_by_default_nobody_can_repeat_a_run() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        of = model()
        trainer(of, seed=None).run(1)
        results.append(flat(of))
    assert not torch.equal(*results)


def test_the_global_generator_is_left_alone() -> None:
    of = add_lora(model(dropout=0.3), LoraConfig(dropout=0.3), seed=0).eval()
    state = torch.get_rng_state()
    trainer(of).run(2)
    assert torch.equal(state, torch.get_rng_state())
    assert not of.training


def test_signs_of_life_tell_steps_and_nothing_of_the_records() -> None:
    said: List[str] = []
    trainer(heartbeat=said.append).run(5)
    assert set(said) <= {f"teacher, step {step} of 40" for step in range(1, 6)}
    assert said


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 + 0.5 * np.cos(np.pi * np.arange(6) / 6))]),
    ],
)
def test_schedules_waste_no_step(schedule: str, rates: List[float]) -> None:
    plan = dataclasses.replace(PLAN, steps=8)
    of = trainer(plan=plan, schedule=schedule, warmup_ratio=0.25, learning_rate=1.0)
    seen = []
    for _ in range(8):
        seen.append(of._optimizer.param_groups[0]["lr"])
        of.run(1)
    assert seen == pytest.approx(rates)


def test_matrices_decay_and_the_rest_does_not() -> None:
    groups = trainer(weight_decay=0.3)._optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {p.dim() for p in groups[0]["params"]} == {2}
    assert {p.dim() for p in groups[1]["params"]} == {1}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ExtensionError, match="E632 7 training items for a plan of 8 records"):
        trainer(records=items(7))
    with pytest.raises(ExtensionError, match="E636"):
        trainer(model().requires_grad_(False))
    stored = trainer().state_dict()
    with pytest.raises(ExtensionError, match=r"E635.*plan"):
        trainer(plan=dataclasses.replace(PLAN, noise_multiplier=2.0)).load_state_dict(stored)
    with pytest.raises(ExtensionError, match=r"E635.*parameters"):
        trainer(add_lora(model(), LoraConfig(), seed=0)).load_state_dict(stored)


@pytest.mark.parametrize("way", ["hooks", "ghost", "loop"])
def test_a_record_with_a_gradient_that_is_not_finite_does_not_stop_the_others(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What one record does to the model must not decide whether the job goes on."""
    said: List[str] = []
    records = [Item(np.minimum(one.ids, 38), one.answer) for one in items(7)]
    records.append(Item(np.array([39, 5, 6], dtype=np.int32), np.array([2], dtype=np.int32)))
    of = model()
    plan = dataclasses.replace(PLAN, sampling_rate=1.0, noise_multiplier=0.0)
    running = trainer(of, plan, records, per_sample=way, heartbeat=said.append, learning_rate=1e-3)

    def spoil(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == 39)[..., None], torch.full_like(output, torch.nan), output)

    of.transformer.wte.register_forward_hook(spoil)
    with caplog.at_level(logging.WARNING):
        loss = running.run(2)
    assert running.steps_done == 2
    assert np.isfinite(loss)
    assert torch.isfinite(flat(of)).all()
    assert "teacher: 2 of 16 gradients of single records were not finite and counted as zero" in caplog.text
    assert not [text for text in said if "finite" in text]


@pytest.mark.parametrize("way", ["hooks", "loop"])
def test_weights_that_are_not_finite_stop_the_training(way: str) -> None:
    of = trainer(per_sample=way, learning_rate=1e38, weight_decay=0.5)
    with pytest.raises(ExtensionError, match=r"E634 The weights are not finite after step \d of teacher"):
        of.run(5)
    assert 1 <= of.steps_done < 5, "the step was taken, so it counts"


def test_signs_of_life_go_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many records a step samples, and in however many physical batches."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.01  # a hundred looks at the clock take a second
        return clock[0]

    monkeypatch.setattr("fate_llm_ext.privacy.dp_training.time.monotonic", tick)
    said: List[str] = []
    trainer(physical_batch_size=1, heartbeat=lambda _: said.append(f"{clock[0]:.2f}")).run(40)
    assert clock[0] > 1.5
    gaps = np.diff([float(text) for text in said])
    assert len(gaps) >= 1
    assert ((gaps > 0.99) & (gaps < 1.1)).all()


def test_a_state_belongs_to_its_records() -> None:
    stored = trainer().state_dict()
    other = items()
    other[3] = Item(other[3].ids[::-1].copy(), other[3].answer)
    for records in (other, items()[::-1]):
        with pytest.raises(ExtensionError, match=r"E635 .* its records: 8 with other content, here: these 8"):
            trainer(records=records).load_state_dict(stored)
    trainer(seed=2).load_state_dict(stored)


def test_a_state_survives_the_disk() -> None:
    of = trainer()
    of.run(2)
    file = io.BytesIO()
    torch.save(of.state_dict(), file)
    file.seek(0)
    other = trainer(seed=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    of.run(2)
    other.run(2)
    assert torch.equal(flat(of._model), flat(other._model))


def test_a_state_does_not_move_with_the_training() -> None:
    of = trainer()
    of.run(1)
    stored = of.state_dict()
    text = str(stored)
    of.run(2)
    assert str(stored) == text
