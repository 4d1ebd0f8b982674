"""Inside a fast tokenizer: its byte alphabet, and a twin of its backend for text alone."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError


def byte_alphabet() -> dict[str, int]:
    """GPT-2's visible letter for each byte: printable Latin-1 stands for itself, the others follow U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


def _state(component: Any) -> Any:
    return None if component is None else json.loads(component.__getstate__())


def is_byte_level(backend: Tokenizer) -> bool:
    """Whether the tokens are spelt in GPT-2's byte alphabet."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    return any('"ByteLevel"' in json.dumps(_state(part)) for part in parts)


def plain_backend(tokenizer: PreTrainedTokenizerFast, dummy_prefix: bool) -> Tokenizer:
    """A twin of the tokenizer's backend for text alone: no truncation, no padding, no special tokens added.

    It shares the model, so it is cheap, and nothing done to ``tokenizer`` later changes it. Without
    ``dummy_prefix`` the text is taken as the middle of a longer one.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    if not dummy_prefix:
        normalizer, pre_tokenizer = _without_prefix(normalizer), _without_prefix(pre_tokenizer)
    shell = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": _state(backend.decoder),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    twin = Tokenizer.from_str(json.dumps(shell))
    twin.model = backend.model
    for index, token in sorted(backend.get_added_tokens_decoder().items()):
        (twin.add_special_tokens if token.special else twin.add_tokens)([token])
        if twin.token_to_id(token.content) != index:
            raise ExtensionError("E323", token=token.content, index=index)
    return twin


def _without_prefix(state: Any) -> Any:
    """A normaliser or pre-tokeniser, as JSON, that adds no space before the text."""
    if isinstance(state, list):
        return [part for part in map(_without_prefix, state) if part is not None]
    if not isinstance(state, dict):
        return state
    if state.get("type") == "Prepend":
        return None
    changed = {key: _without_prefix(value) for key, value in state.items()}
    for key, value in (("prepend_scheme", "never"), ("add_prefix_space", False)):
        if key in changed:
            changed[key] = value
    return changed
