"""Guessing a word from its neighbours too: a language model scores candidates between the words that were seen.

Dimensions: n words under attack, K candidates each, T tokens of a sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from safetensors import SafetensorError

from fate_llm_ext._compat import dtype_argument
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.collate import pad_right
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.backends import plain_backend
from fate_llm_ext.models.loading import fitting_tokenizer, load_base, positions
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.scoring import Scorer

BEFORE, AFTER = 12, 3  # tokens of the neighbours that count
_SEQUENCES = 4096  # that exist at a time
_FLOATS = 1 << 26  # logits at a time
_MARGIN = 2  # positions that some models keep for themselves

Heartbeat = Callable[[], None]


class Infiller:
    """A causal or masked language model that tells how well a word fits between others; used as it is, not changed.

    A causal LM gives log P(word, next tokens | tokens before). A masked one gives the sum of the log-probabilities of
    the word's tokens, each position masked; words of several tokens are then a little underrated.

    Args:
        network: of transformers, with or without an adapter.
        words: the vocabulary's words, V of them.
        batch_size: sequences per forward pass.

    Raises:
        ExtensionError: E758 it is neither causal nor masked, E759 the tokenizer has no mask.
    """

    def __init__(self, network: Any, tokenizer: Any, words: Sequence[str], batch_size: int = 64) -> None:
        base = check_infiller(network)
        self._network = network
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._masked = type(base).__name__.endswith("MaskedLM")
        if self._masked:
            self._mask = _mask(tokenizer)
            if self._mask is None:
                raise ExtensionError("E759", model=type(base).__name__)
            self._opening, self._closing = _around_texts(tokenizer)
        self._device = next(network.parameters()).device
        begin = tokenizer.bos_token_id
        self._begin = np.array([tokenizer.eos_token_id if begin is None else begin], dtype=np.int64)
        self._limit = (positions(base.config) or 1 << 30) - _MARGIN
        backend = plain_backend(tokenizer, dummy_prefix=False)
        encoded = backend.encode_batch([f" {word}" for word in words], add_special_tokens=False)
        self._words = [np.array(one.ids, dtype=np.int64) for one in encoded]

    def scan(
        self,
        records: Sequence[np.ndarray],
        owners: np.ndarray,
        places: np.ndarray,
        candidates: np.ndarray,
        heartbeat: Heartbeat = lambda: None,
    ) -> np.ndarray:
        """As :meth:`scores`, but a causal LM only tells how well each begins behind the words before: much cheaper."""
        if self._masked:
            return self.scores(records, owners, places, candidates, heartbeat)
        self._network.eval()
        first = np.array([ids[0] for ids in self._words], dtype=np.int64)
        rows = []
        for owner, place, words in zip(owners, places, candidates):
            head = np.concatenate([self._begin, self._around(records[owner], place)[0]])[-self._limit + 1 :]
            end = np.array([len(head)])
            rows.append([(np.append(head, token), end) for token in first[words]])
        return self._scorer(heartbeat).choices(rows).astype(np.float64)

    def scores(
        self,
        records: Sequence[np.ndarray],
        owners: np.ndarray,
        places: np.ndarray,
        candidates: np.ndarray,
        heartbeat: Heartbeat = lambda: None,
    ) -> np.ndarray:
        """How well each candidate fits in its place, in nats up to a constant of the place: float64 [n, K].

        Args:
            records: words that left of each record, int32 [length] each.
            owners: record of each place, int [n].
            places: int [n].
            candidates: words, int32 [n, K].
        """
        self._network.eval()
        rows = [self._around(records[owner], place) for owner, place in zip(owners, places)]
        found = np.zeros(candidates.shape)
        block = max(1, _SEQUENCES // max(1, candidates.shape[1]))
        score = self._masked_scores if self._masked else self._causal_scores
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            found[part] = score(rows[part], candidates[part], heartbeat)
        return found

    def _around(self, record: np.ndarray, place: int) -> Tuple[np.ndarray, np.ndarray]:
        """Tokens of the words before and behind a place, as many as count."""
        nothing = [np.zeros(0, dtype=np.int64)]
        before = np.concatenate(nothing + [self._words[word] for word in record[max(0, place - BEFORE) : place]])
        after = np.concatenate(nothing + [self._words[word] for word in record[place + 1 : place + 1 + AFTER]])
        return before[-BEFORE:], after[:AFTER]

    # -- causal --------------------------------------------------------------------------------------

    def _causal_scores(
        self, rows: Sequence[Tuple[np.ndarray, np.ndarray]], candidates: np.ndarray, heartbeat: Heartbeat
    ) -> np.ndarray:
        sequences: List[np.ndarray] = []
        scored: List[np.ndarray] = []
        for (before, after), words in zip(rows, candidates):
            for word in words:
                own = self._words[word]
                room = max(0, self._limit - 1 - len(own) - len(after))
                head = np.concatenate([self._begin, before[len(before) - min(room, len(before)) :]])
                sequence = np.concatenate([head, own, after])[: self._limit]
                sequences.append(sequence)
                scored.append(np.arange(len(head), len(sequence)))
        found = self._scorer(heartbeat).answers(sequences, scored)
        return -found.nll.astype(np.float64).reshape(candidates.shape)

    def _scorer(self, heartbeat: Heartbeat) -> Scorer:
        pad = self._tokenizer.pad_token_id
        return Scorer(self._network, pad, self._batch_size, lambda done, total: heartbeat())

    # -- masked --------------------------------------------------------------------------------------

    def _masked_scores(
        self, rows: Sequence[Tuple[np.ndarray, np.ndarray]], candidates: np.ndarray, heartbeat: Heartbeat
    ) -> np.ndarray:
        """One sequence for all candidates of a place that have as many tokens."""
        asked: Dict[Tuple[int, int], List[int]] = {}
        for row, words in enumerate(candidates):
            for column, word in enumerate(words):
                asked.setdefault((row, len(self._words[word])), []).append(column)
        keys = sorted(asked, key=lambda key: len(rows[key[0]][0]) + key[1] + len(rows[key[0]][1]))
        built = [self._with_masks(*rows[row], masks) for row, masks in keys]
        found = np.zeros(candidates.shape)
        longest = max((len(ids) for ids, _ in built), default=1)
        batch = max(1, min(self._batch_size, _FLOATS // (longest * self._network.config.vocab_size)))
        for start in range(0, len(keys), batch):
            log_probs = self._at_masks(built[start : start + batch])
            for (row, masks), given in zip(keys[start : start + batch], log_probs):
                columns = asked[row, masks]
                tokens = np.stack([self._words[word][: len(given)] for word in candidates[row, columns]])
                found[row, columns] = given[np.arange(len(given)), tokens].sum(axis=1)
            heartbeat()
        return found

    def _with_masks(self, before: np.ndarray, after: np.ndarray, masks: int) -> Tuple[np.ndarray, np.ndarray]:
        """Ids of a sequence and the places of its masks."""
        opening, closing = self._opening, self._closing
        masks = min(masks, self._limit - len(opening) - len(closing))
        room = self._limit - len(opening) - len(closing) - masks
        after = after[: min(len(after), room)]
        before = before[len(before) - min(len(before), room - len(after)) :]
        start = len(opening) + len(before)
        ids = np.concatenate([opening, before, [self._mask] * masks, after, closing]).astype(np.int64)
        return ids, np.arange(start, start + masks)

    @torch.inference_mode()
    def _at_masks(self, built: Sequence[Tuple[np.ndarray, np.ndarray]]) -> List[np.ndarray]:
        """Log-probabilities at the masks of each sequence: float32 [masks, tokens of the model] each."""
        ids, mask = pad_right([one for one, _ in built], self._tokenizer.pad_token_id)
        logits = self._network(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
        return [
            torch.log_softmax(logits[row, torch.from_numpy(places)].float(), dim=1).cpu().numpy()
            for row, (_, places) in enumerate(built)
        ]


def check_infiller(network: Any) -> Any:
    """The model below an adapter, if it can guess a word between others.

    Raises:
        ExtensionError: E758 it is an encoder-decoder.
    """
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    if getattr(base.config, "is_encoder_decoder", False):
        raise ExtensionError("E758", model=type(base).__name__)
    return base


def _mask(tokenizer: Any) -> Optional[int]:
    """The mask's id, by its usual names too: a folder may hold tokenizer.json alone."""
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    vocabulary = tokenizer.get_vocab()
    return next((vocabulary[name] for name in ("[MASK]", "<mask>") if name in vocabulary), None)


def _around_texts(tokenizer: Any) -> Tuple[List[int], List[int]]:
    """What the tokenizer puts before and behind a text."""
    probe = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
    return list(probe.ids[: own[0]]), list(probe.ids[own[-1] + 1 :])


def load_infiller(folder: Path, settings: ModelConfig, device: torch.device, words: Sequence[str]) -> Infiller:
    """A language model from a Hugging Face folder, offline: masked if its configuration says so, else causal.

    Raises:
        ExtensionError: E402, E403 as :func:`~fate_llm_ext.models.loading.load_base`; E758, E759 as :class:`Infiller`.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ExtensionError("E402", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    name = str((config.architectures or [""])[0])
    if config.is_encoder_decoder:
        raise ExtensionError("E758", model=name)
    load = _load_masked if name.endswith("MaskedLM") else load_base
    network, tokenizer = load(folder, settings, device)
    return Infiller(network, tokenizer, words)


def _load_masked(folder: Path, settings: ModelConfig, device: torch.device) -> Tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM

    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    try:
        with quiet():
            network, facts = AutoModelForMaskedLM.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, **dtype_argument(getattr(torch, dtype))
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExtensionError("E402", folder=folder, reason=" ".join(str(error).split())[:300]) from error
    if facts["missing_keys"]:
        missing = sorted(facts["missing_keys"])
        raise ExtensionError("E402", folder=folder, reason=f"{len(missing)} weights are missing, {missing[0]} first")
    return network.to(device), fitting_tokenizer(network, folder, 0, "")
