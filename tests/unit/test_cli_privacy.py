"""`privacy plan`, `ledger` and `verify`, as an operator types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from fate_llm_ext.algo.private import Planned, charge
from fate_llm_ext.cli.main import main
from fate_llm_ext.privacy.events import DataSet, Gaussian, NonPrivate, Release
from fate_llm_ext.site import load_sites

GUEST = {"role": "guest", "party_id": ["9999"]}
PARTIES = [GUEST, {"role": "arbiter", "party_id": ["9998"]}]
DATA = DataSet("llm/mail", "ab" * 32, 2000)
CONTENT: dict[str, Any] = {
    "guest_9999": {
        "tables": {"llm/mail": "mail.jsonl"},
        "models": {"slm": "m"},
        "public": {"p": "mail.jsonl"},
        "budgets": {"llm/mail": {"epsilon": 8, "delta": 1e-5}},
    },
    "arbiter_9998": {"models": {"slm": "m"}, "public": {"p": "mail.jsonl"}},
}


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    path = tmp_path / "sites.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    (tmp_path / "m").mkdir()
    (tmp_path / "mail.jsonl").write_text('{"text": "a b", "label": 0}\n')
    return path


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    table = {"namespace": "llm", "name": "mail", "parties": [GUEST]}
    parameters = {"task": {"template": "ag_news"}, "public": {"name": "p"}, "model": {"name": "slm"}}
    task = {
        "component_ref": "fedmkt",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    path = tmp_path / "dag.yaml"
    job = {"parties": PARTIES, "stage": "train", "tasks": {"fedmkt_0": task}}
    path.write_text(yaml.safe_dump({"dag": job, "schema_version": "2.2.0", "kind": "fate"}))
    return path


def spend(sites: Path, party: str = "guest_9999") -> None:
    release = Release("dpkd", "job-1", "texts", ("arbiter 9998",), (Gaussian(4.0),))
    charge(load_sites(sites)[party], DATA, Planned(release, 1e-5))


def test_plan_says_what_would_be_refused_and_why(dag: Path, sites: Path) -> None:
    result = call("privacy", "plan", dag, "--sites", sites)
    assert result.exit_code == 1
    for text in ("fedmkt_0", "guest 9999", "llm/mail", "∞", "refused", "top-k", "would be refused: E611"):
        assert text in result.output, text
    assert not (sites.parent / "state").exists(), "planning writes nothing"


def test_plan_of_a_job_that_may_run(dag: Path, sites: Path) -> None:
    content = {**CONTENT, "guest_9999": {**CONTENT["guest_9999"], "budgets": {}}}
    sites.write_text(yaml.safe_dump(content))
    result = call("privacy", "plan", dag, "--sites", sites)
    assert result.exit_code == 0, result.output
    assert "no budget is set for llm/mail" in result.output


def test_plan_first_checks_the_job(dag: Path, sites: Path) -> None:
    result = call("privacy", "plan", dag, "--sites", sites, "--set", "tasks.fedmkt_0.parameters.rounds=0")
    assert result.exit_code == 1
    assert "E120" in result.output
    assert "nothing can be planned" in result.output


def test_ledger_shows_spending_budget_and_releases(sites: Path) -> None:
    empty = call("privacy", "ledger", "--sites", sites)
    assert empty.exit_code == 0
    assert "8.00" in empty.output
    spend(sites)
    spend(sites)
    result = call("privacy", "ledger", "--sites", sites)
    assert result.exit_code == 0, result.output
    for text in ("guest_9999", "2,000", "dpkd, job job-1", "texts", "arbiter 9998", "Gaussian noise"):
        assert text in result.output, text
    (table,) = json.loads(call("privacy", "ledger", "--sites", sites, "--json").output)
    assert len(table["releases"]) == 2
    assert table["releases"][0]["epsilon"] < table["epsilon"] < 2 * table["releases"][0]["epsilon"]
    assert table["left"] == pytest.approx(8 - table["epsilon"])
    assert table["releases"][0]["mechanisms"] == [{"kind": "gaussian", "noise_multiplier": 4.0, "count": 1}]


def test_ledger_of_one_party_and_one_table(sites: Path) -> None:
    spend(sites)
    assert json.loads(call("privacy", "ledger", "--sites", sites, "--party", "arbiter_9998", "--json").output) == []
    assert json.loads(call("privacy", "ledger", "--sites", sites, "--table", "llm/other", "--json").output) == []
    assert "No budget is set" in call("privacy", "ledger", "--sites", sites, "--party", "arbiter_9998").output
    result = call("privacy", "ledger", "--sites", sites, "--party", "guest_1")
    assert result.exit_code == 1
    assert "E114" in result.output


def test_json_has_no_infinite_numbers(sites: Path) -> None:
    content = {**CONTENT, "guest_9999": {**CONTENT["guest_9999"], "budgets": {}}}
    sites.write_text(yaml.safe_dump(content))
    release = Release("fedmkt", "job-1", "signals", ("arbiter 9998",), (NonPrivate(),))
    charge(load_sites(sites)["guest_9999"], DATA, Planned(release))
    text = call("privacy", "ledger", "--sites", sites, "--json").output
    (table,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert table["epsilon"] == table["releases"][0]["epsilon"] == "infinity"
    assert "∞" in call("privacy", "ledger", "--sites", sites).output


def test_parties_of_one_file_spend_apart(sites: Path) -> None:
    spend(sites)
    spend(sites, "guest_9999")
    folders = {name: site.ledger() for name, site in load_sites(sites).items()}
    assert len(set(folders.values())) == 2
    assert sites.parent / "state" / "9999" / "ledger" == folders["guest_9999"]
    assert not folders["arbiter_9998"].exists()


def test_sections_of_one_party_are_shown_once(sites: Path) -> None:
    """They have one ledger, and the budgets of both hold for both."""
    content = {**CONTENT, "host_9999": {"tables": {"llm/mail": "mail.jsonl"}}}
    sites.write_text(yaml.safe_dump(content))
    spend(sites, "host_9999")
    (table,) = json.loads(call("privacy", "ledger", "--sites", sites, "--json").output)
    assert (table["party"], table["budget"]["epsilon"]) == ("guest_9999, host_9999", 8.0)
    (table,) = json.loads(call("privacy", "ledger", "--sites", sites, "--party", "host_9999", "--json").output)
    assert (table["party"], len(table["releases"])) == ("host_9999", 1)
    assert call("privacy", "verify", "--sites", sites).output.count("OK") == 2, "the arbiter's is the other"


def test_verify_finds_an_edited_entry(sites: Path) -> None:
    spend(sites)
    result = call("privacy", "verify", "--sites", sites)
    assert result.exit_code == 0, result.output
    assert "OK: guest_9999: 1 release(s)" in result.output
    (file,) = (sites.parent / "state" / "9999" / "ledger").glob("*.jsonl")
    file.write_text(file.read_text().replace("4.0", "9.0"))
    result = call("privacy", "verify", "--sites", sites)
    assert result.exit_code == 1
    assert "E613" in result.output
    assert "1 problem(s)" in result.output
    assert "OK" not in result.output
    shown = call("privacy", "ledger", "--sites", sites)
    assert shown.exit_code == 1
    assert "E612" in shown.output


def test_a_missing_site_file_is_one_clear_line(tmp_path: Path) -> None:
    for command in ("ledger", "verify"):
        result = call("privacy", command, "--sites", tmp_path / "none.yaml")
        assert result.exit_code == 1
        assert "E112" in result.output


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, fate_llm_ext.cli.privacy, fate_llm_ext.pipelines.plan, fate_llm_ext.pipelines.spending; "
        "assert not {'torch', 'opacus', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
