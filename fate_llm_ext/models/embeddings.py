"""Texts as vectors: mean-pooled hidden states of an encoder, or of a causal LM that is there anyway."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from fate_llm_ext._compat import dtype_argument
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.collate import pad_right
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import Engine, LocalEngine
from fate_llm_ext.models.loading import fitting_tokenizer, positions
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.scoring import Step
from fate_llm_ext.site import Site

_BATCH_SIZE = 32


class Embedder:
    """A model whose hidden states embed texts; it is used as it is and not changed.

    Args:
        model: an encoder, or a causal LM with or without an adapter, which then counts.
        tokenizer: its tokenizer.
        batch_size: texts per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = _BATCH_SIZE) -> None:
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._network = whole.get_encoder() if whole.config.is_encoder_decoder else whole.base_model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._device = next(whole.parameters()).device
        self._limit = _longest(self._network)
        takes_cache = "use_cache" in inspect.signature(self._network.forward).parameters
        self._options = {"use_cache": False} if takes_cache else {}

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], step: Step = lambda done, total: None) -> np.ndarray:
        """Embed texts.

        A vector is the mean of the last hidden states over the text's own tokens, without those that the tokenizer
        puts around it, of length 1. Of a text that is longer than the model's context the end does not count; a
        text without any token (a tokenizer may drop characters that it does not know) gets the zero vector.

        Args:
            step: called with (done, total) texts after each batch.

        Returns:
            float32 [N, d], in the order of ``texts``.

        Raises:
            ExtensionError: E407 hidden states are no numbers.
        """
        rows = self._encode(texts)
        filled = [index for index, (_, own) in enumerate(rows) if own.any()]
        filled.sort(key=lambda index: len(rows[index][0]))
        means = []
        training = self._network.training
        self._network.eval()
        try:
            for start in range(0, len(filled), self._batch_size):
                batch = filled[start : start + self._batch_size]
                means.append(self._means([rows[index] for index in batch]))
                step(start + len(batch), len(filled))
        finally:
            self._network.train(training)
        width = means[0].shape[1] if means else self._network.config.hidden_size
        result = np.zeros((len(texts), width), dtype=np.float32)
        if means:
            result[filled] = np.concatenate(means)
        bad = int((~np.isfinite(result).all(axis=1)).sum())
        if bad:
            raise ExtensionError("E407", bad=bad, total=len(texts), what="embeddings of texts")
        lengths = np.linalg.norm(result, axis=1, keepdims=True)
        vectors: np.ndarray = result / np.where(lengths > 0, lengths, 1)
        return vectors

    def _encode(self, texts: Sequence[str]) -> List[Tuple[np.ndarray, np.ndarray]]:
        """Of each text its ids (int64 [T]) and which of them are its own (bool [T])."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), return_special_tokens_mask=True, padding=False, verbose=False)
        rows = []
        for numbers, special in zip(encoded["input_ids"], encoded["special_tokens_mask"]):
            ids, own = np.array(numbers, dtype=np.int64), np.array(special, dtype=np.int64) == 0
            if self._limit is not None and len(ids) > self._limit:
                keep = ~own | (np.cumsum(own) <= self._limit - int((~own).sum()))
                ids, own = ids[keep], own[keep]
            rows.append((ids, own))
        return rows

    def _means(self, rows: Sequence[Tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Mean hidden state of each row's own tokens (float32 [B, d])."""
        ids, mask = pad_right([one for one, _ in rows], self._tokenizer.pad_token_id)
        own, _ = pad_right([one.astype(np.int64) for _, one in rows], 0)
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        hidden = self._network(**inputs, **self._options)[0].float()
        weights = own.to(self._device).float()
        means: np.ndarray = torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True), hidden).cpu().numpy()
        return means


def _longest(network: Any) -> Optional[int]:
    """The longest sequence of a model, special tokens included; None where nothing limits it."""
    limit = positions(network.config)
    for name, module in network.named_modules():
        if "position" in name and isinstance(module, nn.Embedding) and module.num_embeddings == limit:
            # RoBERTa and its like count places from behind the padding token's id
            return limit if module.padding_idx is None else limit - module.padding_idx - 1
    return limit


def open_embedder(site: Site, config: Optional[ModelConfig], engine: Engine, device: torch.device) -> Embedder:
    """The embedder that the job names, by default the local LLM itself, of which there is then one copy.

    Args:
        config: a model of the site, an encoder or a causal LM; None: the LLM's, with its adapter if it has one.
        engine: of the LLM.
        device: of a model that is named.

    Raises:
        ExtensionError: E701 none is named, and the LLM is behind a server; E110, E111 the site does not know it; others
            as :func:`load_embedder`.
    """
    if config is None:
        if not isinstance(engine, LocalEngine):
            raise ExtensionError("E701")
        return Embedder(engine.model, engine.tokenizer)
    return load_embedder(site.lookup("models", config.name), config, device)


def load_embedder(folder: Path, config: ModelConfig, device: torch.device) -> Embedder:
    """An embedder from a Hugging Face folder, offline.

    Raises:
        ExtensionError: E702 no model of the library, or weights are missing; E403 the tokenizer has more tokens than
            the model; E440 to E442 the tokenizer cannot be read.
    """
    from transformers import AutoModel

    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    try:
        with quiet():
            model, facts = AutoModel.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, **dtype_argument(getattr(torch, dtype))
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExtensionError("E702", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    # the pooler of BERT reads one token, for a head that is not there; mean pooling does not use it
    missing = sorted(key for key in facts["missing_keys"] if "pooler" not in key)
    if missing:
        raise ExtensionError("E702", folder=folder, reason=f"{len(missing)} weights are missing, {missing[0]} first")
    tokenizer = fitting_tokenizer(model, folder, 0, "")  # a longer text is cut
    return Embedder(model.to(device), tokenizer)
