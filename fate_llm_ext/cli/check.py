"""`fate-llm-ext check`: every problem of a job at once."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import click

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.job import Dag


@click.command()
@click.argument("dag", type=click.Path(path_type=Path))
@click.option("--sites", type=click.Path(path_type=Path), help="Also look up names in this site file.")
@click.option("--root", help="Folder that the site file's relative paths start at.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the job first.")
@click.option("--show-prompts", is_flag=True, help="Also print all that models read, with made-up texts.")
@click.pass_context
def check(
    context: click.Context,
    dag: Path,
    sites: Optional[Path],
    root: Optional[str],
    overrides: Tuple[str, ...],
    show_prompts: bool,
) -> None:
    """Report every problem of the job file DAG before anything runs; exit code 1 if there are any."""
    from fate_llm_ext.pipelines.check import check as find_problems
    from fate_llm_ext.pipelines.dag import load_dag

    try:
        job = load_dag(dag, overrides)
    except ExtensionError as error:
        click.echo(str(error), err=True)
        context.exit(1)
    problems = find_problems(job, sites, root)
    for problem in problems:
        click.echo(str(problem), err=True)
    if problems:
        click.echo(f"{len(problems)} problem(s) in {dag}", err=True)
        context.exit(1)
    names = "names of the site file" if sites else "names of the site file not looked up (--sites)"
    click.echo(f"OK: {dag}: {len(job.tasks)} task(s), {len(job.parties)} parties, {names}")
    for source in job.needs_flow():
        click.echo(f"note: {source.where}: only FATE Flow can serve this (`fate-llm-ext submit`), `run` cannot")
    if show_prompts:
        _show_prompts(job)


def _show_prompts(job: Dag) -> None:
    """Each prompt under a line that says whose it is, and with what white space it ends."""
    from fate_llm_ext.pipelines.prompts import render

    prompts = render(job)
    for one in prompts:
        end = one.text[len(one.text.rstrip()) :]
        last = f", ends with {end!r}" if end else ""
        parties = ", ".join(map(str, one.parties))
        click.echo(f"\n=== {one.task}, {parties}: {one.title} ({one.field}{last})\n{one.text}")
    if not prompts:
        click.echo("No task of this job has prompts to show.")
