"""The SLM of two tasks: its loss and its answers against slow formulas, for all kinds of models; saved, read again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fate_llm_ext.algo.fedcot.answers import Reasoner, room_for_prompts
from fate_llm_ext.algo.fedcot.config import FedCoTConfig, PredictConfig
from fate_llm_ext.algo.fedcot.inference import load_reasoner, predictions, read_examples
from fate_llm_ext.algo.fedcot.student import FACTS, Pair, RationaleModel, separated
from fate_llm_ext.config import GenerationConfig, ModelConfig, TrainConfig
from fate_llm_ext.data.collate import BESIDE, Beside, Collator, Item
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.site import Site

CPU = torch.device("cpu")
KINDS = {"gpt2": "byte_bpe", "llama": "sentencepiece_bpe", "t5": "byte_bpe", "t5 sentencepiece": "sentencepiece_bpe"}
CHOICES = (" A", " B", " so so")
EXAMPLES = [
    Example("The printer is out.\nA: ink\nB: paper", " B", CHOICES),
    Example("Zürich 猫: my screen stays dark!", " A", CHOICES),
    Example("ok", " so so", CHOICES),
    Example("The mouse is on the wall.", " A", CHOICES),
]
RATIONALES = [
    Pair(EXAMPLES[0].prompt, "It needs paper, so B."),
    Pair(EXAMPLES[1].prompt, "A dark screen has no power.", 0.5),
    Pair("A prompt without a record.", "Nobody knows a label."),
]


@cache
def tokenizer_of(kind: str) -> Any:
    return train_tokenizer([row["text"] for row in generate_tickets(300, seed=1)], 400, KINDS[kind])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for kind in KINDS:
        config = TinyConfig(arch=kind.split()[0], hidden=16, layers=1, context=96, steps=1, seed=0)
        model = build_model(config, tokenizer_of(kind))
        with torch.no_grad():  # far from uniform
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.mul_(2.0)
        save_model(model, tokenizer_of(kind), folder / kind, "")
    return folder


def config(**more: Any) -> FedCoTConfig:
    task = {"prompt": "{{ text }}", "answer": "{{ label }}", "max_length": 64, **more.pop("task", {})}
    task = {"choices": ["A", "B", "so so"], **task}
    train = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-2, "weight_decay": 0.0, **more.pop("train", {})}
    rest = {"lora": {"r": 4, "dropout": 0.0}, **more}
    return FedCoTConfig(task=task, perturbation={"strategy": "none"}, train=train, **rest)


def student(base: Path, kind: str = "gpt2", **more: Any) -> RationaleModel:
    return RationaleModel(base / kind, ModelConfig(name="tiny"), config(**more), CPU)


def weights_of(model: RationaleModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- slow formulas ------------------------------------------------------------------------------------


def slow_scores(model: RationaleModel, prompt: str, answer: str, end: bool) -> torch.Tensor:
    """Log-probability of each of the answer's tokens, one sequence at a time, by transformers alone."""
    tokenizer, network = model.tokenizer, model.network
    after = [tokenizer.eos_token_id] if end else []
    if model.apart:
        spaced = tokenizer.decode(tokenizer("x")["input_ids"]) == "x" and "▁the" in tokenizer.get_vocab()
        read = [*tokenizer(prompt)["input_ids"], tokenizer.eos_token_id]
        ids = [*tokenizer(answer.strip() if spaced else answer)["input_ids"], *after]
        shifted = [network.config.decoder_start_token_id, *ids[:-1]]
        out = network(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([shifted]))
        log_probs = out.logits[0].log_softmax(1)
        return log_probs[torch.arange(len(ids)), torch.tensor(ids)]
    before = tokenizer(prompt)["input_ids"]
    ids = [*tokenizer(prompt + answer)["input_ids"], *after]
    assert ids[: len(before)] == before
    log_probs = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
    places = torch.arange(len(before), len(ids))
    return log_probs[places - 1, torch.tensor(ids)[places]]


def slow_losses(model: RationaleModel) -> tuple[torch.Tensor, torch.Tensor]:
    """L_label and L_rationale of all samples as one step."""
    label = [-slow_scores(model, f"Predict: {one.prompt}", one.answer or "", True).mean() for one in EXAMPLES]
    weights = [one.weight for one in RATIONALES]
    why = [-slow_scores(model, f"Explain: {one.prompt}", f" {one.target}", True).mean() for one in RATIONALES]
    return torch.stack(label).mean(), torch.stack([weight * loss for weight, loss in zip(weights, why)]).mean()


# --- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_both_losses_and_one_step_of_training(base: Path, kind: str, alpha: float) -> None:
    """One step of AdamW on (1-α) L_label + α L_rationale, clipped, against torch's own."""
    model = student(base, kind, learning={"alpha": alpha}, train={"weight_decay": 0.1, "warmup_ratio": 0.0})
    model.network.eval()
    label, why = slow_losses(model)
    losses = model.train(EXAMPLES, RATIONALES, seed=3, phase="training")
    assert losses == {
        "label_loss": pytest.approx(label.item(), rel=1e-4),
        "rationale_loss": pytest.approx(why.item(), rel=1e-4),
    }
    trained = weights_of(model)
    model.restore()
    network = model.network
    label, why = slow_losses(model)
    ((1 - alpha) * label + alpha * why).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    norms = ("norm", "ln_", "bias")
    named = dict(network.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if not any(part in n for part in norms)], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if any(part in n for part in norms)], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)).step()
    for name, value in network.state_dict().items():
        if "relative_attention_bias" not in name:  # an embedding by its place, not by its kind
            close = torch.isclose(value, trained[name], atol=2e-4, rtol=1e-3)
            assert close.float().mean() > 0.995, name  # AdamW's first step is a sign, whatever a gradient's size is


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_without_rationales_it_is_training_on_labels_bit_by_bit(base: Path, kind: str, weights: str) -> None:
    train = {"epochs": 3, "batch_size": 2}
    model = student(base, kind, student_weights=weights, train=train, learning={"alpha": 0.7})
    alone = model.train(EXAMPLES, [], seed=3, phase="training")
    expected = weights_of(model)
    assert list(alone) == ["label_loss"]
    zero = student(base, kind, student_weights=weights, train=train, learning={"alpha": 0.0})
    assert zero.train(EXAMPLES, RATIONALES, seed=3, phase="training") == alone
    assert same(expected, weights_of(zero))
    zero.restore()
    gold = [Pair("Predict: " + one.prompt, one.answer or "") for one in EXAMPLES]
    assert zero.learn(gold, zero._config.train, seed=3, phase="training") == alone["label_loss"]
    assert same(expected, weights_of(zero))
    model.restore()
    model.train(EXAMPLES, RATIONALES, seed=3, phase="training")
    assert not same(expected, weights_of(model))


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_it_learns_both_tasks_and_forgets(base: Path, kind: str, weights: str) -> None:
    rate = 1e-2 if weights == "full" else 3e-2
    train = {"epochs": 200, "learning_rate": rate}
    lora = {"r": 16, "alpha": 32, "dropout": 0.0, "embeddings": kind == "gpt2"}
    model = student(base, kind, student_weights=weights, train=train, lora=lora)
    before = weights_of(model)
    untrained = model.evaluate(EXAMPLES)["nll_per_byte"]
    first = model.train(EXAMPLES, RATIONALES, seed=3, phase="training")
    trained = weights_of(model)
    assert model.evaluate(EXAMPLES)["nll_per_byte"] < untrained / 2
    if weights == "full":
        assert model.evaluate(EXAMPLES)["accuracy"] == 1.0
        assert model.choices(EXAMPLES) == [1, 0, 2, 0]
        greedy = GenerationConfig(top_k=1, max_new_tokens=30)
        assert model.explain(EXAMPLES[:2], greedy, seed=0) == [one.target for one in RATIONALES[:2]]
        asked = [f"Explain: {one.prompt}" for one in RATIONALES]
        assert model.write(asked, greedy, seed=0, doing="writing", stop=["label"])[2].strip() == "Nobody knows a"
    model.restore()
    assert same(before, weights_of(model))
    assert model.train(EXAMPLES, RATIONALES, seed=3, phase="training") == first
    assert same(trained, weights_of(model))


def test_accumulated_batches_are_one_batch(base: Path) -> None:
    results = []
    for batch, accumulation in ((4, 1), (1, 4)):
        train = {"batch_size": batch, "gradient_accumulation": accumulation, "epochs": 3}
        model = student(base, train=train)
        model.train(EXAMPLES, [*RATIONALES, Pair("one more", "for an even number")], seed=0, phase="training")
        results.append(model.log_probs(EXAMPLES, "answering"))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_nothing_to_learn(base: Path) -> None:
    with pytest.raises(ExtensionError, match="E666"):
        student(base).train([], RATIONALES, seed=0, phase="training")
    with pytest.raises(ExtensionError, match="E666"):
        student(base).learn([], TrainConfig(), seed=0, phase="training")


def test_a_loss_that_is_no_number(base: Path) -> None:
    model = student(base, train={"learning_rate": 1e30, "epochs": 5})
    with pytest.raises(ExtensionError, match=r"E406 .*training it"):
        model.train(EXAMPLES, RATIONALES, seed=0, phase="training it")


# --- how rationales are spread over the steps ---------------------------------------------------------


def spread(rationales: int, records: int, batch: int, epochs: int) -> list[list[int]]:
    """Which rationales each batch holds: item i is known by its only target token."""
    items = [Item(np.array([0, i]), np.array([1])) for i in range(max(rationales, records))]
    beside = Beside(Collator(0), items[:rationales], records, batch, seed=5)
    batches = []
    for _ in range(epochs):
        for start in range(0, records, batch):
            made = beside(items[start : min(start + batch, records)])
            batches.append(made[BESIDE]["target"].tolist() if BESIDE in made else [])
    return batches


@pytest.mark.parametrize(("rationales", "records", "batch"), [(10, 10, 4), (3, 10, 4), (7, 32, 4), (1, 9, 2)])
def test_each_rationale_once_per_epoch(rationales: int, records: int, batch: int) -> None:
    batches, steps = spread(rationales, records, batch, 3), -(-records // batch)
    epochs = [batches[i : i + steps] for i in range(0, len(batches), steps)]
    for epoch in epochs:
        assert sorted(one for held in epoch for one in held) == list(range(rationales))
        sizes = [len(held) for held in epoch]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch
    if rationales > 3:
        assert epochs[0] != epochs[1], "each epoch has an order of its own"


def test_more_rationales_than_records() -> None:
    """25 beside 10: ten per epoch, all 25 within three epochs, none twice before."""
    batches = spread(25, 10, 4, 5)
    assert [len(held) for held in batches] == [3, 3, 4] * 5
    seen = [one for held in batches for one in held]
    assert sorted(seen[:25]) == list(range(25))
    assert sorted(seen[25:]) == list(range(25))


# --- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_evaluation(base: Path, kind: str) -> None:
    model = student(base, kind, evaluation={"batch_size": 3})
    model.network.eval()
    with torch.no_grad():
        scores = [
            [slow_scores(model, f"Predict: {one.prompt}", choice, False).sum().item() for choice in CHOICES]
            for one in EXAMPLES
        ]
        nll = [-slow_scores(model, f"Predict: {one.prompt}", one.answer or "", True).sum().item() for one in EXAMPLES]
    np.testing.assert_allclose(model.log_probs(EXAMPLES, "answering"), scores, rtol=1e-3, atol=1e-3)
    best = np.argmax(scores, axis=1).tolist()
    assert model.choices(EXAMPLES) == best
    assert model.answers(EXAMPLES) == [CHOICES[one].strip() for one in best]
    spaced = kind == "t5 sentencepiece"
    sizes = [len((one.answer or "").encode()) + (0 if spaced else 1) for one in EXAMPLES]
    expected = {
        "accuracy": np.mean([CHOICES[one] == example.answer for one, example in zip(best, EXAMPLES)]),
        "nll_per_byte": pytest.approx(np.mean(np.array(nll) / sizes), rel=1e-3),
    }
    assert model.evaluate(EXAMPLES) == expected


def test_what_is_judged(base: Path) -> None:
    model = student(base, evaluation={"max_rows": 2})
    unlabelled = Example("no answer", None, CHOICES)
    assert model.evaluate([unlabelled, *EXAMPLES]) == model.evaluate(EXAMPLES[:2])
    assert model.evaluate([unlabelled]) == {}
    assert model.choices([]) == []
    assert model.answers([]) == []
    assert model.explain([], GenerationConfig(), seed=0) == []


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_answers_without_choices(base: Path, kind: str) -> None:
    examples = [Example(one.prompt, f" it is {one.prompt[:3]}", None) for one in EXAMPLES]
    model = student(base, kind, task={"choices": None}, train={"epochs": 250})
    model.train(examples, [], seed=0, phase="training")
    assert model.answers(examples) == [(one.answer or "").strip() for one in examples]
    assert model.evaluate(examples)["accuracy"] == 1.0
    other = [Example(examples[0].prompt, " it is Th", None), *examples[1:]]
    assert model.evaluate(other)["accuracy"] == 0.75
    mixed = [examples[0], Example(EXAMPLES[1].prompt, None, (" xx", examples[1].answer or ""))]
    assert model.answers(mixed) == [(one.answer or "").strip() for one in examples[:2]]


def test_scores_that_are_no_numbers(base: Path) -> None:
    model = student(base)
    with torch.no_grad():
        model.network.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(ExtensionError, match=r"E407 .*4 of 4 "):
        model.choices(EXAMPLES)


# --- long prompts and rationales ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_of_long_texts(base: Path, kind: str) -> None:
    model, tokenizer = student(base, kind), tokenizer_of(kind)
    long = "first " + "printer " * 100 + "last"
    (gold,) = model._labels.encode_gold([Example(long, " so so", CHOICES)])
    (short, endless) = model._items([Pair(long, "because."), Pair(long, "and so on " * 60)], "Explain: ", 1.0)
    for ids, places, lead, ended in (
        (gold.ids, gold.places, "Predict:", True),
        (short.ids, short.answer, "Explain:", True),
        (endless.ids, endless.answer, "Explain:", False),
    ):
        prompt = tokenizer.decode(ids[: places[0]], skip_special_tokens=True)
        assert prompt.startswith(lead)
        assert prompt.endswith("printer last")
        assert "first" not in prompt
        assert (ids[-1] == tokenizer.eos_token_id) == ended
        assert len(ids) == (places[0] + len(places) if model.apart else 64)
        assert places[0] == 64 if model.apart else places[0] >= 32
    assert len(endless.answer) == (64 if model.apart else 32)
    if not model.apart:
        (room,) = model._items([Pair("short", "and so on " * 60)], "Explain: ", 1.0)
        assert len(room.ids) == 64, "a short prompt leaves more than half"


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_long_prompt_is_continued(base: Path, kind: str) -> None:
    """The beginning goes, and what is written depends on the end."""
    model = student(base, kind)
    greedy = GenerationConfig(top_k=1, max_new_tokens=20)
    long = [Example("printer " * 200 + end, None, None) for end in ("is wet", "is dark", "is wet")]
    texts = model.explain(long, greedy, seed=0)
    assert texts[0] == texts[2]
    if kind == "gpt2":
        kept = model._engine.encode(["x " + "printer " * 200 + "is wet"], room=76)
        expected = model._engine.proceed(kept, greedy, seed=0)[0].text
        assert model.write(["x " + "printer " * 200 + "is wet"], greedy, seed=0) == [expected]
    with pytest.raises(ExtensionError, match="E665") if kind == "gpt2" else contextlib.nullcontext():
        model.write(["ok"], GenerationConfig(top_k=1, max_new_tokens=100), seed=0)


def test_room_for_prompts() -> None:
    assert [room_for_prompts(64, new) for new in (10, 32, 33, 500)] == [54, 32, 32, 32]
    assert room_for_prompts(65, 64) == 33


def test_a_prefix_without_room_for_prompts(base: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E762 `learning.explain` takes \d+ tokens, there is room for 32"):
        student(base, learning={"explain": "and so on " * 20})


def test_separators() -> None:
    pairs = {("a", "b"): " b", ("a ", "b"): "b", ("a", "\nb"): "\nb", ("", "b"): "b", ("a", ""): " "}
    for (prompt, target), expected in pairs.items():
        assert separated(prompt, target) == expected


def test_an_adapter_on_embeddings_of_an_encoder_decoder(base: Path) -> None:
    with pytest.raises(ExtensionError, match="E764"):
        student(base, "t5", student_weights="lora", lora={"embeddings": True})


# --- saved and read again -----------------------------------------------------------------------------

Saved = Callable[..., tuple[RationaleModel, FedCoTConfig, Path, Site]]


def predict_config(model: FedCoTConfig, **changes: Any) -> PredictConfig:
    names = ("task", "student_weights", "learning", "evaluation")
    return PredictConfig(**{**{name: getattr(model, name) for name in names}, "student": {"name": "tiny"}, **changes})


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Saved:
    def save(kind: str = "gpt2", **more: Any) -> tuple[RationaleModel, FedCoTConfig, Path, Site]:
        job = config(**{"train": {"epochs": 3}, **more})
        model = RationaleModel(base / kind, ModelConfig(name="tiny"), job, CPU)
        model.train(EXAMPLES, RATIONALES, seed=1, phase="training")
        folder = tmp_path / "model"
        folder.mkdir()
        model.save(folder, "# A card", {"party": "guest 9999"})
        return model, job, folder, Site(device="cpu", models={"tiny": str(base / kind)})

    return save


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_saved_model_answers_as_before(saved: Saved, kind: str, weights: str) -> None:
    model, job, folder, site = saved(kind, student_weights=weights)
    read = load_reasoner(folder, predict_config(job), site)
    np.testing.assert_allclose(read.log_probs(EXAMPLES, "x"), model.log_probs(EXAMPLES, "x"), atol=1e-4)
    sampling = GenerationConfig(max_new_tokens=8)
    assert read.explain(EXAMPLES, sampling, seed=1) == model.explain(EXAMPLES, sampling, seed=1)
    assert (folder / "README.md").read_text() == "# A card"
    assert json.loads((folder / "privacy.json").read_text()) == {"party": "guest 9999"}
    for file in folder.glob("*.json"):
        assert str(Path(site.models["tiny"]).parent) not in file.read_text()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_plain_libraries_read_it(saved: Saved, kind: str, weights: str) -> None:
    import peft

    model, _, folder, site = saved(kind, student_weights=weights)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    read = auto.from_pretrained(site.models["tiny"] if weights == "lora" else str(folder))
    if weights == "lora":
        assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == (
            "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
        )
        read = peft.PeftModel.from_pretrained(read, str(folder))
    ids = torch.tensor([[5, 6, 7]])
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if kind == "t5" else {})}
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(**given).logits, model.network.eval()(**given).logits)


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"task": {"prompt": "{{ text }}!", "answer": "{{ label }}"}}, "task.prompt"),
        ({"learning": {"predict": "Label: "}}, "learning.predict"),
        ({"student_weights": "lora"}, "student_weights"),
    ],
)
def test_other_parameters_than_in_training(saved: Saved, change: dict[str, Any], parameter: str) -> None:
    _, job, folder, site = saved(train={"epochs": 1})
    with pytest.raises(ExtensionError, match=rf"E765 .*`{parameter}`"):
        load_reasoner(folder, predict_config(job, **change), site)


@pytest.mark.parametrize("content", [None, "[]", "{", b"\xff\xfe"])
def test_a_folder_without_a_model_of_fedcot(saved: Saved, content: Any) -> None:
    _, job, folder, site = saved(train={"epochs": 1})
    path = folder / FACTS
    path.unlink() if content is None else path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ExtensionError, match=r"E766 .*fedcot_model.json"):
        load_reasoner(folder, predict_config(job), site)


# --- prediction ---------------------------------------------------------------------------------------


def test_rows_to_predict(tmp_path: Path) -> None:
    """A label is not needed, not even its column; where there is one, it does not matter what it holds."""
    job = config(task={"columns": {"text": "body", "label": "topic"}})
    settings = predict_config(job)
    expected = [Example(text, None, CHOICES) for text in ("one", "two")]
    for name, rows in {
        "bare": [{"body": "one"}, {"body": "two"}],
        "labelled": [{"body": "one", "topic": "A"}, {"body": "two", "topic": "of no kind"}],
    }.items():
        write_jsonl(tmp_path / name / "train.jsonl", rows)
        assert read_examples(tmp_path / name, settings) == expected
    write_jsonl(tmp_path / "labelled" / "test.jsonl", [{"body": "three"}, {"body": "four"}])
    first = predict_config(job, evaluation={"max_rows": 1})
    assert read_examples(tmp_path / "labelled", first) == [Example("three", None, CHOICES)]
    write_jsonl(tmp_path / "other" / "train.jsonl", [{"text": "one"}])
    with pytest.raises(ExtensionError, match="E205"):
        read_examples(tmp_path / "other", settings)


def test_lines_of_predictions(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(base)
    lines = predictions(model, EXAMPLES, predict_config(model._config))
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert [line["prediction"] for line in lines] == model.answers(EXAMPLES)
    assert all(list(line) == ["row", "prediction", "probabilities"] for line in lines)
    assert all(sum(line["probabilities"].values()) == pytest.approx(1.0, abs=1e-5) for line in lines)
    sampled = predict_config(model._config, explain=True, decoding={"max_new_tokens": 6})
    explained = predictions(model, EXAMPLES, sampled)
    assert [{**line, "rationale": ""} for line in lines] == [{**line, "rationale": ""} for line in explained]
    assert [line["rationale"] for line in explained] == model.explain(EXAMPLES, sampled.decoding, seed=0)
    free = [Example(one.prompt, None, None) for one in EXAMPLES]
    monkeypatch.setattr(Reasoner, "answers", lambda self, examples, doing: ["text"] * len(examples))
    assert predictions(model, free, predict_config(model._config))[2] == {"row": 2, "prediction": "text"}


def test_beside_counts_as_the_collator_counts() -> None:
    """A batch of both tasks holds what the collator makes of each."""
    items = [Item(np.array([1, 2, 3]), np.array([2])), Item(np.array([1, 2]), np.array([1]), gold_weight=0.5)]
    made = Beside(Collator(0), items[1:], 1, 1, seed=0)(items[:1])
    alone = Collator(0)(items[1:])
    assert all(torch.equal(made[BESIDE][name], alone[name]) for name in alone)
    assert set(made) == {*Collator(0)(items[:1]), BESIDE}
    assert made[BESIDE]["gold_weight"].tolist() == [0.5]
