"""What each role needs in FedCoT, which parameters cannot be, and which messages fit the job."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.algo.fedcot.checks import (
    check_questions,
    check_rationales,
    looked_up,
    predict_looked_up,
    predict_problems,
    role_problems,
)
from fate_llm_ext.algo.fedcot.config import FedCoTConfig, PredictConfig
from fate_llm_ext.algo.fedcot.protocol import Questions, Rationales
from fate_llm_ext.algo.messages import pack_texts
from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError


def parameters(**changes: Any) -> dict[str, Any]:
    base = {
        "task": {"template": "tickets"},
        "perturbation": {"strategy": "metric", "epsilon": 2.0},
        "student": {"name": "small"},
        "llm": {"name": "small"},
    }
    return {**base, **changes}


def config(**changes: Any) -> FedCoTConfig:
    return FedCoTConfig(**parameters(**changes))


# --- roles ----------------------------------------------------------------------------------------------


def test_what_a_party_looks_up() -> None:
    public = {"vocabulary.model", "vocabulary.public", "perturbation.proxy"}
    for role in ("guest", "host"):
        assert looked_up(config(), role) == {"student", *public}
        assert looked_up(config(attack={"methods": ["infill"]}), role) == {"student", *public, "attack.model"}
        assert looked_up(config(perturbation={"strategy": "none"}), role) == {"student"}
    assert looked_up(config(), "arbiter") == {"llm"}


@pytest.mark.parametrize(
    ("changes", "role", "missing"),
    [
        ({}, "guest", []),
        ({}, "arbiter", []),
        ({"student": None}, "guest", ["student"]),
        ({"student": None}, "arbiter", []),
        ({"llm": None}, "arbiter", ["llm"]),
        ({"llm": None}, "host", []),
    ],
)
def test_what_is_missing(changes: dict[str, Any], role: str, missing: list[str]) -> None:
    problems = role_problems(config(**changes), role)
    assert [problem.facts.get("parameter") for problem in problems] == missing
    assert all(problem.code == "E670" for problem in problems)


def test_missing_model_and_wrong_field_are_said_together() -> None:
    job = config(student=None, question={"fields": ["label"]})
    assert [problem.code for problem in role_problems(job, "guest")] == ["E670", "E784"]
    assert [problem.code for problem in role_problems(job, "arbiter")] == []


def test_prediction_needs_the_base_of_an_adapter() -> None:
    task = {"template": "tickets"}
    whole, adapter = PredictConfig(task=task), PredictConfig(task=task, student_weights="lora")
    assert predict_problems(whole, "guest") == predict_problems(adapter, "arbiter") == []
    assert [problem.code for problem in predict_problems(adapter, "host")] == ["E670"]
    assert predict_looked_up(whole, "guest") == predict_looked_up(adapter, "arbiter") == frozenset()
    assert predict_looked_up(adapter, "guest") == {"student"}


# --- parameters together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"perturbation": {"strategy": "metric"}}, "metric needs `perturbation.epsilon`"),
        ({"perturbation": {"strategy": "none", "epsilon": 1.0}}, "none takes no `perturbation.epsilon`"),
        ({"perturbation": {"strategy": "dp_generator", "epsilon": 1.0}}, "takes no `perturbation.epsilon`"),
        ({"perturbation": {"strategy": "metric", "epsilon": 0}}, "greater than 0"),
        ({"perturbation": {"strategy": "metric", "epsilon": float("inf")}}, "less than inf"),
        ({"perturbation": {"strategy": "metric", "epsilon": float("nan")}}, "epsilon"),
        (
            {"perturbation": {"strategy": "metric", "epsilon": 1.0, "proxy": "x"}},
            "metric takes no `perturbation.proxy`",
        ),
        ({"perturbation": {"strategy": "adaptive_exponential", "epsilon": 1.0}}, "needs `perturbation.proxy`"),
        ({"perturbation": {"strategy": "metrics", "epsilon": 1.0}}, "unexpected value"),
        ({"perturbation": {"strategy": "dp_generator"}, "rationale": {"recorded": True}}, "`rationale.recorded`"),
        ({"vocabulary": {"size": 1}}, "greater than or equal to 2"),
        ({"question": {"max_words": 0}}, "greater than or equal to 1"),
        ({"question": {"max_word": 3}}, "extra fields"),
        ({"rationale": {"demonstrations": [{"question": "a", "rationale": " ", "answer": "b"}]}}, "rationale"),
        ({"rationale": {"temperature": 0}}, "greater than 0"),
        ({"rationale": {"stop": list("abcde")}}, "at most 4"),
        ({"rationale": {"answer": "("}}, "rationale"),
        ({"rationale": {"answer": "answer"}}, "group"),
        ({"decoding": {"method": "magic"}}, "unexpected value"),
        ({"quality": {"min_words": 9, "max_words": 3}}, "`min_words` 9 is above `max_words` 3"),
        ({"quality": {"max_copy": 0}}, "greater than 0"),
        ({"learning": {"alpha": 1.0}}, "less than 1"),
        ({"learning": {"predict": "Say: ", "explain": "Say: "}}, "are the same"),
        ({"attack": {"methods": ["guess"]}}, "unexpected value"),
        ({"attack": {"words": 0}}, "greater than or equal to 1"),
        ({"student_weights": "some"}, "unexpected value"),
        ({"compare": ["alone"]}, "unexpected value"),
        ({"task": {"prompt": "{{ a }}", "answer": "{{ b }}", "choices": ["x", "y" * 1001]}}, "up to 1001 characters"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_parameters_that_cannot_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=re.escape(reason)):
        config(**changes)


# --- as a user hears of it ------------------------------------------------------------------------------


def check(folder: Path, changes: dict[str, Any], sites: dict[str, Any] | None = None) -> Any:
    (folder / "mail.jsonl").write_text(json.dumps({"text": "hello", "label": "billing"}) + "\n")
    (folder / "m").mkdir()
    guest, arbiter = {"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}
    section: dict[str, Any] = {"tables": {"llm/mail": "mail.jsonl"}, "models": {"small": "m"}}
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump({"guest_9999": {**section, **(sites or {})}, "arbiter_9998": section}))
    table = {"data_warehouse": [{"namespace": "llm", "name": "mail", "parties": [guest]}]}
    given = {name: value for name, value in parameters(**changes).items() if value is not None}
    task = {"component_ref": "fedcot", "parameters": given, "inputs": {"data": {"train_data": table}}}
    dag = {"parties": [guest, arbiter], "stage": "train", "tasks": {"fedcot_0": task}}
    job = folder / "dag.yaml"
    job.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    return CliRunner().invoke(main, ["check", str(job), "--sites", str(path)])


def test_a_job_without_problems(tmp_path: Path) -> None:
    result = check(tmp_path, {})
    assert result.exit_code == 0, result.output


BAD: dict[str, Any] = {
    "seed": -1,
    "task": {"template": "tickts"},
    "perturbation": {"strategy": "metric", "epsilon": 0},
    "vocabulary": {"size": 1},
    "question": {"max_words": 0},
    "rationale": {"max_new_tokens": 0},
    "decoding": {"method": "magic"},
    "quality": {"min_words": 9, "max_words": 3},
    "student_weights": "some",
    "lora": {"r": 0},
    "learning": {"alpha": 1.0},
    "train": {"epochs": 0},
    "compare": ["alone"],
    "attack": {"words": 0},
    "evaluation": {"batch_size": 0},
    "network": {"silence_seconds": 0},
}


def test_one_bad_value_in_each_group_is_said_at_once(tmp_path: Path) -> None:
    result = check(tmp_path, BAD)
    assert result.exit_code == 1
    for group in BAD:
        assert f"tasks.fedcot_0.parameters.{group}" in result.output, (group, result.output)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": {"fields": ["label"]}}, ["E784", "the answer is made of it"]),
        ({"question": {"template": "{{ label }}"}}, ["E209", "question.template"]),
        ({"perturbation": {"strategy": "metric"}}, ["needs `perturbation.epsilon`"]),
        ({"perturbation": {"strategy": "dp_generator"}}, ["E776", "generator"]),
        ({"perturbation": {"strategy": "adaptive_exponential", "epsilon": 1.0, "proxy": "set"}}, ["E110", "'set'"]),
        ({"vocabulary": {"public": "words"}}, ["E110", "'words'"]),
        ({"vocabulary": {"model": {"name": "other"}}}, ["E110", "'other'"]),
        ({"attack": {"methods": ["infill"], "model": {"name": "other"}}}, ["E110", "'other'"]),
        ({"student": {"name": "other"}}, ["E110", "'other'"]),
        ({"student": None}, ["E670", "guest", "student"]),
        ({"llm": None}, ["E670", "arbiter", "llm"]),
        ({"llm": {"name": "gpt"}}, ["E131", "'gpt'"]),
        ({"rationale": {"recorded": True}}, ["E769", "asks for a recording"]),
        ({"rationale": {"answer": "the answer"}}, ["has no group for the answer"]),
        ({"rationale": {"prompt": "{{ qestion }}"}}, ["E209", "rationale.prompt", "qestion"]),
        ({"rationale": {"prompt": "{{ choices | join }}"}}, ["E700", "rationale.prompt", "question"]),
        ({"rationale": {"prompt": "Say something."}}, ["E209", "rationale.prompt", "question"]),
        ({"decoding": {"method": "model", "prompt": "{{ text }}"}}, ["E209", "decoding.prompt"]),
    ],
)
def test_what_check_finds(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    result = check(tmp_path, changes)
    assert result.exit_code == 1, result.output
    assert all(word in result.output for word in words), result.output


# --- messages -------------------------------------------------------------------------------------------


def texts(kind: Any, codes: list[int], **more: Any) -> Any:
    packed: dict[str, Any] = pack_texts(np.array(codes, np.int32), ["text"] * len(codes))
    return kind(**packed, **more)


def test_every_question_has_a_number_of_its_own() -> None:
    check_questions(texts(Questions, [4, 0, 2]), "host 10000")
    check_questions(texts(Questions, []), "host 10000")
    with pytest.raises(ExtensionError, match=r"E301 host 10000 .*3 questions, 2 different numbers"):
        check_questions(texts(Questions, [4, 0, 4]), "host 10000")


def test_rationales_are_for_questions_that_were_asked() -> None:
    def some(codes: list[int]) -> Rationales:
        return texts(Rationales, codes, dropped={}, note="", unfinished=np.zeros(len(codes), np.uint8))

    check_rationales(some([2, 0]), "arbiter 9998", np.array([0, 1, 2]))
    check_rationales(some([]), "arbiter 9998", np.array([0]))
    check_rationales(some([]), "arbiter 9998", np.zeros(0))
    with pytest.raises(ExtensionError, match=r"E301 arbiter 9998 .*1 of 2 rationales are for no question"):
        check_rationales(some([2, 3]), "arbiter 9998", np.array([0, 1, 2]))
