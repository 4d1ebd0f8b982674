"""Requests to one HTTP server: pace, retries, deadlines, and what is an error at once."""

from __future__ import annotations

import json
import logging
import math
import random
import socket
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Dict, Optional, TypeVar, Union

import requests

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.site import Endpoint

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 1.0  # seconds before the first retry; each further pause is twice as long
_LONGEST_PAUSE = 60.0
_CONNECT = 10.0  # longest wait for a connection, in seconds
_PIECE = 16  # bytes read at a time: between two pieces the deadline is looked at, however slowly they come
_LONGEST_ANSWER = 1 << 24
_MOST_DOUBLINGS = 16
_RETRIED = {408, 409, 425, 429}
_OF_THE_PROMPT = {400, 413, 422}  # what a prompt can be refused with: it is too long, or a content filter's
_ABSURD = 7 * 86400.0  # seconds; no server means a longer Retry-After


class Cancelled(Exception):
    """The answer is no longer wanted."""


class Unusable(Exception):
    """An answer, or none, that a retry may mend.

    Attributes:
        wait: seconds for which the server asks.
        busy: the server has put the request off and not tried it.
    """

    def __init__(self, reason: str, wait: Optional[float] = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class _Refused(Exception):
    """A status that would be the same again."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Pacer:
    """When the next request may go, for all threads: so many per second, in the order in which they came.

    A pause moves all turns that are not yet taken, so that the pace holds after it, too.
    """

    def __init__(self, rate: Optional[float]) -> None:
        self._gap = 1.0 / rate if rate else 0.0
        self._lock = threading.Lock()
        self._next = 0.0  # when the next turn is free
        self._paused = 0.0  # until when nothing goes
        self._moved = 0.0  # by how much pauses have moved turns so far

    def take_turn(self, cancelled: threading.Event, until: float = math.inf) -> bool:
        """Wait for a turn; False, at once, if it would come after ``until`` (time.monotonic()).

        Raises:
            Cancelled: ``cancelled`` was set meanwhile.
        """
        with self._lock:
            turn = max(self._next, self._paused, time.monotonic())
            self._next = turn + self._gap
            turn -= self._moved
        while not cancelled.is_set():
            with self._lock:
                at = max(turn + self._moved, self._paused)  # a turn that had come, and was not taken, waits, too
            delay = at - time.monotonic()
            if at > until:
                return False
            if delay <= 0:
                return True
            cancelled.wait(delay)
        raise Cancelled

    def pause(self, seconds: float) -> None:
        """Let no request go for a while."""
        with self._lock:
            now = time.monotonic()
            more = now + seconds - max(self._paused, now)
            if more > 0:
                self._paused = now + seconds
                self._next += more
                self._moved += more


class Transport:
    """How requests reach one endpoint; safe to use from many threads.

    Each request has a connection of its own: on one that is used again, an answer that a server or a proxy sends late
    or twice would be taken for that to the next request, and a text would stand under another's prompt. Beside the
    time that an LLM writes, connecting is cheap.

    What the environment says (proxies, .netrc, certificates) does not count: the site file does. Redirections are not
    followed. Neither the key nor anything that was sent or answered stands in an error.

    Args:
        name: the endpoint's name in the site file.
        verify: False: trust any certificate; a path: trust these; True: the usual ones.
    """

    def __init__(self, endpoint: Endpoint, key: Optional[str], name: str, verify: Union[bool, str] = True) -> None:
        self._endpoint = endpoint
        self._name = name
        self._key = "no key is given" if key is None else "a key was sent"
        self._pacer = Pacer(endpoint.requests_per_second)
        self._verify = verify
        self._headers = {"Connection": "close"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(
        self,
        method: str,
        path: str,
        body: Optional[Dict[str, Any]],
        read: Callable[[Any], T],
        *,
        what: str,
        cancelled: threading.Event,
        begun: Callable[[], None] = lambda: None,
        refused: Optional[Callable[[int], T]] = None,
    ) -> T:
        """Send a request until its answer can be read.

        A request that the server puts off (status 429; 503 with Retry-After) is no failed attempt: what it has to
        wait counts against the deadline alone.

        Args:
            read: makes the result of the decoded JSON, or raises :class:`Unusable`.
            what: names the request in errors, e.g. ``text 3 of 80``.
            begun: called before each attempt; the time before the first does not count.
            refused: makes the result where the status (400, 413, 422) may refuse what this request says; None: E413.

        Raises:
            ExtensionError: E413, E415 the server refuses it; E414 no usable answer within retries and deadline; E417
                the server cannot be asked at all.
            Cancelled: ``cancelled`` was set meanwhile.
        """
        self._pacer.take_turn(cancelled)
        start, attempts, put_off = time.monotonic(), 0, 0
        until = start + self._endpoint.deadline_seconds
        while True:
            attempts += 1
            begun()
            try:
                return read(self._exchange(method, path, body, until - time.monotonic(), what))
            except _Refused as no:
                if refused is not None and no.status in _OF_THE_PROMPT:
                    return refused(no.status)
                raise self.refusal(what, no.status) from None
            except Unusable as miss:
                reason, wait = str(miss), miss.wait
                put_off += miss.busy
            doubled = FIRST_PAUSE * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)
            pause = max(min(doubled, _LONGEST_PAUSE) * random.uniform(0.5, 1.0), wait or 0.0)
            enough = attempts - put_off > self._endpoint.retries or time.monotonic() + pause >= until
            if not enough:
                logger.warning("endpoint %s, %s: %s; asking again in %.1f s", self._name, what, reason, pause)
                if wait is not None:
                    self._pacer.pause(wait)  # the server says it to all of us
                if cancelled.wait(pause):
                    raise Cancelled
            if enough or not self._pacer.take_turn(cancelled, until):
                raise self.gave_up(what, attempts, time.monotonic() - start, reason, put_off)

    def refusal(self, what: str, status: int) -> ExtensionError:
        """The error after a status that would be the same again."""
        return ExtensionError("E413", name=self._name, what=what, status=status)

    def gave_up(self, what: str, attempts: int, seconds: float, reason: str, put_off: int = 0) -> ExtensionError:
        """The error after the last attempt."""
        allowed = f"{self._endpoint.retries + 1} attempt(s)"
        if put_off:
            allowed += f" beside {put_off} that it was too busy for,"
        facts = {"name": self._name, "what": what, "attempts": attempts, "seconds": seconds, "reason": reason}
        return ExtensionError("E414", **facts, allowed=allowed, deadline=self._endpoint.deadline_seconds)

    def _exchange(self, method: str, path: str, body: Optional[Dict[str, Any]], left: float, what: str) -> Any:
        """One attempt: the decoded JSON of a good answer.

        Errors of the library are not chained to ours: they may quote the URL.
        """
        seconds = max(min(self._endpoint.timeout_seconds, left), 0.001)
        until = time.monotonic() + seconds
        limits = (min(seconds, _CONNECT), seconds)
        url = self._endpoint.url.rstrip("/") + path
        try:
            with (
                self._session() as session,
                session.request(method, url, json=body, timeout=limits, stream=True, allow_redirects=False) as response,
            ):
                self._check(response, what)
                content = _read(response, until)
        except requests.exceptions.SSLError as error:
            if "certificate" not in str(error).lower():
                raise Unusable("the encrypted connection broke off") from None
            raise ExtensionError("E417", name=self._name, reason="its certificate is not trusted") from None
        except requests.exceptions.ConnectTimeout:
            raise Unusable(f"no connection in {limits[0]:g} s") from None
        except requests.exceptions.Timeout:
            raise Unusable(f"no answer in {seconds:g} s") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Unusable(_why(error)) from None
        except requests.exceptions.ContentDecodingError:
            raise Unusable("an answer that cannot be decompressed") from None
        except (requests.exceptions.RequestException, UnicodeError) as error:
            raise ExtensionError("E417", name=self._name, reason=type(error).__name__) from None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Unusable("an answer that is not JSON") from None

    def _session(self) -> Any:
        """Settings for one connection; it is closed with the session."""
        session = requests.Session()
        session.trust_env = False
        session.verify = self._verify
        session.headers.update(self._headers)
        return session

    def _check(self, response: Any, what: str) -> None:
        """Sort the status: fine, worth a retry, or an error."""
        status: int = response.status_code
        if 200 <= status < 300:
            return
        if status in _RETRIED or status >= 500:
            wait = _retry_after(response.headers.get("Retry-After"))
            raise Unusable(f"status {status}", wait, status == 429 or (status == 503 and wait is not None))
        if status in (401, 403):
            raise ExtensionError("E415", name=self._name, what=what, status=status, key=self._key)
        raise _Refused(status)


def _why(error: Exception) -> str:
    """What happened to a connection, without the library's text, which quotes the URL."""
    cause: Optional[BaseException] = error
    seen = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, socket.gaierror):
            return "the name of its host is not known"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused"
        cause = cause.__cause__ or cause.__context__
    return "the connection broke off"


def _read(response: Any, until: float) -> bytes:
    """The body; a server that sends it drop by drop, or without end, is cut off."""
    content = bytearray()
    for piece in response.iter_content(_PIECE):
        content += piece
        if time.monotonic() > until:
            raise requests.exceptions.ReadTimeout
        if len(content) > _LONGEST_ANSWER:
            raise Unusable(f"an answer of more than {_LONGEST_ANSWER >> 20} MB")
    return bytes(content)


def _retry_after(value: Optional[str]) -> Optional[float]:
    """Seconds of a Retry-After header, which gives seconds or a date; None without one that makes sense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, IndexError, OSError):
            return None
    return max(0.0, seconds) if seconds <= _ABSURD else None  # a number that is none is not smaller, either
