"""Going on from a saved adapter: it is that adapter, and one of another model is refused with both values."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.algo.fedmkt.earlier import read_earlier
from fate_llm_ext.config import LoraConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.earlier import load_earlier_adapter
from fate_llm_ext.models.lora import adapter_state, add_lora, load_adapter_state
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

IDS = torch.arange(8)[None]
TEXT = "a cat sees a dog and the dog sees nothing but the cat " * 9
OTHER = TEXT.replace("dog", "owl").replace("cat", "hen")


def tokenizer(size: int = 300, text: str = TEXT) -> PreTrainedTokenizerFast:
    return train_tokenizer([text], size)


def base(arch: str, size: int = 300) -> Any:
    torch.manual_seed(0)
    return build_model(TinyConfig(arch=arch, hidden=16, layers=1, context=32, steps=1, seed=3), tokenizer(size)).eval()


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "alpha": 4, "dropout": 0.0, **changes})


def saved(folder: Path, arch: str = "gpt2", words: Any = None, **changes: Any) -> Any:
    """A folder as a train stage writes it, of an adapter with weights as after training."""
    model = add_lora(base(arch), lora(**changes), seed=1)
    torch.manual_seed(2)
    load_adapter_state(model, {key: torch.randn_like(value) for key, value in adapter_state(model).items()})
    model.peft_config["default"].base_model_name_or_path = "slm"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (words or tokenizer()).save_pretrained(str(folder))
    return model.eval()


def refused(model: Any, folder: Path, name: str = "slm") -> str:
    before = adapter_state(model)
    with pytest.raises(ExtensionError) as caught:
        load_earlier_adapter(model, folder, name, tokenizer())
    assert all(torch.equal(value, before[key]) for key, value in adapter_state(model).items()), "left as it was"
    return str(caught.value)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "neox"])
def test_it_is_the_adapter_that_plain_peft_loads(arch: str, embeddings: bool, tmp_path: Path) -> None:
    saved(tmp_path, arch, embeddings=embeddings)
    expected = peft.PeftModel.from_pretrained(base(arch), str(tmp_path)).eval()
    model = add_lora(base(arch), lora(embeddings=embeddings, dropout=0.3), seed=9)
    load_earlier_adapter(model, tmp_path, "slm", tokenizer())
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=IDS).logits, expected(input_ids=IDS).logits)
        assert not torch.equal(base(arch)(input_ids=IDS).logits, expected(input_ids=IDS).logits)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())


def test_everything_that_differs_is_said_at_once(tmp_path: Path) -> None:
    saved(tmp_path, words=tokenizer(280), r=4, alpha=8)
    text = refused(add_lora(base("gpt2"), lora(), seed=1), tmp_path, "other")
    assert text.startswith("E850 ")
    for part in ("base model: 'other' here, 'slm' there", "LoRA rank: 2 here, 4 there", "LoRA alpha: 4 here, 8 there"):
        assert part in text
    assert "tokenizer: 283 tokens here, 280 there" in text


def test_other_modules(tmp_path: Path) -> None:
    saved(tmp_path, target_modules=["c_attn"])
    text = refused(add_lora(base("gpt2"), lora(), seed=1), tmp_path)
    assert "adapted modules: 4 here, 1 there (" in text
    assert "only here" in text
    assert "only there" not in text


def test_another_base_of_the_same_name(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2")
    config = TinyConfig(arch="gpt2", hidden=32, layers=1, context=32, steps=1, seed=3)
    text = refused(add_lora(build_model(config, tokenizer()), lora(), seed=1), tmp_path)
    assert "size of transformer.h.0.attn.c_attn: [2, 32] here, [2, 16] there" in text


def test_a_tokenizer_of_the_same_size(tmp_path: Path) -> None:
    saved(tmp_path, words=tokenizer(text=OTHER))
    text = refused(add_lora(base("gpt2"), lora(), seed=1), tmp_path)
    assert "tokenizer: 283 tokens here, 283 there, " in text


def test_scaling_by_another_rule(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_rslora": True}))
    assert "use_rslora: False here, True there" in refused(add_lora(base("gpt2"), lora(), seed=1), tmp_path)


@pytest.mark.parametrize("break_", ["adapter_config.json", "adapter_model.safetensors", "cut"])
def test_a_folder_without_an_adapter(break_: str, tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    if break_ == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        (tmp_path / break_).unlink()
    assert refused(add_lora(base("gpt2"), lora(), seed=1), tmp_path).startswith("E405 ")


# -- whose it is ---------------------------------------------------------------------------------


def reader(folder: Path, statement: Any) -> Any:
    if statement is not None:
        text = statement if isinstance(statement, str) else json.dumps(statement)
        (folder / "privacy.json").write_text(text)
    return SimpleNamespace(get_directory=lambda: str(folder))


def of(party: str = "guest 9999", algorithm: str = "fedmkt", **more: Any) -> dict[str, Any]:
    return {"party": party, "algorithm": algorithm, "data": {"table": "llm/old", "records": 7}, "notes": [], **more}


def test_without_a_warm_start_there_is_nothing() -> None:
    assert read_earlier(None, "guest 9999") is None


def test_the_statement_names_the_earlier_tables(tmp_path: Path) -> None:
    first = read_earlier(reader(tmp_path, of()), "guest 9999")
    assert first is not None
    assert "llm/old (7 records)" in first.notes[0]
    later = of(notes=list(first.notes), data={"table": "llm/new", "records": 9})
    second = read_earlier(reader(tmp_path, later), "guest 9999")
    assert second is not None
    assert [("llm/new" in text, "llm/old" in text) for text in second.notes] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (of(algorithm="fdkt"), "made by fdkt at guest 9999"),
        (of(party="host 10000"), "made by fedmkt at host 10000"),
        (None, "no readable privacy.json"),
        ("[", "no readable privacy.json"),
        ("[]", "is no statement"),
    ],
)
def test_an_adapter_of_others_is_refused(tmp_path: Path, statement: Any, reason: str) -> None:
    """What never was in a federation would take its table past its ledger."""
    with pytest.raises(ExtensionError, match=f"E851 .*guest 9999.*{reason}"):
        read_earlier(reader(tmp_path, statement), "guest 9999")
