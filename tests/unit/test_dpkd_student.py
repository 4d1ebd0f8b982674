"""Teacher signals, the student's loss and the evaluation, against slow and dense formulas."""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.algo.control import Records, encode_prompts, encode_records, items
from fate_llm_ext.algo.dpkd.config import DistillationConfig
from fate_llm_ext.algo.dpkd.evaluation import evaluate
from fate_llm_ext.algo.dpkd.signals import TextSignals, targets, teacher_signals
from fate_llm_ext.algo.dpkd.student import (
    HiddenTerm,
    check_hidden,
    distillation_items,
    on_policy_items,
    train_student,
)
from fate_llm_ext.config import ControlConfig, LoraConfig, TrainConfig
from fate_llm_ext.data.collate import Collator, Item
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.models.vocabulary import map_vocabulary, read_vocabulary

CONTROL = ControlConfig(code="{{ label }}", values=["good news", "bad", "so so"], max_length=48)
TEXTS = [
    "The printer is out of paper.",
    "Zürich 猫: my screen stays dark!",
    "ok",
    "Printer, printer on the wall, who " * 9,
]
RECORDS = Records(np.array([0, 1, 2, 1], dtype=np.int32), TEXTS)
K = 5


@cache
def tokenizer_of(kind: str = "byte_bpe") -> Any:
    return train_tokenizer([row["text"] for row in generate_tickets(300, seed=1)], 400, kind)


def make(arch: str = "gpt2", hidden: int = 16, seed: int = 0, kind: str = "byte_bpe") -> Any:
    model = build_model(
        TinyConfig(arch=arch, hidden=hidden, layers=1, context=64, steps=1, seed=seed), tokenizer_of(kind)
    )
    with torch.no_grad():  # far from uniform
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(6.0)
    return model.eval()


def encode(kind: str = "byte_bpe") -> list[Encoded]:
    return encode_records(tokenizer_of(kind), RECORDS, CONTROL)


def logits_of(model: Any, one: Encoded) -> torch.Tensor:
    """Logits that predict each place of one sequence, alone and unpadded: [A, V]."""
    ids = torch.from_numpy(one.ids.astype(np.int64))
    return model(input_ids=ids[None]).logits[0, torch.from_numpy(one.places) - 1]


def signals_of(model: Any, temperature: float = 1.0, kind: str = "byte_bpe") -> TextSignals:
    return teacher_signals(model, tokenizer_of(kind), encode(kind), K, temperature, batch_size=3)


# --- signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_signals_are_the_most_probable_tokens_at_each_token_of_the_text(temperature: float) -> None:
    teacher, encoded = make("llama"), encode()
    signals = signals_of(teacher, temperature)
    assert signals.tokens.tolist() == [len(one.places) for one in encoded]
    assert (signals.starts.dtype, signals.ids.dtype, signals.log_probs.dtype) == (np.int32, np.int32, np.float32)
    at = 0
    for one in encoded:
        with torch.no_grad():
            best = torch.log_softmax(logits_of(teacher, one).double() / temperature, dim=1).topk(K, dim=1)
        part = slice(at, at + len(one.places))
        np.testing.assert_allclose(signals.log_probs[part], best.values, atol=2e-4)
        np.testing.assert_array_equal(signals.ids[part], best.indices)
        np.testing.assert_array_equal(signals.starts[part], one.starts)
        at += len(one.places)
    assert at == len(signals.ids)


def test_a_diverged_teacher_is_told() -> None:
    teacher = make()
    with torch.no_grad():
        next(teacher.parameters()).fill_(float("nan"))
    with pytest.raises(ExtensionError, match="E407 4 of 4 scores of the sampled texts"):
        signals_of(teacher)


def test_with_one_tokenizer_every_position_is_taught() -> None:
    signals = signals_of(make("llama"))
    at = 0
    for one, target in zip(encode(), targets(signals, encode(), None)):
        assert target is not None
        assert target.slots.tolist() == list(range(len(one.places)))
        np.testing.assert_array_equal(target.ids, signals.ids[at : at + len(one.places)])
        np.testing.assert_array_equal(target.log_probs, signals.log_probs[at : at + len(one.places)])
        at += len(one.places)


def test_another_tokenizer_is_taught_where_both_have_read_the_same_bytes() -> None:
    source, student = tokenizer_of(), tokenizer_of("sentencepiece_bpe")
    signals, encoded = signals_of(make("llama")), encode("sentencepiece_bpe")
    table = map_vocabulary(read_vocabulary(source), read_vocabulary(student), student)
    got = targets(signals, encoded, table)
    at, shared = 0, 0
    for one, count, target in zip(encoded, signals.tokens, got):
        known = {int(signals.starts[p]): p for p in range(at, at + count)}  # the last of equal starts stays
        last = {int(start): slot for slot, start in enumerate(one.starts)}
        expected = {}
        for start, slot in last.items():
            if start in known:
                mass: dict[int, float] = {}
                for token, log_prob in zip(signals.ids[known[start]], signals.log_probs[known[start]]):
                    if table[token] >= 0:
                        mass[int(table[token])] = mass.get(int(table[token]), 0.0) + float(np.exp(log_prob))
                if mass:
                    expected[slot] = mass
        assert target is not None
        assert target.slots.tolist() == sorted(expected)
        for slot, ids, log_probs in zip(target.slots, target.ids, target.log_probs):
            assert {int(i): pytest.approx(float(np.exp(p)), rel=1e-4) for i, p in zip(ids, log_probs) if i >= 0} == (
                expected[int(slot)]
            )
        at, shared = at + count, shared + len(expected)
    assert shared > 40
    assert 0 in got[0].slots  # type: ignore[union-attr]  # the first token, although one has no space before it


def test_signals_about_other_texts_are_refused() -> None:
    with pytest.raises(ExtensionError, match="E325"):
        targets(signals_of(make()), encode()[:3], None)


# --- the student's loss -------------------------------------------------------------------------------


def dense_loss(
    student: Any, teacher: Any, projection: torch.Tensor | None, soft: float, hard: float, alpha: float, t: float
) -> tuple[torch.Tensor, float]:
    """(loss with the KL, KL minus CE): means over tokens, then texts, everything dense and one text at a time."""
    total, entropy = torch.zeros(()), 0.0
    for one in encode():
        z_s, gold = logits_of(student, one), torch.from_numpy(one.ids[one.places].astype(np.int64))
        with torch.no_grad():
            p = torch.softmax(logits_of(teacher, one) / t, dim=1)
        kept = p.topk(K, dim=1).indices
        q = torch.softmax(z_s / t, dim=1)

        def bucketed(x: torch.Tensor, kept: torch.Tensor = kept) -> torch.Tensor:
            inside = x.gather(1, kept)
            rest = x.scatter(1, kept, 0.0).sum(dim=1, keepdim=True)
            return torch.cat([inside, rest], dim=1)

        p, q = bucketed(p), bucketed(q)
        kl = (p * (p.log() - q.log())).sum(dim=1).mean()
        entropy += float((p * p.log()).sum(dim=1).mean()) * soft * t**2 / len(TEXTS)
        loss = hard * F.cross_entropy(z_s, gold) + soft * t**2 * kl
        if alpha:
            ids = torch.from_numpy(one.ids.astype(np.int64))[None]
            places = torch.from_numpy(one.places) - 1
            h_s = student.base_model(ids)[0][0, places]
            with torch.no_grad():
                h_t = teacher.base_model(ids)[0][0, places]
            loss = loss + alpha * F.mse_loss(h_s if projection is None else h_s @ projection.T, h_t)
        total = total + loss / len(TEXTS)
    return total, entropy


def one_step(student: Any, batch: list[Item], config: DistillationConfig, teacher: Any) -> tuple[float, list[Any]]:
    """Loss and gradients (student's, then W's) of one step over all items."""
    gradients: list[Any] = []

    def record(optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    hook = register_optimizer_step_pre_hook(record)
    try:
        train = TrainConfig(batch_size=len(batch), warmup_ratio=0.0, max_grad_norm=1e9, learning_rate=1e-5)
        loss = train_student(student, tokenizer_of(), batch, config, train, seed=3, teacher=teacher)
    finally:
        hook.remove()
    return loss, gradients


CASES = [
    # λ, t, α, width of the teacher
    (0.0, 1.0, 0.0, 16),
    (0.4, 1.0, 0.0, 16),
    (0.4, 2.0, 0.0, 32),
    (1.0, 2.0, 0.5, 16),
    (0.4, 1.0, 0.3, 32),
]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize(("soft", "t", "alpha", "width"), CASES)
def test_loss_and_gradient_are_those_of_the_formula(arch: str, soft: float, t: float, alpha: float, width: int) -> None:
    student, teacher = make(arch), make("llama", width, seed=1)
    config = DistillationConfig(soft_weight=soft, temperature=t, hidden_weight=alpha, top_k=K)
    batch = distillation_items(encode(), targets(signals_of(teacher, t), encode(), None), soft)
    weight = None
    if alpha and width != 16:
        weight = HiddenTerm(student, teacher, alpha, seed=3).projection.weight.detach().clone().requires_grad_()
    by_hand = copy.deepcopy(student)
    expected, entropy = dense_loss(by_hand, teacher, weight, soft, 1.0 - soft, alpha, t)
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    loss, gradients = one_step(student, batch, config, teacher)
    assert loss == pytest.approx(expected.item() - entropy, rel=1e-5, abs=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    expected.backward()
    wanted = [p.grad for p in by_hand.parameters()] + ([weight.grad] if weight is not None else [])
    assert len(gradients) == len(wanted)
    # the optimizer groups its parameters by decay: compare as sets of named shapes, in order of size and norm
    key = [lambda g: (tuple(g.shape), round(float(g.norm()), 4))] * 2
    for got, want in zip(sorted(gradients, key=key[0]), sorted(wanted, key=key[1])):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def test_on_policy_items_carry_the_teacher_alone() -> None:
    student, teacher = make(), make("llama", seed=1)
    taught = targets(signals_of(teacher), encode(), None)
    batch = on_policy_items(encode(), taught)
    expected, entropy = dense_loss(student, teacher, None, 1.0, 0.0, 0.0, 1.0)
    loss, _ = one_step(copy.deepcopy(student), batch, DistillationConfig(top_k=K), None)
    assert loss == pytest.approx(expected.item() - entropy, rel=1e-5)
    assert len(on_policy_items(encode(), [None, *taught[1:]])) == 3
    assert [one.teacher_weight for one in distillation_items(encode(), [None, *taught[1:]], 0.4)] == [0, 0.4, 0.4, 0.4]


@pytest.mark.parametrize("lora", [False, True])
def test_a_student_becomes_like_its_teacher(lora: bool) -> None:
    teacher, student = make("llama", 32, seed=1), make(seed=2)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(5.0)  # it has something to say
    if lora:
        student = add_lora(student, LoraConfig(r=8, dropout=0.0, embeddings=True), seed=0)
    signals = teacher_signals(teacher, tokenizer_of(), encode(), 400, 1.0)
    batch = distillation_items(encode(), targets(signals, encode(), None), 1.0)
    config = DistillationConfig(soft_weight=1.0, hidden_weight=0.0 if lora else 0.1, top_k=K)
    train = TrainConfig(batch_size=4, epochs=60, learning_rate=1e-2, weight_decay=0.0)
    names = [name for name, _ in student.named_parameters()]

    def distance() -> float:
        with torch.no_grad():
            pairs = [(logits_of(teacher, one), logits_of(student.eval(), one)) for one in encode()]
        return float(np.mean([F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean") for t, s in pairs]))

    first = distance()
    train_student(student, tokenizer_of(), batch, config, train, seed=0, teacher=teacher)
    assert distance() < 0.25 * first, first
    assert [name for name, _ in student.named_parameters()] == names  # nothing of W stays


def test_hidden_states_need_one_tokenizer_and_one_party() -> None:
    student, teacher = make(), make(seed=1)
    check_hidden(student, tokenizer_of(), teacher, tokenizer_of())
    with pytest.raises(ExtensionError, match=r"E667 .* their tokenizers differ"):
        check_hidden(
            student, tokenizer_of(), make("llama", kind="sentencepiece_bpe"), tokenizer_of("sentencepiece_bpe")
        )
    config = DistillationConfig(hidden_weight=0.1)
    with pytest.raises(ExtensionError, match=r"E667 .* the teacher is at another party"):
        train_student(student, tokenizer_of(), items(encode()), config, TrainConfig(), seed=0)


# --- items without an answer --------------------------------------------------------------------------


def test_items_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    nothing = Item(np.array([5, 6], dtype=np.int32), np.zeros(0, dtype=np.int64))
    batch = Collator(0)([nothing, *items(encode())])
    assert batch["gold_weight"].sum() == pytest.approx(4 / 5)  # it counts as a record that costs nothing
    assert len(Collator(0)([nothing])["flat"]) == 0
    student, config = make(), DistillationConfig()
    with caplog.at_level(logging.WARNING):
        with_it, _ = one_step(copy.deepcopy(student), [nothing, *items(encode())], config, None)
    assert "1 of 5 sequences have no answer and are left out" in caplog.text
    without, _ = one_step(copy.deepcopy(student), items(encode()), config, None)
    assert with_it == pytest.approx(without, abs=1e-6)
    with pytest.raises(ExtensionError, match=r"E666 .*none of 2 sequences"):
        one_step(student, [nothing, nothing], config, None)


# --- evaluation ---------------------------------------------------------------------------------------


def slow_evaluation(model: Any) -> tuple[float, float]:
    prompts = encode_prompts(tokenizer_of(), CONTROL)
    nll, tokens, right = 0.0, 0, 0
    for one, code in zip(encode(), RECORDS.codes):
        text = torch.from_numpy(one.ids[one.places].astype(np.int64))
        each = []
        for prompt in prompts:
            ids = torch.cat([torch.from_numpy(prompt.astype(np.int64)), text])
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
            each.append(float(F.cross_entropy(logits, text, reduction="sum")))
        nll, tokens = nll + each[code], tokens + len(text)
        right += int(np.argmin(each)) == code
    return float(np.exp(nll / tokens)), right / len(RECORDS)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_evaluation_is_perplexity_and_the_likeliest_code(arch: str) -> None:
    told: list[str] = []
    for seed in range(3):
        model = make(arch, seed=seed)
        perplexity, accuracy = slow_evaluation(model)
        got = evaluate(model, tokenizer_of(), RECORDS, CONTROL, 5, told.append)
        assert got == {"perplexity": pytest.approx(perplexity, rel=1e-4), "code_accuracy": accuracy}
    assert told[-1] == "evaluation, 12 of 12"


def test_a_model_that_does_not_heed_the_code_guesses() -> None:
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    got = evaluate(model, tokenizer_of(), RECORDS, CONTROL, 5)
    assert got == {
        "perplexity": pytest.approx(model.config.vocab_size, rel=1e-4),
        "code_accuracy": pytest.approx(1 / 3),
    }


def test_first_rows_only_and_none() -> None:
    model = make()
    first = Records(RECORDS.codes[:2], RECORDS.texts[:2])
    assert evaluate(model, tokenizer_of(), RECORDS, CONTROL, 5, max_rows=2) == evaluate(
        model, tokenizer_of(), first, CONTROL, 5
    )
    assert evaluate(model, tokenizer_of(), Records(np.zeros(0, np.int32), []), CONTROL, 5) == {}
