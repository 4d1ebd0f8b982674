"""`fate-llm-ext check`: every problem of a job at once."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import click

from fate_llm_ext.errors import ExtensionError


@click.command()
@click.argument("dag", type=click.Path(path_type=Path))
@click.option("--sites", type=click.Path(path_type=Path), help="Also look up names in this site file.")
@click.option("--root", help="Folder that the site file's relative paths start at.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the job first.")
@click.pass_context
def check(
    context: click.Context, dag: Path, sites: Optional[Path], root: Optional[str], overrides: Tuple[str, ...]
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
