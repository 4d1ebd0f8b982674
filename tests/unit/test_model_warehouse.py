"""Models of earlier jobs: their names are checked, and the local engine says that only FATE Flow has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import load_dag, parse_dag
from fate_llm_ext.pipelines.local import run_job

CONF = Path(__file__).resolve().parents[2] / "conf" / "fedmkt" / "three_sites"
WHERE = "tasks.predict_0.inputs.model.input_model.model_warehouse"


@pytest.fixture
def raw() -> Any:
    return yaml.safe_load((CONF / "predict.yaml").read_text())


def source(raw: Any) -> Any:
    return raw["dag"]["tasks"]["predict_0"]["inputs"]["model"]["input_model"]["model_warehouse"]


def found(raw: Any) -> set[tuple[str, str]]:
    return {(problem.where, problem.error.code) for problem in check(parse_dag(raw))}


def test_the_job_may_name_it_for_all_inputs(raw: Any) -> None:
    assert found(raw) == set()


def test_or_the_input_itself(raw: Any) -> None:
    source(raw).update(model_id=202611210017482039330, model_version="0")
    del raw["dag"]["conf"]["model_warehouse"]
    assert found(raw) == set()


def test_nobody_names_it(raw: Any) -> None:
    del raw["dag"]["conf"]["model_warehouse"]
    assert found(raw) == {(WHERE, "E853")}
    (problem,) = check(parse_dag(raw))
    assert "no model_id and model_version" in str(problem)


@pytest.mark.parametrize("key", ["model_id", "model_version"])
def test_half_a_name(raw: Any, key: str) -> None:
    """FATE Flow would look among the models of the very job that asks."""
    source(raw)[key] = "0"
    assert found(raw) == {(WHERE, "E853")}
    del source(raw)[key], raw["dag"]["conf"]["model_warehouse"][key]
    assert found(raw) == {("conf.model_warehouse", "E853")}


def test_everything_at_once(raw: Any) -> None:
    raw["dag"]["conf"]["model_warehouse"] = {"model_id": ["a"], "version": "0"}
    entry = source(raw)
    entry.update(job_id="1", producer_task=None)
    del entry["output_artifact_key"]
    assert found(raw) == {
        ("conf.model_warehouse", "E853"),
        ("conf.model_warehouse.model_id", "E103"),
        ("conf.model_warehouse.version", "E102"),
        (f"{WHERE}.job_id", "E102"),
        (f"{WHERE}.producer_task", "E103"),
        (f"{WHERE}.output_artifact_key", "E103"),
    }


def test_a_model_does_not_come_from_the_tables(raw: Any) -> None:
    inputs = raw["dag"]["tasks"]["predict_0"]["inputs"]
    inputs["model"]["input_model"], inputs["data"]["test_data"] = (
        copy.deepcopy(inputs["data"]["test_data"]),
        copy.deepcopy(inputs["model"]["input_model"]),
    )
    at = "tasks.predict_0.inputs"
    assert {
        (f"{at}.model.input_model.data_warehouse", "E852"),
        (f"{at}.data.test_data.model_warehouse", "E852"),
    } <= found(raw)


def test_the_local_engine_refuses_before_it_makes_anything(tmp_path: Path) -> None:
    dag = load_dag(CONF / "warm_start.yaml", ["conf.model_warehouse.model_id=202611210017482039330"])
    with pytest.raises(ExtensionError, match=r"E520 .*warm_start_model.model_warehouse.*FATE Flow"):
        run_job(dag, CONF / "sites.yaml", None, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_check_says_where_it_can_run() -> None:
    done = CliRunner().invoke(main, ["check", str(CONF / "predict.yaml")])
    assert done.exit_code == 0
    assert f"note: {WHERE}: only FATE Flow can serve this" in done.output
    assert "note:" not in CliRunner().invoke(main, ["check", str(CONF / "dag.yaml")]).output
