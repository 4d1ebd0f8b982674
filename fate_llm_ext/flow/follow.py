"""Watching a job at one site's server: what its parties do, how their tasks end; a restart of the server included."""

from __future__ import annotations

import json
import re
import time
from typing import Callable, Dict, List, Optional, Set, Tuple

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.server import ENDED, GOOD, FlowServer, JobState, TaskState
from fate_llm_ext.pipelines.job import Party
from fate_llm_ext.pipelines.process import Event

OnEvent = Callable[[str, Optional[Party], Event], None]

POLL_SECONDS = 1.0
STUCK_SECONDS = 60.0  # between the failure of a task here and the end of the job; a scheduler needs about 5
PATIENCE_SECONDS = 120.0  # with a server that does not answer; one that is started anew is back within 30
REMIND_SECONDS = 15.0
_NO_ANSWER = "E801"
_LINE = re.compile(r"^\[[A-Z]+\](?:\[[^\]]*\])*: event (\{.*\})\s*$")


def read_events(lines: List[str]) -> List[Event]:
    """The events among the lines of a task's log."""
    events: List[Event] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            event = json.loads(match[1])
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("type"), str):
            events.append(event)
    return events


def of_try(events: List[Event], version: int) -> List[Event]:
    """The events of one try: a task that starts again writes on in the same log, ``started`` stands between.

    A log without any ``started`` is all of it (another program's component, a log that was replaced).
    """
    starts = [index for index, event in enumerate(events) if event["type"] == "started"]
    if not starts:
        return events
    ends = [*starts[1:], len(events)]
    parts = {int(events[start].get("version") or 0): events[start + 1 : end] for start, end in zip(starts, ends)}
    return parts.get(version, [])


def has_failed(tasks: List[TaskState]) -> bool:
    """Whether a task of this site has failed and none is at work."""
    return any(task.failed for task in tasks) and all(task.status != "running" for task in tasks)


def follow(
    server: FlowServer,
    job_id: str,
    on_event: OnEvent,
    timeout: Optional[float] = None,
    interrupted: Callable[[], bool] = lambda: False,
    patience: float = PATIENCE_SECONDS,
) -> JobState:
    """Watch a job until it ends, or until ``interrupted()``; the state it has then.

    It also returns if a task of this site has failed and the job does not end: then its scheduler is gone.

    Args:
        on_event: as that of :func:`~fate_llm_ext.pipelines.local.run_job`, for the parties of this site, and with party
            None also event type ``notice`` (message): the job waits, the server is away.
        timeout: seconds to watch at most.
        patience: seconds without an answer of the server until watching ends.

    Raises:
        ExtensionError: E809 no such job, E812 no answer for too long, E813 not ended in time, or what the server says.
    """
    watch = _Watch(server, job_id, on_event)
    began = answered = time.monotonic()
    status = "not known"
    while True:
        try:
            state = watch.look()
            watch.is_back()
            answered = time.monotonic()
            if state.ended or interrupted() or watch.is_stuck():
                return state
            status = state.status
        except ExtensionError as error:
            if error.code != _NO_ANSWER:
                raise
            silence = time.monotonic() - answered
            if silence > patience:
                facts = {"address": server.address, "silence": f"{silence:.0f}", "reason": error.facts["reason"]}
                raise ExtensionError("E812", job=job_id, **facts) from error
            watch.is_away(str(error.facts["reason"]), patience - silence)
            if interrupted() and watch.state is not None:
                return watch.state
        if timeout is not None and time.monotonic() - began > timeout:
            raise ExtensionError("E813", job=job_id, seconds=f"{timeout:g}", status=status)
        on_event("", None, {"type": "tick", "time": time.time()})
        time.sleep(POLL_SECONDS)


class _Watch:
    """What was seen of a job so far."""

    def __init__(self, server: FlowServer, job_id: str, on_event: OnEvent) -> None:
        self.state: Optional[JobState] = None
        self._server = server
        self._job_id = job_id
        self._on_event = on_event
        self._versions: Dict[Tuple[str, Party], int] = {}
        self._tries: Dict[Tuple[str, Party], int] = {}  # whose events the log holds at the place that was read
        self._over: Set[Tuple[str, Party, int]] = set()
        self._lines: Dict[Tuple[str, Party], int] = {}
        self._away_since: Optional[float] = None
        self._failed_since: Optional[float] = None
        self._reminded = 0.0

    def look(self) -> JobState:
        """Ask once, and tell what is new."""
        self.state = state = self._server.job(self._job_id)
        tasks = self._server.tasks(self._job_id)
        for task in tasks:
            self._task(task)
        now = time.monotonic()
        if not has_failed(tasks):
            self._failed_since = None
        elif self._failed_since is None:
            self._failed_since = now
        if state.started is None and not state.ended:
            self._remind(f"job {self._job_id} is {state.status}: the server has not started it yet")
        return state

    def is_stuck(self) -> bool:
        """Whether a task here has failed long ago, and nobody ends the job or starts the task again."""
        return self._failed_since is not None and time.monotonic() - self._failed_since > STUCK_SECONDS

    def is_away(self, reason: str, left: float) -> None:
        """Tell that the server does not answer, and until when it is asked again."""
        if self._away_since is None:
            self._away_since, self._reminded = time.monotonic(), 0.0
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        self._remind(f"{self._server.address} gives no answer ({reason}); asking again until {until}")

    def is_back(self) -> None:
        """Tell that it answers again."""
        if self._away_since is not None:
            self._notice(f"{self._server.address} answers again after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None

    def _task(self, task: TaskState) -> None:
        key = (task.task, task.party)
        if task.status not in ("running", *ENDED) or (*key, task.version) in self._over:
            return
        if self._versions.get(key, -1) < task.version:
            if key in self._versions or task.version:
                self._notice(f"{task.task} {task.party}: try {task.version + 1}")
            self._versions[key] = task.version
            self._on_event(task.task, task.party, {"type": "started", "time": time.time(), "version": task.version})
        for event in self._new_events(task):
            if event["type"] == "started":
                self._tries[key] = int(event.get("version") or 0)
            elif self._tries.get(key, task.version) >= task.version:  # not of an earlier try, in the same log
                self._on_event(task.task, task.party, event)
        if task.ended:
            self._over.add((*key, task.version))
            ended = {"type": "ended", "time": time.time(), "exit_code": 0 if task.status in GOOD else 1}
            self._on_event(task.task, task.party, ended)

    def _new_events(self, task: TaskState) -> List[Event]:
        """What was logged since the last look; a log that has become shorter is a new one."""
        key = (task.task, task.party)
        read = self._lines.get(key, 0)
        where = (self._job_id, task.role, task.party_id, task.task)
        lines = self._server.log(*where, begin=read + 1)
        if not lines and read and self._server.log_length(*where) < read:
            read, lines = 0, self._server.log(*where)
        self._lines[key] = read + len(lines)
        return read_events(lines)

    def _remind(self, message: str) -> None:
        if time.monotonic() - self._reminded >= REMIND_SECONDS or not self._reminded:
            self._reminded = time.monotonic()
            self._notice(message)

    def _notice(self, message: str) -> None:
        self._on_event("", None, {"type": "notice", "time": time.time(), "message": message})
