"""Load a tokenizer from a folder: Hugging Face folders and the raw files of the common families.

Everything becomes a ``PreTrainedTokenizerFast``: the alignment needs the Rust tokenizers' speed and
their offsets. Nothing is fetched from a network and no code of a model repository is ever run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.quiet import quiet

_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<eos>", "[EOS]", "[SEP]")
_BEGIN_TOKENS = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "[CLS]")
_PAD_TOKENS = ("<pad>", "<|padding|>", "<|pad|>", "[PAD]")
_BYTE_LEVEL_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_MARK = "\u2581"  # SentencePiece's visible space
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # sentencepiece_model.proto: SentencePiece.Type
_UNIGRAM, _BPE = 1, 2  # sentencepiece_model.proto: TrainerSpec.ModelType


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that an embedding needs: one more than the largest id; ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``, with an end token and a padding token (the end token if the family has none).

    Looks, in this order, for ``tokenizer.json`` (with or without ``tokenizer_config.json``), GPT-2/OPT files
    (``vocab.json`` + ``merges.txt`` or ``encoder.json`` + ``vocab.bpe``), a SentencePiece ``tokenizer.model``,
    and other files that ``AutoTokenizer`` can convert. Saved by ``save_pretrained`` and loaded again, the
    result tokenises identically.

    Raises:
        ExtensionError: E440 no tokenizer in the folder, E441 no end token, E442 unreadable files.
    """
    folder = Path(folder)
    try:
        with quiet():
            tokenizer = _read(folder)
    except Exception as cause:  # the Rust library raises bare Exception for a broken file
        raise ExtensionError("E442", folder=folder, cause=str(cause)[:200]) from cause
    if tokenizer is None:
        raise ExtensionError("E440", folder=folder)
    if tokenizer.eos_token is None:
        raise ExtensionError("E441", folder=folder, candidates=" ".join(_END_TOKENS))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read(folder: Path) -> PreTrainedTokenizerFast | None:
    if (folder / "tokenizer.json").is_file():
        if (folder / "tokenizer_config.json").is_file():
            return _with_end_token(PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True))
        return _wrap(Tokenizer.from_file(str(folder / "tokenizer.json")))
    for vocabulary, merges in _BYTE_LEVEL_PAIRS:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return _wrap(_byte_level(folder / vocabulary, folder / merges))
    if (folder / "tokenizer.model").is_file():
        return _wrap(_sentencepiece(_read_model_file((folder / "tokenizer.model").read_bytes())))
    if (folder / "tokenizer_config.json").is_file():
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if not isinstance(loaded, PreTrainedTokenizerFast):
            raise ValueError(f"{type(loaded).__name__} has no fast form")
        return _with_end_token(loaded)
    return None


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A backend without a configuration: the special tokens are told from the vocabulary."""
    end = _first_known(backend, _END_TOKENS)
    roles = {
        "eos_token": end,
        "bos_token": end if _is_opt(backend) else _first_known(backend, _BEGIN_TOKENS) or end,
        "pad_token": _first_known(backend, _PAD_TOKENS) or end,
        "unk_token": _first_known(backend, ("<unk>", "[UNK]")),
    }
    known = {role: token for role, token in roles.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **known)


def _with_end_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    end = _first_known(tokenizer.backend_tokenizer, _END_TOKENS)
    if tokenizer.eos_token is None and end is not None:
        tokenizer.eos_token = end
    return tokenizer


def _first_known(backend: Tokenizer, candidates: tuple[str, ...]) -> str | None:
    return next((token for token in candidates if backend.token_to_id(token) is not None), None)


def _is_opt(backend: Tokenizer) -> bool:
    """OPT (fairseq's dictionary over GPT-2's merges) begins every text with ``</s>``."""
    return isinstance(backend.model, models.BPE) and backend.token_to_id("madeupword0000") is not None


def _special(tokens: list[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _begin_with(backend: Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, backend.token_to_id(token))]
    )


# --- GPT-2 and OPT -----------------------------------------------------------------------------------


def _byte_level(vocabulary: Path, merges: Path) -> Tokenizer:
    ids: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines if _is_merge(line))]
    backend = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    opt = _is_opt(backend)
    backend.add_special_tokens(
        _special([t for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if t in ids] if opt else ["<|endoftext|>"])
    )
    backend.post_processor = _begin_with(backend, "</s>") if opt else processors.ByteLevel(trim_offsets=False)
    return backend


def _is_merge(line: str) -> bool:
    return bool(line) and not line.startswith("#version")


# --- SentencePiece -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """What a ``tokenizer.model`` says: pieces (text, score, type) and the specifications we honour."""

    pieces: list[tuple[str, float, int]]
    bpe: bool
    dummy_prefix: bool
    squeeze_spaces: bool
    characters: bytes  # compiled normalisation table; empty = identity


def _read_model_file(blob: bytes) -> _Model:
    """Read ModelProto directly: the generated protobuf module does not load beside FATE's protobuf."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for field, value in _fields(blob):
        if isinstance(value, int):
            continue
        if field == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", _raw(piece.get(2, bytes(4))))[0]
            pieces.append((_raw(piece[1]).decode("utf-8"), score, int(piece.get(3, _NORMAL))))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not pieces or not trainer or not normalizer:
        raise ValueError("not a whole SentencePiece model")
    if trainer.get(3, _UNIGRAM) not in (_UNIGRAM, _BPE):
        raise ValueError("the SentencePiece model is neither BPE nor Unigram")
    bpe = trainer.get(3, _UNIGRAM) == _BPE
    return _Model(pieces, bpe, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), _raw(normalizer.get(2, b"")))


def _raw(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text is expected")
    return value


def _fields(blob: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of one protobuf message: (number, integer or raw bytes)."""
    at = 0
    while at < len(blob):
        key, at = _varint(blob, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(blob, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(blob, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {wire} at byte {at}")
        if at + size > len(blob):
            raise ValueError("file is cut short")
        yield key >> 3, blob[at : at + size]
        at += size


def _varint(blob: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = blob[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _sentencepiece(model: _Model) -> Tokenizer:
    ids = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    unknown = next((text for text, _, kind in model.pieces if kind == _UNKNOWN), None)
    fallback = any(kind == _BYTE for _, _, kind in model.pieces)
    core: models.Model
    if model.bpe:
        core = models.BPE(
            vocab=ids, merges=_merges(model.pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=fallback
        )
    else:
        scores = [(text, score) for text, score, _ in model.pieces]
        core = models.Unigram(scores, ids[unknown] if unknown else None, fallback)
    backend = Tokenizer(core)
    backend.normalizer = normalizers.Sequence(_normalizers(model))
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])
    )
    backend.add_special_tokens(_special([text for text, _, kind in model.pieces if kind in (_UNKNOWN, _CONTROL)]))
    backend.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text, _, kind in model.pieces if kind == _USER_DEFINED]
    )
    if backend.token_to_id("<s>") is not None:
        backend.post_processor = _begin_with(backend, "<s>")
    return backend


def _normalizers(model: _Model) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.characters:
        steps.append(normalizers.Precompiled(model.characters))
    if model.squeeze_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(_MARK))
    return [*steps, normalizers.Replace(" ", _MARK)]


def _merges(pieces: list[tuple[str, float, int]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores highest; as an ordered list of merges.

    Every way to split a piece into two others is a merge, ranked by the piece's score, then by the parts' ids.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, score, kind in pieces:
        if kind != _NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
