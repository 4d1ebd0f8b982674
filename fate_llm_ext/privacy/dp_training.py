"""DP-SGD fine-tuning of causal LMs: what runs is exactly what is accounted.

Each step takes every record with probability q (Poisson sampling), clips each record's gradient to norm C over
all trainable parameters, adds N(0, σ² C²) to the sum and divides by the expected batch size q N. An empty sample
gets its noise and its step like any other. So a run is :class:`~fate_llm_ext.privacy.events.PoissonGaussian`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch

from fate_llm_ext.config import PrivacyConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.fingerprint import fingerprint_items
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.clipping import choose
from fate_llm_ext.privacy.events import Mechanism, PoissonGaussian
from fate_llm_ext.privacy.record_loss import RecordLoss
from fate_llm_ext.privacy.sampling import Randomness, poisson_sample
from fate_llm_ext.progress import Progress
from fate_llm_ext.training.losses import Tail

logger = logging.getLogger(__name__)

_SIGN_SECONDS = 1.0


@dataclass(frozen=True)
class DPPlan:
    """One noisy training run, settled before it starts.

    Attributes:
        records: N.
        sampling_rate: q, expected batch size / N.
        steps: T, of all rounds together.
        noise_multiplier: σ, the noise's standard deviation in units of C.
        max_grad_norm: C.
        delta: δ.
        epsilon: what was asked for, of the run and everything composed with it.
        accountant: that σ was calibrated with.
    """

    records: int
    sampling_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    epsilon: float
    accountant: str

    @property
    def expected_batch_size(self) -> float:
        """Q N, by which the noisy sum is divided."""
        return self.sampling_rate * self.records

    def mechanism(self) -> PoissonGaussian:
        """The whole run as an event."""
        return PoissonGaussian(self.sampling_rate, self.noise_multiplier, self.steps)


def plan_training(config: PrivacyConfig, records: int, others: Sequence[Mechanism] = ()) -> DPPlan:
    """Settle q, T and σ so that the run, composed with ``others``, costs at most ε at δ.

    Args:
        records: N of the private table.
        others: mechanisms on the same records that share the ε, e.g. a histogram.

    Raises:
        ExtensionError: E630 if the batch is larger than the table, E631 for a norm without bound; and the
            accountant's: δ too large, ε out of reach.
    """
    from fate_llm_ext.privacy import accountants

    if config.batch_size > records:
        raise ExtensionError("E630", batch_size=config.batch_size, records=records)
    if not math.isfinite(config.max_grad_norm):
        raise ExtensionError("E631", norm=config.max_grad_norm)
    delta = accountants.default_delta(records) if config.delta is None else config.delta
    accountants.check_delta(delta, records)
    rate = config.batch_size / records
    steps = math.ceil(config.epochs / rate)
    noise = 0.0
    if math.isfinite(config.epsilon):
        noise = accountants.noise_multiplier(config.epsilon, delta, rate, steps, config.accountant, others)
    return DPPlan(records, rate, steps, noise, config.max_grad_norm, delta, config.epsilon, config.accountant)


class DPTrainer:
    """Trains a model's trainable parameters in place, by DP-SGD with AdamW on the noisy gradient.

    Args:
        model: causal LM, with an adapter or with all weights trainable; weights in bf16 that are to be trained
            become fp32 and are used through autocast.
        items: the private records, one item each.
        plan: from :func:`plan_training`.
        config: optimizer, schedule and physical batch; privacy is the plan's.
        phase: what the user sees beside the progress.
        heartbeat: called with what is being done, between physical batches, but at most once a second: calls that
            went along with the batches would tell how many records a step has sampled.
        randomness: tests give one; the default is secret.
        temperature: of the KD term of items with a teacher.
        tail: what becomes of the teacher's tail mass.

    Raises:
        ExtensionError: E632 if the items are not as many as planned.
    """

    def __init__(
        self,
        model: Any,
        items: Sequence[Item],
        plan: DPPlan,
        config: PrivacyConfig,
        *,
        pad_id: int,
        phase: str,
        heartbeat: Callable[[str], None] = lambda doing: None,
        randomness: Optional[Randomness] = None,
        temperature: float = 1.0,
        tail: Tail = "bucket",
    ) -> None:
        if len(items) != plan.records:
            raise ExtensionError("E632", items=len(items), records=plan.records)
        self.plan = plan
        self.steps_done = 0
        self._model = model
        self._items = items
        self._config = config
        self._phase = phase
        self._heartbeat = heartbeat
        self._names, self._parameters = _trainable(model)
        self._device = self._parameters[0].device
        self.randomness = randomness or Randomness.secret(self._device)
        losses = RecordLoss(model, pad_id, temperature, tail)
        self._clipper = choose(model, self._parameters, losses, plan.max_grad_norm, config.per_sample)
        self._sums = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            _groups(self._parameters, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._lengths = np.array([len(item.ids) for item in items])
        self._last_sign = -math.inf
        logger.info("randomness: %s", self.randomness.describe())

    @property
    def per_sample(self) -> str:
        """How per-record gradients are clipped: ``hooks``, ``ghost`` or ``loop``."""
        return self._clipper.name

    def run(self, steps: int) -> float:
        """Train that many further steps.

        Returns:
            Mean loss per record over what was sampled, NaN if nothing was. It is not private: it stays here. A
            record whose gradient is not finite counts as zero in its step and is left out of the mean; how often
            that happened stands in this party's log.

        Raises:
            ExtensionError: E633 if that is more than planned, E634 if a weight is not finite after a step.
        """
        if self.steps_done + steps > self.plan.steps:
            raise ExtensionError("E633", done=self.steps_done, asked=steps, planned=self.plan.steps)
        progress = Progress(self._phase, self.plan.steps)
        seen: List[float] = []
        try:
            with self._training():
                for _ in range(steps):
                    seen += self._sum_clipped(self._sample(), progress)
                    self.steps_done += 1  # from here on the records have been used
                    self._add_noise()
                    self._update()
                    progress.update(self.steps_done)
        finally:
            losses = np.array(seen)
            broken = int(np.isnan(losses).sum())
            if broken:
                text = "%s: %d of %d gradients of single records were not finite and counted as zero"
                logger.warning(text, self._phase, broken, len(losses))
        losses = losses[np.isfinite(losses)]
        return float(losses.mean()) if len(losses) else math.nan

    def spent(self) -> PoissonGaussian:
        """The steps really done, as an event."""
        return PoissonGaussian(self.plan.sampling_rate, self.plan.noise_multiplier, self.steps_done)

    def state_dict(self) -> Dict[str, Any]:
        """Everything that training continues from, bit for bit. It holds the noise's state: it stays with the owner."""
        return {
            "plan": dataclasses.asdict(self.plan),
            "records": fingerprint_items(self._items),
            "steps_done": self.steps_done,
            "weights": {name: p.detach().clone() for name, p in zip(self._names, self._parameters)},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "scheduler": self._scheduler.state_dict(),
            "randomness": self.randomness.state_dict(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Only the newest state may be loaded, and only once. Two continuations of one state share their sample and
        their noise: if both are seen, their difference holds what was to be hidden.

        Raises:
            ExtensionError: E635 if it belongs to another plan, other records or other parameters.
        """
        plan = dataclasses.asdict(self.plan)
        if state["plan"] != plan:
            raise ExtensionError("E635", what="plan", stored=state["plan"], got=plan)
        if state["records"] != fingerprint_items(self._items):
            count = self.plan.records
            raise ExtensionError("E635", what="records", stored=f"{count} with other content", got=f"these {count}")
        stored = {name: tuple(value.shape) for name, value in state["weights"].items()}
        shapes = {name: tuple(p.shape) for name, p in zip(self._names, self._parameters)}
        if stored != shapes:
            counts = [f"{len(one)} ({sum(map(math.prod, one.values()))} numbers)" for one in (stored, shapes)]
            raise ExtensionError("E635", what="trainable parameters", stored=counts[0], got=counts[1])
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["weights"].values()):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.randomness.load_state_dict(state["randomness"])
        self.steps_done = state["steps_done"]

    def _sample(self) -> np.ndarray:
        """The records of a step, short ones first: neighbours in a physical batch need little padding."""
        rows = poisson_sample(self.randomness.sampling, self.plan.records, self.plan.sampling_rate)
        return rows[np.argsort(self._lengths[rows], kind="stable")]

    def _sum_clipped(self, rows: np.ndarray, progress: Progress) -> List[float]:
        """Put the clipped gradients' sum into ``_sums``; the records' losses."""
        for total in self._sums:
            total.zero_()
        losses: List[float] = []
        size = self._config.physical_batch_size
        for start in range(0, len(rows), size):
            self._sign_of_life()
            progress.update(self.steps_done)
            part = self._clipper.add([self._items[row] for row in rows[start : start + size]], self._sums)
            losses += part.tolist()
        self._sign_of_life()
        return losses

    def _sign_of_life(self) -> None:
        now = time.monotonic()
        if now - self._last_sign >= _SIGN_SECONDS:
            self._last_sign = now
            self._heartbeat(f"{self._phase}, step {self.steps_done + 1} of {self.plan.steps}")

    def _add_noise(self) -> None:
        """N(0, σ² C²) on every number of the sum, once per step."""
        if self.plan.noise_multiplier > 0:
            for total in self._sums:
                self.randomness.add_noise(total, self.plan.noise_multiplier * self.plan.max_grad_norm)

    def _update(self) -> None:
        """One optimizer step on the noisy sum divided by q N; all from here on is post-processing."""
        for parameter, total in zip(self._parameters, self._sums):
            parameter.grad = total.div_(self.plan.expected_batch_size)
        self._optimizer.step()
        self._scheduler.step()
        for parameter in self._parameters:
            parameter.grad = None
        if not bool(torch.stack([torch.isfinite(p).all() for p in self._parameters]).all()):
            raise ExtensionError(
                "E634", step=self.steps_done, phase=self._phase, learning_rate=self._config.learning_rate
            )

    def _rate(self, step: int) -> float:
        """Share of the peak learning rate at a step, from 0; unlike the libraries', no step is spent at rate 0."""
        warmup = int(self._config.warmup_ratio * self.plan.steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.plan.steps - warmup)
        if self._config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 - done if self._config.schedule == "linear" else 1.0

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Train mode and the secret dropout masks; mode and torch's global generator come back afterwards."""
        was_training, dropout = self._model.training, self.randomness.dropout
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if cuda else []):
            if cuda:
                torch.cuda.set_rng_state(dropout.get_state(), self._device)
            else:
                torch.set_rng_state(dropout.get_state())
            self._model.train()
            try:
                yield
            finally:
                self._model.train(was_training)
                dropout.set_state(torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state())


def _trainable(model: Any) -> tuple[List[str], List[torch.nn.Parameter]]:
    """Names and trainable parameters, tied ones once; those in half precision become fp32.

    Raises:
        ExtensionError: E636 if there is none.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ExtensionError("E636")
    for _, parameter in named:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return [name for name, _ in named], [p for _, p in named]


def _groups(parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> List[Dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
