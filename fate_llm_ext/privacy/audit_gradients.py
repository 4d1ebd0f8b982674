"""White-box audit of DP-SGD as it runs: canaries in the gradients.

The model gets some more embeddings with a row ("slot") per canary. A canary is a record whose first token belongs
to slots of its own; the gradient of its loss is as good as all in those, in equal parts, and far above the clipping
norm C. So every step that takes the record must add exactly C along them, and noise of σ C; if each layer were
clipped on its own, it would be C times the root of their number. The auditor sees what the strongest adversary
of DP-SGD sees: the gradient of every step as it reaches the optimizer. Model, sampling, clipping, noise and
optimizer are those of the training itself.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fate_llm_ext.config import PrivacyConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import accountants, sampling
from fate_llm_ext.privacy.audit import AuditResult, lower_bound
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer
from fate_llm_ext.privacy.sampling import Randomness

SCORES = ("likelihood under the claimed noise", "likelihood under the noise seen", "range over the steps")

# A slot's gradient over that of the first token's embedding: the rest of the record is nothing beside it, and it is
# far above any clipping norm.
_SCALE = 1e6
# Embeddings that share a canary's gradient: clipping layer by layer then adds 4 C, as good as a quarter of the noise.
_LAYERS = 16
# The noise seen is taken as at least this share of the claimed one, so that no noise at all has a likelihood too.
_LEAST_NOISE = 0.05


@dataclass(frozen=True)
class GradientAudit:
    """An audited training.

    Attributes:
        result: the bound.
        claimed: ε of the steps done, at the result's δ, as the accountant states it.
        sums: what the auditor saw: the noisy sum along each canary's slots, in units of C (float64 [T, m]).
        included: which canaries were among the records (bool [m]).
    """

    result: AuditResult
    claimed: float
    sums: np.ndarray
    included: np.ndarray

    @property
    def caught(self) -> bool:
        """Whether the claim is refuted."""
        return self.result.contradicts(self.claimed)


def audit_training(
    model: Any,
    items: Sequence[Item],
    plan: DPPlan,
    config: PrivacyConfig,
    *,
    pad_id: int,
    coins: np.random.Generator,
    canaries: int = 1000,
    randomness: Optional[Randomness] = None,
    trainer: Type[DPTrainer] = DPTrainer,
    ends: Optional[Sequence[int]] = None,
    confidence: float = 0.95,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> GradientAudit:
    """Train ``model`` on ``items`` and canaries, and audit what the optimizer was given.

    The training is one for the audit's sake: canaries are records with tokens drawn at random, and they
    change the model.

    Args:
        model: causal LM; its trainable parameters are trained in place, its input embedding is put back.
        items: the records that are there in any case.
        plan: sampling rate, steps, noise and δ claimed; ``records`` is set to what the audit really has.
        coins: decides which canaries join, and writes their tokens.
        trainer: the class under audit.
        ends: see :func:`~fate_llm_ext.privacy.audit.lower_bound`.

    Raises:
        ExtensionError: E650 if the training diverges.
    """
    included = coins.random(canaries) < 0.5
    records = list(items) + canary_items(model, np.flatnonzero(included), coins)
    plan = replace(plan, records=len(records))
    with canary_slots(model, canaries) as slots, observed(slots) as seen:
        training = trainer(
            model, records, plan, config, pad_id=pad_id, phase="audit", heartbeat=heartbeat, randomness=randomness
        )
        training.run(plan.steps)
    sums = np.stack(seen) * (plan.expected_batch_size / plan.max_grad_norm)
    scores = canary_scores(sums, plan.sampling_rate, plan.noise_multiplier)
    result = lower_bound(scores, included, plan.delta, confidence=confidence, ends=ends)
    claimed = accountants.epsilon([training.spent()], plan.delta, config.accountant)
    return GradientAudit(result, claimed, sums, included)


def audit_sampling(
    model: Any,
    plan: DPPlan,
    config: PrivacyConfig,
    *,
    pad_id: int,
    coins: np.random.Generator,
    randomness: Optional[Randomness] = None,
    trainer: Type[DPTrainer] = DPTrainer,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> float:
    """How likely Poisson sampling is to take records as unevenly (or as evenly) as this training does; a p-value.

    The training runs without noise on ``plan.records`` canaries, so that the gradients show which were taken.

    Args:
        plan: records, sampling rate and steps.
        coins: writes the canaries' tokens.
        trainer: the class under audit.
    """
    plan = replace(plan, noise_multiplier=0.0)
    records = canary_items(model, np.arange(plan.records), coins)
    with canary_slots(model, plan.records) as slots, observed(slots) as seen:
        training = trainer(
            model, records, plan, config, pad_id=pad_id, phase="audit", heartbeat=heartbeat, randomness=randomness
        )
        training.run(plan.steps)
    taken = np.stack(seen) * (plan.expected_batch_size / plan.max_grad_norm) > 0.5
    return sampling.poisson_p_value(taken, plan.sampling_rate)


def canary_scores(sums: np.ndarray, sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    """How much each canary seems to have joined, by the three :data:`SCORES`; float64 [3, m].

    A canary that joined adds 1 in a step with probability q, so with noise of standard deviation s the
    logarithm of the likelihood ratio is  Σ_t log(1 - q + q exp((x_t - 1/2) / s²)).  It is taken with s = σ, and
    with the s seen over all slots and steps, which sees far more where the noise is smaller than claimed. Noise
    that is the same in every step hides nothing in the range max_t x_t - min_t x_t.

    Args:
        sums: [T, m], in units of C.
        sampling_rate: q.
        noise_multiplier: σ.

    Raises:
        ExtensionError: E650 for sums that are not finite.
    """
    if not np.isfinite(sums).all():
        raise ExtensionError("E650", scores=sums.shape, canaries=sums.shape[1:], bad=int((~np.isfinite(sums)).sum()))
    # Steps with the canary are fewer than half of the entries, so the median does not notice them.
    seen = float(np.median(np.abs(sums)) / stats.norm.ppf(0.75))
    likelihoods = [
        _log_likelihood_ratio(sums, sampling_rate, noise)
        for noise in (noise_multiplier, max(seen, _LEAST_NOISE * noise_multiplier))
    ]
    return np.stack([*likelihoods, sums.max(axis=0) - sums.min(axis=0)])


def _log_likelihood_ratio(sums: np.ndarray, sampling_rate: float, noise: float) -> np.ndarray:
    missed = math.log1p(-sampling_rate) if sampling_rate < 1.0 else -math.inf
    taken = math.log(sampling_rate) + (sums - 0.5) / noise**2
    ratio: np.ndarray = np.logaddexp(missed, taken).sum(axis=0)
    return ratio


def canary_items(model: Any, slots: np.ndarray, coins: np.random.Generator, length: int = 4) -> List[Item]:
    """One record per slot: its token, then ``length`` random ones that are predicted."""
    size = model.get_input_embeddings().weight.shape[0]
    answer = np.arange(1, length + 1, dtype=np.int32)
    return [
        Item(np.concatenate([[size + slot], coins.integers(size, size=length)]).astype(np.int32), answer)
        for slot in slots
    ]


@contextmanager
def canary_slots(model: Any, canaries: int) -> Iterator[List[torch.Tensor]]:
    """Give the model ``canaries`` more input tokens, ids after its embeddings'; yields the slots, each [m, 1]."""
    tokens = model.get_input_embeddings()
    embedding = _CanaryEmbedding(tokens, canaries)
    model.set_input_embeddings(embedding)
    try:
        yield [slots for layer in embedding.slots for slots in layer.parameters()]
    finally:
        model.set_input_embeddings(tokens)


@contextmanager
def observed(slots: Sequence[torch.Tensor]) -> Iterator[List[np.ndarray]]:
    """What the optimizer gets in every step, along the direction alike in all slots of a canary; float64 [m]."""
    seen: List[np.ndarray] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(one is slots[0] for group in optimizer.param_groups for one in group["params"]):
            gradients = [torch.zeros_like(slot) if slot.grad is None else slot.grad for slot in slots]
            along = torch.stack([g.detach().double().flatten() for g in gradients]).sum(0) / math.sqrt(len(slots))
            seen.append(along.cpu().numpy())

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


class _CanaryEmbedding(nn.Module):
    """An embedding with canary tokens behind the others; they look like token 0 and have gradients in their slots."""

    def __init__(self, tokens: nn.Embedding, canaries: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.slots = nn.ModuleList(nn.Embedding(canaries, 1, device=tokens.weight.device) for _ in range(_LAYERS))
        for slots in self.slots.parameters():
            nn.init.zeros_(slots)

    @property
    def weight(self) -> torch.Tensor:
        return self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        number = ids - self.tokens.weight.shape[0]
        canary = number >= 0
        hidden = self.tokens(ids.masked_fill(canary, 0))
        slots = [layer(number.clamp(min=0)) for layer in self.slots]
        result: torch.Tensor = _Slots.apply(hidden, canary, *slots)  # type: ignore[no-untyped-call]
        return result


class _Slots(torch.autograd.Function):
    """The hidden states as they are; backwards, a canary's slots get their gradient's norm times the scale.

    The norm scales with the loss, so a clipping method that weights the losses of the records weights the
    slots too; and it is never negative, so the auditor knows the sign.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, canary: torch.Tensor, *slots: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(canary)
        ctx.layers = len(slots)
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Tuple[Any, ...]:
        (gradient,) = gradients
        (canary,) = ctx.saved_tensors
        norm = gradient.float().norm(dim=-1, keepdim=True)
        return gradient, None, *[_SCALE * norm * canary.unsqueeze(-1)] * ctx.layers
