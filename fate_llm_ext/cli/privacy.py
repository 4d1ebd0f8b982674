"""`fate-llm-ext privacy`: what a job would cost, what was spent, whether ledgers are whole, what words give away."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import click

from fate_llm_ext.cli.privacy_ratios import ratios
from fate_llm_ext.site import DEFAULT_SITE_FILE, SITE_FILE_VARIABLE

if TYPE_CHECKING:
    from fate_llm_ext.pipelines.plan import Line

_sites = click.option(
    "--sites",
    type=click.Path(path_type=Path),
    envvar=SITE_FILE_VARIABLE,
    default=DEFAULT_SITE_FILE,
    show_default=True,
    help="Site file.",
)
_root = click.option("--root", help="Folder that the site file's relative paths start at.")


@click.group()
def privacy() -> None:
    """What a job would cost, what has been spent of each table's budget, whether the ledgers are whole."""


privacy.add_command(ratios)


@privacy.command()
@click.argument("dag", type=click.Path(path_type=Path))
@_sites
@_root
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the job first.")
@click.pass_context
def plan(context: click.Context, dag: Path, sites: Path, root: Optional[str], overrides: Tuple[str, ...]) -> None:
    """Say what the job file DAG would release at each data owner and cost there; nothing runs, nothing is written.

    The exit code is 1 if a site would refuse a task.
    """
    from fate_llm_ext.pipelines.check import check
    from fate_llm_ext.pipelines.dag import load_dag
    from fate_llm_ext.pipelines.plan import plan as make_plan

    sites = sites.expanduser()
    job = load_dag(dag, overrides)
    problems = check(job, sites, root)
    if problems:
        for problem in problems:
            click.echo(str(problem), err=True)
        click.echo(f"{len(problems)} problem(s) in {dag}; nothing can be planned", err=True)
        context.exit(1)
    lines = make_plan(job, sites, root)
    _print_plan(lines)
    for line in lines:
        if line.note:
            click.echo(f"{line.task} {line.party}: {line.note}")
    refused = [line for line in lines if line.refused is not None]
    for line in refused:
        click.echo(f"{line.task} {line.party} would be refused: {line.refused}", err=True)
    if refused:
        context.exit(1)


@privacy.command()
@_sites
@_root
@click.option("--party", help="Only this section of the site file, e.g. guest_9999.")
@click.option("--table", help="Only this table, <namespace>/<name>.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def ledger(sites: Path, root: Optional[str], party: Optional[str], table: Optional[str], as_json: bool) -> None:
    """Print what has been released about each table, what it cost, and what of its budget is not spent."""
    from fate_llm_ext.pipelines.spending import spending

    found = spending(sites.expanduser(), root, party, table)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2, ensure_ascii=False))
    else:
        _print_spending(found)


@privacy.command()
@_sites
@_root
@click.pass_context
def verify(context: click.Context, sites: Path, root: Optional[str]) -> None:
    """Check that no ledger of the site file was edited, cut or damaged; exit code 1 if one was."""
    from fate_llm_ext.pipelines.spending import verify as find_problems

    checked = find_problems(sites.expanduser(), root)
    for one in checked:
        for problem in one.problems:
            click.echo(f"{one.party}: {problem}", err=True)
    bad = sum(len(one.problems) for one in checked)
    if bad:
        click.echo(f"{bad} problem(s)", err=True)
        context.exit(1)
    for one in checked:
        click.echo(f"OK: {one.party}: {one.releases} release(s) in {one.folder}")


# -- tables ---------------------------------------------------------------------------------------


def _print_plan(lines: List[Line]) -> None:
    from fate_llm_ext.privacy.report import show_delta, show_epsilon

    if not lines:
        click.echo("No task of this job reads a private table.")
        return
    heads = ["task", "party", "table", "N", "DP-SGD", "ε", "δ", "spent", "after", "budget", ""]
    rows = []
    for line in lines:
        budget = "-" if line.planned is None else "none"
        if line.budget is not None:
            budget = show_epsilon(line.budget.epsilon)
        rows.append(
            [
                line.task,
                str(line.party),
                line.table or "?",
                "" if line.data is None else f"{line.data.records:,}",
                _training(line),
                show_epsilon(line.epsilon),
                "-" if line.delta is None else show_delta(line.delta),
                show_epsilon(line.spent),
                show_epsilon(line.after),
                budget,
                _verdict(line),
            ]
        )
    _table(heads, rows, ["N", *heads[5:10]])
    for line in lines:
        if line.planned is not None:
            release = line.planned.release
            click.echo(f"{line.task} {line.party} -> {', '.join(release.recipients) or 'outputs'}: {release.what}")


def _training(line: Line) -> str:
    training = None if line.planned is None else line.planned.training
    if training is None:
        return "" if line.planned is None else "none"
    return f"q {training.sampling_rate:.4g}, σ {training.noise_multiplier:.4g}, T {training.steps:,}"


def _verdict(line: Line) -> str:
    if line.refused is not None:
        return "refused"
    return "ok" if line.planned is not None else "nothing leaves" if line.stays else "not known"


def _print_spending(found: List[Any]) -> None:
    from fate_llm_ext.privacy.report import mechanism_text, show_delta, show_epsilon

    if not found:
        click.echo("No budget is set and nothing has been released.")
        return
    heads = ["party", "table", "N", "releases", "ε spent", "δ", "budget", "budget - spent"]
    rows = []
    for one in found:
        budget = one.total.budget
        rows.append(
            [
                one.party or "this site",
                one.table,
                "-" if one.records is None else f"{one.records:,}",
                str(one.total.releases),
                show_epsilon(one.total.epsilon),
                show_delta(one.total.delta),
                "none" if budget is None else show_epsilon(budget.epsilon),
                show_epsilon(one.total.left, down=True),
            ]
        )
    _table(heads, rows, heads[2:])
    for one in found:
        for entry, alone in one.entries:
            release = entry.release
            how = "; ".join(map(mechanism_text, release.mechanisms))
            who = f"{one.party or 'this site'}  {entry.time[:19].replace('T', ' ')} UTC  {entry.data.table}"
            click.echo(f"{who}  ε = {show_epsilon(alone)} alone  {release.algorithm}, job {release.job}")
            click.echo(f"    to {', '.join(release.recipients) or 'outputs'}: {release.what}")
            click.echo(f"    {how}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(
            head, justify="right" if head in numbers else "left", no_wrap=head in (*numbers, "DP-SGD"), overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 200, markup=False, highlight=False).print(table)
