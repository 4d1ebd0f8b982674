"""Low-rank adapters on a frozen base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import torch
from torch import nn

from fate_llm_ext.config import LoraConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.quiet import quiet

AdapterState = Dict[str, torch.Tensor]

# The head of a sequence classifier, by the names that peft knows: it trains and saves it as a whole.
_CLASSIFIERS = ("score", "classifier")


def add_lora(model: Any, config: LoraConfig, seed: int, task_type: str = "CAUSAL_LM") -> Any:
    """Wrap a model with a fresh adapter; only the adapter is trainable, and a sequence classifier's own head.

    Args:
        seed: of the adapter's initial weights (independent of the caller's random state).
        task_type: peft's name of the model's kind, ``CAUSAL_LM`` or ``SEQ_CLS``.

    Raises:
        ExtensionError: E404 if the target modules do not exist in the model.
    """
    import peft

    settings = peft.LoraConfig(
        task_type=task_type,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules or _modules(model, config.embeddings),
        # GPT-2 keeps its linear layers transposed (Conv1D).
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with quiet():
                return peft.get_peft_model(model, settings)
        except ValueError as error:
            raise ExtensionError("E404", modules=config.target_modules, reason=str(error)) from error


def _modules(model: Any, embeddings: bool) -> List[str]:
    """Names of all linear layers but the head (and of embedding and head, if wanted)."""
    from transformers.pytorch_utils import Conv1D

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    names = [n for n in names if n.split(".")[0] not in _CLASSIFIERS]
    if embeddings:
        names += [n for n, m in model.named_modules() if m is embedding or m is head]
    return names


def adapter_state(model: Any) -> AdapterState:
    """A copy of the trainable weights, by parameter name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_adapter_state(model: Any, state: AdapterState) -> None:
    """Put the weights of :func:`adapter_state` back."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])


def load_adapter(model: Any, folder: Path) -> Any:
    """Wrap a base model with an adapter saved by `save_pretrained`.

    Raises:
        ExtensionError: E405 if the folder holds no adapter for this model.
    """
    import peft

    try:
        with quiet():
            return peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise ExtensionError("E405", folder=folder, reason=" ".join(str(error).split())[:300]) from error
