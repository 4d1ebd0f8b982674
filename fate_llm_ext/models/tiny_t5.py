"""A small encoder-decoder model (T5): its shape, and what it learns from blocks of text.

It learns to continue (prefix language modelling): the encoder reads a block's beginning and the end token, as it will
read a prompt, the decoder writes the rest. Where the block is cut is drawn anew for each batch.
"""

from __future__ import annotations

import random
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

_SHORTEST = 8  # neither side of the cut has less than this share of a block: one in so many tokens


def build_t5(
    width: int, layers: int, heads: int, context: int, vocabulary: int, end: int, padding: int
) -> PreTrainedModel:
    """A fresh T5 with ``layers`` blocks in encoder and decoder each; weights are drawn from torch's random state.

    Embedding and output head are always shared: transformers 5 knows no T5 with two of them.
    """
    settings = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        n_positions=context,
        eos_token_id=end,
        pad_token_id=padding,
        decoder_start_token_id=padding,
    )
    return T5ForConditionalGeneration(settings)


def continuation(model: Any, ids: Tensor, chance: Optional[random.Random] = None) -> Tuple[Tensor, Tensor]:
    """Hidden states before the output head, and the tokens that they are to predict, of blocks cut in two.

    Args:
        ids: int64 [B, T], T at least 2.
        chance: where the cut is drawn from; None: in the middle.

    Returns:
        float [B * t, d] and int64 [B * t], t tokens behind the cut.
    """
    length = ids.shape[1]
    least = max(1, length // _SHORTEST)
    cut = length // 2 if chance is None else chance.randint(least, length - least)
    ends = ids.new_full((len(ids), 1), model.config.eos_token_id)
    starts = ids.new_full((len(ids), 1), model.config.decoder_start_token_id)
    read = model.encoder(input_ids=torch.cat([ids[:, :cut], ends], dim=1))[0]
    shifted = torch.cat([starts, ids[:, cut:-1]], dim=1)
    hidden = model.decoder(input_ids=shifted, encoder_hidden_states=read, use_cache=False)[0]
    hidden = hidden * model.config.d_model**-0.5  # as the model itself does where embedding and head are shared
    return hidden.flatten(0, 1), ids[:, cut:].flatten()


def continuation_nats(model: Any, ids: Tensor) -> Tuple[float, Tensor]:
    """Summed cross-entropy, in nats, of the second half of a text (int64 [T]), and its tokens."""
    hidden, targets = continuation(model, ids[None])
    return float(F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")), targets
