"""An engine in this process: a transformers model, with or without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Sequence

import numpy as np
import torch

from fate_llm_ext.config import GenerationConfig, LLMConfig, ModelConfig
from fate_llm_ext.models.encoding import SpanTokenizer, encode_prompts
from fate_llm_ext.models.engines.base import Completion, Engine, cut
from fate_llm_ext.models.generation import fitting, generate
from fate_llm_ext.models.loading import is_encoder_decoder, load_base
from fate_llm_ext.models.lora import load_adapter
from fate_llm_ext.models.scoring import Step


class LocalEngine(Engine):
    """Samples in batches with a key-value cache, see :mod:`fate_llm_ext.models.generation`.

    The model reads the prompt as plain text behind the tokenizer's prefix; a chat template is part of the prompt or
    is not used. A text depends on the seed and on its prompt's place in the list, not on ``batch_size``.

    Attributes:
        model: a causal LM or an encoder-decoder, with or without an adapter; it is used as it is and not changed.
        tokenizer: its tokenizer.
        spans: the same, to the byte.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.spans = SpanTokenizer(tokenizer)

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Step = lambda done, total: None,
        keys: Optional[Sequence[str]] = None,
    ) -> List[Completion]:
        """See :meth:`Engine.generate`; the same seed gives the same texts on the same machine.

        ``keys`` have no meaning here.

        Raises:
            ExtensionError: E407 the model's logits are no numbers; E664 a prompt has no token; E665 a prompt is too
                long, see :meth:`fits`.
        """
        return self.proceed(self.encode(prompts), config, seed=seed, stop=stop, step=step)

    def proceed(
        self,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Step = lambda done, total: None,
    ) -> List[Completion]:
        """:meth:`generate` for prompts that are tokens already (int [T_i]).

        Raises:
            ExtensionError: as :meth:`generate`.
        """
        if not prompts:
            return []

        def over(tokens: torch.Tensor) -> List[bool]:
            return [cut(text, stop)[1] for text in self._decode(tokens)]

        written = generate(
            self.model,
            self.tokenizer,
            prompts,
            config,
            seed=seed,
            step=step,
            over=over if any(stop) else None,
        )
        results = []
        for ids, text in zip(written, self._decode(written)):
            short, stopped = cut(text, stop)
            # the end token is not among the ids, so a text of full length has not ended
            results.append(Completion(short, stopped or len(ids) < config.max_new_tokens))
        return results

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        """Whether prompt and ``max_new_tokens`` fit into the model's context (bool [N])."""
        lengths = np.array([len(ids) for ids in self.encode(prompts)], dtype=np.int64)
        return fitting(self.model, lengths, config.max_new_tokens)

    def _decode(self, ids: Any) -> List[str]:
        """Texts of rows of token ids."""
        texts: List[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    def encode(self, prompts: Sequence[str], keep: str = "", room: Optional[int] = None) -> List[np.ndarray]:
        """Token ids of each prompt (int32 [T_i]), as the tokenizer begins every text.

        Args:
            keep: with this every prompt begins; it stays when the beginning of what follows is cut.
            room: longest prompt in tokens; None: any.
        """
        return encode_prompts(self.spans, prompts, keep=keep, room=room, apart=is_encoder_decoder(self.model))


def open_local(folder: Path, adapter: Optional[Path], config: LLMConfig, device: torch.device) -> LocalEngine:
    """Load a model and, if one is given, its adapter, which stays apart from the weights.

    Raises:
        ExtensionError: E402, E403 the model cannot be loaded; E405 the adapter does not fit.
    """
    settings = ModelConfig(name=config.name, dtype=config.dtype)
    model, tokenizer = load_base(folder, settings, device, encoder_decoder=True)
    network = model if adapter is None else load_adapter(model, adapter)
    network.eval()
    network.requires_grad_(False)
    return LocalEngine(network, tokenizer, config.name)
