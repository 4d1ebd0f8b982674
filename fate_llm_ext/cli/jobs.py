"""`fate-llm-ext status | logs | stop | rerun | fetch`: jobs of this site's FATE Flow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

import click

from fate_llm_ext.cli.watch import server_option, unfinished, watch, watch_options

if TYPE_CHECKING:
    from fate_llm_ext.flow.server import FlowServer, TaskState

_FOLLOW_SECONDS = 1.0


@click.command()
@click.argument("job", required=False)
@server_option
@click.option("--wait", is_flag=True, help="Watch JOB to its end, fetch its outputs, show the results.")
@watch_options
@click.pass_context
def status(
    context: click.Context,
    job: Optional[str],
    server: Optional[str],
    wait: bool,
    quiet: bool,
    timeout: Optional[float],
    detach: bool,
    out: Path,
) -> None:
    """Say how JOB and its tasks at this site stand, or list the latest jobs; the exit code is 1 if JOB failed."""
    from fate_llm_ext.flow.failure import explain
    from fate_llm_ext.flow.server import FlowServer

    flow = FlowServer(server)
    if job is None:
        if wait:
            raise click.UsageError("--wait needs a JOB.")
        _list(flow)
        return
    if wait:
        context.exit(watch(flow, job, out, quiet, timeout, detach))
    state = flow.job(job)
    lines = [[f"job {job}", state.status, f"{state.progress} %", _duration(state.seconds), ""]]
    for task in flow.tasks(job):
        note = f"try {task.version + 1}" if task.version else ""
        lines.append([f"  {task.task}, {task.party}", task.status, "", _duration(task.seconds), note])
    _columns(lines)
    if state.others:
        click.echo(f"  elsewhere: {', '.join(map(str, state.others))}")
    error = explain(flow, state)
    if error is not None:
        if not state.ended:
            click.echo(unfinished(state))
        click.echo(str(error), err=True)
        context.exit(1)


@click.command()
@click.argument("job")
@click.option("--task", help="Only of this task.")
@click.option("--role", help="Only of the party in this role, if several of this site take part.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@click.option("--errors", is_flag=True, help="Error reports and logged errors only.")
@server_option
def logs(job: str, task: Optional[str], role: Optional[str], follow: bool, errors: bool, server: Optional[str]) -> None:
    """Print the logs of JOB's tasks at this site."""
    from fate_llm_ext.flow.server import FlowServer

    flow = FlowServer(server)
    chosen = _chosen(flow, job, task, role)
    if errors:
        for one in chosen:
            _print_errors(flow, job, one)
        return
    read = dict.fromkeys(((one.task, one.party) for one in chosen), 0)
    while True:
        ended = flow.job(job).ended  # asked first: what is logged after the end is printed too
        for one in _chosen(flow, job, task, role):
            key = (one.task, one.party)
            lines = flow.log(job, one.role, one.party_id, one.task, begin=read.get(key, 0) + 1)
            read[key] = read.get(key, 0) + len(lines)
            head = f"{one.task} {one.party}: " if len(chosen) > 1 else ""
            for line in lines:
                click.echo(head + line)
        if not follow or ended:
            return
        time.sleep(_FOLLOW_SECONDS)


@click.command()
@click.argument("job")
@server_option
def stop(job: str, server: Optional[str]) -> None:
    """End JOB at all its sites."""
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow import control
    from fate_llm_ext.flow.server import FlowServer

    flow = FlowServer(server)
    state = flow.job(job)
    if control.is_over(flow, job):
        raise ExtensionError("E818", job=job, status=state.status, asked="stopped", advice="Nothing is left to do.")
    control.stop(flow, job)
    click.echo(f"job {job} was stopped at all sites")


@click.command()
@click.argument("job")
@server_option
@click.option("--wait", is_flag=True, help="Watch it to its end, fetch its outputs, show the results.")
@watch_options
@click.pass_context
def rerun(
    context: click.Context,
    job: str,
    server: Optional[str],
    wait: bool,
    quiet: bool,
    timeout: Optional[float],
    detach: bool,
    out: Path,
) -> None:
    """Start those tasks of JOB again that have not ended well, from their beginning."""
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow import control
    from fate_llm_ext.flow.server import GOOD, FlowServer

    flow = FlowServer(server)
    state = flow.job(job)
    if state.status in GOOD:
        facts = {"status": state.status, "asked": "started again"}
        raise ExtensionError("E818", job=job, **facts, advice="Submit the job file anew.")
    if not control.is_over(flow, job):
        advice = f"`fate-llm-ext stop {job}` first, or wait for its end."
        status = state.status + (", and a task runs on" if state.ended else "")
        raise ExtensionError("E818", job=job, status=status, asked="started again", advice=advice)
    control.restart(flow, job)
    click.echo(f"job {job} starts again")
    if wait:
        context.exit(watch(flow, job, out, quiet, timeout, detach))


@click.command()
@click.argument("job")
@server_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Run directories.",
)
def fetch(job: str, server: Optional[str], out: Path) -> None:
    """Fetch what JOB left at this site - models, data, metrics, events, logs - and write its report."""
    from fate_llm_ext.flow.fetch import fetch as fetch_job
    from fate_llm_ext.flow.server import FlowServer
    from fate_llm_ext.report import write_report

    directory = fetch_job(FlowServer(server), job, out, lambda line: click.echo(line, err=True))
    click.echo(f"Run: {directory}")
    click.echo(f"Report: {write_report([directory], directory / 'report.html')}")


def _list(flow: FlowServer) -> None:
    states = flow.jobs()
    if not states:
        click.echo(f"{flow.address} has no jobs.")
        return
    lines = [["job", "status", "", "created", "duration", "roles here", "tasks"]]
    for state in states:
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created))
        roles = ", ".join(map(str, state.parties))
        tasks = ", ".join((state.dag.get("dag") or {}).get("tasks") or {})
        lines.append(
            [state.job_id, state.status, f"{state.progress} %", created, _duration(state.seconds), roles, tasks]
        )
    _columns(lines)


def _chosen(flow: FlowServer, job: str, task: Optional[str], role: Optional[str]) -> List[TaskState]:
    """The tasks that the options name.

    Raises:
        ExtensionError: E809 no such job, E819 no such task or role in it.
    """
    from fate_llm_ext.errors import ExtensionError

    flow.job(job)
    every = flow.tasks(job)
    found = [one for one in every if task in (None, one.task) and role in (None, one.role)]
    if not found:
        what = " of ".join(filter(None, (f"task {task}" if task else "", f"role {role}" if role else ""))) or "task"
        known = ", ".join(f"{one.task} of {one.role}" for one in every) or "none"
        raise ExtensionError("E819", job=job, what=what, known=known)
    return found


def _print_errors(flow: FlowServer, job: str, task: TaskState) -> None:
    click.echo(f"{task.task}, {task.party}: {task.status}" + (f", try {task.version + 1}" if task.version else ""))
    if task.error_report.strip():
        click.echo(f"report: {task.error_report.strip()}")
    lines = flow.log(job, task.role, task.party_id, task.task, kind="task_error")
    for line in lines:
        click.echo(line)
    if not lines and not task.error_report.strip() and task.status not in ("success", "waiting", "running"):
        click.echo("nothing was logged as an error; what the process printed is in stdout.txt of `fate-llm-ext fetch`")


def _columns(rows: List[List[str]]) -> None:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds else "-"
