"""Continue from an adapter that was saved before: only if it is one of this very model, all weights of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.tokenizers import load_tokenizer

# What decides how an adapter's weights are applied, beyond which there are and their shapes.
_APPLIED = {"r": "LoRA rank", "lora_alpha": "LoRA alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}


def load_earlier_adapter(model: Any, folder: Path, base: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Put the weights of a saved adapter in the place of a fresh one's.

    Args:
        model: base model with its fresh adapter (:func:`~fate_llm_ext.models.lora.add_lora`).
        folder: what `save_pretrained` of adapter and tokenizer wrote.
        base: the name by which the job calls the base model.
        tokenizer: the base model's.

    Raises:
        ExtensionError: E850 with everything in which the adapter is not one of this model; E405 if the folder holds
            none, E440 to E442 if it holds no tokenizer. The model is then as it was.
    """
    import peft

    try:
        with quiet():
            settings = peft.PeftConfig.from_pretrained(str(folder))
            weights = peft.load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ExtensionError("E405", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    found = _settings(model.peft_config["default"], settings, base)
    # Another rank gives other shapes everywhere: one reason is enough.
    found += [] if any(text.startswith(_APPLIED["r"]) for text in found) else _weights(own, weights)
    found += _tokenizers(tokenizer, load_tokenizer(folder))
    if found:
        raise ExtensionError("E850", differences="; ".join(found))
    with quiet():
        peft.set_peft_model_state_dict(model, weights)


def _settings(own: Any, earlier: Any, base: str) -> List[str]:
    """In what the configurations of two adapters differ, beyond what concerns training only."""
    pairs: Dict[str, Tuple[Any, Any]] = {"base model": (base, earlier.base_model_name_or_path)}
    pairs["kind of adapter"] = (str(own.peft_type), str(earlier.peft_type))
    pairs.update({name: (getattr(own, key, None), getattr(earlier, key, None)) for key, name in _APPLIED.items()})
    return [f"{name}: {one!r} here, {other!r} there" for name, (one, other) in pairs.items() if one != other]


def _weights(own: Dict[str, Any], earlier: Dict[str, Any]) -> List[str]:
    """Adapted modules that only one has, and those of other shapes."""
    modules = [{_module(key) for key in weights} for weights in (own, earlier)]
    if modules[0] != modules[1]:
        sides = ((modules[0] - modules[1], "here"), (modules[1] - modules[0], "there"))
        only = [f"{min(names)} only {where}" for names, where in sides if names]
        return [f"adapted modules: {len(modules[0])} here, {len(modules[1])} there ({', '.join(only)})"]
    if own.keys() != earlier.keys():
        return [f"adapter weights: {len(own)} here, {len(earlier)} there"]
    for key, value in own.items():
        if value.shape != earlier[key].shape:
            return [f"size of {_module(key)}: {list(value.shape)} here, {list(earlier[key].shape)} there"]
    return []


def _module(key: str) -> str:
    return key.split(".lora_")[0].removeprefix("base_model.model.")


def _tokenizers(own: PreTrainedTokenizerFast, earlier: PreTrainedTokenizerFast) -> List[str]:
    one, other = own.get_vocab(), earlier.get_vocab()
    if one != other:
        moved = sum(other.get(token) != number for token, number in one.items())
        return [f"tokenizer: {len(one)} tokens here, {len(other)} there, {moved} of those here are not the same there"]
    ends = own.eos_token, earlier.eos_token
    return [f"tokenizer's end token: {ends[0]!r} here, {ends[1]!r} there"] if ends[0] != ends[1] else []
