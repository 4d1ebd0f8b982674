"""`privacy ratios`, as an operator types it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import GPT2Config, GPT2LMHeadModel

from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

WORDS = "river garden yellow window morning under table stone winter paper"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["privacy", "ratios", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([f"the {word} and the {word} again" for word in WORDS.split()] * 20, 400)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_strategy_has_its_figures(model: Path) -> None:
    done = call("--model", model, "--epsilon", 3, "--json")
    assert done.exit_code == 0, done.output
    found = {one["strategy"]: one for one in json.loads(done.stdout)}
    assert list(found) == ["exponential", "fixed_vocabulary", "metric"]
    assert [one["bound"] for one in found.values()] == [math.inf, 3.0, 6.0]
    assert found["exponential"]["largest"] > 3
    assert 2.9 < found["fixed_vocabulary"]["largest"] <= 3
    assert found["metric"]["largest"] <= 6
    assert all(one["words"] >= len(WORDS.split()) for one in found.values())


def test_the_table_names_what_was_asked_for_and_words_may_come_from_a_public_set(model: Path, tmp_path: Path) -> None:
    public = tmp_path / "public.jsonl"
    public.write_text('{"text": "the river and the yellow garden"}\n')
    done = call("--model", model, "--public", public, "--strategy", "exponential", "--epsilon", 1, "--epsilon", 8)
    assert done.exit_code == 0, done.output
    assert done.output.count("exponential") == 2
    assert "none" in done.output
    assert "5 words" in done.output


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    done = call("--model", tmp_path / "nothing")
    assert done.exit_code != 0
    if isinstance(done.exception, ExtensionError):
        assert done.exception.code == "E402"
    else:
        assert "E402" in done.output + done.stderr
