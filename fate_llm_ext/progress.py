"""Events of a running party: what it does, how far it is, what it measured.

Events go to the log (one line each) and, when the variable ``FATE_LLM_EXT_EVENTS`` names a file, as
JSON lines into that file, which the local engine follows for live progress and the report reads. They
hold counts and numbers, never text of prompts or answers.

Types: ``phase`` (arm, round, phase), ``progress`` (phase, done, total), ``metric`` (arm, round, name,
value), ``result`` (arm, metric, value), ``message`` (direction, peer, name, round, bytes), ``waiting``
(peer, seconds), ``privacy`` (a statement, see :mod:`fate_llm_ext.privacy.report`), ``error`` (code,
message), ``warning`` (code, message: something failed that the task does without), ``done``. Every event has
``time`` (seconds since epoch).
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Optional

EVENTS_VARIABLE = "FATE_LLM_EXT_EVENTS"
_UNLOGGED = ("progress", "privacy")  # too often, too long; who makes a statement logs its headline

logger = logging.getLogger(__name__)


def emit(type: str, **fields: Any) -> None:
    """Record one event."""
    if type not in _UNLOGGED:
        logger.info("%s %s", type, " ".join(f"{key}={value}" for key, value in fields.items()))
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        line = json.dumps({"time": round(time.time(), 3), "type": type, **fields})
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


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
