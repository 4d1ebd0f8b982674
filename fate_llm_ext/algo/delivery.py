"""Metrics on their way to the site's FATE Flow.

FATE posts each number while the work waits, without a limit, and forgets those that the server did not take: a server
that restarts leaves a gap in the curves. Here a thread delivers them, in order, until the server has them.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from typing import Any, Dict, List, Optional
from urllib.parse import urlsplit

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.progress import emit

logger = logging.getLogger(__name__)

_AT_ONCE = 100
_ANSWER_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_LAST_SECONDS = 90.0  # a server that restarts is back by then


class Delivery:
    """In the place of FATE's own writer of metrics; what it does not do itself, that one does.

    Args:
        writer: FATE's, for a server.
        address: where it posts to.
        last_seconds: how long the end of the process waits for a server that is away.
    """

    def __init__(self, writer: Any, address: str, last_seconds: float = _LAST_SECONDS) -> None:
        self._writer = writer
        self._address = address
        self._last_seconds = last_seconds
        self._waiting: List[Dict[str, Any]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._given_up = False
        self._reason = ""
        self._thread: Optional[threading.Thread] = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: Dict[str, Any]) -> None:
        """Take one metric; returns at once."""
        self._writer.artifact.consumed()
        with self._changed:
            self._waiting.append(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._deliver, name="metrics", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until the server has everything, and is there to hear how the task ended: FATE asks it once only."""
        if self._closing or self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._last_seconds)
        if self._thread.is_alive():
            self._given_up = True
            count, seconds = len(self._waiting), int(self._last_seconds)
            error = ExtensionError("E867", count=count, seconds=seconds, reason=self._reason or "no answer yet")
            emit("warning", code=error.code, message=str(error))

    def _deliver(self) -> None:
        import requests

        with requests.Session() as session:
            session.trust_env = False  # FATE Flow is a server of this site: no proxy
            while True:
                with self._changed:
                    while not self._waiting and not self._closing:
                        self._changed.wait()
                    batch = self._waiting[:_AT_ONCE]
                try:
                    if not batch:
                        session.get(self._server(), timeout=_ANSWER_SECONDS)
                        return
                    self._check(session.post(self._address, json={"data": batch}, timeout=_ANSWER_SECONDS))
                except (requests.RequestException, ValueError) as error:
                    self._reason = " ".join(f"{type(error).__name__}: {error}".split())
                    logger.warning("this site's FATE Flow does not take metrics: %s", self._reason)
                    if self._given_up:
                        return
                    time.sleep(_PAUSE_SECONDS)
                    continue
                with self._changed:
                    del self._waiting[: len(batch)]

    def _server(self) -> str:
        parts = urlsplit(self._address)
        return f"{parts.scheme}://{parts.netloc}{parts.path.partition('/worker/')[0]}/server/fateflow"

    @staticmethod
    def _check(answer: Any) -> None:
        """FATE Flow says in the body whether it has done what it was asked."""
        answer.raise_for_status()
        said = answer.json()
        if said.get("code") != 0:
            raise ValueError(f"code {said.get('code')}: {str(said.get('message'))[:300]}")


def deliver(handler: Any) -> None:
    """Have FATE's handler of metrics write through a :class:`Delivery`, if it writes to a server at all."""
    writer = getattr(handler, "_writer", None)
    if writer is None or isinstance(writer, Delivery):
        return
    address = str(getattr(getattr(getattr(writer, "artifact", None), "uri", None), "original_uri", ""))
    if address.startswith(("http://", "https://")):
        handler._writer = Delivery(writer, address)
