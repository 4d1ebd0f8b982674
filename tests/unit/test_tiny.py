import random

import pydantic
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.blocks import PackedBlocks
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import (
    CandidateLoss,
    TinyConfig,
    build_model,
    evaluate_lm,
    start_from_frequencies,
    train_lm,
)
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

ARCHITECTURES = ("gpt2", "opt", "llama", "bloom", "neox")


@pytest.fixture(scope="module")
def texts():
    choice = random.Random(0).choice
    who, does, what = (
        ("the cat", "a dog", "my friend"),
        ("sees", "likes", "finds"),
        ("fish", "birds", "Zürich", "books"),
    )
    return [". ".join(f"{choice(who)} {choice(does)} {choice(what)}" for _ in range(8)) for _ in range(200)]


@pytest.fixture(scope="module", params=["byte_bpe", "sentencepiece_bpe"])
def tokenizer(request, texts):
    return train_tokenizer(texts, 400, request.param)


@pytest.fixture(scope="module")
def byte_tokenizer(texts):
    return train_tokenizer(texts, 400)


def config(arch="gpt2", steps=40, **changes):
    settings = {"hidden": 32, "layers": 1, "context": 32, "batch_tokens": 256, "learning_rate": 1e-2}
    return TinyConfig(arch=arch, steps=steps, **{**settings, **changes})


def trained(arch, tokenizer, texts, **changes):
    settings, losses = config(arch, **changes), []
    model = build_model(settings, tokenizer)
    report = train_lm(model, tokenizer, texts, settings, lambda state: losses.append(state.loss))
    return model.eval(), report, losses


def test_tokenizers_give_back_every_text(tokenizer):
    for text in ("the cat sees Zürich", "  two  spaces\nand lines", "你好 <0x41> x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 400
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_two_families_differ(texts):
    first, second = train_tokenizer(texts, 400), train_tokenizer(texts, 400, "sentencepiece_bpe")
    assert any(token.startswith("Ġ") for token in first.get_vocab())
    assert {"▁the", "<0x0A>"} <= set(second.get_vocab())


def test_a_vocabulary_needs_room_for_bytes(texts):
    with pytest.raises(ExtensionError, match=r"E456 .* 100 .* 258"):
        train_tokenizer(texts, 100)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_learns_saves_reloads_generates_and_pads(arch, byte_tokenizer, texts, tmp_path):
    model, report, losses = trained(arch, byte_tokenizer, texts)
    assert losses[-1] < losses[0] - 0.3
    assert report.steps == 40
    assert report.tokens == 40 * 256
    assert 0 < report.heldout_bits_per_byte < 3.0
    save_model(model, byte_tokenizer, tmp_path / "model", "# card")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", padding_side="left")
    pair = ["the cat", "the cat sees fish. a dog"]
    ids = tokenizer(pair[:1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, again(ids).logits)
        tokenizer.padding_side = "right"
        right = tokenizer(pair, padding=True, return_tensors="pt")
        padded = again(right["input_ids"], attention_mask=right["attention_mask"]).logits[0, : ids.shape[1]]
        assert torch.allclose(logits[0], padded, atol=1e-4)
        tokenizer.padding_side = "left"
        left = tokenizer(pair, padding=True, return_tensors="pt")
        mask = left["attention_mask"]
        together = again.generate(left["input_ids"], attention_mask=mask, max_new_tokens=5, do_sample=False)
        alone = again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert mask[0, 0] == 0
    assert together[0, mask.shape[1] :].tolist() == alone[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_same_seed_gives_the_same_weights(arch, byte_tokenizer, texts):
    runs = [trained(arch, byte_tokenizer, texts, steps=6, candidates=50, seed=seed)[0] for seed in (3, 3, 4)]
    first, second, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_training_leaves_the_global_random_state_alone(byte_tokenizer, texts):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trained("gpt2", byte_tokenizer, texts, steps=2, candidates=50)
    assert torch.equal(torch.rand(1), expected)


def test_candidate_loss_estimates_the_whole_softmax():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 2000, bias=False)
    hidden, targets = torch.randn(64, 8), torch.randint(0, 2000, (64,))
    whole = F.cross_entropy(head(hidden), targets)
    sampled = CandidateLoss(torch.ones(2000), 200, seed=0)
    mean = torch.stack([sampled(hidden, targets, head) for _ in range(200)]).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=0.02)
    assert CandidateLoss(torch.ones(2000), 0, seed=0)(hidden, targets, head).item() == pytest.approx(whole.item())


@pytest.mark.parametrize("arch", ["gpt2", "opt", "bloom", "neox"])
@pytest.mark.parametrize("tie", [True, False])
def test_an_untrained_model_predicts_the_frequencies(arch, tie, byte_tokenizer, texts):
    model = build_model(config(arch, tie=tie), byte_tokenizer).eval()
    counts = PackedBlocks(byte_tokenizer, texts, 32, 0).counts(len(byte_tokenizer))
    assert start_from_frequencies(model, counts)
    with torch.no_grad():
        log_probs = model(torch.arange(5)[None]).logits[0, -1].log_softmax(-1)
    expected = torch.log((counts + 0.1) / (counts + 0.1).sum())
    assert (log_probs - expected).abs().max() < 1.0
    assert not start_from_frequencies(build_model(config("llama"), byte_tokenizer), counts)


def test_evaluation_is_the_mean_over_tokens(byte_tokenizer, texts):
    model = build_model(config(), byte_tokenizer).eval()
    nats, bits = evaluate_lm(model, byte_tokenizer, texts[:5], 32)
    assert nats == pytest.approx(torch.log(torch.tensor(float(len(byte_tokenizer)))).item(), abs=0.2)
    assert 0 < bits < nats


def test_a_failed_save_leaves_the_old_folder(byte_tokenizer, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    with pytest.raises(AttributeError):
        save_model(None, byte_tokenizer, tmp_path / "model", "card")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_corpus_can_be_too_small(byte_tokenizer):
    settings = config(context=512)
    with pytest.raises(ExtensionError, match=r"E452 .* 2 document"):
        train_lm(build_model(settings, byte_tokenizer), byte_tokenizer, ["a b", "c d"], settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seconds": 1.0}, "either seconds or steps"),
        ({"heads": 3}, "multiple of 8"),
        ({"arch": "bloom", "heads": 1}, "two heads"),
        ({"arch": "rwkv"}, "arch"),
    ],
)
def test_wrong_settings(changes, problem):
    with pytest.raises(pydantic.ValidationError, match=problem):
        TinyConfig(**{"steps": 1, "hidden": 32, **changes})
