"""Small language models, trained on the spot.

Federated experiments need base models, and where no pre-trained one can be had, a useful small one must
come out of a minute of one CPU core. With a vocabulary of 50,000 the softmax is 97 % of that minute, so
(see :class:`CandidateLoss`) it is computed over a few hundred candidates, and training starts from the
corpus' token frequencies (see :func:`start_from_frequencies`) instead of learning them.

All are causal but T5, an encoder-decoder (see :mod:`~fate_llm_ext.models.tiny_t5`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import pydantic
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typing_extensions import Literal

from fate_llm_ext.config import Group
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.blocks import PackedBlocks
from fate_llm_ext.models.tiny_t5 import build_t5, continuation, continuation_nats
from fate_llm_ext.models.tokenizers import vocabulary_size

_FREQUENCY_SCALE = 15.0  # the constant entry of the hidden state that carries log frequencies
_EVALUATED_TOKENS = 8192


class TinyConfig(Group):
    """Architecture and training budget of a small model."""

    arch: Literal["gpt2", "opt", "llama", "bloom", "neox", "t5"] = Field("gpt2", description="Model family.")
    hidden: int = Field(64, ge=8, le=4096, description="Width of the hidden states.")
    layers: int = Field(2, ge=1, le=64, description="Transformer blocks; t5: in encoder and decoder each.")
    heads: Optional[int] = Field(None, ge=1, description="Attention heads; default: hidden / 32, at least 2.")
    context: int = Field(256, ge=8, le=8192, description="Longest sequence in tokens; training uses this length.")
    tie: bool = Field(True, description="Share the input embedding with the output head.")
    seconds: Optional[float] = Field(None, gt=0, description="Time to train; not reproducible to the bit.")
    steps: Optional[int] = Field(None, ge=1, description="Steps to train; same seed, same weights.")
    batch_tokens: int = Field(1024, ge=8, description="Tokens per step.")
    learning_rate: Optional[float] = Field(
        None,
        gt=0,
        description="Peak rate of AdamW, then a cosine to 5 %; default: 0.5 / hidden, at most 0.01; t5: twice that.",
    )
    candidates: int = Field(512, ge=0, description="Sampled softmax candidates per step; 0: the whole vocabulary.")
    seed: int = Field(0, description="Seed of weights, order of documents and candidates.")

    @pydantic.root_validator(skip_on_failure=True)
    def _defaults_and_budget(cls, values: dict[str, Any]) -> dict[str, Any]:
        if (values.get("seconds") is None) == (values.get("steps") is None):
            raise ValueError("give either seconds or steps")
        if values.get("learning_rate") is None:
            values["learning_rate"] = min(0.01, 0.5 / values["hidden"]) * (2 if values["arch"] == "t5" else 1)
        if values.get("heads") is None:
            most = max(2, values["hidden"] // 32)
            values["heads"] = next((n for n in range(most, 0, -1) if values["hidden"] % (8 * n) == 0), most)
        width = values["hidden"] / values["heads"]
        if width % 8:
            raise ValueError(f"hidden / heads is {width:g}, it must be a multiple of 8")
        if values["arch"] == "bloom" and values["heads"] == 1:
            raise ValueError("bloom needs two heads: transformers 4.37 cannot generate with one")
        if values["arch"] == "t5" and not values["tie"]:
            raise ValueError("t5 shares embedding and output head: transformers 5 knows no other")
        return values


@dataclass(frozen=True)
class TrainReport:
    """What a training run did; the losses are those of the whole softmax on held-out documents."""

    steps: int
    tokens: int
    seconds: float
    epochs: float
    heldout_nats_per_token: float
    heldout_bits_per_byte: float


@dataclass(frozen=True)
class StepState:
    """Progress after a step: share of the budget used (0..1), smoothed training loss, tokens per second."""

    step: int
    done: float
    loss: float
    tokens_per_second: float


def build_model(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model with one row per token of ``tokenizer``; deterministic by ``config.seed``."""
    import transformers as hf

    width, depth, heads, context = config.hidden, config.layers, config.heads, config.context
    end = tokenizer.eos_token_id
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    special = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": None}
    common = {"vocab_size": vocabulary_size(tokenizer), "tie_word_embeddings": config.tie, **special}
    named = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **common}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.arch == "gpt2":
            shape = {"n_embd": width, "n_layer": depth, "n_head": heads, "n_positions": context, **common}
            dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            # the same function as GPT-2's gelu_new, in one kernel
            settings = hf.GPT2Config(activation_function="gelu_pytorch_tanh", **shape, **dropout)
            model: PreTrainedModel = hf.GPT2LMHeadModel(settings)
        elif config.arch == "opt":
            named |= {"ffn_dim": 4 * width, "word_embed_proj_dim": width, "max_position_embeddings": context}
            model = hf.OPTForCausalLM(hf.OPTConfig(dropout=0.0, attention_dropout=0.0, **named))
        elif config.arch == "llama":
            named |= {"intermediate_size": 16 * math.ceil(width / 6), "max_position_embeddings": context}
            model = hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=heads, **named))
        elif config.arch == "bloom":
            shape = {"hidden_size": width, "n_layer": depth, "n_head": heads, "seq_length": context, **common}
            model = hf.BloomForCausalLM(hf.BloomConfig(hidden_dropout=0.0, attention_dropout=0.0, **shape))
        elif config.arch == "t5":
            padding = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            model = build_t5(width, depth, heads or 1, context, vocabulary_size(tokenizer), end, padding)
        else:
            named |= {"intermediate_size": 4 * width, "max_position_embeddings": context}
            model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(rotary_pct=0.25, rotary_emb_base=10000, **named))
    # set after building: with it, OPT and Llama would never train the input row of a pad token that is the end token
    model.config.pad_token_id = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model


class CandidateLoss:
    """Cross-entropy over the targets of the batch plus sampled tokens, in place of all V.

    The targets U enter the partition function exactly, the others by importance sampling with k draws
    from q ~ (count + 1)^0.75 outside U:  Z = sum_{v in U} e^{z_v} + sum_j e^{z_j} / (k q_j).
    Tokens that the corpus lacks are drawn too, if rarely, and so pushed down.
    """

    def __init__(self, counts: torch.Tensor, samples: int, seed: int) -> None:
        self.weights, self.samples = (counts + 1.0) ** 0.75, samples
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear) -> torch.Tensor:
        """Mean loss of hidden [N, d] and targets [N]."""
        if not 0 < 4 * self.samples < head.weight.shape[0]:
            return F.cross_entropy(head(hidden), targets)
        exact, positions = torch.unique(targets, return_inverse=True)
        rest = self.weights.index_fill(0, exact, 0.0).cumsum(0)
        draws = torch.rand(self.samples, generator=self.generator) * rest[-1]
        drawn = torch.searchsorted(rest, draws, right=True).clamp_(max=len(rest) - 1)
        # -log(k q): the weight of a draw
        correction = torch.log(rest[-1]) - torch.log(self.weights[drawn] * self.samples)
        rows = F.embedding(torch.cat([exact, drawn]), head.weight)
        return F.cross_entropy(torch.addmm(F.pad(correction, (len(exact), 0)), hidden, rows.t()), positions)


def start_from_frequencies(model: PreTrainedModel, counts: torch.Tensor) -> bool:
    """Make the untrained model predict the corpus' token frequencies; False if it has no place for them.

    The output head has no bias; but entry 0 of the hidden states can be made a constant c (weight 0, bias c
    in the final layer norm), and then column 0 of the head, divided by c, is one. Llama's and T5's norms have no bias.
    """
    inner = getattr(model, model.base_model_prefix, None)
    inner = getattr(inner, "decoder", inner)
    norm = getattr(inner, "ln_f", None) or getattr(inner, "final_layer_norm", None)
    if norm is None or getattr(norm, "bias", None) is None:
        return False
    log_frequency = torch.log((counts + 0.1) / (counts + 0.1).sum())
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0.0, _FREQUENCY_SCALE
        model.get_output_embeddings().weight[:, 0] = (log_frequency - log_frequency.mean()) / _FREQUENCY_SCALE
    return True


def train_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    config: TinyConfig,
    on_step: Optional[Callable[[StepState], None]] = None,
) -> TrainReport:
    """Train ``model`` within the budget of ``config``; 1 % of the documents (1 to 100) are held out.

    A loop of our own and not the Trainer: the schedule follows the clock, and the loss needs hidden states.

    Raises:
        ExtensionError: E452 the corpus is smaller than two blocks.
    """
    heldout, training = _hold_out(texts, config.seed)
    blocks = PackedBlocks(tokenizer, training, config.context, config.seed)
    counts = blocks.counts(model.config.vocab_size)
    tokens = int(counts.sum())
    if tokens < 2 * config.context or not heldout:
        raise ExtensionError("E452", documents=len(texts), tokens=tokens, context=config.context)
    start_from_frequencies(model, counts)
    loss_of = CandidateLoss(counts, config.candidates, config.seed)
    rate = config.learning_rate or 0.0  # always set by the validator
    optimizer = _optimizer(model, rate)
    predicted, head = _objective(model, config.seed), model.get_output_embeddings()
    rows = max(1, config.batch_tokens // config.context)
    model.train()
    began, step, done, smooth = time.monotonic(), 0, 0.0, 0.0
    while done < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(done)
        ids = blocks.batch(rows)
        loss = loss_of(*predicted(ids), head)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        elapsed = time.monotonic() - began
        done = step / config.steps if config.steps else elapsed / (config.seconds or 1.0)
        smooth = loss.item() if step == 1 else smooth + max(0.02, 1 / step) * (loss.item() - smooth)
        if on_step is not None:
            on_step(StepState(step, min(done, 1.0), smooth, step * ids.numel() / elapsed))
    nats, bits = evaluate_lm(model, tokenizer, heldout, config.context)
    elapsed = time.monotonic() - began if config.steps else elapsed
    return TrainReport(step, step * rows * config.context, elapsed, blocks.seen / len(training), nats, bits)


def _objective(model: PreTrainedModel, seed: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of tokens [B, T] -> hidden states [N, d] before the output head, and the N tokens to predict from them."""
    if model.config.is_encoder_decoder:
        chance = random.Random(seed)
        return lambda ids: continuation(model, ids, chance)
    inner = getattr(model, model.base_model_prefix)

    def next_tokens(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inner(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1), ids[:, 1:].flatten()

    return next_tokens


@torch.no_grad()
def evaluate_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], context: int
) -> tuple[float, float]:
    """(nats per token, bits per byte) of the whole softmax on ``texts``, each cut to ``context`` tokens.

    Of an encoder-decoder: on the second half of each, behind the first.
    """
    blocks = PackedBlocks(tokenizer, texts, context, 0)
    was_training, nats, count, size = model.training, 0.0, 0, 0
    model.eval()
    for index in range(len(texts)):
        ids = torch.from_numpy(blocks.encode([index])[:context])
        if len(ids) < 2:
            continue
        loss, targets = continuation_nats(model, ids) if model.config.is_encoder_decoder else _next_nats(model, ids)
        nats += loss
        count += len(targets)
        size += len(tokenizer.decode(targets.tolist(), skip_special_tokens=False).encode())
        if count > _EVALUATED_TOKENS:
            break
    model.train(was_training)
    return nats / max(count, 1), nats / math.log(2) / max(size, 1)


def _next_nats(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Summed cross-entropy, in nats, of all tokens of a text [T] but the first, and these."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, ids[1:], reduction="sum")), ids[1:]


def _hold_out(texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    order = list(texts)
    random.Random(seed).shuffle(order)
    size = min(100, max(1, len(order) // 100)) if len(order) > 1 else 0
    return order[:size], order[size:]


def _schedule(done: float) -> float:
    return float(min(1.0, (done + 0.002) / 0.05) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))))


def _optimizer(model: PreTrainedModel, rate: float) -> torch.optim.Optimizer:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))
    decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in tables]
    others = [p for p in model.parameters() if p.dim() < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
