"""The shipped jobs on real data: FedMKT with four real tokenizers in one federation, DP-KD with two owners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jobs import make, program

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT.parent / "shared" / "assets"
FAMILIES = {"gpt2": "gpt2", "llama": "llama2", "opt": "opt", "neox": "neox"}
DATA = {
    "ag_news": ("ag_news/sample5000.csv", "ag_news/test.csv"),
    "commonsenseqa": ("commonsenseqa/train_rand_split.jsonl", "commonsenseqa/dev_rand_split.jsonl"),
}
SIZES = ["--parties", "guest_9999=24,host_10000=24,host_10001=24", "--alpha", "0.5"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One barely trained model per family, each with its real tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    small = ["--hidden", "16", "--layers", "1", "--steps", "10", "--threads", "1"]
    corpus = ["--corpus", ASSETS / "data" / "tinystories" / "tiny_stories.txt"]
    for arch, tokenizer in FAMILIES.items():
        place = ["--tokenizer", ASSETS / "tokenizers" / tokenizer, "--out", folder / arch]
        make("models", "tiny", "--arch", arch, *corpus, *place, *small)
    return folder


@pytest.mark.parametrize("name", sorted(DATA))
def test_a_shipped_job_runs_on_its_real_data(name: str, models: Path, tmp_path: Path) -> None:
    source, test = (ASSETS / "data" / file for file in DATA[name])
    counts = ["--public", "40", "--unlabelled", "24", "--test-from", test, "--test", "20"]
    root = tmp_path / "root"
    make("data", "split", source, "--template", name, "--out", root / "data", *SIZES, *counts)
    for place in (root, tmp_path):  # site files say models/... or, where draws of the data share them, ../models/...
        (place / "models").symlink_to(models)
    conf = ROOT / "conf" / "fedmkt" / name
    options = ["--sites", conf / "sites.yaml", "--root", root, "--out", tmp_path / "runs"]
    rounds = ["--set", "tasks.fedmkt_0.parameters.rounds=2"]
    done = program("run", conf / "dag.yaml", *options, *rounds, "--seed", "3", timeout=600)
    assert done.returncode == 0, done.stderr
    assert "mean of clients" in done.stdout
    (task,) = (tmp_path / "runs").glob("*/fedmkt_0")
    aligned: list[float] = []
    for party in ("guest_9999", "host_10000", "host_10001", "arbiter_9998"):
        events = [json.loads(line) for line in (task / party / "events.jsonl").read_text().splitlines()]
        arms = {event["arm"] for event in events if event["type"] == "result"}
        assert {"zero_shot", "standalone_public", "paper", "fedmkt"} <= arms
        rounds_seen = {e["round"] for e in events if e["type"] == "metric" and e["arm"] == "fedmkt"}
        assert rounds_seen == {0, 1}
        shares = [e["value"] for e in events if e["type"] == "metric" and e["name"] == "aligned_share"]
        aligned.append(max(shares, default=0.0))
        assert (task / party / "model" / "output_model" / "adapter_model.safetensors").is_file()
    # Who was taught nothing has nothing aligned; across tokenizers somebody must have been taught something.
    assert max(aligned) > 0.5


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AG News for two owners, a barely trained teacher and a student of another family with its own tokenizer."""
    root = tmp_path_factory.mktemp("news")
    source, test = (ASSETS / "data" / file for file in DATA["ag_news"])
    sizes = ["--parties", "guest_9999=300,host_10000=240", "--public", "10", "--test-from", test, "--test", "24"]
    make("data", "split", source, "--template", "ag_news", "--out", root / "data", *sizes)
    small = ["--hidden", "16", "--layers", "1", "--steps", "10", "--threads", "1", "--context", "64"]
    corpus = ["--corpus", ASSETS / "data" / "tinystories" / "tiny_stories.txt"]
    for name, arch, kind in (("teacher", "gpt2", "byte_bpe"), ("student", "llama", "sentencepiece_bpe")):
        place = ["--tokenizer-kind", kind, "--vocab-size", "500", "--out", root / "models" / name]
        make("models", "tiny", "--arch", arch, *corpus, *place, *small)
    return root


def test_dpkd_runs_on_real_news_with_two_owners(news: Path, tmp_path: Path) -> None:
    """The quickstart's job and sites, with AG News in the place of the tickets."""
    conf = ROOT / "conf" / "dpkd" / "quickstart"
    dag = yaml.safe_load((conf / "dag.yaml").read_text())
    parameters = dag["dag"]["tasks"]["dpkd_0"]["parameters"]
    parameters["control"] |= {"values": ["World", "Sports", "Business", "Technology"], "max_length": 48}
    parameters["privacy"] |= {"batch_size": 100, "epochs": 2}
    parameters["synthesis"] |= {"samples": 60, "max_new_tokens": 24}
    (tmp_path / "dag.yaml").write_text(yaml.safe_dump(dag))
    options = ["--sites", conf / "sites.yaml", "--root", news, "--out", tmp_path / "runs"]
    done = program("run", tmp_path / "dag.yaml", *options, timeout=240)
    assert done.returncode == 0, done.stderr
    (task,) = (tmp_path / "runs").glob("*/dpkd_0")
    parties = {path.name: path for path in task.iterdir() if path.is_dir()}
    events = {
        name: [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
        for name, path in parties.items()
    }
    judged = {e["arm"] for e in events["arbiter_9998"] if e["type"] == "result"}
    assert judged == {"dp_kd", "synthetic_ce"}
    for owner in ("guest_9999", "host_10000"):
        assert [e for e in events[owner] if e["type"] == "privacy"], f"{owner} states nothing about privacy"
        assert (parties[owner] / "model" / "output_model" / "adapter_model.safetensors").is_file()
        assert sorted((news / "state" / owner.split("_")[1]).rglob("*.jsonl")), f"{owner} has no ledger"
    assert (parties["arbiter_9998"] / "model" / "output_model" / "model.safetensors").is_file()
