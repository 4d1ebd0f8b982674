"""Watching the parties of a task: events, ends, failures, signals, time limits."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from types import FrameType
from typing import Any, Callable, Dict, List, Optional

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines.job import Party
from fate_llm_ext.pipelines.process import Event, PartyProcess

GRACE_SECONDS = 5.0  # for the others to end by themselves after one party failed
TERMINATE_SECONDS = 3.0  # between TERM and KILL
POLL_SECONDS = 0.1
TICK_SECONDS = 1.0
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Remembers the first of SIGINT, SIGTERM and SIGHUP instead of dying of it; ``number`` is 0 until then."""

    def __init__(self) -> None:
        self.number = 0
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Optional[FrameType]) -> None:
        self.number = self.number or number


def supervise(
    task: str,
    processes: List[PartyProcess],
    interrupts: Interrupts,
    on_event: Callable[[str, Optional[Party], Event], None],
    timeout: Optional[float],
) -> None:
    """Follow the parties until all ended; return if all ended well.

    Raises:
        ExtensionError: E521 or E522 for the party that failed first, E526 after a signal, E528 after
            ``timeout`` seconds. No process is left then.
    """
    began = time.monotonic()
    ticked = began
    failed_at: Optional[float] = None
    try:
        while any(process.running for process in processes):
            for process in processes:
                _look(task, process, on_event)
            now = time.monotonic()
            if failed_at is None and any(process.code for process in processes):
                failed_at = now
            if interrupts.number:
                raise ExtensionError("E526", signal=signal.Signals(interrupts.number).name, task=task)
            spared = any(process.tolerant and not process.code for process in processes)
            if failed_at is not None and not spared and now - failed_at > GRACE_SECONDS:
                break
            if timeout is not None and now - began > timeout:
                log = next((process.log for process in processes if process.running), processes[0].log)
                raise ExtensionError("E528", task=task, seconds=f"{timeout:g}", log=log)
            if now - ticked >= TICK_SECONDS:
                ticked = now
                on_event(task, None, {"type": "tick", "time": time.time()})
            time.sleep(POLL_SECONDS)
    finally:
        stop(processes)
    for process in processes:
        _look(task, process, on_event)
    failed = [process for process in processes if process.code and not process.stopped_by_engine]
    if failed:
        raise failure(task, min(failed, key=PartyProcess.blame))


def stop(processes: List[PartyProcess]) -> None:
    """End what still runs: TERM, then KILL."""
    for number, patience in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, None)):
        running = [process for process in processes if process.running]
        for process in running:
            process.poll()
            process.stopped_by_engine = process.running
            process.send(number)
        deadline = None if patience is None else time.monotonic() + patience
        while any(process.running for process in running) and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_SECONDS / 5)
            for process in running:
                process.poll()


def failure(task: str, process: PartyProcess) -> ExtensionError:
    """The job's error for the party that failed first."""
    if (process.code or 0) < 0:
        name = signal.Signals(-(process.code or 0)).name
        hint = ""
        if name == "SIGKILL":
            hint = " Mostly the system does that when memory runs out: use smaller batches, models or fewer parties."
        return ExtensionError("E522", party=process.party, signal=name, task=task, hint=hint, log=process.log)
    reason = process.reason()
    if os.strerror(errno.ENOSPC) in reason:
        free = shutil.disk_usage(process.folder).free >> 20
        return ExtensionError("E523", path=process.folder, free_mb=free)
    return ExtensionError("E521", party=process.party, task=task, reason=reason, log=process.log)


def _look(task: str, process: PartyProcess, on_event: Callable[[str, Optional[Party], Event], None]) -> None:
    was_running = process.running
    process.poll()
    for event in process.new_events():
        on_event(task, process.party, event)
    if was_running and not process.running:
        ended = {"type": "ended", "time": time.time(), "exit_code": process.code}
        on_event(task, process.party, ended)
