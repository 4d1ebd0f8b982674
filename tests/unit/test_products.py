"""oneDNN's products: the same numbers as torch's, in place, and only where nothing is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fate_llm_ext.models import products
from fate_llm_ext.models.products import fast_products


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN has multiplied, however small."""
    seen: list[tuple[int, ...]] = []
    run = torch.ops.mkldnn._linear_pointwise

    def spy(inputs: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tuple(inputs.shape))
        return run(inputs, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    monkeypatch.setattr(products, "_LEAST_ROWS", 1)
    monkeypatch.setattr(products, "_LEAST_WORK", 0)
    return seen


@pytest.mark.parametrize(
    "layer", [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)], ids=["linear", "no bias", "conv1d"]
)
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 7, 24), (2, 1, 24)], ids=str)
def test_products_are_those_of_the_definition(layer: nn.Module, shape: tuple[int, ...], calls: list) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    wide = torch.randn((*shape[:-1], 48), generator=generator)
    weight = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
    bias = 0.0 if layer.bias is None else layer.bias.double()
    for inputs in (wide[..., :24].contiguous(), wide[..., ::2], wide[..., :24].flip(0)):
        with torch.inference_mode(), fast_products(layer):
            got = layer(inputs)
        expected = (inputs.double().unsqueeze(-1) * weight.double()).sum(-2) + bias
        assert got.shape == expected.shape
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)
    assert calls == [shape] * 3


def test_gradients_are_computed_as_ever(calls: list) -> None:
    layer = nn.Linear(8, 8)
    with fast_products(layer):
        layer(torch.ones(16, 8)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.full((8, 8), 16.0))
    assert calls == []


def test_other_types_and_replaced_layers_are_left_alone(calls: list) -> None:
    half, replaced = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8)
    replaced.forward = lambda inputs: inputs + 1
    with torch.no_grad(), fast_products(nn.Sequential(half, replaced)):
        half(torch.ones(4, 8, dtype=torch.bfloat16))
        assert torch.equal(replaced(torch.ones(4, 8)), torch.full((4, 8), 2.0))
    assert "forward" in vars(replaced)
    assert calls == []


def test_layers_are_as_before_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Conv1D(8, 8))
    with pytest.raises(KeyError), fast_products(model):  # noqa: PT012  the body fails, not the context
        assert all("forward" in vars(model[at]) for at in (0, 2))
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model)


def test_small_products_are_torchs(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST_ROWS", 4)
    monkeypatch.setattr(products, "_LEAST_WORK", 8 * 8 * 6)
    layer = nn.Linear(8, 8)
    with torch.no_grad(), fast_products(layer):
        for rows in (3, 5, 6):
            layer(torch.ones(rows, 8))
    assert calls == [(6, 8)]
