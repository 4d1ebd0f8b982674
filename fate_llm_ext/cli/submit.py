"""`fate-llm-ext submit`: a job between sites, through this site's FATE Flow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple

import click

from fate_llm_ext.cli.watch import server_option, watch, watch_options

if TYPE_CHECKING:
    from fate_llm_ext.errors import Problem
    from fate_llm_ext.flow.server import FlowServer
    from fate_llm_ext.pipelines.job import Dag


@click.command()
@click.argument("dag", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="e.g. tasks.fedmkt_0.parameters.rounds=2")
@click.option(
    "--sites",
    type=click.Path(path_type=Path),
    help="This site's file, to look up its names; default: FATE_LLM_EXT_SITE, else ~/.fate_llm_ext/site.yaml.",
)
@click.option("--root", help="Folder that the site file's relative paths start at.")
@server_option
@click.option("--wait", is_flag=True, help="Watch it to its end, fetch its outputs, show the results.")
@watch_options
@click.pass_context
def submit(
    context: click.Context,
    dag: Path,
    overrides: Tuple[str, ...],
    sites: Optional[Path],
    root: Optional[str],
    server: Optional[str],
    wait: bool,
    quiet: bool,
    timeout: Optional[float],
    detach: bool,
    out: Path,
) -> None:
    """Check the job file DAG, also against this site's FATE Flow, then submit it to all its sites.

    With --wait the exit code is 0, 1 after a failure, 130 after Ctrl-C, which stops the job at all sites (not with
    --detach), 143 after TERM, which leaves it running.
    """
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow.server import FlowServer
    from fate_llm_ext.flow.submission import prepared
    from fate_llm_ext.pipelines.dag import load_dag

    job = load_dag(dag, overrides)
    flow = FlowServer(server)
    problems = _problems(job, flow, sites or _site_file(), root)
    if problems:
        for problem in problems:
            click.echo(str(problem), err=True)
        click.echo(f"{len(problems)} problem(s) in {dag}; nothing was submitted", err=True)
        context.exit(1)
    try:
        job_id = flow.submit(prepared(job))
    except ExtensionError as error:
        if error.code == "E801":
            click.echo("Whether the job was submitted is not known: `fate-llm-ext status` lists it then.", err=True)
        raise
    if not wait:
        click.echo(job_id)
        click.echo(f"submitted; next: fate-llm-ext status {job_id} --wait", err=True)
        return
    if not quiet:
        click.echo(f"job {job_id} at {flow.address}")
    context.exit(watch(flow, job_id, out, quiet, timeout, detach))


def _problems(job: Dag, flow: FlowServer, sites: Optional[Path], root: Optional[str]) -> List[Problem]:
    """All of them; without an answer of the server, those of the job alone."""
    from fate_llm_ext.errors import ExtensionError, Problem
    from fate_llm_ext.flow.submission import own_parties, problems_at
    from fate_llm_ext.pipelines.check import check

    try:
        own = own_parties(flow, job)
    except ExtensionError as error:
        return [*check(job, own=()), Problem("--server", error)]
    return check(job, sites, root, own) + problems_at(flow, job, own)


def _site_file() -> Optional[Path]:
    """The site's own file, as its tasks find it."""
    from fate_llm_ext.site import DEFAULT_SITE_FILE, SITE_FILE_VARIABLE

    named = os.environ.get(SITE_FILE_VARIABLE)
    path = Path(named or DEFAULT_SITE_FILE).expanduser()
    return path if named or path.exists() else None
