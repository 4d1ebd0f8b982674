"""Training the student on sampled texts: hard, soft and, within one party, hidden-state terms.

    L = (1 - λ) CE(student, text) + λ t² KL(p_T || p_S) + α MSE(W h_S, h_T)

Each is a mean over a text's tokens and its end token, then over texts (DP-KD, arXiv 2403.00932). The KL runs over the
teacher's K most probable tokens and one bucket for the rest; it is computed as a cross-entropy, which differs by the
teacher's entropy and has the same gradient.

On-policy rounds: the student writes (:func:`~fate_llm_ext.algo.synthesis.synthesise`), the teacher scores what it
wrote, and the student learns from that alone. It is the forward KL on the student's own texts: of the teacher's
distributions, the K most probable tokens are what crosses the wire, and the reverse KL would need the teacher's
probability of every token that the student believes in.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor, nn

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.algo.dpkd.config import DistillationConfig
from fate_llm_ext.config import TrainConfig
from fate_llm_ext.data.collate import Batch, Item, TeacherTargets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import split_head
from fate_llm_ext.models.vocabulary import read_vocabulary
from fate_llm_ext.training.trainer import train_items

Targets = Sequence[Optional[TeacherTargets]]


def distillation_items(encoded: Sequence[Encoded], targets: Targets, soft_weight: float) -> List[Item]:
    """Items of (1 - λ) CE + λ KL; a text of which the teacher says nothing has the first term only."""
    return [
        Item(one.ids, one.places, 1.0 - soft_weight, target, soft_weight if target is not None else 0.0)
        for one, target in zip(encoded, targets)
    ]


def on_policy_items(encoded: Sequence[Encoded], targets: Targets) -> List[Item]:
    """Items of the student's own texts: the teacher's term alone; texts of which it says nothing are left out."""
    return [Item(one.ids, one.places, 0.0, target, 1.0) for one, target in zip(encoded, targets) if target is not None]


def train_student(
    model: nn.Module,
    tokenizer: Any,
    items: Sequence[Item],
    config: DistillationConfig,
    train: TrainConfig,
    *,
    seed: int,
    phase: str = "training the student",
    heartbeat: Callable[[str], None] = lambda doing: None,
    teacher: Optional[nn.Module] = None,
    epochs: Optional[int] = None,
) -> float:
    """Train the student's trainable weights in place; mean loss.

    Args:
        model: causal LM, with an adapter or with all weights trainable.
        items: from :func:`distillation_items`, :func:`on_policy_items` or, for CE alone, ``text.items``.
        teacher: the teacher's model, used if ``config.hidden_weight`` > 0; its tokenizer must be the student's
            (:func:`check_hidden`).
        epochs: passes over the items; default ``train.epochs``.

    Raises:
        ExtensionError: E406 the loss is not finite; E666 there is nothing to train on; E667 the hidden-state term
            is asked for and cannot be computed.
    """
    extra = None
    if config.hidden_weight > 0:
        if teacher is None:
            raise ExtensionError("E667", reason="the teacher is at another party")
        extra = HiddenTerm(model, teacher, config.hidden_weight, seed)
    return train_items(
        model,
        items,
        train,
        epochs=train.epochs if epochs is None else epochs,
        seed=seed,
        pad_id=tokenizer.pad_token_id,
        phase=phase,
        temperature=config.temperature,
        heartbeat=heartbeat,
        extra=extra,
    )


def check_hidden(student: nn.Module, student_tokenizer: Any, teacher: nn.Module, teacher_tokenizer: Any) -> None:
    """Whether the hidden-state term is possible: to be asked before anything is trained.

    Raises:
        ExtensionError: E667 the tokenizers differ, so that no position of one is the same in the other; or a model's
            last hidden state cannot be told from its logits.
    """
    mine, other = read_vocabulary(student_tokenizer), read_vocabulary(teacher_tokenizer)
    if mine.fingerprint != other.fingerprint:
        reason = f"their tokenizers differ ({len(mine)} and {len(other)} tokens)"
        raise ExtensionError("E667", reason=reason)
    for model in (student, teacher):
        _hidden_states(model)


class HiddenTerm(nn.Module):
    """α MSE(W h_S, h_T) on the last hidden states; W is learned with the student where the widths differ.

    Args:
        weight: α.
        seed: of W's initial values.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weight: float, seed: int) -> None:
        super().__init__()
        self._weight = weight
        self._teacher = _hidden_states(teacher)  # a function, so that its weights are none of this module's
        teacher.eval()
        own, other = _width(student, _hidden_states(student)), _width(teacher, self._teacher)
        self.projection: nn.Module = nn.Identity()
        if own != other:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projection = nn.Linear(own, other, bias=False)
        self.to(next(student.parameters()).device)

    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The term of a batch; ``hidden`` [P, d] are the student's states at ``batch["flat"]``."""
        with torch.no_grad():
            states = self._teacher(batch["input_ids"], batch["attention_mask"])
            states = states.reshape(-1, states.shape[-1])[batch["flat"]].float()
        squares = (self.projection(hidden.float()).float() - states).square().mean(dim=-1)
        return self._weight * (batch["mean_weight"] * squares).sum()


def _hidden_states(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    backbone, head = split_head(model)
    if isinstance(head, nn.Identity):
        causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        raise ExtensionError("E667", reason=f"{type(causal).__name__} changes its logits after the output head")
    return backbone


def _width(model: nn.Module, states: Callable[[Tensor, Tensor], Tensor]) -> int:
    ids = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        return int(states(ids, torch.ones_like(ids)).shape[-1])
