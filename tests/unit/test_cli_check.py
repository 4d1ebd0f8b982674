"""`check`, `desc` and what `run` refuses to start, as a user types them."""

import io
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from fate_llm_ext.cli.board import LiveBoard, PlainBoard, Row
from fate_llm_ext.cli.main import main
from fate_llm_ext.pipelines.job import Party

TASK = {
    "component_ref": "text_evaluation",
    "parameters": {"task": {"template": "ag_news"}, "model": {"name": "slm"}},
    "inputs": {"data": {"test_data": {"data_warehouse": [{"namespace": "llm", "name": "news"}]}}},
}


@pytest.fixture
def job(tmp_path):
    dag = {"parties": [{"role": "guest", "party_id": ["9999"]}], "stage": "default", "tasks": {"test_0": TASK}}
    path = tmp_path / "dag.yaml"
    path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    return path


def call(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_good_job_is_one_line(job):
    result = call("check", job)
    assert result.exit_code == 0
    assert result.output.startswith("OK")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("command", [["check"], ["run"]])
def test_all_problems_are_listed_and_the_exit_code_is_1(job, command, tmp_path):
    changes = ["tasks.test_0.parameters.modle=1", "tasks.test_0.parameters.max_new_tokens=0"]
    result = call(*command, job, "--set", changes[0], "--set", changes[1])
    assert result.exit_code == 1
    assert "E119" in result.output
    assert "E120" in result.output
    assert "2 problem(s)" in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_missing_file_is_one_clear_line(command, tmp_path):
    result = call(command, tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "E100" in result.output


def test_prompts_are_printed_after_the_checks(tmp_path):
    parties = [{"role": role, "party_id": [number]} for role, number in (("guest", "9999"), ("arbiter", "9998"))]
    table = {"namespace": "llm", "name": "news", "parties": parties[:1]}
    parameters = {
        "control": {"code": "{{ label }}", "values": ["World", "Sports"]},
        "privacy": {"epsilon": 3},
        **{name: {"name": "slm"} for name in ("generator", "student", "llm")},
    }
    task = {
        "component_ref": "fdkt",
        "parameters": parameters,
        "inputs": {"data": {"train_data": {"data_warehouse": [table]}}},
    }
    path = tmp_path / "dag.yaml"
    dag = {"parties": parties, "stage": "train", "tasks": {"fdkt_0": task}}
    path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
    result = call("check", path, "--show-prompts")
    assert result.exit_code == 0
    assert result.output.startswith("OK")
    for text in (
        "=== fdkt_0, guest 9999: generator, for World (control.prompt, ends with '\\n\\n')\nWorld\n\n\n",
        "=== fdkt_0, guest 9999: task model (prompts.student)\n<text>\nLabel:\n",
        "[8] <text 8>\n",
        "World: <text 1>\n\nSports: <text 2>\n\nWorld:\n",
        "(prompts.label)\n<text>\nWhich of World, Sports?\nAnswer:\n",
    ):
        assert text in result.output
    wrong = call("check", path, "--show-prompts", "--set", "tasks.fdkt_0.parameters.prompts.judge='{{ texts'")
    assert wrong.exit_code == 1
    assert "tasks.fdkt_0.parameters.prompts.judge: E209" in wrong.output
    assert "===" not in wrong.output


def test_a_job_without_prompts_says_so(job):
    result = call("check", job, "--show-prompts")
    assert result.exit_code == 0
    assert "No task of this job has prompts" in result.output


def test_desc_shows_nested_parameters():
    result = call("desc", "fedmkt")
    assert result.exit_code == 0
    for text in ("distill.top_k", "lora.r", "≥ 1", "mutual"):
        assert text in result.output
    assert call("desc", "fedmkt", "--yaml").output.startswith("component:")
    assert "fedmkt" in call("desc").output
    assert call("desc", "fedmk").exit_code == 1


def test_help_is_quick_and_the_pipeline_rooms_do_without_torch():
    began = time.process_time()
    code = (
        "import sys, fate_llm_ext.cli.run, fate_llm_ext.cli.desc, fate_llm_ext.pipelines.local, "
        "fate_llm_ext.pipelines.check, fate_llm_ext.report; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.process_time() - began < 5


def test_plain_lines(capsys, monkeypatch):
    party = Party("guest", "9999")
    board = PlainBoard()
    board("fedmkt_0", party, {"type": "started"})
    board("fedmkt_0", party, {"type": "phase", "arm": "fedmkt", "round": 0, "phase": "distill"})
    board("fedmkt_0", party, {"type": "progress", "phase": "distill", "done": 3, "total": 10})
    board("fedmkt_0", None, {"type": "tick"})
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr("fate_llm_ext.cli.board.LINE_SECONDS", 0.0)
    board("fedmkt_0", None, {"type": "tick"})
    assert "guest 9999: fedmkt, round 0, distill, 3/10" in capsys.readouterr().out


def test_the_live_table_shows_arm_round_phase_and_bar():
    board = LiveBoard()
    for event in (
        {"type": "phase", "arm": "fedmkt", "round": 2, "phase": "distill"},
        {"type": "progress", "phase": "distill", "done": 3, "total": 10},
        {"type": "waiting", "peer": "host 10000", "seconds": 30},
    ):
        board("fedmkt_0", Party("guest", "9999"), event)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(board._render())
    text = console.export_text()
    for word in ("guest 9999", "fedmkt", "2", "distill", "waits for host 10000 (30 s)"):
        assert word in text


def test_a_row_says_for_whom_it_waits():
    row = Row()
    row.update({"type": "phase", "arm": "fedmkt", "round": 1, "phase": "exchange"})
    row.update({"type": "waiting", "peer": "host 10000", "seconds": 30})
    assert row.text() == "fedmkt, round 1, exchange, waits for host 10000 (30 s)"
    row.update({"type": "ended", "exit_code": 0})
    assert row.text() == "done"
