"""The client set: FATE's Pipeline SDK with our components, without torch and without FATE itself (make test-client)."""

import importlib.util
import sys

import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import load_dag

sdk = pytest.importorskip("fate_client.pipeline")

from fate_llm_ext.pipelines import FDKT, FedCoT, FedMKT  # noqa: E402 - needs fate_client


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


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ExtensionError, match="Did you mean 'rounds'"):
        FedMKT("x", round=3)


def test_nothing_heavy_is_needed():
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed here")
    assert not {"torch", "fate", "pandas", "numpy"} & set(sys.modules)
