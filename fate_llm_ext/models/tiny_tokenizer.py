"""BPE tokenizers for small models, trained on the corpus at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from typing_extensions import Literal

from fate_llm_ext.errors import ExtensionError


def train_tokenizer(
    texts: Sequence[str],
    vocab_size: int,
    kind: Literal["byte_bpe", "sentencepiece_bpe"] = "byte_bpe",
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of one of two families, with end and padding tokens.

    ``byte_bpe`` works on bytes like GPT-2's; ``sentencepiece_bpe`` marks word beginnings with U+2581 and
    falls back to bytes for unknown characters like Llama's.

    Raises:
        ExtensionError: E456 if ``vocab_size`` does not hold the family's 256 bytes, letters and special tokens.
    """
    sentencepiece = kind == "sentencepiece_bpe"
    special = ["<unk>", "<s>", "</s>", "<pad>"] if sentencepiece else ["<|endoftext|>", "<|padding|>"]
    needed = 256 + len(special) + (64 if sentencepiece else 0)
    if vocab_size < needed:
        raise ExtensionError("E456", asked=vocab_size, needed=needed, kind=kind)
    mark = "\u2581"
    if sentencepiece:
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        # not Metaspace: it loses a leading space, and the releases of tokenizers write it differently
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
        backend.pre_tokenizer = pre_tokenizers.Split(mark, "merged_with_next")
        backend.decoder = decoders.Sequence(
            [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, letters, learned = [], (vocab_size - 256) // 4, vocab_size - 256
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet, letters, learned = pre_tokenizers.ByteLevel.alphabet(), 256, vocab_size
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        special_tokens=special,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=letters,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if sentencepiece:
        backend = _with_bytes(backend, len(special))
    end = special[2] if sentencepiece else special[0]
    roles = {"eos_token": end, "bos_token": special[1] if sentencepiece else end, "pad_token": special[-1]}
    if sentencepiece:
        roles["unk_token"] = special[0]
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)


def _with_bytes(backend: Any, after: int) -> Any:
    """Insert the 256 byte tokens behind the special ones (as specials they would vanish when decoding)."""
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    shifted = {token: index + (256 if index >= after else 0) for token, index in vocabulary.items()}
    state["model"]["vocab"] = {**shifted, **{f"<0x{byte:02X}>": after + byte for byte in range(256)}}
    return Tokenizer.from_str(json.dumps(state))
