"""Stopping a job so that it has stopped, and starting it again so that it runs."""

from __future__ import annotations

import time

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.server import ENDED, FlowServer

REQUESTS = 5
SECONDS_EACH = 4.0
RESTART_SECONDS = 60.0
_POLL_SECONDS = 0.5


def is_over(server: FlowServer, job_id: str) -> bool:
    """Whether a job has ended, and no task of this site runs on."""
    return server.job(job_id).ended and all(task.status != "running" for task in server.tasks(job_id))


def stop(server: FlowServer, job_id: str) -> None:
    """End a job at all its sites.

    FATE Flow overlooks a task that is being started just then: the job counts as canceled, and the task runs on. It is
    asked again until none does.

    Raises:
        ExtensionError: E818 if a task runs on in spite of it, or what the server says.
    """
    for _ in range(REQUESTS):
        server.stop(job_id)
        deadline = time.monotonic() + SECONDS_EACH
        while time.monotonic() < deadline:
            if is_over(server, job_id):
                return
            time.sleep(_POLL_SECONDS)
    advice = f"Repeat `fate-llm-ext stop {job_id}` in a minute, and look at the server's fate_flow_schedule.log."
    raise ExtensionError("E818", job=job_id, status=server.job(job_id).status, asked="stopped", advice=advice)


def restart(server: FlowServer, job_id: str) -> None:
    """Start what has not ended well again; returns once a new try is under way.

    FATE Flow's scheduler overlooks what it has not yet noticed to have ended, and then ends the job once more. It is
    asked again until it starts.

    Raises:
        ExtensionError: E818 if it does not, or what the server says.
    """
    before = {(task.task, task.party): task.version for task in server.tasks(job_id)}
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        server.rerun(job_id)
        asked = running = time.monotonic()
        while time.monotonic() - asked < SECONDS_EACH:
            status = server.job(job_id).status
            again = any(task.version > before.get((task.task, task.party), -1) for task in server.tasks(job_id))
            if again and status not in ENDED:  # the job's own status follows at the scheduler's next turn
                return
            if status != "running":
                running = time.monotonic()
            elif time.monotonic() - running > SECONDS_EACH / 2:  # it runs, at other sites
                return
            time.sleep(_POLL_SECONDS)
    advice = "Look at the server's fate_flow_schedule.log, or submit the job file anew."
    raise ExtensionError("E818", job=job_id, status=server.job(job_id).status, asked="started again", advice=advice)
