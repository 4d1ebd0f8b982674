"""The task model: its prompts, its loss and its answers against slow formulas; both heads; saved and read again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.student import TaskModel
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

LABELS = ["good news", "bad", "so so"]
TEXTS = [
    "The printer is out of paper.",
    "Zürich 猫: my screen stays dark!",
    "ok",
    "Printer, printer on the wall, who " * 9,
]
RECORDS = Records(np.array([0, 1, 2, 1], dtype=np.int32), TEXTS)
CPU = torch.device("cpu")


@cache
def tokenizer_of(kind: str = "byte_bpe") -> Any:
    return train_tokenizer([row["text"] for row in generate_tickets(300, seed=1)], 400, kind)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for arch in ("gpt2", "llama"):
        kind = "byte_bpe" if arch == "gpt2" else "sentencepiece_bpe"
        config = TinyConfig(arch=arch, hidden=16, layers=1, context=64, steps=1, seed=0)
        save_model(build_model(config, tokenizer_of(kind)), tokenizer_of(kind), folder / arch, "")
    return folder


def config(**more: Any) -> FDKTConfig:
    control = {"code": "{{ label }}", "values": LABELS, "max_length": 48, **more.pop("control", {})}
    small = {"samples": 10, "max_new_tokens": 8}
    train = {"batch_size": 4, "epochs": 80, "learning_rate": 1e-2, **more.pop("train", {})}
    given = {"control": control, "privacy": {"epsilon": 3.0}, "synthesis": small, "train": train, **more}
    return FDKTConfig(**given)


def task_model(base: Path, arch: str = "gpt2", **more: Any) -> TaskModel:
    return TaskModel(base / arch, ModelConfig(name="tiny"), config(**more), CPU)


def weights_of(model: TaskModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_forgets(base: Path) -> None:
    model = task_model(base)
    before = weights_of(model)
    first = model.train([(RECORDS, 1.0)], seed=3, phase="training")
    trained = weights_of(model)
    assert model.evaluate(RECORDS) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert not same(before, trained)
    model.restore()
    assert same(before, weights_of(model))
    assert model.train([(RECORDS, 1.0)], seed=3, phase="training") == first
    assert same(trained, weights_of(model))
