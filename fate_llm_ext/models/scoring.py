"""What a model says about texts: likelihood and top-k of answers, the choice it makes, text it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch

from fate_llm_ext.data.collate import pad_right, read_batch
from fate_llm_ext.models.loading import decoder_start, split_head

Step = Callable[[int, int], None]

# Logits held at a time: at most this many floats (256 MB in fp32).
_CHUNK_FLOATS = 1 << 26


@dataclass(frozen=True)
class AnswerScores:
    """Likelihood of given answers and, where asked for, the distribution at each answer token.

    Attributes:
        nll: summed negative log-likelihood of each answer, in nats (float32 [N]).
        offsets: answer tokens of row i are ``offsets[i]:offsets[i + 1]`` (int64 [N + 1]).
        ids: most likely token ids per answer token (int32 [P, K], K = 0 if not asked for).
        log_probs: their log-probabilities (float32 [P, K]).
    """

    nll: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray


class Scorer:
    """Evaluates one language model in batches, shortest sequences first.

    Of an encoder-decoder, a sequence is what the encoder reads, and behind it what the decoder is to write.

    Args:
        model: a causal LM or an encoder-decoder, with or without an adapter.
        pad_id: padding token id.
        batch_size: sequences per forward pass.
        step: called with (done, total) after each batch, for progress and heartbeats.
    """

    def __init__(self, model: Any, pad_id: int, batch_size: int, step: Optional[Step] = None) -> None:
        self._model = model
        self._pad_id = pad_id
        self._batch_size = batch_size
        self._step = step or (lambda done, total: None)
        self._backbone, self._head = split_head(model)
        self._device = next(model.parameters()).device
        self._start_id = decoder_start(model)

    def answers(
        self,
        ids: Sequence[np.ndarray],
        places: Sequence[np.ndarray],
        top_k: int = 0,
        temperature: float = 1.0,
        vocabulary: Optional[int] = None,
    ) -> AnswerScores:
        """Score the tokens at ``places[i]`` of each sequence ``ids[i]`` given all tokens before them.

        Args:
            ids: token ids per row (int [T_i]).
            places: indices into ``ids[i]``, all >= 1 (int [A_i]).
            top_k: how many log-probabilities to keep per place.
            temperature: divides the logits (of the likelihood, too).
            vocabulary: only ids below this are kept; many models have more rows than their tokenizer has tokens.
        """
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in places])]).astype(np.int64)
        nll = np.zeros(len(ids), dtype=np.float64)
        top_ids = np.zeros((int(offsets[-1]), top_k), dtype=np.int32)
        top_log_probs = np.zeros((int(offsets[-1]), top_k), dtype=np.float32)
        if not len(ids):
            return AnswerScores(nll.astype(np.float32), offsets, top_ids, top_log_probs)
        targets = np.concatenate([row[p] for row, p in zip(ids, places)]).astype(np.int64)
        for owner, within, log_probs in self._forward(ids, [np.asarray(p) - 1 for p in places], temperature):
            where = offsets[owner] + within
            picked = log_probs.gather(1, torch.from_numpy(targets[where]).to(self._device)[:, None])
            np.add.at(nll, owner, -picked[:, 0].double().cpu().numpy())
            if top_k:
                values, indices = log_probs[:, :vocabulary].topk(top_k, dim=1)
                top_ids[where] = indices.cpu().numpy()
                top_log_probs[where] = values.cpu().numpy()
        return AnswerScores(nll.astype(np.float32), offsets, top_ids, top_log_probs)

    def choices(self, rows: Sequence[Sequence[Tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
        """Log-probability of each choice of each row.

        Args:
            rows: per row, per choice: token ids [T] and the places of the choice's tokens in them.

        Returns:
            float32 [N, C]; -inf where a row has fewer choices than the longest.

        One forward pass per row is enough where all choices of it are one token long.
        """
        result = np.full((len(rows), max(map(len, rows), default=0)), -np.inf, dtype=np.float32)
        short = [i for i, choices in enumerate(rows) if _one_token_each(choices)]
        prompts = [rows[i][0][0][: rows[i][0][1][0]] for i in short]
        for owner, _, log_probs in self._forward(prompts, [np.array([len(p) - 1]) for p in prompts]):
            for place, number in enumerate(owner):
                row = short[number]
                tokens = torch.tensor([int(ids[places[0]]) for ids, places in rows[row]], device=self._device)
                result[row, : len(tokens)] = log_probs[place, tokens].float().cpu().numpy()
        long = sorted(set(range(len(rows))) - set(short))
        flat = [(row, c) for row in long for c in range(len(rows[row]))]
        if flat:
            scores = self.answers([rows[r][c][0] for r, c in flat], [rows[r][c][1] for r, c in flat])
            for (row, c), value in zip(flat, scores.nll):
                result[row, c] = -value
        return result

    def write(self, tokenizer: Any, prompts: Sequence[np.ndarray], max_new_tokens: int) -> List[str]:
        """Greedy continuations of prompts (token ids) by a causal LM, decoded without special tokens."""
        texts = [""] * len(prompts)
        done = 0
        for rows in self._batches([len(p) for p in prompts]):
            length = max(len(prompts[row]) for row in rows)
            ids, mask = pad_right([prompts[row][::-1] for row in rows], self._pad_id, length)
            # Reversing before and after turns right padding into left padding.
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=ids.flip(1).to(self._device),
                    attention_mask=mask.flip(1).to(self._device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self._pad_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            for row, text in zip(rows, tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)):
                texts[row] = text
            done += len(rows)
            self._step(done, len(prompts))
        return texts

    def _batches(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    def _forward(
        self, ids: Sequence[np.ndarray], places: Sequence[np.ndarray], temperature: float = 1.0
    ) -> Iterator[Tuple[np.ndarray, np.ndarray, torch.Tensor]]:
        """Log-probabilities [p, V] after ``places``, in chunks, with the row [p] and the number in it [p]."""
        self._model.eval()
        done = 0
        for rows in self._batches([len(sequence) for sequence in ids]):
            read, flat = read_batch(
                [ids[row] for row in rows], [places[row] for row in rows], self._pad_id, self._start_id
            )
            owner = np.concatenate([np.full(len(places[row]), row) for row in rows])
            within = np.concatenate([np.arange(len(places[row])) for row in rows])
            with torch.inference_mode():
                hidden = self._backbone(**{name: value.to(self._device) for name, value in read.items()})
                hidden = hidden.reshape(-1, hidden.shape[-1])[flat.to(self._device)]
                chunk = max(1, _CHUNK_FLOATS // self._model.config.vocab_size)
                for start in range(0, len(flat), chunk):
                    part = slice(start, start + chunk)
                    yield (
                        owner[part],
                        within[part],
                        torch.log_softmax(self._head(hidden[part]).float() / temperature, dim=1),
                    )
            done += len(rows)
            self._step(done, len(ids))


def _one_token_each(choices: Sequence[Tuple[np.ndarray, np.ndarray]]) -> bool:
    if not choices or not len(choices[0][1]):
        return False
    first_ids, first_places = choices[0]
    start = int(first_places[0])
    return all(
        len(places) == 1 and places[0] == start and np.array_equal(ids[:start], first_ids[:start])
        for ids, places in choices
    )
