"""One party's process: started in its own session, followed through its event file, stopped as a group."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Dict, List, Optional, Tuple

from fate_llm_ext.pipelines import guard
from fate_llm_ext.pipelines.job import Party

Event = Dict[str, Any]
ABORTED_BY_OTHER = "E303"

_EXCEPTION_LINE = re.compile(r"^(?:[\w]+\.)*(\w*(?:Error|Exception|Exit|Interrupt|Warning)\w*)(?::\s*(.*))?$")


class PartyProcess:
    """A running party. ``code`` is its exit code, negative for a signal, None while it runs.

    ``tolerant``: it has said that it carries on without a party that fails.
    """

    def __init__(self, party: Party, folder: Path) -> None:
        self.party = party
        self.folder = folder
        self.code: Optional[int] = None
        self.ended = 0.0
        self.stopped_by_engine = False
        self.tolerant = False
        self.error: Optional[Event] = None
        self._events = Follower(folder / "events.jsonl")
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self, python: str, environment: Dict[str, str]) -> None:
        """Start FATE's own entry below a guard."""
        component = [
            python,
            "-m",
            "fate.components",
            "component",
            "execute",
            "--config",
            str(self.folder / "task.yaml"),
        ]
        component += ["--execution-final-meta-path", str(self.folder / "meta.json")]
        command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *component]
        with (self.folder / "stdout.txt").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Id of the party's process group."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.code is None

    def poll(self) -> None:
        """Notice the end; what the party left behind in its group is killed before its id becomes free."""
        if self._process is None or self.code is not None:
            return
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        self.send(signal.SIGKILL)
        self.code = self._process.wait()
        self.ended = time.time()

    def send(self, number: int) -> None:
        """Send a signal to the whole group."""
        if self._process is not None and self.code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def new_events(self) -> List[Event]:
        """Events since the last call; the first one of type ``error`` is remembered."""
        events = self._events.read()
        for event in events:
            if event.get("type") == "error" and self.error is None:
                self.error = event
            self.tolerant = self.tolerant or event.get("type") == "tolerant"
        return events

    def close(self) -> None:
        """Stop following the event file."""
        self._events.close()

    @property
    def log(self) -> Path:
        """The file that tells most about the party's end."""
        log = self.folder / "log.txt"
        return log if log.exists() else self.folder / "stdout.txt"

    def meta(self) -> Dict[str, Any]:
        """What FATE wrote at the end, or nothing."""
        try:
            meta: Dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return meta

    def reason(self) -> str:
        """Why it failed: its `error` event, else the last exception of FATE's record or of its output."""
        if self.error is not None:
            code, message = str(self.error.get("code", "")), str(self.error.get("message", ""))
            return message if message.startswith(code) else f"{code} {message}"
        text = self.meta().get("status", {}).get("exceptions") or _tail(self.folder / "stdout.txt")
        reason = last_exception(str(text)) or f"it ended with exit code {self.code} and said nothing"
        if "could not find registered cpn" in reason:  # FATE keeps the true reason for its log
            hidden = re.findall(r"register cpn from entrypoint\(named=(.*)", _tail(self.folder / "log.txt"))
            reason = "; ".join([reason, *(f"FATE cannot load the plug-in {one}" for one in hidden)])
        return reason

    def blame(self) -> Tuple[bool, bool, float]:
        """Sort key: the root cause comes first (a party that only reports another's failure last)."""
        told = self.error is not None and self.error.get("code") == ABORTED_BY_OTHER
        told = told or self.reason().startswith(ABORTED_BY_OTHER)
        when = float(self.error.get("time", self.ended)) if self.error else self.ended
        return told, not (self.code or 0) < 0, when


class Follower:
    """Reads the complete new lines of a growing JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Optional[IO[bytes]] = None
        self._rest = b""

    def read(self) -> List[Event]:
        """The new events; lines that are no JSON objects are skipped."""
        if self._file is None:
            if not self.path.exists():
                return []
            self._file = self.path.open("rb")
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        events: List[Event] = []
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
        return events

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def last_exception(text: str) -> str:
    """The last exception of a traceback without its module, e.g. ``ValueError: no rows``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        match = _EXCEPTION_LINE.match(line)
        if match:
            name, message = match.group(1), match.group(2) or ""
            if name == "ExtensionError":
                return message
            hint = " (out of memory)" if name in ("MemoryError", "OutOfMemoryError") else ""
            return (f"{name}: {message}" if message else name) + hint
    return lines[-1] if lines else ""


def _tail(path: Path, size: int = 65536) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
