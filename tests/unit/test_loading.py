"""Base models from folders: what is refused, and that nothing is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fate_llm_ext.config import LoraConfig, ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import load_base, positions, split_head
from fate_llm_ext.models.lora import add_lora, load_adapter
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

ARCHITECTURES = ("gpt2", "opt", "llama", "bloom", "neox")
CPU = torch.device("cpu")


def folder(root: Path, arch: str, tie: bool = True) -> Path:
    tokenizer = train_tokenizer(["the cat sees a dog"], 300)
    config = TinyConfig(arch=arch, steps=1, hidden=32, layers=1, context=32, tie=tie)
    save_model(build_model(config, tokenizer), tokenizer, root / arch, "card")
    return root / arch


def load(path: Path, dtype: str = "auto") -> Any:
    return load_base(path, ModelConfig(name="slm", dtype=dtype), CPU)[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loading_adapting_and_saving_print_nothing(
    arch: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = folder(tmp_path, arch)
    model = add_lora(load(path), LoraConfig(embeddings=True), seed=0)
    with quiet():
        model.save_pretrained(str(tmp_path / "adapter"))
    load_adapter(load(path), tmp_path / "adapter")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    assert not [str(w.message) for w in recwarn if not issubclass(w.category, (DeprecationWarning, FutureWarning))]


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_type_of_the_weights(dtype: str, expected: torch.dtype, tmp_path: Path) -> None:
    assert next(load(folder(tmp_path, "gpt2"), dtype).parameters()).dtype == expected


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_missing_weights_are_refused(arch: str, tmp_path: Path) -> None:
    """The library would fill them with random numbers and warn."""
    path = folder(tmp_path, arch, tie=False)
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExtensionError, match=r"E402 .* 1 weights are missing, lm_head.weight first"):
        load(path)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match="E402"):
        load(tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_backbone_and_head_are_the_model(arch: str, tmp_path: Path) -> None:
    model = load(folder(tmp_path, arch)).eval()
    backbone, head = split_head(model)
    assert isinstance(head, torch.nn.Linear)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(head(backbone(ids, torch.ones_like(ids))), model(ids).logits)


@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama", "neox"])
def test_sequences_longer_than_the_context(arch: str, tmp_path: Path) -> None:
    """Otherwise an index error far inside the model, or on CUDA a dead process."""
    path = folder(tmp_path, arch)
    slm = ModelConfig(name="slm")
    assert positions(load(path).config) == 32
    load_base(path, slm, CPU, 32)
    load_base(path, slm, CPU, 24, 8)
    for asked, words in (((33,), "33 tokens"), ((32, 1), "33 tokens"), ((24, 64), "88 tokens")):
        with pytest.raises(ExtensionError) as caught:
            load_base(path, slm, CPU, *asked)
        assert caught.value.code == "E408"
        assert all(part in str(caught.value) for part in (words, "positions for 32", "Lower `task.max_length`"))
    assert str(tmp_path) not in str(caught.value)


def test_a_model_without_limit_takes_any_length(tmp_path: Path) -> None:
    load_base(folder(tmp_path, "bloom"), ModelConfig(name="slm"), CPU, 5000, 5000)
