"""The client set: FATE's Pipeline SDK with our components, without torch and without FATE itself (make test-client)."""

import importlib.util
import sys

import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import load_dag

sdk = pytest.importorskip("fate_client.pipeline")

from fate_client.pipeline.components.fate import Reader  # noqa: E402 - needs fate_client
from fate_client.pipeline.entity.model_info import FateFlowModelInfo  # noqa: E402

from fate_llm_ext.pipelines import FDKT, FedCoT, FedMKT  # noqa: E402

COMMON = {"task": {"template": "ag_news"}, "model": {"name": "slm"}}


def test_a_job_from_the_pipeline_sdk_is_a_job_file(tmp_path):
    pipeline = sdk.FateFlowPipeline().set_parties(guest="9999", host=["10000"], arbiter="9998")
    common = {"task": {"template": "ag_news"}, "public": {"name": "p"}, "model": {"name": "slm"}}
    task = FedMKT("fedmkt_0", train_data="llm/news", direction="llm_to_slm", **common)
    task.arbiter.task_parameters(model={"name": "llm"})
    pipeline.add_task(task)
    path = tmp_path / "dag.yaml"
    path.write_text(pipeline.compile().get_dag())
    dag = load_dag(path)
    assert dag.problems == []
    assert sorted(map(str, dag.parties)) == ["arbiter 9998", "guest 9999", "host 10000"]
    assert dag.tasks["fedmkt_0"].parameters["direction"] == "llm_to_slm"
    arbiter = dag.raw["dag"]["party_tasks"]["arbiter_9998"]["tasks"]["fedmkt_0"]["parameters"]
    assert arbiter["model"] == {"name": "llm"}


def test_one_component_takes_another_s_model(tmp_path):
    pipeline = sdk.FateFlowPipeline().set_parties(guest="9999", host=["10000"], arbiter="9998")
    control = {"code": "{{ label }}", "values": ["billing", "sales"]}
    common = {"train_data": "llm/tickets", "student": {"name": "slm"}}
    maker = FDKT("fdkt_0", control=control, privacy={"epsilon": 2.0}, generator={"name": "slm"}, **common)
    strategy = {"strategy": "dp_generator"}
    link = maker.outputs["generator_model"]
    taker = FedCoT("fedcot_0", task={"template": "tickets"}, perturbation=strategy, generator=link, **common)
    pipeline.add_tasks([maker, taker])
    path = tmp_path / "dag.yaml"
    path.write_text(pipeline.compile().get_dag())
    dag = load_dag(path)
    assert dag.problems == []
    assert [task.name for task in dag.order()] == ["fdkt_0", "fedcot_0"]
    (source,) = next(one for one in dag.tasks["fedcot_0"].inputs if one.name == "generator").sources
    assert (source.fields["producer_task"], source.fields["output_artifact_key"]) == ("fdkt_0", "generator_model")
    assert {str(party) for party in dag.parties if source.serves(party)} == {"guest 9999", "host 10000"}


def dag_of(tmp_path, *tasks, arbiter="9998"):
    pipeline = sdk.FateFlowPipeline().set_parties(guest="9999", host=["10000"], arbiter=arbiter)
    pipeline.add_tasks(list(tasks))
    path = tmp_path / "dag.yaml"
    path.write_text(pipeline.compile().get_dag())
    return load_dag(path)


def test_a_model_of_an_earlier_job_is_named_by_job_and_task(tmp_path):
    common = {"train_data": "llm/news", "public": {"name": "p"}}
    task = FedMKT("on_0", warm_start_model="20261121/fedmkt_0", **COMMON, **common)
    dag = dag_of(tmp_path, task)
    assert dag.problems == []
    assert dag.tasks["on_0"].stage == "train"
    (source,) = next(one for one in dag.tasks["on_0"].inputs if one.kind == "model").sources
    expected = {"model_id": "20261121", "model_version": "0", "producer_task": "fedmkt_0"}
    assert source.kind == "model_warehouse"
    assert source.fields == {**expected, "output_artifact_key": "output_model"}


def test_prediction_by_a_model_of_an_earlier_job(tmp_path):
    dag = dag_of(tmp_path, FedMKT("predict_0", test_data="llm/news", input_model="20261121/fedmkt_0", **COMMON))
    assert dag.problems == []
    assert dag.tasks["predict_0"].stage == "predict"


def test_another_output_of_a_job(tmp_path):
    given = {"train_data": "llm/tickets", "student": {"name": "slm"}, "task": {"template": "tickets"}}
    task = FedCoT("fedcot_0", perturbation={"strategy": "dp_generator"}, generator="7/fdkt_0/generator_model", **given)
    (source,) = next(one for one in dag_of(tmp_path, task).tasks["fedcot_0"].inputs if one.kind == "model").sources
    assert (source.fields["producer_task"], source.fields["output_artifact_key"]) == ("fdkt_0", "generator_model")


@pytest.mark.parametrize("text", ["news", "/news", "llm/"])
def test_a_table_is_named_by_namespace_and_name(text):
    with pytest.raises(ExtensionError, match=r"E854 .*train_data.*<namespace>/<name>"):
        FedMKT("x", train_data=text)


@pytest.mark.parametrize("text", ["1", "1/", "/a", "1/a/", "1/a/b/c"])
def test_a_model_is_named_by_job_and_task(text):
    with pytest.raises(ExtensionError, match=r"E854 .*warm_start_model.*<job id>/<task>"):
        FedMKT("x", warm_start_model=text)


def trained():
    """A pipeline as it is after `fit`."""
    pipeline = sdk.FateFlowPipeline().set_parties(guest="9999", host="10000", arbiter="9998")
    owners = {"guest": "9999", "host": "10000"}
    reader = Reader("reader_0", runtime_parties=owners, namespace="llm", name="news")
    task = FedMKT("fedmkt_0", train_data=reader.outputs["output_data"], public={"name": "p"}, rounds=2, **COMMON)
    task.arbiter.task_parameters(model={"name": "llm"})
    pipeline.add_tasks([reader, task]).compile()
    pipeline.model_info = FateFlowModelInfo("7", "guest", "9999", "7", "0")
    pipeline.deploy([task])
    return pipeline


@pytest.mark.parametrize("stored", [False, True])
def test_a_deployed_pipeline_predicts_with_the_trained_model(tmp_path, stored):
    """FATE's reader, `deploy`, and a pipeline that was put on disk in between."""
    pipeline = trained()
    if stored:
        pipeline.dump_model(str(tmp_path / "pipeline"))
        pipeline = sdk.FateFlowPipeline.load_model(str(tmp_path / "pipeline"))
    deployed = pipeline.get_deployed_pipeline()
    reader = Reader("reader_1", runtime_parties={"guest": "9999"}, namespace="llm", name="new")
    deployed.fedmkt_0.test_data = reader.outputs["output_data"]
    again = sdk.FateFlowPipeline().add_tasks([reader, deployed]).compile()
    path = tmp_path / "dag.yaml"
    path.write_text(again.get_dag())
    dag = load_dag(path)
    assert dag.problems == []
    assert (dag.stage, set(dag.tasks)) == ("predict", {"reader_1", "fedmkt_0"})
    assert dag.conf["model_warehouse"] == {"model_id": "7", "model_version": "0"}
    inputs = {one.name: one.sources[0] for one in dag.tasks["fedmkt_0"].inputs}
    assert set(inputs) == {"test_data", "input_model"}
    assert inputs["input_model"].kind == "model_warehouse"
    assert [str(party) for party in dag.parties if inputs["test_data"].serves(party)] == ["guest 9999"]
    arbiter = dag.raw["dag"]["party_tasks"]["arbiter_9998"]["tasks"]["fedmkt_0"]["parameters"]
    assert arbiter["model"] == {"name": "llm"}


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ExtensionError, match="Did you mean 'rounds'"):
        FedMKT("x", round=3)


def test_nothing_heavy_is_needed():
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed here")
    assert not {"torch", "fate", "pandas", "numpy"} & set(sys.modules)
