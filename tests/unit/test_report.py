"""The page: complete, self-contained, also after a failure."""

import json
import math
import re

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.cli.board import result_lines
from fate_llm_ext.cli.main import main
from fate_llm_ext.pipelines.results import CLIENTS, main_tables, read_events, result_tables
from fate_llm_ext.report import charts, series, write_report

PARTIES = ("guest_9999", "host_10000", "arbiter_9998")


def events_of(party, shift=0.0, gain=0.0):
    events = [{"type": "phase", "arm": "standalone", "round": 0, "phase": "train"}]
    for round_ in range(3):
        events.append({"type": "phase", "arm": "fedmkt", "round": round_, "phase": "distill"})
        for name, value in (("accuracy", 0.3 + 0.1 * round_), ("loss", 2.0 - round_)):
            events.append({"type": "metric", "arm": "fedmkt", "round": round_, "name": name, "value": value + shift})
        size = {"direction": "sent", "peer": "arbiter 9998", "name": "scores", "round": round_, "bytes": 12_000}
        events.append({"type": "message", **size})
    events.append({"type": "metric", "arm": "fedmkt", "round": 3, "name": "loss", "value": math.nan})
    for arm, value in (("fedmkt", 0.5 + gain), ("standalone", 0.4)):
        events.append({"type": "result", "arm": arm, "metric": "accuracy", "value": value + shift})
        events.append({"type": "result", "arm": arm, "metric": "nll_per_byte", "value": 1.25})
    events.append({"type": "done", "text": "SECRET SAMPLE"})
    return [{"time": 100.0 + 2 * index, **event} for index, event in enumerate(events)]


def write_run(directory, shift=0.0, gain=0.0, seed=0, rounds=3, **job):
    for party in PARTIES:
        folder = directory / "fedmkt_0" / party
        folder.mkdir(parents=True)
        lines = [json.dumps(event) for event in events_of(party, shift, gain)]
        (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"type": "resu')
    record = {"dag": "conf/ag_news/dag.yaml", "status": "success", "seconds": 61.5, "order": ["fedmkt_0"], **job}
    (directory / "job.json").write_text(json.dumps(record))
    parameters = {"seed": seed, "rounds": rounds}
    (directory / "dag.yaml").write_text(yaml.safe_dump({"dag": {"tasks": {"fedmkt_0": {"parameters": parameters}}}}))
    return directory


def call(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "20261120-1", parameters={"fedmkt_0": {"seed": 7}}, versions={"torch": "2.1"})


def test_the_page_holds_everything_and_loads_nothing(run):
    page = write_report([run], run / "report.html").read_text()
    for text in ("accuracy", "50.0 %", "mean of clients", "12.0 kB", "Seconds per phase", "torch 2.1", "61.5 s"):
        assert text in page, text
    assert page.count('<svg viewBox="0 0 320') == 6, "two metrics, three parties"
    assert "SECRET" not in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="', page)
    assert not re.findall(r"https?://(?!www.w3.org/2000/svg)", page)
    assert "nan" not in page


def test_a_failed_run_says_why(run):
    record = json.loads((run / "job.json").read_text())
    record.update(status="failed", error="E521 host 10000 failed in task fedmkt_0: <b>bold</b>")
    (run / "job.json").write_text(json.dumps(record))
    with (run / "fedmkt_0" / "host_10000" / "events.jsonl").open("a") as file:
        file.write('lt"}\n{"type": "error", "code": "E302", "message": "sent 3 rows"}\n')
    page = write_report([run], run / "report.html").read_text()
    assert "E521 host 10000 failed" in page
    assert "&lt;b&gt;bold" in page
    assert "E302 sent 3 rows" in page


def test_an_empty_run_directory_still_gives_a_page(tmp_path):
    assert "no outcome recorded" in write_report([tmp_path], tmp_path / "report.html").read_text()


def test_seeds_give_mean_and_sample_deviation(tmp_path):
    runs = [write_run(tmp_path / f"run{index}", shift) for index, shift in enumerate((0.0, 0.1, 0.2))]
    tables = result_tables([read_events(one) for one in runs])
    accuracy = tables[0]
    assert (accuracy.metric, accuracy.arms) == ("accuracy", ("standalone", "fedmkt"))
    assert list(accuracy.rows) == ["guest_9999", "host_10000", "arbiter_9998", CLIENTS]
    cell = accuracy.rows["guest_9999"]["fedmkt"]
    assert cell.mean == pytest.approx(0.6)
    assert cell.spread == pytest.approx(0.1)
    assert accuracy.text(cell) == "60.0 ± 10.0 %"
    assert [(table.metric, table.paired) for table in main_tables(tables)] == [("accuracy", False), ("accuracy", True)]
    lines = result_lines(main_tables(tables)[:1])
    assert len({len(line) for line in lines[2:]}) == 1, "aligned"
    assert "60.0 ± 10.0 %" in write_report(runs, tmp_path / "all" / "report.html").read_text()


def test_seconds_of_a_phase_last_until_the_next_one():
    events = [{"type": "phase", "arm": "a", "phase": p, "time": t} for p, t in (("x", 0), ("y", 2), ("x", 5))]
    grid = series.phase_grid({"guest_1": [*events, {"type": "done", "time": 9}]})
    assert [(labels[1], cells) for labels, cells in grid.rows] == [("x", ["6.0"]), ("y", ["3.0"]), ("", ["9.0"])]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (-3, 1e6), (5, 5), (0, 0), (1e-7, 3e-7)])
def test_ticks_enclose_the_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8


def test_report_prints_the_table_and_the_paired_differences(tmp_path):
    # The runs' level varies far more than what FedMKT gains within a run.
    runs = [write_run(tmp_path / f"run{i}", shift, gain, i) for i, (shift, gain) in enumerate([(0, 0.0), (0.2, 0.02)])]
    result = call("report", *runs, "--out", tmp_path / "new" / "all.html")
    assert result.exit_code == 0, result.output
    rows = [line.split("  ") for line in result.output.splitlines()]
    means = [[cell.strip() for cell in row if cell.strip()] for row in rows if row[0] == "mean of clients"]
    assert means == [["mean of clients", "50.0 ± 14.1 %", "61.0 ± 15.6 %"], ["mean of clients", "+11.0 ± 1.4 points"]]
    assert [row[0] for row in rows].count("arbiter 9998") == 2
    page = (tmp_path / "new" / "all.html").read_text()
    assert "FedMKT - Standalone" in page
    assert "points" in page


def test_report_of_one_run_has_no_differences(run):
    result = call("report", run)
    assert result.exit_code == 0
    assert "50.0 %" in result.output
    assert "difference" not in result.output
    assert (run / "report.html").is_file()


def test_report_says_what_it_cannot_put_together(tmp_path):
    run, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", rounds=5)
    for arguments, words in [
        ([tmp_path], ["E531", str(tmp_path)]),
        ([run, run / ".." / "a"], ["E532", "2 runs"]),
        ([run, other], ["E533", "dag.tasks.fedmkt_0.parameters.rounds is 3 and 5"]),
    ]:
        result = call("report", *arguments, "--out", tmp_path / "out.html")
        assert result.exit_code == 1
        assert all(word in result.output for word in words), result.output
    assert not (tmp_path / "out.html").exists()


def test_report_names_runs_that_did_not_succeed(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", status="failed")]
    result = call("report", *runs, "--out", tmp_path / "out.html")
    assert result.exit_code == 0
    assert f"{runs[1]}: failed" in result.output
    assert str(runs[0]) + ":" not in result.output
