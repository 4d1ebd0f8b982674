"""Sums of clipped per-record gradients: ``Σ_i g_i min(1, C / ‖g_i‖)``, the only thing DP-SGD takes from records.

The norm is the flat L2 norm over all trainable parameters, a tied weight counts once, and norm and sum are fp32
(or wider) whatever the weights are.
"""

from __future__ import annotations

from typing import Callable, List, Sequence

import torch
from torch import Tensor, nn

from fate_llm_ext.data.collate import Item

RecordLosses = Callable[[Sequence[Item]], Tensor]


class RecordLoop:
    """One record at a time: exact for any model, and only one record's gradient exists at any time.

    Args:
        parameters: trainable parameters, each once.
        losses: per-record losses [B] of items, with their graph.
        max_grad_norm: C; may be infinite.
    """

    name = "loop"

    def __init__(self, parameters: Sequence[nn.Parameter], losses: RecordLosses, max_grad_norm: float) -> None:
        self._parameters = list(parameters)
        self._losses = losses
        self._max_grad_norm = max_grad_norm

    def add(self, items: Sequence[Item], sums: List[Tensor]) -> Tensor:
        """Add the records' clipped gradients to ``sums``.

        Returns:
            The records' losses, detached (float32 [B]); not finite where the loss or the gradient's norm is not.
        """
        losses = [self._add_one(item, sums) for item in items]
        return torch.stack(losses)

    def _add_one(self, item: Item, sums: List[Tensor]) -> Tensor:
        loss = self._losses([item])[0]
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        used = [(total, g.to(total.dtype)) for total, g in zip(sums, gradients) if g is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for _, g in used]).norm()
        if not torch.isfinite(norm):
            return torch.full_like(loss.detach(), torch.nan)
        factor = min(1.0, self._max_grad_norm / float(norm)) if norm > 0 else 1.0
        for total, gradient in used:
            total.add_(gradient, alpha=factor)
        return loss.detach()
