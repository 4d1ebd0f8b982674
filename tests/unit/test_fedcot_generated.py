"""Questions about texts of a DP generator: what they are made of, and what they cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fedcot_scene import CPU, Metrics, scene, small_model

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.fdkt.generator import save_generator
from fate_llm_ext.algo.fdkt.validity import words
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.generated import Generated
from fate_llm_ext.algo.fedcot.inputs import input_problems, text_field
from fate_llm_ext.algo.fedcot.release import plan
from fate_llm_ext.config import ControlConfig, LoraConfig, ModelConfig, SynthesisConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import Dag, parse_dag
from fate_llm_ext.pipelines.plan import plan as make_plan
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.events import DataSet, NonPrivate, PoissonGaussian, PostProcessing, Release
from fate_llm_ext.site import Site

DATA = DataSet("llm/tickets", "0" * 64, 100)
LABELS = ["Billing ", "technical", "weather"]  # the task knows two of them
SAMPLING = SynthesisConfig(max_new_tokens=16, top_k=20)


def config(**changes: Any) -> FedCoTConfig:
    base = {
        "task": {"template": "tickets", "max_length": 96},
        "perturbation": {"strategy": "dp_generator", "samples": 12},
        "student": {"name": "slm"},
    }
    return FedCoTConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "model")


def statement(private: bool) -> dict[str, Any]:
    mechanism = PoissonGaussian(0.1, 1.0, 50) if private else NonPrivate()
    release = Release("fdkt", "job", "texts", ("arbiter 9998",), (mechanism,))
    return report.statement("guest 9999", "fdkt", data=DATA, releases=[release], delta=1e-4 if private else None)


def saved(base: Path, folder: Path, weights: Any = "full", private: bool = True, **synthesis: Any) -> Path:
    """A generator as an FDKT task leaves it behind."""
    control = ControlConfig(code="{{ label }}", values=LABELS, max_length=64)
    model = Model(base, ModelConfig(name="slm"), weights, LoraConfig(dropout=0.0), control, 0, CPU, lambda _: None)
    model.save(folder, "card")
    save_generator(model, control, SAMPLING.copy(update=synthesis), statement(private), folder)
    return folder


@pytest.fixture(scope="module")
def generator(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(base, tmp_path_factory.mktemp("generator") / "model")


def strategy(base: Path, generator: Path, rows: int = 4, seed: int = 1, **changes: Any) -> Generated:
    site = Site(models={"slm": str(base)})
    return Generated(scene(config(**changes), site, generate_tickets(rows, seed), generator=generator))


# --- inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "role", "inputs", "expected"),
    [
        ({}, "guest", ["train_data", "generator"], []),
        ({}, "host", ["train_data"], ["E776"]),
        ({}, "arbiter", [], []),
        ({"task": {"template": "wic"}}, "guest", [], ["E776", "E778"]),
        ({"perturbation": {"strategy": "none"}}, "guest", ["train_data", "generator"], ["E777"]),
        ({"perturbation": {"strategy": "none"}}, "guest", ["train_data"], []),
        ({"perturbation": {"strategy": "none"}, "task": {"template": "wic"}}, "guest", ["train_data"], []),
    ],
)
def test_strategy_and_input_fit(changes: dict[str, Any], role: str, inputs: list[str], expected: list[str]) -> None:
    assert [problem.code for problem in input_problems(config(**changes), role, inputs)] == expected


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"template": "tickets"}, "text"),
        ({"template": "sst2"}, "sentence"),
        ({"prompt": "Mail: {{ body }}\nSpam?", "answer": "{{ spam }}"}, "body"),
        ({"prompt": "{{ body }}{% if tail is defined %} {{ tail }}{% endif %}", "answer": "{{ spam }}"}, "body"),
    ],
)
def test_the_field_in_whose_place_a_text_stands(task: dict[str, Any], field: str) -> None:
    question = {"fields": [field]} if "tail" in str(task) else {}
    assert text_field(config(task=task, question=question)) == field


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ({"template": "commonsenseqa"}, {}),
        ({"template": "commonsenseqa"}, {"fields": ["question"]}),
        ({"template": "wic"}, {"fields": ["sentence1"]}),
        ({"prompt": "{{ title }}: {{ body }}", "answer": "{{ spam }}"}, {"fields": ["body"]}),
    ],
)
def test_a_prompt_of_several_fields_cannot_be_generated(task: dict[str, Any], question: dict[str, Any]) -> None:
    with pytest.raises(ExtensionError, match=r"E778 The task's prompt shows [2-9] fields .*one text") as caught:
        text_field(config(task=task, question=question))
    assert caught.value.shared


# --- questions ----------------------------------------------------------------------------------------


def test_questions_are_the_generator_s_texts(base: Path, generator: Path) -> None:
    made = strategy(base, generator)
    asked = made.ask()
    assert (asked.rows, asked.perturbed, made.mechanism, made.vocabulary) == (None, None, None, None)
    assert asked.choices is not None
    assert 3 <= len(asked.texts) <= 12
    assert len(asked.prompts) == len(asked.labels) == len(asked.choices) == len(asked.texts)
    for text, prompt, choices in zip(asked.texts, asked.prompts, asked.choices):
        own = prompt.removeprefix("Ticket: ").removesuffix("\nDepartment:")
        assert text.startswith(own)
        assert "billing" in text.removeprefix(own), "the task's public choices"
        assert len(words(own)) >= 3
        assert " billing" in choices
    assert made.decode(asked, asked.choices and range(2), ["a", "b"]) == ["a", "b"]  # type: ignore[arg-type]


def test_the_private_records_have_no_influence(base: Path, generator: Path) -> None:
    one, other = strategy(base, generator, 4, 1).ask(), strategy(base, generator, 9, 2).ask()
    assert (one.texts, one.prompts, one.labels) == (other.texts, other.prompts, other.labels)


def test_another_seed_other_questions(base: Path, generator: Path) -> None:
    site = Site(models={"slm": str(base)})
    texts = [
        Generated(scene(config(seed=seed), site, generate_tickets(3, 1), generator=generator)).ask().texts
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_labels_that_the_task_knows_are_answers(base: Path, generator: Path) -> None:
    asked = strategy(base, generator, perturbation={"strategy": "dp_generator", "samples": 30}).ask()
    assert set(asked.labels) == {" billing", " technical", None}
    assert asked.labels == sorted(asked.labels, key=[" billing", " technical", None].index)


def test_an_open_task_has_no_answers(base: Path, generator: Path) -> None:
    task = {"prompt": "{{ text }}", "answer": "{{ label }}", "max_length": 96}
    asked = strategy(base, generator, task=task).ask()
    assert set(asked.labels) == {None}
    assert all(not choices for choices in asked.choices or [])


def test_long_texts_are_cut(base: Path, generator: Path) -> None:
    whole = strategy(base, generator).ask()
    short = strategy(base, generator, question={"max_words": 4}).ask()
    own = [prompt.removeprefix("Ticket: ").removesuffix("\nDepartment:") for prompt in short.prompts]
    full = [prompt.removeprefix("Ticket: ").removesuffix("\nDepartment:") for prompt in whole.prompts]
    assert max(len(text.split()) for text in full) > 4
    assert [text.split() for text in own] == [text.split()[:4] for text in full]
    assert all(text.startswith(cut) for text, cut in zip(short.texts, own))


def test_counts(base: Path, generator: Path) -> None:
    made = strategy(base, generator)
    asked = made.ask()
    metrics = made.scene.party.metrics
    assert isinstance(metrics, Metrics)
    assert metrics.logged.pop("texts") == len(asked.texts)
    assert sum(metrics.logged.values()) == 12 - len(asked.texts)


def test_no_valid_text_is_no_question(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "fate_llm_ext.algo.fedcot.generated.emit", lambda type, **facts: events.append({"type": type, **facts})
    )
    made = strategy(base, saved(base, tmp_path / "short", max_new_tokens=1))
    asked = made.ask()
    assert (asked.texts, asked.prompts, asked.labels) == ([], [], [])
    assert [(event["type"], event["code"]) for event in events] == [("warning", "E730")]


# --- what is kept -------------------------------------------------------------------------------------


def test_an_adapter_needs_its_base(base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "adapter", "lora")
    assert strategy(base, folder).ask().texts
    made = scene(config(), Site(models={"slm": str(base)}), generate_tickets(2, 1), generator=folder)
    object.__setattr__(made.party, "site", Site(models={"other": str(base)}))
    with pytest.raises(ExtensionError, match=r"E110 'slm' is not under `models`"):
        Generated(made)


def test_an_adapter_is_sampled_from_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    control = ControlConfig(code="{{ label }}", values=LABELS, max_length=64)
    model = Model(base, ModelConfig(name="slm"), "lora", LoraConfig(dropout=0.0), control, 0, CPU, lambda _: None)
    before = strategy(base, saved(base, tmp_path / "before", "lora")).ask().texts
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save(tmp_path / "after", "card")
    save_generator(model, control, SAMPLING, statement(True), tmp_path / "after")
    assert strategy(base, tmp_path / "after").ask().texts != before


def test_a_folder_without_a_generator(base: Path) -> None:
    with pytest.raises(ExtensionError, match="E731"):
        strategy(base, base)
    with pytest.raises(ExtensionError, match="E731"):
        Generated.guarantee(base)


def test_the_guarantee_is_the_generator_s(base: Path, generator: Path, tmp_path: Path) -> None:
    found = Generated.guarantee(generator)
    assert found == (statement(True)["guarantee"]["epsilon"], 1e-4)
    planned = plan(config(), DATA, "job", ["arbiter 9998"], found)
    assert planned.release.mechanisms == (PostProcessing(*found),)  # type: ignore[arg-type]
    assert planned.delta == 1e-4
    assert epsilon(planned.release.mechanisms, 1e-4) == 0.0

    unbounded = Generated.guarantee(saved(base, tmp_path / "loud", private=False))
    assert unbounded == (math.inf, None)
    planned = plan(config(), DATA, "job", ["arbiter 9998"], unbounded)
    assert planned.release.mechanisms == (NonPrivate(),)
    assert not planned.release.private


# --- jobs ---------------------------------------------------------------------------------------------

GUEST, ARBITER = {"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}
DP_SGD = {"epsilon": 2.0, "delta": 1e-4, "batch_size": 50, "epochs": 2, "accountant": "rdp"}


class World:
    """A site with one table and a job of two tasks, the second of which takes the generator of the first."""

    def __init__(self, folder: Path, **privacy: Any) -> None:
        self.folder = folder
        (folder / "m").mkdir()
        write_jsonl(folder / "mail.jsonl", generate_tickets(200, 1))
        table = {"namespace": "llm", "name": "mail", "parties": [GUEST]}
        data = {"data": {"train_data": {"data_warehouse": [table]}}}
        common = {"student": {"name": "m"}, "llm": {"name": "m"}}
        control = {"code": "{{ label }}", "values": ["billing", "sales"]}
        fdkt = {"control": control, "privacy": {**DP_SGD, **privacy}, "generator": {"name": "m"}, **common}
        fedcot = {"task": {"template": "tickets"}, "perturbation": {"strategy": "dp_generator"}, **common}
        link = {"producer_task": "fdkt_0", "output_artifact_key": "generator_model"}
        self.fedcot: dict[str, Any] = {
            "component_ref": "fedcot",
            "parameters": fedcot,
            "inputs": {**data, "model": {"generator": {"task_output_artifact": link}}},
        }
        self.guest: dict[str, Any] = {"tables": {"llm/mail": "mail.jsonl"}, "models": {"m": "m"}}
        self.guest["budgets"] = {"llm/mail": {"epsilon": 2.0, "delta": 1e-4}}
        self.tasks = {"fedcot_0": self.fedcot, "fdkt_0": {"component_ref": "fdkt", "parameters": fdkt, "inputs": data}}

    @property
    def dag(self) -> Dag:
        job = {"parties": [GUEST, ARBITER], "stage": "train", "tasks": self.tasks}
        return parse_dag(json.loads(json.dumps({"dag": job, "schema_version": "2.2.0", "kind": "fate"})))

    @property
    def sites(self) -> Path:
        path = self.folder / "sites.yaml"
        path.write_text(json.dumps({"guest_9999": self.guest, "arbiter_9998": {"models": {"m": "m"}}}))
        return path

    def problems(self) -> dict[str, str]:
        return {problem.error.code: problem.where for problem in check(self.dag, self.sites)}


def test_a_linked_job_is_planned(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.problems() == {}
    first, second = make_plan(world.dag, world.sites)
    assert (first.task, second.task) == ("fdkt_0", "fedcot_0")
    assert 1.9 < (first.epsilon or 0.0) <= 2.0
    assert (second.epsilon, second.after) == (0.0, second.spent)
    assert 1.5 < (second.spent or 0.0) < (first.after or 0.0), "the tight accountant finds less"
    assert second.refused is None
    assert second.note == "no further ε: all that leaves is computed from what fdkt_0 has paid for"
    (cost,) = second.planned.release.mechanisms  # type: ignore[union-attr]
    assert cost == PostProcessing(pytest.approx(first.epsilon), 1e-4)  # type: ignore[arg-type]


def test_a_generator_without_privacy_gives_none_to_the_next_task(tmp_path: Path) -> None:
    world = World(tmp_path, epsilon=math.inf, delta=None)
    world.guest["budgets"]["llm/mail"]["epsilon"] = "inf"
    first, second = make_plan(world.dag, world.sites)
    assert (first.epsilon, second.epsilon) == (math.inf, math.inf)
    assert second.note == ""
    assert second.planned.release.mechanisms == (NonPrivate(),)  # type: ignore[union-attr]


def test_check_misses_the_link(tmp_path: Path) -> None:
    world = World(tmp_path)
    del world.fedcot["inputs"]["model"]
    assert world.problems() == {"E776": "tasks.fedcot_0.inputs (guest 9999)"}


def test_check_finds_a_link_too_many(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fedcot["parameters"]["perturbation"] = {"strategy": "metric", "epsilon": 1.0}
    assert world.problems() == {"E777": "tasks.fedcot_0.inputs (guest 9999)"}


def test_check_knows_that_a_prompt_of_several_fields_cannot_be_generated(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fedcot["parameters"]["task"] = {"template": "wic"}
    assert world.problems() == {"E778": "tasks.fedcot_0.inputs (guest 9999)"}


def test_check_knows_the_generator_by_its_output(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fedcot["inputs"]["model"]["generator"]["task_output_artifact"]["output_artifact_key"] = "generator"
    assert set(world.problems()) == {"E125"}
