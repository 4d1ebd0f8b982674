"""Per-record gradients of layers, from what goes into a layer and the gradient of what comes out of it.

A weight's gradient is a sum over a record's positions. Three shapes of it occur: an outer product per position
(linear layers), rows added at the positions' tokens (embeddings), or the gradient itself where it is small. Inner
products of the first two, hence norms and cross terms of tied weights, follow from position-by-position products
without ever building the gradient (ghost clipping, Li et al. 2022); their clipped sum is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Outer:
    """``G_b = Σ_n left[b, n] ⊗ right[b, n]``; left [B, n, p], right [B, n, q], gradient [B, p, q]."""

    left: Tensor
    right: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        """The gradients, [B, *shape]."""
        return torch.bmm(self.left.transpose(1, 2), self.right)

    def saves(self, shape: torch.Size) -> bool:
        """Whether the factors are smaller than the gradients."""
        return self.left.numel() + self.right.numel() < len(self.left) * shape.numel()

    def add(self, factors: Tensor, total: Tensor) -> None:
        """``total += Σ_b factors[b] G_b``."""
        right = (self.right * factors[:, None, None]).flatten(0, 1)
        total.addmm_(self.left.flatten(0, 1).t(), right)


@dataclass(frozen=True)
class Rows:
    """``G_b[ids[b, n]] += values[b, n]``; ids [B, n], values [B, n, d], gradient [B, V, d], or [B, d, V] transposed."""

    ids: Tensor
    values: Tensor
    transposed: bool = False

    def dense(self, shape: torch.Size) -> Tensor:
        """The gradients, [B, *shape]."""
        size, rows = len(self.ids), shape[1] if self.transposed else shape[0]
        places = self.ids + rows * torch.arange(size, device=self.ids.device)[:, None]
        flat = self.values.new_zeros(size * rows, self.values.shape[-1])
        gradient = flat.index_add_(0, places.flatten(), self.values.flatten(0, 1)).view(size, rows, -1)
        return gradient.transpose(1, 2) if self.transposed else gradient

    def saves(self, shape: torch.Size) -> bool:
        """Whether ids and values are smaller than the gradients."""
        return self.values.numel() < len(self.values) * shape.numel()

    def add(self, factors: Tensor, total: Tensor) -> None:
        """``total += Σ_b factors[b] G_b``."""
        values = (self.values * factors[:, None, None]).flatten(0, 1)
        target = total.t() if self.transposed else total
        target.index_add_(0, self.ids.flatten(), values)


@dataclass(frozen=True)
class Dense:
    """The gradient itself, [B, *shape]."""

    gradient: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        """The gradients, [B, *shape]."""
        return self.gradient

    def saves(self, shape: torch.Size) -> bool:
        """There are no factors."""
        return False

    def add(self, factors: Tensor, total: Tensor) -> None:
        """``total += Σ_b factors[b] G_b``."""
        total.add_(torch.tensordot(factors, self.gradient, dims=1))


Piece = Union[Outer, Rows, Dense]


def inner(one: Piece, other: Piece) -> Tensor:
    """``<G_b, H_b>`` of two pieces of one parameter, [B]."""
    if isinstance(one, Outer) and isinstance(other, Outer):
        products = torch.bmm(one.left, other.left.transpose(1, 2))
        return (products * torch.bmm(one.right, other.right.transpose(1, 2))).sum((1, 2))
    if isinstance(one, Rows) and isinstance(other, Rows):
        same = one.ids[:, :, None] == other.ids[:, None, :]
        return (torch.bmm(one.values, other.values.transpose(1, 2)) * same).sum((1, 2))
    if isinstance(one, Rows) and isinstance(other, Outer):
        return inner(other, one)
    if isinstance(one, Outer) and isinstance(other, Rows):
        left, right = (one.right, one.left) if other.transposed else (one.left, one.right)
        picked = left.gather(2, other.ids[:, None, :].expand(-1, left.shape[1], -1))
        return (picked * torch.bmm(right, other.values.transpose(1, 2))).sum((1, 2))
    raise TypeError(f"no inner product of {type(one).__name__} and {type(other).__name__}")


def only(piece: Piece, records: Tensor) -> Piece:
    """The piece with the gradients of all other records zero, even where zero times the gradient is no number.

    Args:
        records: bool [B], those that keep their gradients.
    """

    def kept(rows: Tensor) -> Tensor:
        return rows.masked_fill(~records.view(-1, *[1] * (rows.dim() - 1)), 0.0)

    if isinstance(piece, Outer):
        return Outer(kept(piece.left), kept(piece.right))
    if isinstance(piece, Rows):
        return Rows(piece.ids, kept(piece.values), piece.transposed)
    return Dense(kept(piece.gradient))


# What a layer's rule returns: for each of its parameters, its piece of the gradient.
Pieces = List[Tuple[nn.Parameter, Piece]]
Rule = Callable[[Any, Tuple[Any, ...], Dict[str, Any], Tensor], Pieces]


def _linear(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    x = _records(inputs[0], gradient)
    pieces: Pieces = [(layer.weight, Outer(gradient, x))]
    return pieces if layer.bias is None else [*pieces, (layer.bias, Dense(gradient.sum(1)))]


def _conv1d(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    """GPT-2's linear layer, whose weight is [in, out]."""
    x = _records(inputs[0], gradient)
    return [(layer.weight, Outer(x, gradient)), (layer.bias, Dense(gradient.sum(1)))]


def _embedding(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    return [(layer.weight, _rows(inputs[0], gradient, layer.padding_idx))]


def _opt_positions(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    """OPT counts positions from the attention mask, past an offset; the arguments differ by version."""
    ids = named.get("position_ids")
    if ids is None:
        mask = inputs[0].long()
        ids = mask.cumsum(1) * mask - 1
    return [(layer.weight, _rows(ids + layer.offset, gradient))]


def _layer_norm(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    x = _records(inputs[0], gradient)
    normal = nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    pieces: Pieces = [(layer.weight, Dense((gradient * normal).sum(1)))]
    return pieces if layer.bias is None else [*pieces, (layer.bias, Dense(gradient.sum(1)))]


def _rms_norm(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    x = _records(inputs[0], gradient)
    eps = getattr(layer, "variance_epsilon", None) or getattr(layer, "eps", None) or torch.finfo(x.dtype).eps
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return [(layer.weight, Dense((gradient * normal).sum(1)))]


def _lora_embedding(layer: Any, inputs: Tuple[Any, ...], named: Dict[str, Any], gradient: Tensor) -> Pieces:
    """Peft's adapter of an embedding: ``scaling * B A[:, id]`` with A [r, V] and B [d, r]."""
    pieces: Pieces = []
    padding = getattr(layer.get_base_layer(), "padding_idx", None)
    for adapter in layer.active_adapters:
        a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        scaled = gradient * layer.scaling[adapter]
        rows = _rows(inputs[0], scaled @ b.detach().to(scaled.dtype), padding)
        pieces.append((a, Rows(rows.ids, rows.values, transposed=True)))
        pieces.append((b, Outer(scaled, a.detach().t()[rows.ids].to(scaled.dtype))))
    return pieces


def _records(x: Tensor, gradient: Tensor) -> Tensor:
    """The layer's input as [B, n, d], like the gradient of its output."""
    return x.detach().reshape(*gradient.shape[:2], -1).to(gradient.dtype)


def _rows(ids: Tensor, gradient: Tensor, padding: Optional[int] = None) -> Rows:
    """Position embeddings are often looked up once for the whole batch; a padding row learns nothing."""
    ids = ids.expand(len(gradient), -1) if ids.shape[0] == 1 else ids
    ids = ids.reshape(gradient.shape[:2])
    return Rows(ids, gradient if padding is None else gradient.masked_fill((ids == padding)[..., None], 0.0))


def rule_of(layer: nn.Module) -> Optional[Rule]:
    """The rule for a layer, or None if there is none."""
    from transformers.pytorch_utils import Conv1D

    exact: Dict[Any, Rule] = {nn.Linear: _linear, Conv1D: _conv1d, nn.Embedding: _embedding, nn.LayerNorm: _layer_norm}
    if type(layer) in exact:
        return exact[type(layer)]
    name = type(layer).__name__
    if name == "OPTLearnedPositionalEmbedding":
        return _opt_positions
    if name.endswith("RMSNorm"):
        return _rms_norm
    return _lora_embedding if owned(layer) and hasattr(layer, "lora_embedding_A") else None


def uncovered(layers: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> int:
    """How many of the parameters belong to no layer with a rule."""
    covered = {id(p) for layer in layers for p in owned(layer)}
    return sum(id(p) not in covered for p in parameters)


def owned(layer: nn.Module) -> List[nn.Parameter]:
    """The parameters that a layer's rule answers for."""
    if hasattr(layer, "lora_embedding_A"):
        return [*layer.lora_embedding_A.values(), *layer.lora_embedding_B.values()]  # type: ignore[operator]
    return list(layer.parameters(recurse=False))
