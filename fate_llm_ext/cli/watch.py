"""Watching a job of FATE Flow to its end, for the commands that do so; then its results, as `run` shows them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

if TYPE_CHECKING:
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow.server import FlowServer, JobState

server_option = click.option(
    "--server", metavar="HOST:PORT", help="This site's FATE Flow; default: FATE_LLM_EXT_SERVER, else as `flow init`."
)


def watch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that can watch a job."""
    for option in (
        click.option("--quiet", is_flag=True, help="Only the result."),
        click.option("--timeout", type=click.FloatRange(min=0.0), help="Seconds to watch at most; the job goes on."),
        click.option("--detach", is_flag=True, help="Ctrl-C ends the watching and leaves the job running."),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("runs"),
            show_default=True,
            help="Run directories.",
        ),
    ):
        command = option(command)
    return command


def watch(
    server: FlowServer,
    job_id: str,
    out: Path,
    quiet: bool = False,
    timeout: Optional[float] = None,
    detach: bool = False,
) -> int:
    """Follow a job to its end, fetch what it left at this site, and show it; the exit code.

    It is 0, 1 after a failure or where the end was not seen, 130 after Ctrl-C and 143 after TERM. Ctrl-C stops the job
    at all sites (unless ``detach``); TERM and a lost terminal leave it running.
    """
    from fate_llm_ext.cli.board import make_board
    from fate_llm_ext.flow.failure import explain
    from fate_llm_ext.flow.follow import follow
    from fate_llm_ext.pipelines.supervise import Interrupts

    with Interrupts() as interrupts, make_board(quiet) as board:
        state = follow(server, job_id, board, timeout, lambda: bool(interrupts.number))
    if not state.ended and interrupts.number:
        click.echo(str(_interrupted(server, job_id, interrupts.number, detach)), err=True)
        return 128 + interrupts.number
    error: Optional[ExtensionError] = explain(server, state)
    if not state.ended:
        click.echo(unfinished(state), err=True)
    return _show(server, state, out, error)


def unfinished(state: JobState) -> str:
    """What a job is whose task here has failed while the job counts as running."""
    return (
        f"job {state.job_id} is {state.status}, though its task here has failed: the server of its scheduler, party "
        f"{state.scheduler}, has not ended it yet"
    )


def _show(server: FlowServer, state: JobState, out: Path, error: Optional[ExtensionError]) -> int:
    from fate_llm_ext.cli.report import show_runs
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow.fetch import fetch
    from fate_llm_ext.report import write_report

    try:
        directory = fetch(server, state.job_id, out, lambda line: click.echo(line, err=True), error)
    except ExtensionError as problem:
        if error is None:
            raise
        click.echo(str(error), err=True)
        click.echo(f"Its outputs could not be fetched: {problem}", err=True)
        return 1
    if error is not None:
        report = write_report([directory], directory / "report.html")
        click.echo(str(error), err=True)
        click.echo(f"Report: {report}", err=True)
        return 1
    show_runs([directory], directory / "report.html")
    click.echo(f"Run: {directory}")
    return 0


def _interrupted(server: FlowServer, job_id: str, number: int, detach: bool) -> ExtensionError:
    """What became of the job when watching was interrupted; a second Ctrl-C ends the attempt to stop it."""
    from fate_llm_ext.errors import ExtensionError
    from fate_llm_ext.flow import control

    name = signal.Signals(number).name
    if number != signal.SIGINT or detach:
        advice = f"`fate-llm-ext status {job_id} --wait` watches it again, `fate-llm-ext stop {job_id}` ends it."
        return ExtensionError("E817", job=job_id, signal=name, consequence="The job goes on.", advice=advice)
    click.echo(f"stopping job {job_id} at all sites ...", err=True)
    try:
        control.stop(server, job_id)
    except ExtensionError as error:
        consequence, advice = f"The job could not be stopped: {error.problem}", f"`fate-llm-ext stop {job_id}`."
    else:
        consequence, advice = "The job was stopped at all sites.", f"`fate-llm-ext rerun {job_id}` starts it again."
    return ExtensionError("E817", job=job_id, signal=name, consequence=consequence, advice=advice)
