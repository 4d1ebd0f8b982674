"""Faster matrix products of linear layers on CPU, where nothing is trained.

torch multiplies float32 matrices by MKL, which leaves half of an AMD processor's vector units unused; oneDNN, which
torch carries for other types, does not. Same precision, another order of summation.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator, Optional

import torch
from torch import Tensor, nn

# Below, the call costs more than the product gains: rows, and multiplications.
_LEAST_ROWS = 4
_LEAST_WORK = 1 << 20


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Within, float32 linear layers on CPU use oneDNN; weights are read in place, gradients as before by torch.

    Layers of other types, of other devices, or whose ``forward`` somebody has already replaced stay as they are.
    """
    changed = []
    if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:  # type: ignore[no-untyped-call]
        layers: Iterator[Any] = model.modules()
        for layer in layers:
            weight = _weight(layer)
            if weight is None or "forward" in vars(layer):
                continue
            # an attribute of the instance: hooks, adapters around it and its type are not touched
            layer.forward = partial(_product, layer.forward, weight, layer.bias)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _weight(layer: Any) -> Optional[Tensor]:
    """The layer's weight as [out, in]; None if it is not one to change."""
    from transformers.pytorch_utils import Conv1D

    if type(layer) not in (nn.Linear, Conv1D):
        return None
    weight = layer.weight if type(layer) is nn.Linear else layer.weight.t()
    return weight if weight.dtype == torch.float32 and weight.device.type == "cpu" else None


def _product(otherwise: Callable[[Tensor], Tensor], weight: Tensor, bias: Optional[Tensor], inputs: Tensor) -> Tensor:
    rows = inputs.numel() // weight.shape[1]
    small = rows < _LEAST_ROWS or rows * weight.numel() < _LEAST_WORK
    if small or inputs.dtype != torch.float32 or torch.is_grad_enabled():
        return otherwise(inputs)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
