"""Sampling in batches against one sequence at a time, and the drawn tokens against the formula."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from fate_llm_ext._compat import installed_set
from fate_llm_ext.config import GenerationConfig, LoraConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models import generation, products
from fate_llm_ext.models.generation import generate, sample
from fate_llm_ext.models.lora import add_lora

VOCABULARY, END = 53, 2
TOKENIZER = SimpleNamespace(eos_token_id=END, get_vocab=lambda: {str(i): i for i in range(VOCABULARY)})
ARCHITECTURES = ["gpt2", "opt", "llama", "bloom", "neox"]


@cache
def model_of(arch: str, rows: int = VOCABULARY) -> Any:
    shape = {"vocab_size": rows, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    configuration = {
        "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **shape),
        "opt": lambda: transformers.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, **wide, **shape),
        "llama": lambda: transformers.LlamaConfig(intermediate_size=32, **wide, **shape),
        "bloom": lambda: transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **shape),
        "neox": lambda: transformers.GPTNeoXConfig(intermediate_size=32, **wide, **shape),
    }[arch]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():  # far from uniform, so that a wrong position or a leaking pad shows
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(8.0)
    return model.eval()


def prompts(seed: int = 0) -> list[np.ndarray]:
    """Of unlike lengths, some of them equal."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(3, VOCABULARY, size=n).astype(np.int32) for n in (3, 9, 1, 3, 14, 6)]
    return [*rows, rows[1], rows[0]]


def alone(model: Any, prompt: np.ndarray, chance: np.ndarray, config: GenerationConfig) -> list[int]:
    """One sequence, no cache, no padding; the token by the definition of inversion."""
    ids, written = prompt.tolist(), []
    for u in chance:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1, :VOCABULARY].double()
        kept, probs = nucleus(logits.numpy(), config)
        token = int(kept[np.flatnonzero(np.cumsum(probs) > u)[0]])
        if token == END:
            break
        ids.append(token)
        written.append(token)
    return written


def nucleus(logits: np.ndarray, config: GenerationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be drawn, and their probabilities, straight from the definitions of top-k and top-p."""
    scores = logits / config.temperature
    by_score = config.top_k or config.top_p < 1.0
    order = np.argsort(-scores, kind="stable") if by_score else np.arange(len(scores))
    kept = order[: config.top_k or None]
    probs = np.exp(scores[kept] - scores[kept].max())
    probs /= probs.sum()
    if config.top_p < 1.0:
        size = next(n for n in range(1, len(kept) + 1) if n == len(kept) or probs[:n].sum() >= config.top_p)
        kept, probs = kept[:size], probs[:size] / probs[:size].sum()
    return kept, probs


def settings(**changes: Any) -> GenerationConfig:
    return GenerationConfig(**{"top_k": 0, "top_p": 1.0, "max_new_tokens": 10, "batch_size": 8, **changes})


CUTS = [
    {"top_k": 1},
    {},
    {"top_k": 7},
    {"top_p": 0.7},
    {"top_k": 9, "top_p": 0.8, "temperature": 2.0},
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_batch_writes_what_each_prompt_writes_alone(arch: str, cut: dict[str, Any]) -> None:
    model, config = model_of(arch), settings(**cut)
    written = generate(model, TOKENIZER, prompts(), config, seed=4)
    for row, (prompt, got) in enumerate(zip(prompts(), written)):
        chance = np.random.default_rng([4, row]).random(config.max_new_tokens)
        assert got.dtype == np.int32
        assert got.tolist() == alone(model, prompt, chance, config), row


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_batch_size_changes_nothing(arch: str) -> None:
    whole = generate(model_of(arch), TOKENIZER, prompts(), settings(), seed=1)
    assert len({text.tobytes() for text in whole}) > 4
    for size in (1, 3):
        parts = generate(model_of(arch), TOKENIZER, prompts(), settings(batch_size=size), seed=1)
        assert [t.tolist() for t in parts] == [t.tolist() for t in whole]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_matrix_products_and_a_smaller_cache_change_nothing(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(max_new_tokens=18)
    expected = [t.tolist() for t in generate(model_of(arch), TOKENIZER, prompts() * 3, config, seed=2)]
    room = generation.roomy_cache
    monkeypatch.setattr(products, "_LEAST_ROWS", 1)
    monkeypatch.setattr(products, "_LEAST_WORK", 0)
    assert [t.tolist() for t in generate(model_of(arch), TOKENIZER, prompts() * 3, config, seed=2)] == expected
    monkeypatch.setattr(generation, "roomy_cache", lambda cache, tokens: room(cache, 1))  # it has to grow
    assert [t.tolist() for t in generate(model_of(arch), TOKENIZER, prompts() * 3, config, seed=2)] == expected


@pytest.mark.skipif(installed_set() == "compat", reason="the cache is a tuple that the models concatenate")
def test_tokens_are_written_into_the_cache_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    places, room = set(), generation.roomy_cache

    def spy(cache: Any, tokens: int) -> Any:
        cache = room(cache, tokens)
        update = cache.update

        def watched(keys: Any, values: Any, layer: int, *rest: Any, **more: Any) -> Any:
            found = update(keys, values, layer, *rest, **more)
            places.add((layer, found[0].data_ptr(), found[1].data_ptr()))
            return found

        cache.update = watched
        return cache

    monkeypatch.setattr(generation, "roomy_cache", spy)
    monkeypatch.setattr(generation, "_LEAVING", 2.0)
    texts = generate(model_of("llama"), TOKENIZER, prompts(), settings(), seed=1)
    assert max(map(len, texts)) == 10
    assert len(places) == 2  # layers


def test_rows_end_at_their_end_token_and_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends half of the rows at each token: lengths are geometric, and the forward passes shrink."""
    model, sizes = model_of("gpt2"), []
    forward = generation._Writer._forward

    def spy(self: Any, ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        logits, cache = forward(self, ids, *rest)
        logits[:, :] = -1e9
        logits[:, END] = logits[:, 7] = 0.0
        return logits, cache

    monkeypatch.setattr(generation._Writer, "_forward", spy)
    texts = generate(model, TOKENIZER, [np.array([5, 6])] * 256, settings(batch_size=256, max_new_tokens=20), seed=0)
    assert sizes[:2] == [1, sum(len(text) > 0 for text in texts)]
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    lengths = np.array(list(map(len, texts)))
    assert all((text == 7).all() for text in texts)
    assert 0.8 < lengths.mean() < 1.2


def test_ended_rows_that_stay_in_the_batch_write_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk = generate(model_of("llama"), TOKENIZER, prompts() * 5, settings(max_new_tokens=18), seed=3)
    monkeypatch.setattr(generation, "_LEAVING", 2.0)
    stayed = generate(model_of("llama"), TOKENIZER, prompts() * 5, settings(max_new_tokens=18), seed=3)
    monkeypatch.setattr(generation, "_STRIDE", {"cpu": 4})
    rarely_asked = generate(model_of("llama"), TOKENIZER, prompts() * 5, settings(max_new_tokens=18), seed=3)
    monkeypatch.setattr(generation, "_LEAVING", 0.1)
    both = generate(model_of("llama"), TOKENIZER, prompts() * 5, settings(max_new_tokens=18), seed=3)
    assert len({len(text) for text in shrunk}) > 3
    for other in (stayed, rarely_asked, both):
        assert [t.tolist() for t in other] == [t.tolist() for t in shrunk]


@pytest.mark.parametrize("cut", [*CUTS[1:], {"top_p": 0.999, "temperature": 3.0}], ids=str)
def test_tokens_are_drawn_as_the_formula_says(cut: dict[str, Any]) -> None:
    config, draws = settings(**cut), 40_000
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    chance = torch.rand(draws, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = np.bincount(sample(logits.expand(draws, -1), chance, config).numpy(), minlength=VOCABULARY)
    kept, probs = nucleus(logits[0].double().numpy(), config)
    assert drawn[np.setdiff1d(np.arange(VOCABULARY), kept)].sum() == 0
    often = probs * draws >= 5
    observed = np.append(drawn[kept[often]], drawn[kept[~often]].sum())
    expected = np.append(probs[often], probs[~often].sum()) * draws
    filled = expected > 0
    assert stats.chisquare(observed[filled], expected[filled]).pvalue > 1e-3


def test_a_flat_distribution_is_cut_by_its_mass_all_the_same() -> None:
    """More tokens belong to the nucleus than are looked at first."""
    size = 4 * generation._CANDIDATES
    logits = torch.linspace(0, 0.1, size, dtype=torch.float64).flip(0)[None].float()
    chance = torch.linspace(0, 1 - 1e-9, 20_001, dtype=torch.float64)
    drawn = sample(logits.expand(len(chance), -1), chance, settings(top_p=0.9))
    kept, _ = nucleus(logits[0].double().numpy(), settings(top_p=0.9))
    assert len(kept) > 2 * generation._CANDIDATES
    assert abs(int(drawn.max()) - (len(kept) - 1)) <= 1


def test_rounding_never_draws_what_has_no_probability() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    for cut in ({}, {"top_k": 3}, {"top_p": 0.9}):
        for chance in (0.0, 1.0 - 2.0**-53, 1.0):
            token = sample(logits, torch.tensor([chance], dtype=torch.float64), settings(**cut))
            assert int(token) in (0, 2)


def test_only_tokens_of_the_tokenizer_are_written() -> None:
    model = model_of("llama", VOCABULARY + 40)
    written = np.concatenate(generate(model, TOKENIZER, prompts() * 4, settings(temperature=50.0), seed=0))
    assert len(written) > 100
    assert written.max() < VOCABULARY


def test_an_adapter_writes_too_and_the_mode_is_kept() -> None:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(model_of("gpt2").config)
    plain = generate(base, TOKENIZER, prompts(), settings(top_k=1), seed=0)
    model = add_lora(base, LoraConfig(r=2, dropout=0.5, embeddings=True), seed=0).train()
    assert [t.tolist() for t in generate(model, TOKENIZER, prompts(), settings(top_k=1), seed=0)] == [
        t.tolist() for t in plain
    ]
    assert model.training
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_()
    written = generate(model, TOKENIZER, prompts(), settings(), seed=4)
    assert [t.tolist() for t in written] != [t.tolist() for t in plain]
    model.eval()
    for row, (prompt, got) in enumerate(zip(prompts(), written)):
        assert got.tolist() == alone(model, prompt, np.random.default_rng([4, row]).random(10), settings())


def test_a_model_that_changes_its_logits_after_the_head() -> None:
    if not hasattr(transformers, "CohereConfig"):
        pytest.skip("this version of transformers has no such model")
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0, "logit_scale": 0.25}
    wide = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CohereConfig(**wide, **shape)).eval()
    for row, got in enumerate(generate(model, TOKENIZER, prompts(), settings(), seed=4)):
        expected = alone(model, prompts()[row], np.random.default_rng([4, row]).random(10), settings())
        assert got.tolist() == expected


def test_progress_and_nothing_to_do() -> None:
    steps: list[tuple[int, int]] = []
    config = settings(batch_size=3)
    generate(model_of("gpt2"), TOKENIZER, prompts(), config, seed=0, step=lambda *at: steps.append(at))
    assert steps == [(3, 8), (6, 8), (8, 8)]
    assert generate(model_of("gpt2"), TOKENIZER, [], config, seed=0) == []


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_the_context_is_used_to_its_last_position(arch: str) -> None:
    model, prompt = model_of(arch), np.full(14, 5, dtype=np.int32)
    with pytest.raises(ExtensionError, match=r"E665 A prompt of 14 tokens and a text of 20 .* positions for 32"):
        generate(model, TOKENIZER, [prompt], settings(max_new_tokens=20), seed=0)
    texts = generate(model, TOKENIZER, [prompt] * 200, settings(max_new_tokens=19, temperature=30.0), seed=0)
    assert max(map(len, texts)) == 19


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ExtensionError, match=r"E664 Prompt 8 of 9 has no token"):
        generate(model_of("gpt2"), TOKENIZER, [*prompts(), np.zeros(0, np.int32)], settings(), seed=0)


def test_a_model_that_has_diverged() -> None:
    model = copy.deepcopy(model_of("gpt2"))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ExtensionError, match="E407 8 of 8 scores of the first tokens to write are NaN"):
        generate(model, TOKENIZER, prompts(), settings(), seed=0)
