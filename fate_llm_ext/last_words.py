"""Speaks for a worker of FATE Flow that was killed: ``python -I -S last_words.py``, facts as JSON lines on stdin.

It waits until its input ends. If the worker had left in its own way, that is all. Otherwise it tells the site's FATE
Flow why, tells the other parties through the worker's channel (:mod:`fate_llm_ext.federation.farewell`), and writes the
outcome that FATE Flow looks for. Until then it keeps the worker's standard error open: FATE Flow reads that to its end
before it declares the task failed, so that the other parties hear the reason before they are killed.

Standard library only, and a process of its own session and of nobody, so that what kills the worker spares it.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Dict, List

REPORT_SECONDS = 5.0
FAREWELL_SECONDS = 20.0
SETTLE_SECONDS = 0.5  # FATE Flow kills first and writes down that it did so afterwards
HEARD_SECONDS = 1.0  # until the other sites' reports are written
STOPPED_SECONDS = 8.0  # where the scheduler is not, a job that was stopped has failed at first
UNREACHABLE = (OSError, http.client.HTTPException, ValueError)  # no answer, half an answer, none of FATE Flow
ENDED = ("canceled", "failed", "timeout", "success")


def main() -> None:
    """Follow the worker, then say what there is to say."""
    state = _follow()
    if state.get("left") or "server" not in state:
        return
    time.sleep(SETTLE_SECONDS)
    doing = state.get("doing", "starting")
    if state.get("silent"):
        doing += f"; nothing was heard from {state['silent']} for {time.time() - state['since']:.0f} s"
    status = _status(state)
    # Without an answer: FATE Flow kills a worker with its parent, which otherwise waits until this process ends.
    by_flow = status in ENDED if status else not _lives(state["parent"])
    kind = "killed" if not by_flow else "stopped" if _canceled(state) else "ended"
    text = str(state[kind]).replace("{doing}", doing)
    if not state.get("reported"):
        _quietly(report, state["server"], state["execution"], text, REPORT_SECONDS)
    _quietly(_write_outcome, state["final"], text)
    if not by_flow and state.get("channel") and not state.get("reported"):
        _farewell(state, text)
        time.sleep(HEARD_SECONDS)
    if kind == "ended" and not state.get("reported") and _was_stopped(state):
        _quietly(report, state["server"], state["execution"], str(state["stopped"]), REPORT_SECONDS)


def report(server: str, execution: str, text: str, timeout: float) -> None:
    """Set the error report of a running task.

    Raises:
        UNREACHABLE: if the server cannot be reached or refuses.
    """
    body = json.dumps({"execution_id": execution, "status": "running", "error": text}).encode()
    request = urllib.request.Request(f"{server}/worker/task/status", body, {"Content-Type": "application/json"})
    with _direct().open(request, timeout=timeout) as answer:
        answer.read()


def get(address: str, query: Dict[str, Any], timeout: float) -> Dict[str, Any]:
    """A JSON answer.

    Raises:
        UNREACHABLE: if the server cannot be reached, or the answer is no JSON.
    """
    with _direct().open(f"{address}?{urllib.parse.urlencode(query)}", timeout=timeout) as answer:
        found: Dict[str, Any] = json.loads(answer.read())
    return found


def _direct() -> urllib.request.OpenerDirector:
    """FATE Flow is a server of this site: no proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _follow() -> Dict[str, Any]:
    """All that the worker told until its end. ``sent`` counts the frames to each peer, ``sending`` is under way."""
    state: Dict[str, Any] = {"sent": {}, "sending": {}}
    for line in sys.stdin.buffer:
        try:
            told = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        for kind in ("sent", "sending"):
            state[kind].update(told.pop(kind, {}))
        state.update(told)
    return state


def _status(state: Dict[str, Any]) -> str:
    """What FATE Flow says about the task: still running, unless it is FATE Flow that ended it."""
    found = _ask(state, "job/task/query", {**state["query"], "task_version": state["version"]})
    return str(found[0].get("party_status", "")) if found else ""


def _lives(pid: int) -> bool:
    """Whether a process is there and not dead already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _was_stopped(state: Dict[str, Any]) -> bool:
    """Whether the job that failed here at first turns out to have been stopped."""
    deadline = time.monotonic() + STOPPED_SECONDS
    while time.monotonic() < deadline:
        if _canceled(state):
            return True
        time.sleep(0.5)
    return False


def _canceled(state: Dict[str, Any]) -> bool:
    """Whether this site's FATE Flow says that somebody stopped the job."""
    return any(
        job.get("status") == "canceled" for job in _ask(state, "job/query", {"job_id": state["query"]["job_id"]})
    )


def _ask(state: Dict[str, Any], what: str, query: Dict[str, Any]) -> List[Dict[str, Any]]:
    try:
        return get(f"{state['server']}/{what}", query, REPORT_SECONDS).get("data") or []
    except UNREACHABLE:
        return []


def _write_outcome(path: str, text: str) -> None:
    if not Path(path).exists():
        Path(path).write_text(json.dumps({"status": {"code": -1, "exceptions": text}}), encoding="utf-8")


def _farewell(state: Dict[str, Any], text: str) -> None:
    """Abort the channel in the worker's place; a frame that was under way may or may not have gone out."""
    frames: List[Dict[str, Any]] = []
    for rank, sent in state["sent"].items():
        both = range(sent, max(sent, state["sending"].get(rank, -1) + 1) + 1)
        frames += [{"rank": int(rank), "number": number} for number in both]
    task = {"config": state["config"], "name": state["channel"], "frames": frames, "reason": text}
    command = [state["python"], "-m", "fate_llm_ext.federation.farewell"]
    try:
        subprocess.run(command, input=json.dumps(task).encode(), timeout=FAREWELL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"the other parties could not be told: {error}\n")


def _quietly(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except UNREACHABLE as error:
        sys.stderr.write(f"{function.__name__}: {type(error).__name__} {error}\n")


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the worker waits for this one; the other one belongs to nobody
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the worker
    main()
