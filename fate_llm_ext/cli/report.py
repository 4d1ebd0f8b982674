"""`fate-llm-ext report`: the result tables and the page of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page  [default: report.html in RUN; of several runs, here]",
)
def report(runs: Tuple[Path, ...], out: Optional[Path]) -> None:
    """Print the results of run directories and write their report page.

    Several runs must be of one job; its seeds and the content of its data may differ. Their table holds mean ±
    sample standard deviation, followed by the differences between FedMKT and training alone within each run.
    """
    from fate_llm_ext.pipelines.results import require_one_job

    for run, status in require_one_job(runs).items():
        if status != "success":
            click.echo(f"{run}: {status}; it counts with the results that it has", err=True)
    show_runs(runs, out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html")))


def show_runs(runs: Sequence[Path], page: Path) -> None:
    """Print the result tables, over all runs, and write the page."""
    from fate_llm_ext.cli.board import result_lines
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.pipelines.results import main_tables, read_events, result_tables
    from fate_llm_ext.report import privacy, write_report

    events = [read_events(run) for run in runs]
    lines: List[str] = result_lines(main_tables(result_tables(events)))
    for line in lines or ["No results yet."]:
        click.echo(line)
    # Of several runs the last one: its ledgers hold the others' releases too.
    for number, line in enumerate(privacy.lines(events[-1])):
        click.echo(("" if number else "\n") + line)
    try:
        written = write_report(runs, page)
    except OSError as error:
        raise ExtensionError("E530", path=page, reason=error.strerror) from error
    click.echo(f"\nReport: {written}")
