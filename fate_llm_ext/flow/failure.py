"""Why a job failed, as far as one site's server can tell."""

from __future__ import annotations

import itertools
import re
import time
from typing import List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.follow import has_failed, of_try, read_events
from fate_llm_ext.flow.server import GOOD, FlowServer, JobState, TaskState
from fate_llm_ext.pipelines.process import last_exception

SETTLE_SECONDS = 6.0  # a report may come after the end of the job
_EMPTY_REPORTS = ("", "No found task output.")
# Reasons that are somebody else's: another party said so, or FATE Flow ended this one.
_TOLD = ("E303", "E310", "E311")
_BEGIN = ": start generating input artifacts"  # FATE Flow's first line in the log of each try
_ERROR = re.compile(r"^\[ERROR\](?:\[[^\]]*\])*: ")
_NAMED = re.compile(r"E303 (.+?) stopped the job: (.*?)(?: Next: Solve the problem at [^.]*\.?)?$", re.DOTALL)


def explain(server: FlowServer, state: JobState) -> Optional[ExtensionError]:
    """The error of a job that has not ended well, None of one that has, or goes on.

    It is E810 for a party of this site, E811 if this site knows only that it happened elsewhere, E814 for a job that
    was stopped. A job with a failed task here counts as failed, though its scheduler has not ended it: it may be gone.
    """
    if state.status in GOOD:
        return None
    tasks = server.tasks(state.job_id)
    if not state.ended and not has_failed(tasks):
        return None
    if state.status == "canceled" or any(task.status == "canceled" for task in tasks):
        return _stopped(state)
    found = _reasons(server, state)
    own = [(task, reason) for task, reason in found if reason and not reason.startswith(_TOLD)]
    if own:
        task, reason = own[0]
        sentence = reason if reason.endswith((".", "!", "?")) else f"{reason}."
        return ExtensionError("E810", job=state.job_id, party=task.party, task=task.task, reason=sentence)
    told = next((reason for _, reason in sorted(found, key=lambda one: one[1][:4] or "Z") if reason), "")
    named = _NAMED.match(told)
    if told.startswith("E310") or (named is None and _becomes_canceled(server, state)):
        return _stopped(state)
    others = named[1] if named else " or ".join(map(str, state.others))
    if not others:
        return ExtensionError("E814", job=state.job_id, status=state.status, detail=f": {told}" if told else "")
    told = named[2] if named else told or f"no task of {' and '.join(map(str, state.parties))} gives a reason."
    return ExtensionError("E811", job=state.job_id, reason=told, others=others)


def _stopped(state: JobState) -> ExtensionError:
    return ExtensionError("E814", job=state.job_id, status="canceled", detail=": somebody stopped it")


def _becomes_canceled(server: FlowServer, state: JobState) -> bool:
    """Whether a job was stopped: at another site than its scheduler's, it counts as failed for some seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while server.job(state.job_id).status != "canceled":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _reasons(server: FlowServer, state: JobState) -> List[Tuple[TaskState, str]]:
    """Each task of this site that has not ended well, and why; waits a little for a report."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        tasks = [task for task in server.tasks(state.job_id) if task.status not in (*GOOD, "waiting")]
        if not tasks or any(_reported(task) for task in tasks) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return [(task, reason_of(server, state.job_id, task)) for task in tasks]


def reason_of(server: FlowServer, job_id: str, task: TaskState) -> str:
    """Why a task failed: the server's report, else its last `error` event, else its last logged error, else nothing."""
    if reported := _reported(task):
        return reported
    try:
        lines = _of_try(server.log(job_id, task.role, task.party_id, task.task), task.version)
    except ExtensionError:
        return ""
    errors = [one for one in read_events(lines) if one["type"] == "error"]
    if errors:
        code, message = str(errors[-1].get("code", "")), str(errors[-1].get("message", ""))
        return message if message.startswith(code) else f"{code} {message}"
    logged = [index for index, line in enumerate(lines) if _ERROR.match(line)]
    if not logged:
        return ""
    rest = [_ERROR.sub("", lines[logged[-1]])]
    rest += itertools.takewhile(lambda line: not line.startswith("["), lines[logged[-1] + 1 :])
    return last_exception("\n".join(rest))


def _of_try(lines: List[str], version: int) -> List[str]:
    """The lines of the latest try, nothing if it turns out to be another one."""
    begins = [index for index, line in enumerate(lines) if line.endswith(_BEGIN)]
    part = lines[begins[-1] :] if begins else lines
    events = read_events(part)
    return part if of_try(events, version) or not any(one["type"] == "started" for one in events) else []


def _reported(task: TaskState) -> str:
    text = task.error_report.strip()
    return "" if text in _EMPTY_REPORTS else last_exception(text)
