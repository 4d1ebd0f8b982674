"""examples/fedmkt_flow.ipynb, run from its first cell to its last against the three sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import peft
import pytest
import transformers
import yaml
from nbclient import NotebookClient
from sites import CONF, ROLES, Federation, FederationError

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "fedmkt_flow.ipynb"


def run(folder: Path) -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Cells wait for whole jobs; the kernel is this interpreter, with this environment's variables.
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def text_of(notebook: Any) -> str:
    """All that the cells have printed and shown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data.get("text/plain", "") for output in outputs if output.output_type != "stream"]
    return "\n".join([*(output.text for output in outputs if output.output_type == "stream"), *shown])


def test_the_notebook(federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with FATE's reader and SDK, metrics, model by plain peft, deploy and predict."""
    guest, base = federation.site("9999"), federation.data / "models/gpt2"
    settings = {"FATE_LLM_EXT_SERVER": guest.address, "BASE_MODEL": str(base), "OUT": str(tmp_path / "fetched")}
    for name, value in {**settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    text = text_of(run(tmp_path))
    for expected in ("of party 9999", "Job is success", "private_loss", "zero_shot", "adapter_model.safetensors"):
        assert expected in text
    (adapter,) = (tmp_path / "fetched").glob("*/fedmkt_0/guest_9999/model/output_model")
    card = (adapter / "README.md").read_text()
    assert "ε = ∞" in card
    statement = json.loads((adapter / "privacy.json").read_text())
    assert statement["data"]["table"] == "llm/news", "FATE's reader has handed on the table's own name"
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    assert all(float(p.detach().abs().sum()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    (predicted,) = (tmp_path / "fetched").rglob("predictions.jsonl")
    rows = [json.loads(line) for line in predicted.read_text().splitlines()]
    tests = (federation.data / "data/guest_9999/test.jsonl").read_text().splitlines()
    assert [row["row"] for row in rows] == list(range(len(tests)))


def test_the_models_of_a_job_serve_later_jobs(federation: Federation) -> None:
    """The raw DAGs: predictions by the models of a job, and a job that goes on from them."""
    first = federation.succeeds(federation.dag())
    jobs = {}
    for name in ("warm_start", "predict"):
        dag = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        dag["dag"]["conf"]["model_warehouse"]["model_id"] = first
        jobs[name] = federation.succeeds(dag)
    for party in ROLES:
        ended = results(federation, first, party, "fedmkt")
        assert results(federation, jobs["warm_start"], party, "zero_shot") == pytest.approx(ended, rel=1e-6)
    for party in ("9999", "10000"):
        folder = federation.site(party).folder / "flow/jobs" / jobs["predict"]
        (predicted,) = folder.rglob("predictions.jsonl")
        assert len(predicted.read_text().splitlines()) == 40


def test_a_job_without_such_a_model_is_refused(federation: Federation) -> None:
    """As the file is shipped: nothing starts."""
    with pytest.raises(FederationError, match=r"model_id\[JOB\]"):
        federation.submit(CONF / "predict.yaml")


def results(federation: Federation, job: str, party: str, arm: str) -> dict[str, float]:
    where = {"job_id": job, "role": ROLES[party], "party_id": party, "task_name": "fedmkt_0"}
    metrics = federation.site(party).get("output/metric/query", **where) or []
    (found,) = (one["data"] for one in metrics if one["type"] == "result" and one["groups"][-1]["name"] == arm)
    return dict(found)
