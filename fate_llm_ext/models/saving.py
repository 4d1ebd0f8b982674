"""Write a model folder that the transformers releases of all supported sets load."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fate_llm_ext.models.quiet import quiet

_NO_LIMIT = int(1e30)  # transformers' own number for a tokenizer whose model has positions for any length


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, card: str) -> None:
    """Write a Hugging Face folder that transformers 4.37 and 5 load; whole or not at all, replacing ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        with quiet():
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
        _portable(new, model, tokenizer)
        for file in new.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes it private
        (new / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def _portable(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Say in the words of transformers 4.37 too what version 5 writes in its own."""
    backend = _read_json(folder / "tokenizer.json")
    merges = backend["model"].get("merges")
    if merges and isinstance(merges[0], list) and not any(" " in part for pair in merges for part in pair):
        backend["model"]["merges"] = [" ".join(pair) for pair in merges]
    _write_json(folder / "tokenizer.json", backend)
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    tokens = {role: getattr(tokenizer, role) for role in roles if getattr(tokenizer, role) is not None}
    _write_json(folder / "special_tokens_map.json", tokens)
    limit = _context(model.config)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": limit, **tokens}
    _write_json(folder / "tokenizer_config.json", {**settings, "clean_up_tokenization_spaces": False})
    config = _read_json(folder / "config.json")
    config["torch_dtype"] = config.get("dtype") or config.get("torch_dtype") or "float32"
    config.pop("_name_or_path", None)  # 4.37 writes where on this machine the model came from
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope and model.config.model_type == "gpt_neox":
        config |= {"rotary_pct": rope.get("partial_rotary_factor", 1.0), "rotary_emb_base": rope["rope_theta"]}
    elif "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if config.get("scale_decoder_outputs") is False:  # what 4.37 concludes from the heads not being tied
        config["tie_word_embeddings"] = False
    _write_json(folder / "config.json", config)


def _context(config: Any) -> int:
    names = ("max_position_embeddings", "n_positions", "seq_length")
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), _NO_LIMIT)


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
