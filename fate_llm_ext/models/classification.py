"""Sequence classifiers: a base model of any kind with a head over a closed list of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence, Tuple

import torch
from safetensors import SafetensorError

from fate_llm_ext._compat import dtype_argument
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import fitting_tokenizer
from fate_llm_ext.models.quiet import quiet


def load_classifier(
    folder: Path,
    config: ModelConfig,
    labels: Sequence[str],
    device: torch.device,
    max_length: int,
    *,
    seed: int = 0,
) -> Tuple[Any, Any]:
    """Load a sequence classifier and its tokenizer from a Hugging Face folder, offline.

    The folder of a language model does: what it lacks is the head, which is then drawn from ``seed``. A causal LM
    is pooled at the last token that is no padding.

    Raises:
        ExtensionError: E722 if the folder holds no such model, or lacks more than the head; E403 if the tokenizer has
            more tokens than the model; E408 if the sequences may be longer than its context.
    """
    from transformers import AutoModelForSequenceClassification

    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, facts = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                output_loading_info=True,
                num_labels=len(labels),
                **names,
                **dtype_argument(getattr(torch, dtype)),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExtensionError("E722", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    body = model.base_model_prefix + "."
    missing = sorted(name for name in facts["missing_keys"] if name.startswith(body))
    if missing:
        raise ExtensionError("E722", folder=folder, reason=f"{len(missing)} weights are missing, {missing[0]} first")
    tokenizer = fitting_tokenizer(model, folder, max_length, f"`control.max_length` {max_length}")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.to(device)
    return model, tokenizer
