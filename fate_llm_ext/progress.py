"""Events of a running party: what it does, how far it is, what it measured.

Events go to the log (one line each) and, when the variable ``FATE_LLM_EXT_EVENTS`` names a file, as
JSON lines into that file, which the local engine follows for live progress and the report reads. Under FATE
Flow there is no such file: each line of the log then is ``event`` and the JSON, all events included. They
hold counts and numbers, never text of prompts or answers.

Types: ``started`` (version: number of the try, under FATE Flow only), ``phase`` (arm, round, phase),
``progress`` (phase, done, total), ``metric`` (arm, round, name, value), ``result`` (arm, metric, value),
``message`` (direction, peer, name, round, bytes), ``waiting`` (peer, seconds), ``privacy`` (a statement, see
:mod:`fate_llm_ext.privacy.report`), ``site`` (what :mod:`fate_llm_ext.algo.site_check.findings` knows of one),
``error`` (code, message), ``warning`` (code, message: something failed that the task does without), ``done``.
Every event has ``time`` (seconds since epoch).
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Dict, Optional

EVENTS_VARIABLE = "FATE_LLM_EXT_EVENTS"
_UNLOGGED = ("progress", "privacy")  # too often, too long; who makes a statement logs its headline

EVENT_MARK = "event "

logger = logging.getLogger(__name__)
_as_json = False


def log_events() -> None:
    """From now on, events are JSON in the log."""
    global _as_json
    _as_json = True


def emit(type: str, **fields: Any) -> None:
    """Record one event."""
    if _as_json:
        logger.info("%s%s", EVENT_MARK, _json(type, fields))
    elif type not in _UNLOGGED:
        logger.info("%s %s", type, " ".join(f"{key}={value}" for key, value in fields.items()))
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(_json(type, fields) + "\n")


def _json(type: str, fields: Dict[str, Any]) -> str:
    return json.dumps({"time": round(time.time(), 3), "type": type, **fields})


class Progress:
    """Progress of one phase, emitted at most every ``interval`` seconds."""

    def __init__(self, phase: str, total: int, interval: float = 1.0) -> None:
        self.phase = phase
        self.total = total
        self.interval = interval
        self._last: Optional[float] = None

    def update(self, done: int) -> None:
        """Say that ``done`` of ``total`` units are finished."""
        now = time.monotonic()
        if self._last is None or now - self._last >= self.interval or done >= self.total:
            self._last = now
            emit("progress", phase=self.phase, done=done, total=self.total)
