"""Accuracy over attack success: of one run, of seeds, of a study over strategies and ε."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext.cli.main import main
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.results import read_events
from fate_llm_ext.pipelines.studies import group_runs
from fate_llm_ext.privacy import report
from fate_llm_ext.report.charts import Mark, scatter_chart
from fate_llm_ext.report.utility import utility_plots

CLIENTS = ("guest_9999", "host_10000")


def result(arm: str, metric: str, value: float) -> dict[str, Any]:
    return {"type": "result", "arm": arm, "metric": metric, "value": value}


def statement(strategy: str | None, epsilon: float | None) -> dict[str, Any]:
    perturbation = None if strategy is None else {"strategy": strategy, "epsilon": epsilon}
    return {"type": report.EVENT, **report.statement("guest 9999", "fedcot", perturbation=perturbation)}


def write_run(
    folder: Path,
    strategy: str | None = "metric",
    epsilon: float | None = 3.0,
    accuracy: float = 0.6,
    attack: float | None = 0.2,
    seed: int = 0,
    metric: str = "accuracy",
    clients: tuple[str, ...] = CLIENTS,
    status: str = "success",
    alone: float = 0.5,
    more: dict[str, Any] | None = None,
) -> Path:
    arm = "distilling" if strategy == "none" else "fedcot"
    for number, party in enumerate(clients):
        shift = 0.1 * number
        events = [statement(strategy, epsilon), result("standalone", metric, alone + shift)]
        events += [result(arm, metric, accuracy + shift)]
        if attack is not None:
            events += [result(arm, "attack_success", attack + shift), result("standalone", "attack_success", 0.0)]
        place = folder / "fedcot_0" / party
        place.mkdir(parents=True)
        (place / "events.jsonl").write_text("".join(json.dumps({"time": 1.0, **one}) + "\n" for one in events))
    (folder / "job.json").write_text(json.dumps({"dag": "conf/x/dag.yaml", "status": status, "order": ["fedcot_0"]}))
    parameters = {"seed": seed, "perturbation": {"strategy": strategy, "epsilon": epsilon}}
    tasks = {"fedcot_0": {"parameters": parameters}, **(more or {})}
    (folder / "dag.yaml").write_text(yaml.safe_dump({"dag": {"tasks": tasks}}, sort_keys=False))
    return folder


def plots(*jobs: list[Path]) -> Any:
    return utility_plots([[read_events(run) for run in runs] for runs in jobs])


def test_a_run_is_a_point_beside_training_alone(tmp_path):
    (plot,) = plots([write_run(tmp_path / "a")])
    assert plot.task == "fedcot_0"
    assert plot.rows == [["Standalone", "-", "1", "55.0 %", "0.0 %"], ["metric", "3", "1", "65.0 %", "25.0 %"]]
    assert [name for name, _ in plot.legend] == ["Standalone", "metric"]
    assert "metric ε 3: 65 %, attack success 25 %" in plot.svg
    assert 'role="img" aria-label="Privacy and utility: accuracy over attack success"' in plot.svg
    assert "Bars" not in plot.note


def test_seeds_are_one_point_with_bars(tmp_path):
    runs = [write_run(tmp_path / str(n), accuracy=0.6 + 0.1 * n, attack=0.2 + 0.2 * n, seed=n) for n in range(2)]
    (plot,) = plots(runs)
    assert plot.rows[1] == ["metric", "3", "2", "70.0 ± 7.1 %", "35.0 ± 14.1 %"]
    assert plot.svg.count('class="bar ') == 2, "one each way; training alone does not vary"
    assert "Bars" in plot.note


def test_a_study_is_one_plot_in_which_training_alone_stands_once(tmp_path):
    jobs = [
        [write_run(tmp_path / "e8", "exponential", 8.0, 0.7, 0.8)],
        [write_run(tmp_path / "m9", "metric", 9.0, 0.68, 0.4)],
        [write_run(tmp_path / "e1", "exponential", 1.0, 0.66, 0.7)],
        [write_run(tmp_path / "n", "none", None, 0.8, 0.9)],
        [write_run(tmp_path / "g", "dp_generator", None, 0.62, 0.01)],
    ]
    (plot,) = plots(*jobs)
    order = [("Standalone", "-"), ("none", "-"), ("exponential", "1"), ("exponential", "8")]
    order += [("metric", "9"), ("dp_generator", "-")]
    assert [tuple(row[:2]) for row in plot.rows] == order
    assert len(re.findall('<path class="m', plot.svg)) == 6
    lines = re.findall('<polyline class="s[0-9]" points="([^"]*)"', plot.svg)
    assert sorted(len(line.split()) for line in lines) == [1, 1, 1, 1, 2], "the ε of one strategy are joined"
    assert len({svg for _, svg in plot.legend}) == 5, "all strategies look different"


def test_training_alone_stands_once_even_if_a_job_has_fewer_seeds(tmp_path):
    def run(name: str, seed: int, alone: float, **more: Any) -> Path:
        return write_run(tmp_path / f"{name}{seed}", seed=seed, alone=alone, **more)

    metric = [run("m", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    exponential = [run("e", seed, 0.5 + 0.1 * seed, strategy="exponential") for seed in range(2)]
    (plot,) = plots(exponential, metric)
    assert plot.rows[0] == ["Standalone", "-", "3", "65.0 ± 10.0 %", "0.0 ± 0.0 %"]
    assert [row[0] for row in plot.rows] == ["Standalone", "exponential", "metric"]
    (plot,) = plots([run("x", 0, 0.42, strategy="exponential")], metric)
    assert [row[2] for row in plot.rows] == ["3", "1", "1", "3"], "another training, another point"


def test_without_a_statement_an_arm_keeps_its_name(tmp_path):
    (plot,) = plots([write_run(tmp_path / "a", None)])
    assert plot.rows[1][0] == "FedCoT"


def test_a_single_client_stands_for_itself_and_other_metrics_serve(tmp_path):
    (plot,) = plots([write_run(tmp_path / "a", metric="nll_per_byte", accuracy=1.25, clients=CLIENTS[:1])])
    assert plot.rows[1][3:] == ["1.250", "20.0 %"]
    assert plot.heads[3] == "nll per byte"
    assert "less is better" in plot.note


def test_no_attack_no_plot(tmp_path):
    assert plots([write_run(tmp_path / "a", attack=None)]) == []
    (plot,) = plots([write_run(tmp_path / "b", attack=None)], [write_run(tmp_path / "c")])
    assert len(plot.rows) == 2


def test_marks_lie_where_their_values_are():
    marks = [Mark("a", "<ε 1>", x, y, 0.0, 0.0, 2) for x, y in ((0.0, 0.2), (0.5, 0.4), (1.0, 0.6))]
    svg = scatter_chart(marks, "t & t", "x", "y", True)
    (line,) = re.findall('points="([^"]*)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert (x0 + x2) / 2 == pytest.approx(x1, abs=0.1)
    assert (y0 + y2) / 2 == pytest.approx(y1, abs=0.1)
    assert x0 < x1 < x2
    assert y0 > y1 > y2, "up is more"
    assert "&lt;ε 1&gt;" in svg
    assert "t &amp; t" in svg
    one = scatter_chart(marks[:1], "t", "x", "y", False)
    assert "nan" not in one


# -- runs of several jobs -----------------------------------------------------------------------------


def test_runs_go_together_by_job_and_the_jobs_say_what_they_differ_in(tmp_path):
    first = write_run(tmp_path / "a", "metric", 3.0)
    again = write_run(tmp_path / "b", "metric", 3.0, seed=1)
    other = write_run(tmp_path / "c", "none", None)
    more = write_run(tmp_path / "d", "metric", 3.0, more={"fdkt_0": {"parameters": {"epsilon": 1.0}}})
    jobs = group_runs([first, other, again, more])
    assert [job.runs for job in jobs] == [(first, again), (other,), (more,)]
    assert [job.label for job in jobs] == [
        "strategy metric, epsilon 3.0",
        "strategy none",
        "strategy metric, epsilon 3.0, with fdkt_0",
    ]
    (one,) = group_runs([first, again])
    assert (one.label, one.runs) == ("", (first, again))
    with pytest.raises(ExtensionError, match="E532"):
        group_runs([first, first])
    with pytest.raises(ExtensionError, match="E531"):
        group_runs([tmp_path])


def test_parameters_of_one_name_are_told_apart_by_their_path(tmp_path):
    def job(epsilon: float, other: float) -> dict[str, Any]:
        return {"other_0": {"parameters": {"epsilon": other, "kept": 1}}}

    jobs = group_runs([write_run(tmp_path / str(e), "metric", e, more=job(e, e + 1)) for e in (1.0, 2.0)])
    paths = ("dag.tasks.fedcot_0.parameters.perturbation.epsilon", "dag.tasks.other_0.parameters.epsilon")
    assert sorted(jobs[1].label.split(", ")) == [f"{paths[0]} 2.0", f"{paths[1]} 3.0"]


def test_a_study_is_printed_job_by_job_and_has_one_page(tmp_path):
    runs = [
        write_run(tmp_path / "a", "metric", 3.0, 0.60),
        write_run(tmp_path / "b", "metric", 3.0, 0.64, seed=1),
        write_run(tmp_path / "c", "none", None, 0.8, 1.0, status="failed", clients=CLIENTS[:1]),
    ]
    page = tmp_path / "study.html"
    refused = CliRunner().invoke(main, ["report", *map(str, runs), "--out", str(page)])
    assert refused.exit_code == 1
    assert "E533" in refused.output
    assert "--study" in refused.output
    done = CliRunner().invoke(main, ["report", "--study", *map(str, runs), "--out", str(page)])
    assert done.exit_code == 0, done.output
    for text in ("strategy metric, epsilon 3.0 (2 run(s))", "67.0 ± 2.8 %", "strategy none (1 run(s))", "80.0 %"):
        assert text in done.output, text
    assert re.search(r"\nmetric +3 +2 +67.0 ± 2.8 % +25.0 ± 0.0 %\nMeans", done.output)
    assert f"{runs[2]}: failed" in done.output
    html = page.read_text()
    assert html.count("Privacy and utility</b>") == 1
    assert "3 runs of 2 jobs" in html
    assert "fedcot_0: strategy none" in html
    assert "<title>" in html
    assert not re.findall(r"https?://(?!www.w3.org/2000/svg)", html)
