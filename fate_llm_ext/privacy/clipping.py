"""Sums of clipped per-record gradients: ``Σ_i g_i min(1, C / ‖g_i‖)``, the only thing DP-SGD takes from records.

The norm is the flat L2 norm over all trainable parameters, a tied weight counts once, and norm and sum are fp32
(or wider) whatever the weights are. A gradient without a finite norm counts as zero: whatever a record does to the
model, it moves the sum by at most C. :func:`choose` finds the cheapest of three ways that is right for the model.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from fate_llm_ext.data.collate import Item
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.layer_gradients import Dense, Piece, inner, only, owned, rule_of, uncovered
from fate_llm_ext.privacy.record_loss import RecordLoss

logger = logging.getLogger(__name__)

# From this many parameters on, a record at a time is as fast on a CPU as several.
_LARGE = 1 << 24


class RecordLoop:
    """One record at a time: exact for any model, and only one record's gradient exists at any time.

    Args:
        parameters: trainable parameters, each once.
        losses: of records.
        max_grad_norm: C; may be infinite.
    """

    name = "loop"

    def __init__(self, parameters: Sequence[nn.Parameter], losses: RecordLoss, max_grad_norm: float) -> None:
        self._parameters = list(parameters)
        self._losses = losses
        self._max_grad_norm = max_grad_norm

    def add(self, items: Sequence[Item], sums: Sequence[Tensor]) -> Tensor:
        """Add the records' clipped gradients to ``sums``, one tensor per parameter.

        Returns:
            The records' losses, detached (float32 [B]); NaN where the norm of the gradient is not finite, so that
            nothing was added for the record.
        """
        return torch.stack([self._add_one(item, sums) for item in items])

    def _add_one(self, item: Item, sums: Sequence[Tensor]) -> Tensor:
        loss = self._losses([item])[0]
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        used = [(total, g.to(total.dtype)) for total, g in zip(sums, gradients) if g is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for _, g in used]).norm()
        if not torch.isfinite(norm):
            return torch.full_like(loss.detach(), torch.nan)
        factor = float(_factors(norm, self._max_grad_norm))
        for total, gradient in used:
            total.add_(gradient, alpha=factor)
        return loss.detach()


class LayerClipper:
    """Some records at a time in one forward and one backward pass, by the rules of the layers.

    Args:
        model: whose layers have rules.
        parameters: trainable parameters, each once.
        losses: of records.
        max_grad_norm: C; may be infinite.
        ghost: keep a gradient as its factors where they are smaller than the gradients of the records.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        losses: RecordLoss,
        max_grad_norm: float,
        ghost: bool,
    ) -> None:
        self.name = "ghost" if ghost else "hooks"
        self._parameters = list(parameters)
        self._trained = {id(p): number for number, p in enumerate(parameters)}
        self._layers = layers_with_rules(model, parameters)
        self._losses = losses
        self._max_grad_norm = max_grad_norm
        self._ghost = ghost
        self._pieces: Dict[int, List[Piece]] = {}

    def add(self, items: Sequence[Item], sums: Sequence[Tensor]) -> Tensor:
        """As :meth:`RecordLoop.add`."""
        self._pieces = {}
        with self._watched(len(items), [total.dtype for total in sums]):
            losses = self._losses(items)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        squares = losses.new_zeros(len(items), dtype=torch.promote_types(losses.dtype, sums[0].dtype))
        for number, pieces in self._pieces.items():
            squares += self._square(number, pieces)
        finite = torch.isfinite(squares)
        factors = torch.where(finite, _factors(squares.clamp(min=0).sqrt(), self._max_grad_norm), 0.0)
        broken = not bool(finite.all())
        for number in sorted(self._pieces):
            for piece in self._pieces.pop(number):
                (only(piece, finite) if broken else piece).add(factors.to(sums[number].dtype), sums[number])
        return torch.where(finite, losses.detach(), torch.nan)

    def _square(self, number: int, pieces: List[Piece]) -> Tensor:
        """Squared norm of each record's gradient of one parameter, [B]."""
        if len(pieces) == 1 and isinstance(pieces[0], Dense):
            return pieces[0].gradient.flatten(1).square().sum(1)
        if any(isinstance(piece, Dense) for piece in pieces):
            shape = self._parameters[number].shape
            pieces[:] = [Dense(torch.stack([piece.dense(shape) for piece in pieces]).sum(0))]
            return self._square(number, pieces)
        return torch.stack([inner(one, other) for one in pieces for other in pieces]).sum(0)

    def _keep(self, parameter: nn.Parameter, piece: Piece) -> None:
        number = self._trained.get(id(parameter))
        if number is None:
            return
        kept = self._pieces.setdefault(number, [])
        if not (self._ghost and piece.saves(parameter.shape)):
            piece = Dense(piece.dense(parameter.shape))
            if kept and isinstance(kept[0], Dense):
                kept[0].gradient.add_(piece.gradient)
                return
        kept.append(piece)

    @contextlib.contextmanager
    def _watched(self, size: int, dtypes: Sequence[torch.dtype]) -> Iterator[None]:
        """Collect pieces in the backward pass; autograd itself computes no gradient of a weight meanwhile."""

        def watch(layer: nn.Module, inputs: Tuple[Any, ...], named: Dict[str, Any], output: Tensor) -> Tensor:
            rule = rule_of(layer)
            assert rule is not None
            if output.shape[0] == 1 and size > 1:
                output = output.expand(size, *output.shape[1:])  # looked up once for all records
            if not output.requires_grad:
                output = output.requires_grad_(True).view_as(output)
            seen: List[Any] = [inputs, named]
            dtype = dtypes[self._trained[next(id(p) for p in owned(layer) if id(p) in self._trained)]]

            def collect(gradient: Tensor) -> None:
                if not gradient.numel():
                    return  # the output head of records without an answer
                rows = gradient.detach().reshape(size, -1, gradient.shape[-1]).to(dtype)
                for parameter, piece in rule(layer, seen[0], seen[1], rows):
                    self._keep(parameter, piece)
                seen.clear()  # the graph keeps this function to the end of the backward pass

            output.register_hook(collect)  # type: ignore[no-untyped-call]
            return output

        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                handle = layer.register_forward_hook(watch, with_kwargs=True)
                stack.callback(handle.remove)
            for parameter in self._parameters:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
            yield


Clipper = Union[RecordLoop, LayerClipper]


def layers_with_rules(model: nn.Module, parameters: Sequence[nn.Parameter]) -> List[nn.Module]:
    """The layers that own trainable parameters and have a rule."""
    trained = {id(p) for p in parameters}
    return [m for m in model.modules() if rule_of(m) is not None and any(id(p) in trained for p in owned(m))]


def _factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """``min(1, C / norm)``."""
    return (max_grad_norm / norms).clamp(max=1.0)


def choose(
    model: Any, parameters: Sequence[nn.Parameter], losses: RecordLoss, max_grad_norm: float, wish: str = "auto"
) -> Clipper:
    """The way to clip: ``hooks``, ``ghost``, ``loop``, or the cheapest one that is right for the model.

    A way by layers is taken only if it gives what the loop gives, on a probe of random tokens. ``auto`` takes the
    loop for large models on a CPU: one record keeps the cores busy, and nothing needs less memory. Else it takes
    hooks for adapters, whose gradients are small, and ghost for full weights.

    Raises:
        ExtensionError: E637 if the way wished for is not right for the model.
    """
    loop = RecordLoop(parameters, losses, max_grad_norm)
    wanted = _cheapest(model, parameters) if wish == "auto" else wish
    reason = "" if wanted == "loop" else _fit(model, parameters, losses, wanted)
    if reason and wish != "auto":
        raise ExtensionError("E637", wish=wish, reason=reason)
    losses.rectangular = wanted != "loop" and not reason and losses.head_trains
    if wanted == "loop" or reason:
        logger.info("per-record gradients: loop%s", f" ({wanted} does not fit: {reason})" if reason else "")
        return loop
    logger.info("per-record gradients: %s", wanted)
    return LayerClipper(model, parameters, losses, max_grad_norm, wanted == "ghost")


def _cheapest(model: nn.Module, parameters: Sequence[nn.Parameter]) -> str:
    size = sum(p.numel() for p in model.parameters())
    if parameters[0].device.type == "cpu" and size >= _LARGE:
        return "loop"
    return "hooks" if sum(p.numel() for p in parameters) < size / 2 else "ghost"


def _fit(model: Any, parameters: Sequence[nn.Parameter], losses: RecordLoss, way: str) -> str:
    """Why a way by layers is not right for a model; empty if it is."""
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules()):
        return "gradient checkpointing runs layers twice"
    missing = uncovered(layers_with_rules(model, parameters), parameters)
    if missing:
        return f"{missing} of {len(parameters)} trainable parameters are in layers without a rule"
    norm = 1e-3  # clips every record, so that the norms are compared as well
    loop, layers = RecordLoop(parameters, losses, norm), LayerClipper(model, parameters, losses, norm, way == "ghost")
    bf16 = any(p.dtype == torch.bfloat16 for p in model.parameters())
    with _probed(model, parameters), torch.random.fork_rng(devices=[]):
        items = _probe(int(model.config.vocab_size))
        slow, fast = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        loop.add(items, slow)
        losses.rectangular = losses.head_trains
        try:
            layers.add(items, fast)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            return " ".join(str(error).split())[:200]
        finally:
            losses.rectangular = False
    # Some gradients are zero but for rounding, e.g. of the attention's key bias: those are compared with the whole.
    whole = float(torch.stack([s.norm() for s in slow]).norm())
    wrong = [
        number
        for number, (s, f) in enumerate(zip(slow, fast))
        if not float((s - f).norm()) <= (0.1 if bf16 else 1e-3) * float(s.norm()) + (1e-2 if bf16 else 1e-5) * whole
    ]
    return f"{len(wrong)} of {len(parameters)} gradients differ from the loop's" if wrong else ""


@contextlib.contextmanager
def _probed(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Without dropout, and with numbers in parameters that are all zero: a fresh adapter would hide its gradients."""
    was_training = model.training
    empty = [p for p in parameters if not p.detach().any()]
    model.eval()
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in empty:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for parameter in empty:
                parameter.zero_()
        model.train(was_training)


def _probe(vocabulary: int) -> List[Item]:
    """Three sequences of random tokens, of unlike length."""
    numbers = np.random.default_rng(0)
    return [
        Item(numbers.integers(0, vocabulary, size).astype(np.int32), np.arange(start, size, dtype=np.int32))
        for size, start in ((7, 3), (5, 1), (4, 2))
    ]
