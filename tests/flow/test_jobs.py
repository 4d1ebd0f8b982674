"""The job of conf/fedmkt/three_sites between three servers of FATE Flow, and what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from sites import CONF, ENDED, ENVIRONMENT, PROGRAM, ROLES, Federation, Site

CLIENTS = ("9999", "10000")
ROUNDS = 2
NAMES = 4  # variable names of FATE's transport that a job may use; each costs tenths of a second
NEAR = 1.0e-6
_QUEUE = re.compile(r"(?:send|receive)-.+?-(?:guest|host|arbiter)-\d+-(?:guest|host|arbiter)-\d+-(.+)")
# Nothing of ours is imported: this is what somebody does who gets the folder.
_PLAIN_PEFT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter = sys.argv[1:]
plain = AutoModelForCausalLM.from_pretrained(base)
tokenizer = AutoTokenizer.from_pretrained(adapter)
inputs = tokenizer("Stocks fell on Monday.", return_tensors="pt")
inputs.pop("token_type_ids", None)
with torch.no_grad():
    before = plain(**inputs).logits
    model = PeftModel.from_pretrained(plain, adapter)
    model.eval()
    after = model(**inputs).logits
moved = sum(float(p.abs().sum()) for n, p in model.named_parameters() if "lora_B" in n)
print(json.dumps({
    "change": float((after - before).abs().max()), "lora_B": moved, "finite": bool(after.isfinite().all()),
    "ours": [name for name in sys.modules if name.startswith("fate")],
}))
"""

Curves = dict[tuple[str, str, str], dict[int, float]]


@dataclass
class Trained:
    """The raw DAG, run by `flow job submit`."""

    job_id: str
    names: set[str]  # of variables, as the brokers' queues tell


@pytest.fixture(scope="module")
def trained(federation: Federation) -> Trained:
    job_id = federation.submit(CONF / "dag.yaml")
    names: set[str] = set()
    deadline = time.monotonic() + 600
    while (status := federation.status(job_id)) not in ENDED and time.monotonic() < deadline:
        for site in federation.sites.values():
            names |= _variables(site, job_id)
        time.sleep(0.3)
    assert status == "success", federation.report(job_id)
    return Trained(job_id, names)


@pytest.fixture(scope="module")
def fetched(federation: Federation, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the job: the parts that the three sites have fetched, side by side."""
    out = tmp_path_factory.mktemp("fetched")
    for site in federation.sites.values():
        done = site.cli("fetch", trained.job_id, "--out", out / site.party_id)
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def local(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the same DAG on this machine alone."""
    out = tmp_path_factory.mktemp("local")
    call = [str(PROGRAM), "run", str(CONF / "dag.yaml"), "--sites", str(federation.sites_file), "--out", str(out)]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = out.iterdir()
    return run


def _variables(site: Site, job_id: str) -> set[str]:
    password = (site.folder / "secrets/broker").read_text().strip()
    address = f"http://127.0.0.1:{site.settings['BROKER_MANAGEMENT_PORT']}/api/queues?columns=name"
    queues = requests.get(address, auth=("fate", password), timeout=20).json()
    found = [_QUEUE.fullmatch(queue["name"]) for queue in queues if job_id in queue["name"]]
    return {match[1] for match in found if match}


def _curves(metrics: list[dict[str, Any]]) -> Curves:
    """(name, type, arm) -> step -> value, of the metrics that have steps; no step may be there twice."""
    curves: Curves = {}
    for metric in metrics:
        if metric["step_axis"] is None:
            continue
        arm = "/".join(group["name"] for group in metric["groups"])
        curve = curves.setdefault((metric["name"], metric["type"], arm), {})
        for point in metric["data"]:
            assert point["step"] not in curve, (metric, curve)
            curve[point["step"]] = point["metric"]
    return curves


def _numbers(metrics: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Every point of every curve, and the final numbers of every arm."""
    points = {(*key, step): value for key, curve in _curves(metrics).items() for step, value in curve.items()}
    for metric in metrics:
        if metric["type"] == "result":
            arm = metric["groups"][-1]["name"]
            points |= {("result", arm, name): value for name, value in metric["data"].items()}
    return points


def _numbers_of_events(path: Path) -> dict[tuple[Any, ...], float]:
    numbers = {}
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if event["type"] in ("metric", "result"):
            name = event.get("name") or event["metric"]
            numbers[event["arm"], event.get("round"), name] = event["value"]
    return numbers


def _metrics(federation: Federation, job_id: str, party: str) -> list[dict[str, Any]]:
    query = {"role": ROLES[party], "party_id": party, "task_name": "fedmkt_0"}
    return list(federation.site(party).get("output/metric/query", job_id=job_id, **query))


def _differences(one: dict[tuple[Any, ...], float], other: dict[tuple[Any, ...], float]) -> list[str]:
    """Where two sets of numbers differ by more than 1e-6; times are nobody's result."""
    wrong = [f"{key} is on one side only" for key in one.keys() ^ other.keys()]
    for key in sorted(one.keys() & other.keys(), key=str):
        if "seconds" not in key and not abs(one[key] - other[key]) <= NEAR:
            wrong.append(f"{key}: {one[key]} and {other[key]}")
    return wrong


def test_raw_dag_succeeds_at_every_site(federation: Federation, trained: Trained) -> None:
    for party in federation.sites:
        (task,) = federation.tasks(trained.job_id, party)
        assert (task["status"], task["error_report"]) == ("success", "")
    assert not federation.workers(trained.job_id)


def test_few_variable_names(trained: Trained) -> None:
    assert 1 <= len(trained.names) <= NAMES, trained.names


@pytest.mark.parametrize("party", ROLES)
def test_metrics_as_fateboard_reads_them(federation: Federation, trained: Trained, party: str) -> None:
    """FATEBoard lists the keys, asks for each, and draws what has a step for each point."""
    site = federation.site(party)
    where = {"job_id": trained.job_id, "role": ROLES[party], "party_id": party, "task_name": "fedmkt_0"}
    keys = site.get("output/metric/key/query", **where)
    curves = _curves(site.get("output/metric/query", **where))
    drawn = {(key["name"], key["type"], "/".join(g["name"] for g in key["groups"])) for key in keys if key["step_axis"]}
    assert drawn == set(curves)
    assert {key["step_axis"] for key in keys} <= {"iterations", None}
    fedmkt = {name: curve for (name, _, arm), curve in curves.items() if arm == "default/fedmkt"}
    expected = {"public_loss", "nll_per_byte", "accuracy"} | ({"private_loss"} if party in CLIENTS else set())
    assert expected <= set(fedmkt)
    for name in expected:
        assert sorted(fedmkt[name]) == list(range(ROUNDS))
        assert all(isinstance(value, float) for value in fedmkt[name].values())
    kinds = {name: kind for name, kind, _ in curves}
    assert (kinds["public_loss"], kinds["accuracy"], kinds["nll_per_byte"]) == ("loss", "accuracy", "scalar")


@pytest.mark.parametrize("party", ROLES)
def test_same_metrics_as_the_local_run(
    federation: Federation, trained: Trained, fetched: Path, local: Path, party: str
) -> None:
    here = local / f"fedmkt_0/{ROLES[party]}_{party}"
    ours, theirs = json.loads((here / "metric.json").read_text()), _metrics(federation, trained.job_id, party)
    assert not _differences(_numbers(ours), _numbers(theirs))
    assert {("result", "fedmkt", "accuracy"), ("accuracy", "accuracy", "default/fedmkt", 1)} <= set(_numbers(ours))
    events = fetched / party / trained.job_id / f"fedmkt_0/{ROLES[party]}_{party}/events.jsonl"
    assert not _differences(_numbers_of_events(here / "events.jsonl"), _numbers_of_events(events))
    assert any(name == "accuracy" for *_, name in _numbers_of_events(events))


def _load_with_peft(base: Path, adapter: Path) -> dict[str, Any]:
    call = [sys.executable, "-c", _PLAIN_PEFT, str(base), str(adapter)]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("party", "base"), [("9999", "gpt2"), ("10001", "neox")])
def test_model_loads_with_plain_peft(
    federation: Federation, trained: Trained, fetched: Path, tmp_path: Path, party: str, base: str
) -> None:
    """As the guest gets it from `flow output download-model`, and the arbiter from `fate-llm-ext fetch`."""
    if party == "9999":
        where = ("-j", trained.job_id, "-r", "guest", "-p", party, "-tn", "fedmkt_0")
        answer = federation.site(party).flow("output", "download-model", *where, "-o", tmp_path)
        assert answer["code"] == 0, answer
        (card,) = tmp_path.rglob("adapter_config.json")
        folder = card.parent
    else:
        folder = fetched / party / trained.job_id / f"fedmkt_0/arbiter_{party}/model/output_model"
    assert {"README.md", "adapter_model.safetensors", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    seen = _load_with_peft(federation.data / "models" / base, folder)
    assert seen["finite"]
    assert seen["lora_B"] > 0, "the adapter is untrained"
    assert seen["change"] > 0
    assert seen["ours"] == []


def test_predict_from_the_trained_model(federation: Federation, trained: Trained, tmp_path: Path) -> None:
    dag = yaml.safe_load((CONF / "predict.yaml").read_text())
    dag["dag"]["conf"]["model_warehouse"]["model_id"] = trained.job_id
    job_id = federation.succeeds(dag, 600)
    for party in CLIENTS:
        done = federation.site(party).cli("fetch", job_id, "--out", tmp_path / party)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / party).rglob("predictions.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        table = federation.data / f"data/{ROLES[party]}_{party}/test.jsonl"
        assert len(rows) == len(table.read_text().splitlines()) > 0
        assert {row["prediction"] for row in rows} <= {"World", "Sports", "Business", "Technology"}
