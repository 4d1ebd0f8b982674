"""The task model: its prompts, its loss and its answers against slow formulas; both heads; saved and read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel

from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.checks import predict_looked_up, predict_problems
from fate_llm_ext.algo.fdkt.config import FDKTConfig, PredictConfig
from fate_llm_ext.algo.fdkt.heads import GenerationHead, Sources
from fate_llm_ext.algo.fdkt.inference import load_head, predictions, read_texts
from fate_llm_ext.algo.fdkt.student import FACTS, TaskModel, probabilities
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.models.tokenizers import load_tokenizer, vocabulary_size
from fate_llm_ext.site import Site

LABELS = ["good news", "bad", "so so"]
TEXTS = [
    "The printer is out of paper.",
    "Zürich 猫: my screen stays dark!",
    "ok",
    "Printer, printer on the wall, who " * 9,
]
RECORDS = Records(np.array([0, 1, 2, 1], dtype=np.int32), TEXTS)
CPU = torch.device("cpu")
KINDS = {"gpt2": "byte_bpe", "llama": "sentencepiece_bpe"}
HEADS = ("generation", "classification")
ALL = [(head, weights) for head in HEADS for weights in ("full", "lora")]


@cache
def tokenizer_of(arch: str = "gpt2") -> Any:
    return train_tokenizer([row["text"] for row in generate_tickets(300, seed=1)], 400, KINDS[arch])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for arch in KINDS:
        model = build_model(TinyConfig(arch=arch, hidden=16, layers=1, context=64, steps=1, seed=0), tokenizer_of(arch))
        with torch.no_grad():  # far from uniform
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.mul_(4.0)
        save_model(model, tokenizer_of(arch), folder / arch, "")
    return folder


def config(**more: Any) -> FDKTConfig:
    control = {"code": "{{ label }}", "values": LABELS, "max_length": 48, **more.pop("control", {})}
    small = {"samples": 10, "max_new_tokens": 8}
    train = {"batch_size": 4, "epochs": 80, "learning_rate": 1e-2, "weight_decay": 0.0, **more.pop("train", {})}
    lora = {"r": 4, "dropout": 0.0}
    return FDKTConfig(control=control, privacy={"epsilon": 3.0}, synthesis=small, train=train, **{"lora": lora, **more})


def task_model(base: Path, arch: str = "gpt2", **more: Any) -> TaskModel:
    return TaskModel(base / arch, ModelConfig(name="tiny"), config(**more), CPU)


def weights_of(model: TaskModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- slow formulas ------------------------------------------------------------------------------------


def slow_choice(model: TaskModel, prompt: str, label: str, end: bool) -> float:
    """Log-probability of the label behind the prompt, one sequence at a time."""
    tokenizer, network = model.model.tokenizer, model.model.network.eval()
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + " " + label)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id] if end else ids
    assert ids[: len(before)] == before
    with torch.no_grad():
        log_probs = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
    return float(sum(log_probs[place - 1, ids[place]] for place in range(len(before), len(ids))))


def slow_logits(model: TaskModel, text: str) -> torch.Tensor:
    """The classifier's logits for one unpadded text."""
    ids = model.model.tokenizer(text)["input_ids"][:48]
    with torch.no_grad():
        return model.model.network.eval()(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("labels", [LABELS, ["bad", "bad luck", "so so"]])
def test_label_probabilities_of_the_generation_head(base: Path, arch: str, labels: list[str]) -> None:
    model = task_model(base, arch, control={"values": labels}, evaluation={"batch_size": 3})
    texts = TEXTS[:3]
    end = labels != LABELS  # "bad" begins like "bad luck"
    slow = [[slow_choice(model, f"{text}\nLabel:", label, end) for label in labels] for text in texts]
    expected = torch.tensor(slow).softmax(1).numpy()
    got = model.label_probabilities(texts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert got.std() > 0.05


@pytest.mark.parametrize("arch", KINDS)
def test_label_probabilities_of_the_classification_head(base: Path, arch: str) -> None:
    model = task_model(base, arch, head="classification", evaluation={"batch_size": 3})
    expected = torch.stack([slow_logits(model, text).softmax(0) for text in TEXTS]).numpy()
    np.testing.assert_allclose(model.label_probabilities(TEXTS), expected, atol=1e-5)
    assert expected.std(axis=0).max() > 0.01


@pytest.mark.parametrize("head", HEADS)
def test_no_texts(base: Path, head: str) -> None:
    model = task_model(base, head=head)
    nothing = Records(np.zeros(0, np.int32), [])
    assert model.label_probabilities([]).shape == (0, 3)
    assert model.evaluate(nothing) == {}
    with pytest.raises(ExtensionError, match="E666"):
        model.train([(nothing, 1.0)], seed=0, phase="training")


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_weighs_each_source(base: Path, head: str) -> None:
    """Mean over the batch of weight * CE; with a rate of next to nothing, the first loss is the only one."""
    train = {"batch_size": 8, "epochs": 1, "learning_rate": 1e-12}
    model = task_model(base, head=head, train=train)
    texts, codes = TEXTS[:3], RECORDS.codes[:3].tolist()
    if head == "generation":
        pairs = zip(texts, codes)
        slow = [-slow_choice(model, f"{text}\nLabel:", LABELS[code], end=True) for text, code in pairs]
        sizes = [len(model.model.tokenizer(" " + LABELS[code])["input_ids"]) + 1 for code in codes]
        slow = [loss / size for loss, size in zip(slow, sizes)]  # a mean over the label's tokens
    else:
        slow = [float(F.cross_entropy(slow_logits(model, t)[None], torch.tensor([c]))) for t, c in zip(texts, codes)]
    first = Records(RECORDS.codes[:2], TEXTS[:2])
    second = Records(RECORDS.codes[2:3], TEXTS[2:3])
    got = model.train([(first, 1.0), (second, 0.25)], seed=0, phase="training")
    assert got == pytest.approx((slow[0] + slow[1] + 0.25 * slow[2]) / 3, rel=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_the_heavier_source_wins(base: Path, head: str) -> None:
    one, other = Records(np.zeros(4, np.int32), TEXTS), Records(np.full(4, 2, np.int32), TEXTS)
    for weights, code in (((1.0, 0.05), 0), ((0.05, 1.0), 2)):
        model = task_model(base, head=head, train={"batch_size": 8, "epochs": 40})
        model.train(list(zip((one, other), weights)), seed=0, phase="training")
        assert model.label_probabilities(TEXTS).argmax(axis=1).tolist() == [code] * 4


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "weights"), ALL)
def test_it_learns_and_forgets(base: Path, head: str, weights: str) -> None:
    more = {"r": 8, "dropout": 0.0, "embeddings": head == "generation"}
    model = task_model(base, head=head, student_weights=weights, lora=more)
    before = weights_of(model)
    first = model.train([(RECORDS, 1.0)], seed=3, phase="training")
    trained = weights_of(model)
    assert model.evaluate(RECORDS) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert not same(before, trained)
    model.restore()
    assert same(before, weights_of(model))
    assert model.train([(RECORDS, 1.0)], seed=3, phase="training") == first
    assert same(trained, weights_of(model))


@pytest.mark.parametrize(("head", "weights"), ALL)
def test_an_arm_does_not_depend_on_those_before_it(base: Path, head: str, weights: str) -> None:
    quick = {"head": head, "student_weights": weights, "train": {"epochs": 2}}
    arms: list[Sources] = [[(RECORDS, 1.0)], [(RECORDS, 1.0), (RECORDS.first(2), 0.5)]]
    alone = []
    for sources in arms:
        model = task_model(base, **quick)
        model.train(sources, seed=3, phase="training")
        alone.append(weights_of(model))
    model = task_model(base, **quick)
    for place in (0, 1, 0):
        torch.manual_seed(place)  # the process' random state is of no importance
        model.restore()
        model.train(arms[place], seed=3, phase="training")
        assert same(alone[place], weights_of(model)), place


@pytest.mark.parametrize(("head", "weights"), [one for one in ALL if one != ("generation", "full")])
def test_first_weights_come_from_the_seed(base: Path, head: str, weights: str) -> None:
    made = [weights_of(task_model(base, head=head, student_weights=weights, seed=seed)) for seed in (1, 1, 2)]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_evaluation_by_hand(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = task_model(base, evaluation={"max_rows": 4})
    shares = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    monkeypatch.setattr(model, "label_probabilities", lambda texts, doing: shares[: len(texts)])
    records = Records(np.array([0, 1, 2, 2, 0], np.int32), [*TEXTS, "one more than max_rows"])
    # F1: 1 for the first label, 2 * (1/3 * 1) / (1/3 + 1) = 1/2 for the second, 0 for the third.
    assert model.evaluate(records) == {"accuracy": 0.5, "macro_f1": pytest.approx(0.5)}
    assert model.evaluate(records.first(2)) == {"accuracy": 1.0, "macro_f1": 1.0}  # absent labels do not count


def test_scores_that_are_no_numbers(base: Path) -> None:
    model = task_model(base, head="classification")
    with torch.no_grad():
        model.model.network.score.weight[1] = float("nan")
    with pytest.raises(ExtensionError, match=r"E407 .*12 of 12 scores of the labels of texts"):
        model.evaluate(RECORDS)


def test_a_diverging_classifier(base: Path) -> None:
    model = task_model(base, head="classification", train={"learning_rate": 1e30, "epochs": 5})
    with pytest.raises(ExtensionError, match=r"E406 .*training it"):
        model.train([(RECORDS, 1.0)], seed=0, phase="training it")


def test_accumulated_batches_of_a_classifier_are_one_batch(base: Path) -> None:
    results = []
    for batch, accumulation in ((4, 1), (1, 4)):
        train = {"batch_size": batch, "gradient_accumulation": accumulation, "epochs": 3}
        model = task_model(base, "llama", head="classification", train=train)  # its loss may take a count of samples
        model.train([(RECORDS, 1.0), (RECORDS, 0.5)], seed=0, phase="training")
        results.append(model.label_probabilities(TEXTS))
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


# --- long texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", KINDS)
def test_the_text_is_cut_and_the_question_stays(base: Path, arch: str) -> None:
    model = task_model(base, arch, prompts={"student": "Read: {{ text }}\n{{ labels[1] }}? Label:"})
    head = model.head
    assert isinstance(head, GenerationHead)
    tokenizer = model.model.tokenizer
    texts = [*TEXTS, "猫" * 200, "printer " * 500]
    prompts = head.prompts(texts)
    for text, prompt in zip(texts, prompts):
        start, end = "Read: ", "\nbad? Label:"
        assert prompt.startswith(start)
        assert prompt.endswith(end)
        kept = prompt[len(start) : -len(end)]
        assert text.startswith(kept)
        assert kept
    for item in head.items(Records(np.zeros(len(texts), np.int32), texts), 1.0):
        assert len(item.ids) <= 48
        assert tokenizer.decode(item.ids[item.answer]).strip().startswith("good news")
        assert item.ids[-1] == tokenizer.eos_token_id
        assert item.answer[-1] == len(item.ids) - 1
    assert prompts[:1] == ["Read: The printer is out of paper.\nbad? Label:"]
    longest = [len(tokenizer(prompt + " good news")["input_ids"]) + 1 for prompt in prompts[3:]]
    assert all(44 <= length <= 48 for length in longest)  # no more is cut than has to be
    assert np.isfinite(model.label_probabilities(texts)).all()


def test_a_prompt_that_ends_with_a_space(base: Path) -> None:
    model = task_model(base, prompts={"student": "{{ text }}\nLabel: "})
    plain = task_model(base)
    np.testing.assert_allclose(model.label_probabilities(TEXTS[:3]), plain.label_probabilities(TEXTS[:3]), atol=1e-6)


def test_a_prompt_without_room_for_a_text(base: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E720 .*room for \d+\. Next: Raise `control.max_length`"):
        task_model(base, prompts={"student": "{{ text }}" + " and so on" * 30}).label_probabilities(TEXTS)


# --- saved and read again -----------------------------------------------------------------------------


def predict_config(model: FDKTConfig, **changes: Any) -> PredictConfig:
    names = ("control", "student_weights", "head", "prompts", "evaluation")
    given = {name: getattr(model, name).copy() if name == "control" else getattr(model, name) for name in names}
    return PredictConfig(**{**given, "student": ModelConfig(name="tiny"), **changes})


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Callable[..., tuple[TaskModel, FDKTConfig, Path, Site]]:
    def save(arch: str = "gpt2", **more: Any) -> tuple[TaskModel, FDKTConfig, Path, Site]:
        job = config(train={"epochs": 3}, **more)
        model = TaskModel(base / arch, ModelConfig(name="tiny"), job, CPU)
        model.train([(RECORDS, 1.0)], seed=1, phase="training")
        folder = tmp_path / "model"
        folder.mkdir()
        model.save(folder, "# A card", {"party": "guest 9999"})
        return model, job, folder, Site(device="cpu", models={"tiny": str(base / arch)})

    return save


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize(("head", "weights"), ALL)
def test_a_saved_model_answers_as_before(saved: Any, arch: str, head: str, weights: str) -> None:
    model, job, folder, site = saved(arch, head=head, student_weights=weights)
    read = load_head(folder, predict_config(job), site)
    np.testing.assert_allclose(
        probabilities(read, TEXTS, "answering"), model.label_probabilities(TEXTS), atol=1e-5, rtol=0
    )
    assert (folder / "README.md").read_text() == "# A card"
    assert json.loads((folder / "privacy.json").read_text()) == {"party": "guest 9999"}
    for file in folder.glob("*.json"):
        assert str(Path(site.models["tiny"]).parent) not in file.read_text()


@pytest.mark.parametrize("head", HEADS)
def test_plain_transformers_reads_it(saved: Any, head: str) -> None:
    model, _, folder, _ = saved(head=head)
    auto = AutoModelForCausalLM if head == "generation" else AutoModelForSequenceClassification
    read = auto.from_pretrained(str(folder)).eval()
    network = model.model.network.eval()
    ids = torch.tensor([load_tokenizer(folder)(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(read(input_ids=ids).logits, network(input_ids=ids).logits)
    if head == "classification":
        assert read.config.id2label == dict(enumerate(LABELS))
        assert read.config.pad_token_id == model.model.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head": "classification"}, "`head` 'generation', the predict stage has 'classification'"),
        ({"student_weights": "lora"}, "`student_weights` 'full'"),
        ({"prompts": {"student": "{{ text }}?"}}, "`prompts.student`"),
        ({"control": {"code": "{{ x }}", "values": ["so so", "bad", "good news"]}}, "`control.values`"),
    ],
)
def test_other_parameters_than_in_training(saved: Any, change: dict[str, Any], named: str) -> None:
    _, job, folder, site = saved()
    with pytest.raises(ExtensionError, match="E721") as caught:
        load_head(folder, predict_config(job, **change), site)
    assert named in str(caught.value)


def test_a_classifier_reads_no_prompt(saved: Any) -> None:
    _, job, folder, site = saved(head="classification")
    load_head(folder, predict_config(job, prompts={"student": "{{ text }}?"}), site)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_no_task_model(saved: Any, content: str | None) -> None:
    _, job, folder, site = saved()
    (folder / FACTS).unlink()
    if content is not None:
        (folder / FACTS).write_text(content)
    with pytest.raises(ExtensionError, match=r"E723 .* holds no task model of FDKT: .*fdkt_task_model.json"):
        load_head(folder, predict_config(job), site)


def test_what_the_predict_stage_needs() -> None:
    lora = PredictConfig(control=config().control, student_weights="lora")
    for role, count in (("guest", 1), ("host", 1), ("arbiter", 0)):
        assert [error.code for error in predict_problems(lora, role)] == ["E670"] * count
    given = lora.copy(update={"student": ModelConfig(name="tiny")})
    assert predict_problems(given, "guest") == []
    assert predict_looked_up(given, "guest") == {"student"}
    assert predict_looked_up(given, "arbiter") == set()
    full = given.copy(update={"student_weights": "full"})
    assert predict_looked_up(full, "guest") == set()  # the folder holds all of it


def test_texts_of_a_table_without_labels(tmp_path: Path) -> None:
    job = PredictConfig(control={"code": "{{ label }}", "values": LABELS, "columns": {"text": "body"}})
    rows = [{"body": " one\r\n"}, {"body": "two", "label": "of no list"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert read_texts(tmp_path, job) == ["one", "two"]
    write_jsonl(tmp_path / "test.jsonl", [{"body": "three"}])
    assert read_texts(tmp_path, job) == ["three"]
    write_jsonl(tmp_path / "test.jsonl", [{"body": "three"}, {"body": " \n"}])
    with pytest.raises(ExtensionError, match=r"E661 .*1 of 2 rows have no text \(row 2 first"):
        read_texts(tmp_path, job)


def test_lines_of_the_file() -> None:
    shares = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], dtype=np.float32)
    assert predictions(shares, LABELS) == [
        {"row": 0, "prediction": "bad", "probabilities": {"good news": 0.25, "bad": 0.5, "so so": 0.25}},
        {"row": 1, "prediction": "good news", "probabilities": {"good news": 1.0, "bad": 0.0, "so so": 0.0}},
    ]


# --- base models of classifiers -----------------------------------------------------------------------


def test_an_encoder_classifies(base: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    rows = vocabulary_size(tokenizer)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    shutil.copytree(base / "gpt2", tmp_path / "bert")
    BertModel(BertConfig(vocab_size=rows, max_position_embeddings=64, **small)).save_pretrained(tmp_path / "bert")
    model = task_model(tmp_path, "bert", head="classification")
    model.train([(RECORDS, 1.0)], seed=0, phase="training")
    assert model.evaluate(RECORDS)["accuracy"] == 1.0
    expected = torch.stack([slow_logits(model, text).softmax(0) for text in TEXTS]).numpy()
    np.testing.assert_allclose(model.label_probabilities(TEXTS), expected, atol=1e-5)


def test_a_base_that_names_no_padding_token(base: Path, tmp_path: Path) -> None:
    """As GPT-2's own folder: without one, a batch could not be pooled at the texts' last tokens."""
    shutil.copytree(base / "gpt2", tmp_path / "plain")
    written = json.loads((tmp_path / "plain" / "config.json").read_text())
    (tmp_path / "plain" / "config.json").write_text(json.dumps({**written, "pad_token_id": None}))
    model = task_model(tmp_path, "plain", head="classification")
    expected = torch.stack([slow_logits(model, text).softmax(0) for text in TEXTS]).numpy()
    np.testing.assert_allclose(model.label_probabilities(TEXTS), expected, atol=1e-5)


def test_folders_that_are_no_base_of_a_classifier(base: Path, tmp_path: Path, saved: Any) -> None:
    with pytest.raises(ExtensionError, match="E722"):
        task_model(tmp_path, "nothing", head="classification")
    with pytest.raises(ExtensionError, match=r"E408 .*`control.max_length` 65"):
        task_model(base, head="classification", control={"max_length": 65})
    _, _, folder, _ = saved(head="classification")
    with pytest.raises(ExtensionError, match="E722"):  # a head of three labels
        task_model(folder.parent, "model", head="classification", control={"values": ["a", "b"]})
    shutil.copytree(base / "gpt2", tmp_path / "deep")
    deeper = json.loads((tmp_path / "deep" / "config.json").read_text()) | {"n_layer": 2}
    (tmp_path / "deep" / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ExtensionError, match=r"E722 .*12 weights are missing"):
        task_model(tmp_path, "deep", head="classification")
