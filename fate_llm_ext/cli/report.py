"""`fate-llm-ext report`: the result tables and the page of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

import click

if TYPE_CHECKING:
    from fate_llm_ext.pipelines.studies import JobRuns


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page  [default: report.html in RUN; of several runs, here]",
)
@click.option(
    "--study", is_flag=True, help="The runs are of several jobs: a table for each, and what privacy costs in one plot."
)
def report(runs: Tuple[Path, ...], out: Optional[Path], study: bool) -> None:
    """Print the results of run directories and write their report page.

    Several runs must be of one job; its seeds and the content of its data may differ. Their table holds mean ±
    sample standard deviation, followed by the differences between the method and training alone within each run. With
    --study runs of one job go together like that, and the jobs stand side by side.
    """
    from fate_llm_ext.pipelines.results import how_it_ended, require_one_job
    from fate_llm_ext.pipelines.studies import group_runs

    jobs = group_runs(runs) if study else []
    if not study:
        require_one_job(runs)
    for run in runs:
        if (status := how_it_ended(run)) != "success":
            click.echo(f"{run}: {status}; it counts with the results that it has", err=True)
    show_runs(runs, out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html")), jobs)


def show_runs(runs: Sequence[Path], page: Path, jobs: Sequence[JobRuns] = ()) -> None:
    """Print the result tables, over all runs or those of each job, and write the page."""
    from fate_llm_ext.cli.board import result_lines, table_lines
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.pipelines.results import main_tables, read_events, result_tables
    from fate_llm_ext.report import privacy, write_report
    from fate_llm_ext.report.utility import utility_plots

    events = {run: read_events(run) for run in runs}
    groups = [[events[run] for run in job.runs] for job in jobs] or [list(events.values())]
    outputs = ", ".join(map(str, runs))
    for index, found in enumerate(groups):
        if jobs:
            click.echo(f"{jobs[index].label or 'all runs'} ({len(found)} run(s))")
        for line in result_lines(main_tables(result_tables(found))) or [f"No results to show; outputs: {outputs}"]:
            click.echo(line)
    for plot in utility_plots(groups):
        for line in table_lines(f"{plot.task}: privacy and utility", [plot.heads, *plot.rows], plot.note):
            click.echo(line)
    # Of several runs the last one: its ledgers hold the others' releases too.
    for number, line in enumerate(privacy.lines(events[runs[-1]])):
        click.echo(("" if number else "\n") + line)
    try:
        written = write_report(runs, page, jobs)
    except OSError as error:
        raise ExtensionError("E530", path=page, reason=error.strerror) from error
    click.echo(f"\nReport: {written}")
