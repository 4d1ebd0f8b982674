"""Sampling texts from a language model in batches, with a key-value cache.

Equal prompts are read once and share their cache; rows that have ended leave the batch. What a row draws depends
on the seed and on its place in the list alone, not on the batches that were made.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from fate_llm_ext._compat import roomy_cache, select_cache_rows
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.data.collate import pad_right
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import decoder_start, is_encoder_decoder, positions, split_head
from fate_llm_ext.models.products import fast_products
from fate_llm_ext.models.scoring import Step
from fate_llm_ext.models.tokenizers import vocabulary_size

# Where the k most probable tokens are asked for by their mass only: how many are looked at first.
_CANDIDATES = 1024
# Asking an accelerator whether rows have ended makes it wait; so it is asked every so many tokens.
_STRIDE = {"cpu": 1}
# Reading what has been written so far costs as much as a token or two of a small model: likewise.
_LOOK = 8
# Share of a batch that must have ended before it shrinks: that copies the cache of the others.
_LEAVING = 0.1

Over = Callable[[Tensor], Sequence[bool]]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    *,
    seed: int,
    step: Step = lambda done, total: None,
    over: Optional[Over] = None,
) -> List[np.ndarray]:
    """Sample one continuation of each prompt.

    At each place the logits, divided by the temperature, are cut to the ``top_k`` largest, then to the smallest
    set of at least ``top_p`` of what is left of the probability, and the token is drawn from the rest. Only tokens
    of the tokenizer are written, even if the model has more rows. ``top_k: 1`` is greedy.

    Args:
        model: a causal LM or an encoder-decoder, with or without an adapter; its mode (training or not) is kept.
        prompts: token ids, each at least one (int [T_i]); equal ones cost little. An encoder reads them as they are.
        seed: the same one gives the same texts, whatever the batch size.
        step: called with (done, total) prompts after each batch.
        over: says now and then of the tokens written so far (int [B, T]) which rows need no more of them (B times);
            such a row may have any number of further tokens.

    Returns:
        New token ids per prompt, without the end token (int32 [<= max_new_tokens]), in the order of ``prompts``.

    Raises:
        ExtensionError: E407 the model's logits are no numbers; E664 a prompt is empty; E665 the texts do not fit into
            the model's context.
    """
    _check(model, prompts, config)
    texts = [np.zeros(0, dtype=np.int32)] * len(prompts)
    training = model.training
    model.eval()
    try:
        kind = _EncoderDecoderWriter if is_encoder_decoder(model) else _Writer
        writer = kind(model, tokenizer, config, over)
        done = 0
        for rows in _batches(prompts, config.batch_size):
            # each row has a generator of its own: batches cannot change who draws what
            chance = np.stack([np.random.default_rng([seed, row]).random(config.max_new_tokens) for row in rows])
            with fast_products(model):
                written = writer.write([prompts[row] for row in rows], torch.from_numpy(chance))
            for row, text in zip(rows, written):
                texts[row] = text
            done += len(rows)
            step(done, len(prompts))
    finally:
        model.train(training)
    return texts


def _check(model: Any, prompts: Sequence[np.ndarray], config: GenerationConfig) -> None:
    lengths = [len(prompt) for prompt in prompts]
    if lengths and min(lengths) == 0:
        raise ExtensionError("E664", prompt=lengths.index(0), prompts=len(prompts))
    if not fitting(model, np.array(lengths), config.max_new_tokens).all():
        raise ExtensionError("E665", prompt=max(lengths), new=config.max_new_tokens, limit=positions(model.config))


def fitting(model: Any, lengths: np.ndarray, new: int) -> np.ndarray:
    """Whether prompts of these lengths, and ``new`` tokens written behind each, fit into the model (bool [N])."""
    limit = positions(model.config)
    if limit is None:
        return np.ones(len(lengths), dtype=bool)
    # the last token is written, never read; an encoder has positions of its own
    fits: np.ndarray = (lengths <= limit) & (new <= limit) if is_encoder_decoder(model) else lengths + new - 1 <= limit
    return fits


def _batches(prompts: Sequence[np.ndarray], size: int) -> Iterator[List[int]]:
    """Rows of each batch: by length, then equal prompts side by side."""
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row].tobytes(), row))
    for start in range(0, len(order), size):
        yield order[start : start + size]


class _Writer:
    """Writes one batch after another with a causal LM."""

    def __init__(self, model: Any, tokenizer: Any, config: GenerationConfig, over: Optional[Over] = None) -> None:
        self._config = config
        self._over = over
        self._end = tokenizer.eos_token_id
        self._known = vocabulary_size(tokenizer)
        self._device = next(model.parameters()).device
        self._stride = _STRIDE.get(self._device.type, 8)
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        _, self._head = split_head(model)
        self._inner = whole if isinstance(self._head, nn.Identity) else getattr(whole, whole.base_model_prefix)
        self._takes_positions = "position_ids" in inspect.signature(self._inner.forward).parameters

    @torch.inference_mode()
    def write(self, prompts: Sequence[np.ndarray], chance: Tensor) -> List[np.ndarray]:
        """Continuations of a batch [B] of prompts; ``chance`` [B, max_new_tokens] is uniform in [0, 1)."""
        logits, cache, padding, lengths = self._read(prompts)
        bad = int((~torch.isfinite(logits).all(dim=1)).sum())
        if bad:
            raise ExtensionError("E407", bad=bad, total=len(prompts), what="the first tokens to write")
        total = self._config.max_new_tokens
        if total > 1:
            cache = self._roomy(cache, total - 1)
        chance = chance.to(self._device)
        width = int(lengths.max())
        mask = torch.ones((len(prompts), width + total), dtype=torch.long, device=self._device)
        mask[:, :width] = padding
        padded = not bool(padding.all())
        written = torch.full((len(prompts), total), self._end, dtype=torch.long, device=self._device)
        alive = torch.arange(len(prompts), device=self._device)
        ended = torch.zeros_like(alive, dtype=torch.bool)
        for at in range(total):
            token = sample(logits[:, : self._known], chance[alive, at], self._config)
            written[alive, at] = token
            ended |= token == self._end
            if self._over is not None and (at + 1) % _LOOK == 0:
                ended |= torch.tensor(self._over(written[alive, : at + 1]), device=self._device)
            if at + 1 == total or ((at + 1) % self._stride == 0 and bool(ended.all())):
                break
            if (at + 1) % self._stride == 0 and int(ended.sum()) >= _LEAVING * len(ended):
                left = (~ended).nonzero()[:, 0]
                cache = self._select(cache, left, len(alive))
                alive, token, ended = alive[left], token[left], ended[left]
            attended = mask[alive, : width + at + 1] if padded else None
            logits, cache = self._forward(token[:, None], attended, (lengths[alive] + at)[:, None], cache)
        return self._cut(written)

    def _read(self, prompts: Sequence[np.ndarray]) -> Tuple[Tensor, Any, Tensor, Tensor]:
        """Logits [B, V], cache, mask [B, T] and lengths [B] after the prompts; equal ones are read once."""
        distinct, which = _distinct(prompts)
        width = max(map(len, distinct))
        ids = np.full((len(distinct), width), self._end, dtype=np.int64)
        mask = np.zeros((len(distinct), width), dtype=np.int64)
        for row, prompt in enumerate(distinct):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        padding = torch.from_numpy(mask).to(self._device)
        places = (padding.cumsum(1) - 1).clamp(min=0)
        attended = padding if not mask.all() else None
        logits, cache = self._forward(torch.from_numpy(ids).to(self._device), attended, places, None)
        rows = torch.tensor(which, device=self._device)
        if len(distinct) < len(prompts):
            cache = self._select(cache, rows, len(distinct))
        return logits[rows], cache, padding[rows], padding.sum(1)[rows]

    def _forward(self, ids: Tensor, mask: Any, places: Tensor, cache: Any) -> Tuple[Tensor, Any]:
        """Logits [B, V] after the last token, and the longer cache."""
        extra = {"position_ids": places} if self._takes_positions else {}
        out = self._inner(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return self._head(out[0][:, -1]), out.past_key_values

    def _roomy(self, cache: Any, tokens: int) -> Any:
        """What is known of the texts so far, with room for further tokens."""
        return roomy_cache(cache, tokens)

    def _select(self, cache: Any, rows: Tensor, batch: int) -> Any:
        """What is known of some of the texts of a batch."""
        return select_cache_rows(cache, rows, batch)

    def _cut(self, written: Tensor) -> List[np.ndarray]:
        """Each row up to its end token."""
        tokens = written.cpu().numpy().astype(np.int32)
        ended = tokens == self._end
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1), tokens.shape[1])
        return [row[:length] for row, length in zip(tokens, lengths.tolist())]


class _EncoderDecoderWriter(_Writer):
    """Writes one batch after another with a decoder: what is known is what the encoder has read, and the cache.

    All texts begin at the same place, so none is padded; the encoder's padding is on the right.
    """

    def _read(self, prompts: Sequence[np.ndarray]) -> Tuple[Tensor, Any, Tensor, Tensor]:
        distinct, which = _distinct(prompts)
        ids, mask = (part.to(self._device) for part in pad_right(distinct, self._end))
        states = self._inner.get_encoder()(input_ids=ids, attention_mask=mask)[0]
        rows = torch.tensor(which, device=self._device)
        ones = torch.ones((len(prompts), 1), dtype=torch.long, device=self._device)
        known = (states[rows], mask[rows], None)
        return (*self._forward(ones * (decoder_start(self._inner) or 0), None, ones, known), ones, ones[:, 0])

    def _forward(self, ids: Tensor, mask: Any, places: Tensor, cache: Any) -> Tuple[Tensor, Any]:
        states, read, cache = cache
        out = self._inner(
            encoder_outputs=(states,),
            attention_mask=read,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits[:, -1], (states, read, out.past_key_values)

    def _roomy(self, cache: Any, tokens: int) -> Any:
        states, read, cache = cache
        return states, read, roomy_cache(cache, tokens)

    def _select(self, cache: Any, rows: Tensor, batch: int) -> Any:
        states, read, cache = cache
        return states[rows], read[rows], select_cache_rows(cache, rows, batch)


def _distinct(prompts: Sequence[np.ndarray]) -> Tuple[List[np.ndarray], List[int]]:
    """The different prompts, and for each prompt which of them it is."""
    index: Dict[bytes, int] = {}
    which = [index.setdefault(prompt.astype(np.int64).tobytes(), len(index)) for prompt in prompts]
    return [np.frombuffer(key, dtype=np.int64) for key in index], which


def sample(logits: Tensor, chance: Tensor, config: GenerationConfig) -> Tensor:
    """One token per row by inversion: the first one at which the cumulated probability exceeds ``chance``.

    Args:
        logits: [B, V].
        chance: uniform numbers in [0, 1), [B].

    Returns:
        int64 [B].
    """
    scores = logits.float() if config.temperature == 1.0 else logits.float() / config.temperature
    size = scores.shape[1]
    if 0 < config.top_k < size:
        values, ids = scores.topk(config.top_k, dim=1)
        return _pick(values, ids, values.logsumexp(1), chance, config.top_p)
    total = scores.logsumexp(1)
    if config.top_p >= 1.0:
        return _draw(torch.softmax(scores, dim=1), chance)
    values, ids = scores.topk(min(_CANDIDATES, size), dim=1)
    if bool((values.logsumexp(1) - total).exp().min() < config.top_p):  # a flat distribution: look at all
        values, ids = scores.sort(dim=1, descending=True)
    return _pick(values, ids, total, chance, config.top_p)


def _pick(values: Tensor, ids: Tensor, total: Tensor, chance: Tensor, top_p: float) -> Tensor:
    """Draw from the nucleus of descending scores [B, K] with log mass ``total`` [B]."""
    probs = (values - total[:, None]).exp()
    if top_p < 1.0:
        before = probs.cumsum(1, dtype=torch.float64) - probs
        probs = torch.where(before < top_p, probs, 0.0)  # the first one always stays
    return ids.gather(1, _draw(probs, chance)[:, None])[:, 0]


def _draw(probs: Tensor, chance: Tensor) -> Tensor:
    """Index of each row's draw; ``probs`` [B, K] need not sum to 1."""
    cumulated = probs.cumsum(1, dtype=torch.float64)
    total = cumulated[:, -1]
    # below the total, even if the product is rounded up: behind it is nothing to draw
    reached = torch.minimum(chance * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, reached[:, None], right=True)[:, 0]
