"""Stopping a job so that it has stopped."""

from __future__ import annotations

import time

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.server import FlowServer

REQUESTS = 5
SECONDS_EACH = 4.0
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
