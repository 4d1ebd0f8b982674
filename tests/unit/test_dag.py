"""Reading FATE's job files."""

from pathlib import Path

import pytest
import yaml

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.dag import Party, edit_dag, load_dag, parse_dag

GUEST, HOST, ARBITER = Party("guest", "9999"), Party("host", "10000"), Party("arbiter", "9998")


def link(task, key="output_model"):
    return {"model": {"input_model": {"task_output_artifact": {"producer_task": task, "output_artifact_key": key}}}}


def raw_job(**tasks):
    parties = [{"role": one.role, "party_id": [one.id]} for one in (GUEST, HOST, ARBITER)]
    return {"dag": {"parties": parties, "stage": "train", "tasks": tasks}, "schema_version": "2.2.0", "kind": "fate"}


def test_party_tasks_replace_key_by_key_without_deep_merge():
    raw = raw_job(a={"component_ref": "fedmkt", "parameters": {"rounds": 3, "lora": {"r": 8, "alpha": 16}}})
    own = {"parties": [{"role": "arbiter", "party_id": "9998"}], "tasks": {"a": {"parameters": {"lora": {"r": 4}}}}}
    raw["dag"]["party_tasks"] = {"big": own}
    dag = parse_dag(raw)
    assert not dag.problems
    assert dag.tasks["a"].parameters_of(ARBITER) == {"rounds": 3, "lora": {"r": 4}}
    assert dag.tasks["a"].parameters_of(GUEST) == {"rounds": 3, "lora": {"r": 8, "alpha": 16}}
    assert dag.tasks["a"].located(ARBITER)["lora"][1] == "party_tasks.big.tasks.a.parameters.lora"


def test_stage_is_the_tasks_own_or_the_jobs():
    dag = parse_dag(raw_job(a={"component_ref": "x"}, b={"component_ref": "x", "stage": "predict"}))
    assert [task.stage for task in dag.tasks.values()] == ["train", "predict"]


def test_order_comes_from_artifact_links_alone():
    tasks = {
        "last": {"component_ref": "x", "inputs": link("first")},
        "first": {"component_ref": "x", "dependent_tasks": ["last"]},
    }
    assert [task.name for task in parse_dag(raw_job(**tasks)).order()] == ["first", "last"]


def test_a_cycle_is_an_error():
    dag = parse_dag(
        raw_job(a={"component_ref": "x", "inputs": link("b")}, b={"component_ref": "x", "inputs": link("a")})
    )
    with pytest.raises(ExtensionError, match=r"E127.*a -> b -> a"):
        dag.order()


def test_sources_name_their_parties():
    table = {"namespace": "llm", "name": "news", "parties": [{"role": "host", "party_id": ["10000"]}]}
    job = raw_job(a={"component_ref": "x", "inputs": {"data": {"train_data": {"data_warehouse": [table]}}}})
    (given,) = parse_dag(job).tasks["a"].inputs
    assert given.sources_of(GUEST) == []
    assert given.sources_of(HOST)[0].fields["name"] == "news"


def test_the_sdk_form_is_read_too():
    """fate-client writes one mapping instead of a list, an empty `model`, and no `kind`."""
    table = {"namespace": "llm", "name": "news"}
    job = raw_job(a={"component_ref": "x", "inputs": {"data": {"train_data": {"data_warehouse": table}}, "model": {}}})
    del job["kind"]
    dag = parse_dag(job)
    assert not dag.problems
    assert len(dag.tasks["a"].inputs[0].sources_of(GUEST)) == 1


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "dag.yaml"
    path.write_text(yaml.safe_dump(raw_job(a={"component_ref": "fedmkt", "parameters": {"rounds": 3}})))
    return path


def test_overrides_from_the_command_line(job_file):
    texts = ["tasks.a.parameters.rounds=2", "tasks.a.parameters.train.learning_rate=1e-4", "dag.conf.task.timeout=60"]
    dag = load_dag(job_file, [*texts, "tasks.a.parameters.task.template=ag_news"])
    parameters = dag.tasks["a"].parameters
    assert parameters == {"rounds": 2, "train": {"learning_rate": 1e-4}, "task": {"template": "ag_news"}}
    assert dag.conf == {"task": {"timeout": 60}}
    assert edit_dag(dag, {"tasks.a.parameters.rounds": 9}).tasks["a"].parameters["rounds"] == 9
    assert dag.tasks["a"].parameters["rounds"] == 2


def test_a_copy_of_a_common_parameter_follows_its_change():
    """The Pipeline SDK writes such copies; what a party really has of its own stays."""
    raw = raw_job(a={"component_ref": "fedmkt", "parameters": {"rounds": 3, "seed": 0}})
    own = {
        "parties": [{"role": "arbiter", "party_id": "9998"}],
        "tasks": {"a": {"parameters": {"rounds": 3, "seed": 5}}},
    }
    raw["dag"]["party_tasks"] = {"arbiter_9998": own}
    dag = edit_dag(parse_dag(raw), {"tasks.a.parameters.rounds": 2, "tasks.a.parameters.seed": 1})
    assert dag.tasks["a"].parameters_of(ARBITER) == {"rounds": 2, "seed": 5}
    assert dag.tasks["a"].parameters_of(GUEST) == {"rounds": 2, "seed": 1}


@pytest.mark.parametrize("text", ["tasks.b.parameters.rounds=2", "rounds", "tasks.a.component_ref.x=1"])
def test_an_override_that_fits_nowhere(job_file, text):
    with pytest.raises(ExtensionError, match="E105"):
        load_dag(job_file, [text])


@pytest.mark.parametrize("text", [None, "- a\n", "a: [\n", "\x00"])
def test_unreadable_files(tmp_path, text):
    path = tmp_path / "dag.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ExtensionError, match="E100"):
        load_dag(path)


def test_a_key_given_twice_is_noticed(tmp_path):
    path = tmp_path / "dag.yaml"
    path.write_text(yaml.safe_dump(raw_job(a={"component_ref": "x"})) + "kind: fate\n")
    assert [(one.where, one.error.code) for one in load_dag(path).problems] == [("kind", "E101")]


def test_what_is_written_reads_back(job_file):
    dag = load_dag(job_file)
    again = yaml.safe_load(dag.to_yaml())
    assert parse_dag(again, Path("x")).tasks == dag.tasks
