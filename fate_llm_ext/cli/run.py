"""`fate-llm-ext run`: a job on this machine, one process per party."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Tuple

import click

from fate_llm_ext.cli.report import show_runs


@click.command()
@click.argument("dag", type=click.Path(path_type=Path))
@click.option("--sites", type=click.Path(path_type=Path), help="Site file with a section per party.")
@click.option("--root", help="Folder that the site file's relative paths start at.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Run directories."
)
@click.option(
    "--seed", "seeds", type=int, multiple=True, help="Once per --seed; with several: mean ± sample deviation."
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="e.g. tasks.fedmkt_0.parameters.rounds=2")
@click.option("--quiet", is_flag=True, help="Only the result.")
@click.pass_context
def run(
    context: click.Context,
    dag: Path,
    sites: Optional[Path],
    root: Optional[str],
    out: Path,
    seeds: Tuple[int, ...],
    overrides: Tuple[str, ...],
    quiet: bool,
) -> None:
    """Check the job file DAG, then run it on this machine.

    The exit code is 0, 1 after a failure, 130 after Ctrl-C, 143 after TERM.
    """
    from fate_llm_ext.cli.board import make_board
    from fate_llm_ext.pipelines.check import check
    from fate_llm_ext.pipelines.dag import load_dag
    from fate_llm_ext.pipelines.local import run_job
    from fate_llm_ext.pipelines.seeds import with_seed
    from fate_llm_ext.report import write_report

    job = load_dag(dag, overrides)
    problems = check(job, sites, root)
    if problems:
        for problem in problems:
            click.echo(str(problem), err=True)
        click.echo(f"{len(problems)} problem(s) in {dag}; nothing was started", err=True)
        context.exit(1)
    done: List[Path] = []
    for number, seed in enumerate(seeds or (None,), start=1):
        one = job if seed is None else with_seed(job, seed)
        label = f"seed {seed}, {number} of {len(seeds)}, " if len(seeds) > 1 else ""
        with make_board(quiet, label) as board:
            result = run_job(one, sites, root, out, board)
        report = write_report([result.directory], result.directory / "report.html")
        if result.exit_code:
            click.echo(str(result.error), err=True)
            click.echo(f"Report: {report}", err=True)
            context.exit(result.exit_code)
        done.append(result.directory)
        if len(seeds) > 1:
            click.echo(f"seed {seed}: {result.seconds:.0f} s, report: {report}")
    folder = done[0] if len(done) == 1 else out.resolve() / f"seeds-{done[0].name}"
    show_runs(done, folder / "report.html")
