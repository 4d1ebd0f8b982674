"""Clipped sums against one record at a time through the whole model, plain autograd and textbook losses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, List, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from fate_llm_ext.config import LoraConfig
from fate_llm_ext.data.collate import Item, TeacherTargets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy.clipping import RecordLoop, choose
from fate_llm_ext.privacy.layer_gradients import Dense, Outer, Rows, inner
from fate_llm_ext.privacy.record_loss import RecordLoss

VOCABULARY, PAD = 40, 0
KINDS = [
    "gpt2",
    "gpt2 untied",
    "opt",
    "llama",
    "llama tied",
    "gpt2 lora",
    "opt lora",
    "llama lora",
    "opt lora embeddings",
]
WAYS = ["loop", "hooks", "ghost"]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """transformers 4.37 makes its masks in torch's default type, which has to hold the smallest float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model of random weights; adapters too, since a fresh one has zeros."""
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 16}
    blocks = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    built: Any
    if kind.startswith("gpt2"):
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
        built = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **dropout, tie_word_embeddings="untied" not in kind))
    elif kind.startswith("opt"):
        more = {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0, "pad_token_id": PAD}
        built = hf.OPTForCausalLM(hf.OPTConfig(**shape, **blocks, **more))
    else:
        more = {"intermediate_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": "tied" in kind}
        built = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, **blocks, **more))
    if "lora" in kind:
        built = add_lora(built, LoraConfig(r=3, alpha=5, dropout=0.0, embeddings="embeddings" in kind), seed=0)
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.2)
    built.eval()
    return built.to(dtype)


def item(row: int, teacher: bool = False) -> Item:
    """Unlike lengths, unlike answers, and sometimes the padding token inside."""
    numbers = np.random.default_rng(row)
    size = 12 - 2 * (row % 4)
    ids = numbers.integers(0, VOCABULARY, size).astype(np.int32)
    answer = np.arange(2 + row % 3, size, dtype=np.int32)
    if not teacher:
        return Item(ids, answer, 1.0 + 0.5 * (row % 2))
    slots = np.arange(0, len(answer), 2, dtype=np.int32)
    known = np.stack([numbers.permutation(VOCABULARY)[:3] for _ in slots]).astype(np.int32)
    return Item(ids, answer, 0.3, TeacherTargets(slots, known, np.log([[0.5, 0.2, 0.1]] * len(slots))), 0.7)


ITEMS = [item(row, teacher=row == 3) for row in range(8)]


def trained(of: Any) -> List[torch.nn.Parameter]:
    return [p for p in of.parameters() if p.requires_grad]


def slow_loss(of: Any, one: Item, temperature: float) -> torch.Tensor:
    """A record's loss from the logits of the whole model: means over positions, teacher's tail as a bucket."""
    ids = torch.from_numpy(one.ids.astype(np.int64))
    logits = of(input_ids=ids[None]).logits[0].double()
    places = torch.from_numpy(one.answer.astype(np.int64))
    loss = one.gold_weight * F.cross_entropy(logits[places - 1], ids[places])
    if one.teacher is not None:
        terms = []
        for slot, known, log_probs in zip(one.teacher.slots, one.teacher.ids, one.teacher.log_probs):
            q = torch.softmax(logits[places[slot] - 1] / temperature, 0)
            p = torch.from_numpy(np.exp(log_probs.astype(np.float64)))
            listed = q[torch.from_numpy(known.astype(np.int64))]
            terms.append(-(p * listed.log()).sum() - (1 - p.sum()) * (1 - listed.sum()).log())
        loss = loss + one.teacher_weight * temperature**2 * torch.stack(terms).mean()
    return loss


def slow_sums(of: Any, items: Sequence[Item], norm: float, temperature: float = 1.0) -> List[torch.Tensor]:
    parameters = trained(of)
    sums = [torch.zeros_like(p) for p in parameters]
    for one in items:
        gradients = torch.autograd.grad(slow_loss(of, one, temperature), parameters)
        length = torch.cat([g.flatten() for g in gradients]).norm()
        for total, gradient in zip(sums, gradients):
            total += gradient * min(1.0, norm / float(length))
    return sums


def fast_sums(of: Any, groups: Sequence[Sequence[Item]], norm: float, way: str) -> List[torch.Tensor]:
    parameters = trained(of)
    clipper = choose(of, parameters, RecordLoss(of, PAD, temperature=2.0), norm, way)
    assert clipper.name == way
    sums = [torch.zeros_like(p) for p in parameters]
    for group in groups:
        clipper.add(group, sums)
    return sums


def distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Largest difference of two numbers, relative to the largest number."""
    largest = max(float(b.abs().max()) for b in other)
    return max(float((a - b).abs().max()) for a, b in zip(one, other)) / largest


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_clipped_sums_are_those_of_single_records(kind: str, way: str) -> None:
    of = model(kind)
    norms = [float(torch.cat([g.flatten() for g in slow_sums(of, [one], np.inf, 2.0)]).norm()) for one in ITEMS]
    middle = float(np.median(norms))  # clips some records and leaves others
    assert distance(fast_sums(of, [ITEMS], middle, way), slow_sums(of, ITEMS, middle, 2.0)) < 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "llama lora"])
def test_physical_batches_do_not_matter(kind: str, way: str) -> None:
    of = model(kind)
    whole = fast_sums(of, [ITEMS], 0.5, way)
    for groups in ([[one] for one in ITEMS], [ITEMS[:3], ITEMS[3:]]):
        assert distance(fast_sums(of, groups, 0.5, way), whole) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_a_clipped_record_has_exactly_the_norm(way: str) -> None:
    of = model("gpt2")
    sums = fast_sums(of, [ITEMS[:1]], 0.01, way)
    assert float(torch.cat([s.flatten() for s in sums]).norm()) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "gpt2 lora"])
def test_single_precision(kind: str, way: str) -> None:
    of = model(kind, torch.float32)
    assert distance(fast_sums(of, [ITEMS], 0.5, way), slow_sums(of, ITEMS, 0.5, 2.0)) < 2e-5


@pytest.mark.parametrize("way", WAYS)
def test_a_record_without_an_answer_adds_nothing(way: str) -> None:
    of = model("gpt2")
    silent = Item(ITEMS[0].ids, np.zeros(0, dtype=np.int32))
    assert distance(fast_sums(of, [[silent, *ITEMS]], 0.5, way), fast_sums(of, [ITEMS], 0.5, way)) < 1e-6
    assert all(not s.any() for s in fast_sums(of, [[silent]], 0.5, way))


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_the_records_own(way: str) -> None:
    of = model("gpt2")
    clipper = choose(of, trained(of), RecordLoss(of, PAD, temperature=2.0), 1.0, way)
    losses = clipper.add(ITEMS, [torch.zeros_like(p) for p in trained(of)])
    expected = [float(slow_loss(of, one, 2.0).detach()) for one in ITEMS]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_that_is_not_finite_shows(way: str) -> None:
    of = model("gpt2")
    clipper = choose(of, trained(of), RecordLoss(of, PAD), 1.0, way)
    with torch.no_grad():
        of.transformer.wte.weight[int(ITEMS[1].ids[0])] = torch.nan
    losses = clipper.add([ITEMS[1]], [torch.zeros_like(p) for p in trained(of)])
    assert not torch.isfinite(losses).any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "gpt2 untied", "gpt2 lora", "llama lora", "opt lora embeddings"])
def test_a_record_without_a_finite_gradient_adds_nothing(kind: str, way: str) -> None:
    """Not even to the records beside it: the sum is that of the others."""
    of = model(kind)
    poison = Item(np.array([1, VOCABULARY - 1, 3], dtype=np.int32), np.array([2], dtype=np.int32))
    others = [Item(np.minimum(one.ids, VOCABULARY - 2), one.answer, one.gold_weight) for one in ITEMS]
    expected = fast_sums(of, [others], 0.5, way)
    clipper = choose(of, trained(of), RecordLoss(of, PAD, temperature=2.0), 0.5, way)
    embedding = of.get_input_embeddings()

    def spoil(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        bad = (inputs[0] == VOCABULARY - 1)[..., None]
        return torch.where(bad, torch.full_like(output, torch.inf), output)

    handle = embedding.register_forward_hook(spoil)
    sums = [torch.zeros_like(p) for p in trained(of)]
    losses = clipper.add([poison, *others[:3], poison, *others[3:]], sums)
    handle.remove()
    assert torch.isnan(losses).tolist() == [row in (0, 4) for row in range(10)]
    assert distance(sums, expected) < 1e-6
    assert all(bool(torch.isfinite(s).all()) for s in sums)


@pytest.mark.parametrize("way", WAYS)
def test_clipped_sums_are_those_of_opacus(way: str) -> None:
    """Opacus' own per-sample gradients, an independent implementation, of a Llama with adapters."""
    from opacus import GradSampleModule

    of = model("llama lora")
    sums = fast_sums(of, [ITEMS[:3], ITEMS[4:]], 0.5, way)
    parameters = trained(of)
    wrapped = GradSampleModule(of, strict=False).train()  # Opacus looks at nothing in evaluation mode
    total = [torch.zeros_like(p) for p in parameters]
    for one in [*ITEMS[:3], *ITEMS[4:]]:  # unlike lengths: one at a time, beside a copy, in one batch
        ids = torch.from_numpy(one.ids.astype(np.int64)).expand(2, -1)
        places = torch.from_numpy(one.answer.astype(np.int64))
        logits = wrapped(input_ids=ids).logits[:, places - 1]
        loss = F.cross_entropy(logits.transpose(1, 2), ids[:, places], reduction="none").mean(1)
        wrapped.zero_grad()
        (one.gold_weight * loss.mean()).backward()
        rows = [p.grad_sample[0] for p in parameters]
        norm = torch.cat([row.flatten() for row in rows]).norm()
        for kept, row in zip(total, rows):
            kept += row * min(1.0, 0.5 / float(norm))
    wrapped.remove_hooks()
    assert distance(sums, total) < 1e-6


def test_the_model_comes_back_as_it_was() -> None:
    of = add_lora(model("gpt2", torch.float32), LoraConfig(dropout=0.1), seed=0).train()
    before = {name: value.clone() for name, value in of.state_dict().items()}
    random = torch.get_rng_state()
    clipper = choose(of, trained(of), RecordLoss(of, PAD), 1.0)
    assert clipper.name == "hooks"
    assert of.training
    assert torch.equal(random, torch.get_rng_state())
    clipper.add(ITEMS, [torch.zeros_like(p) for p in trained(of)])
    assert all(torch.equal(value, before[name]) for name, value in of.state_dict().items())
    assert all(p.grad is None for p in of.parameters())
    assert sum(p.requires_grad for p in of.parameters()) == len(trained(of)) > 0
    assert not any(module._forward_hooks for module in of.modules())


class Scale(torch.nn.Module):
    """A layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_an_unknown_layer_goes_through_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    of = model("llama")
    of.model.norm = Scale().double()
    with caplog.at_level(logging.INFO):
        assert choose(of, trained(of), RecordLoss(of, PAD), 1.0).name == "loop"
    for way in ("hooks", "ghost"):
        with pytest.raises(ExtensionError, match=r"E637.*1 of \d+ trainable"):
            choose(of, trained(of), RecordLoss(of, PAD), 1.0, way)


@pytest.mark.parametrize("way", ["hooks", "ghost"])
def test_a_layer_that_computes_something_else_is_found_out(way: str) -> None:
    of = model("llama")
    plain = type(of.model.norm).forward

    class OddRMSNorm(type(of.model.norm)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return plain(self, x) * (1.0 + self.weight)

    of.model.norm.__class__ = OddRMSNorm
    with pytest.raises(ExtensionError, match=r"E637.*differ"):
        choose(of, trained(of), RecordLoss(of, PAD), 1.0, way)


def test_checkpointed_layers_go_through_the_loop() -> None:
    of = model("gpt2 lora")
    of.gradient_checkpointing_enable()
    assert choose(of, trained(of), RecordLoss(of, PAD), 1.0).name == "loop"


def test_large_models_go_through_the_loop_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [model("gpt2"), model("gpt2 lora")]
    assert [choose(of, trained(of), RecordLoss(of, PAD), 1.0).name for of in models] == ["ghost", "hooks"]
    monkeypatch.setattr("fate_llm_ext.privacy.clipping._LARGE", 1000)
    assert [choose(of, trained(of), RecordLoss(of, PAD), 1.0).name for of in models] == ["loop", "loop"]


def test_the_way_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for kind, way in (("gpt2 lora", "hooks"), ("gpt2", "auto")):
        of = model(kind)
        with caplog.at_level(logging.INFO):
            chosen = choose(of, trained(of), RecordLoss(of, PAD), 1.0, way)
        assert f"per-record gradients: {chosen.name}" in caplog.text


@pytest.mark.parametrize("transposed", [False, True])
def test_inner_products_are_those_of_the_gradients(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.Size((5, 7) if transposed else (7, 5))

    def outer(positions: int) -> Outer:
        left, right = (torch.randn(3, positions, size, generator=generator, dtype=torch.float64) for size in shape)
        return Outer(left, right)

    def rows(positions: int) -> Rows:
        ids = torch.randint(0, 7, (3, positions), generator=generator)
        return Rows(ids, torch.randn(3, positions, 5, generator=generator, dtype=torch.float64), transposed)

    factors = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    pieces: List[Any] = [outer(4), rows(6), outer(2), rows(3)]
    for one in pieces:
        total = torch.ones(shape, dtype=torch.float64)
        one.add(factors, total)
        torch.testing.assert_close(total, 1.0 + torch.tensordot(factors, one.dense(shape), dims=1))
        for other in pieces:
            expected = (one.dense(shape) * other.dense(shape)).sum((1, 2))
            torch.testing.assert_close(inner(one, other), expected)
    with pytest.raises(TypeError):
        inner(Dense(torch.zeros(3, 5)), pieces[0])


def test_the_slow_way_can_tell_tied_from_untied() -> None:
    """Were a tied weight counted twice, this would not be its norm."""
    of = model("gpt2")
    loop = RecordLoop(trained(of), RecordLoss(of, PAD), np.inf)
    sums = [torch.zeros_like(p) for p in trained(of)]
    loop.add(ITEMS[:1], sums)
    names = [name for name, p in of.named_parameters() if p.requires_grad]
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
