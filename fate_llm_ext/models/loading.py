"""Base models from local folders, and the split of a language model into backbone and output head."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import torch
from safetensors import SafetensorError
from torch import nn

from fate_llm_ext._compat import dtype_argument
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.tokenizers import load_tokenizer
from fate_llm_ext.site import ONLY_DEVICE_VARIABLE

logger = logging.getLogger(__name__)


def resolve_device(setting: str) -> torch.device:
    """The device a site file names: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise ExtensionError("E401", device=setting, reason=str(error)) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ExtensionError("E401", device=setting, reason="this process sees no CUDA device")
    if ":" not in setting:
        return device
    if os.environ.get(ONLY_DEVICE_VARIABLE) == setting:
        device = torch.device("cuda", 0)  # the local engine has hidden all others from this process
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ExtensionError("E401", device=setting, reason=f"this process sees {count} CUDA device(s)")
        torch.cuda.set_device(device)
    return device


def load_base(
    folder: Path,
    config: ModelConfig,
    device: torch.device,
    max_length: int = 0,
    max_new_tokens: int = 0,
    encoder_decoder: bool = False,
) -> Tuple[nn.Module, Any]:
    """Load a causal LM and its tokenizer from a Hugging Face folder, offline.

    Args:
        max_length: longest sequence that it will be given.
        max_new_tokens: how many tokens it may write behind one; 0 if it writes nothing.
        encoder_decoder: the folder may also hold a model that reads with an encoder and writes with a decoder.

    Raises:
        ExtensionError: E402 if the folder holds no loadable causal LM, E403 if the tokenizer has more
            tokens than the model, E408 if the sequences may be longer than its context, E763 if nobody says what a
            decoder begins with.
    """
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    try:
        with quiet():
            model, facts = _auto_class(folder, encoder_decoder).from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, **dtype_argument(getattr(torch, dtype))
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExtensionError("E402", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    missing = sorted(facts["missing_keys"])
    if missing:  # the library would go on with random ones
        raise ExtensionError("E402", folder=folder, reason=f"{len(missing)} weights are missing, {missing[0]} first")
    written = f" + {max_new_tokens} that it may write" if max_new_tokens else ""
    tokenizer = fitting_tokenizer(
        model, folder, max_length + max_new_tokens, f"`task.max_length` {max_length}{written}"
    )
    if is_encoder_decoder(model) and decoder_start(model) is None:
        raise ExtensionError("E763", folder=folder)
    model.to(device)
    return model, tokenizer


def _auto_class(folder: Path, encoder_decoder: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if encoder_decoder and AutoConfig.from_pretrained(str(folder), local_files_only=True).is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model, with or without an adapter, reads with an encoder and writes with a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def decoder_start(model: Any) -> Optional[int]:
    """The token that a decoder begins with; None: it has none, or the model is no encoder-decoder."""
    if not is_encoder_decoder(model):
        return None
    said = [getattr(at, "decoder_start_token_id", None) for at in (model.config, model.generation_config)]
    return next((one for one in said if one is not None), None)


def fitting_tokenizer(model: Any, folder: Path, longest: int, parts: str) -> Any:
    """The tokenizer of a loaded model's folder, if the model has room for its tokens and for the sequences.

    Args:
        longest: tokens of the longest sequence that the model will see, ``parts`` says where they come from.

    Raises:
        ExtensionError: E403, E408 as :func:`load_base`.
    """
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ExtensionError("E403", folder=folder, tokens=len(tokenizer), rows=model.config.vocab_size)
    limit = positions(model.config)
    if limit is not None and longest > limit:
        raise ExtensionError("E408", asked=longest, parts=parts, limit=limit)
    return tokenizer


def positions(config: Any) -> Optional[int]:
    """The longest sequence of a model, from its configuration; None where it gives no limit.

    T5 tells places by their distance: its configuration says what it was trained with, and it takes any length.
    """
    if getattr(config, "relative_attention_num_buckets", None):
        return None
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


Backbone = Callable[..., torch.Tensor]
Head = Callable[[torch.Tensor], torch.Tensor]


def split_head(model: nn.Module) -> Tuple[Backbone, Head]:
    """Hidden states and output head of a causal LM, apart, so that logits exist only where needed.

    With a vocabulary of 50,000, the head is most of the work of a small model, and answers are a small
    part of a sequence. Models that do more than apply the head (soft caps, scaled logits) are noticed by
    comparing both ways on a probe, and then run whole.

    Returns:
        backbone: (input_ids [B, T], attention_mask [B, T]) -> hidden [B, T, d]. Of an encoder-decoder: (input_ids,
            attention_mask, decoder_input_ids [B, t]) -> logits [B, t, V], where nearly all places are an answer's.
        head: hidden [..., d] -> logits [..., V].
    """
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if is_encoder_decoder(causal):
        return _decoder_logits(causal), nn.Identity()
    inner = getattr(causal, causal.base_model_prefix)
    output = causal.get_output_embeddings()

    def backbone(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return hidden

    if output is not None and _same_on_probe(causal, backbone, output):
        return backbone, output
    logger.warning("%s changes its logits after the output head; running it whole", type(causal).__name__)

    def whole(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = causal(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    return whole, nn.Identity()


def _decoder_logits(model: Any) -> Backbone:
    def backbone(
        input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits
        return logits

    return backbone


def _same_on_probe(causal: nn.Module, backbone: Backbone, head: Head) -> bool:
    training = causal.training
    causal.eval()
    device = next(causal.parameters()).device
    ids = torch.arange(4, device=device)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        whole = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits
        parts = head(backbone(ids, mask))
    causal.train(training)
    # Some releases give the whole model's logits in float32, whatever its weights are.
    return whole.shape == parts.shape and torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3)
