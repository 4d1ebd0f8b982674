"""An HTTP server in this process that answers like an OpenAI-compatible one, or fails as a script says.

It echoes: the text of a prompt is the prompt in brackets, so that a lost, doubled or swapped text shows.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler", str, int], None]  # (handler, prompt, which attempt for it, from 1) answers the request


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, models: Any = ("the-model",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.models = models
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.arrivals: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: Server

    def do_GET(self) -> None:
        models = self.server.models
        if isinstance(models, int):
            self.answer(b"{}", models)
        else:
            self.answer(json.dumps({"data": [{"id": name} for name in models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][0]["content"] if self.chat else body["prompt"]
        with self.server.lock:
            self.server.attempts[prompt] += 1
            attempt = self.server.attempts[prompt]
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.arrivals.append(time.monotonic())
        self.server.script(self, prompt, attempt)

    def text(self, text: Any, finish: str = "stop") -> bytes:
        """The JSON of a text."""
        choice = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return json.dumps({"choices": [{"index": 0, "finish_reason": finish, **choice}]}).encode()

    def good(self, prompt: str) -> None:
        self.answer(self.text(f"<{prompt}>"))

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, size: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def drop(self) -> None:
        """Break the connection off."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(script: Script, models: Any = ("the-model",)) -> Iterator[Server]:
    server = Server(script, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def echo(handler: Handler, prompt: str, attempt: int) -> None:
    """Always well."""
    handler.good(prompt)


# --- faults: each leaves the client without a usable answer, and is over at the next attempt -------------------------


def late(handler: Handler, prompt: str, attempt: int) -> None:
    time.sleep(1.5)
    handler.good("LATE " + prompt)


def dropped(handler: Handler, prompt: str, attempt: int) -> None:
    handler.drop()


def dropped_in_the_body(handler: Handler, prompt: str, attempt: int) -> None:
    content = handler.text(f"<{prompt}>")
    handler.answer(content[:-20], size=len(content))
    handler.drop()


def truncated(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(handler.text(f"<{prompt}>")[:-20])


def garbage(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"\xff\xfe<html>Bad gateway</html>")


def deep(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"[" * 100_000)


def empty(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"")


def no_choices(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b'{"choices": []}')


def a_list(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b'[{"choices": 1}]')


def no_text(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(handler.text(None))


def a_number(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(handler.text(17))


def broken_off(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(handler.text("half of", "abort"))


def not_compressed(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(handler.text("x"), headers={"Content-Encoding": "gzip"})


def busy(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"{}", 429, {"Retry-After": "0"})


def busy_without_a_word(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"{}", 429)


def crashed(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"Traceback: " + prompt.encode(), 500)


def away(handler: Handler, prompt: str, attempt: int) -> None:
    handler.answer(b"", 503)


FAULTS: tuple[Script, ...] = (
    late,
    dropped,
    dropped_in_the_body,
    truncated,
    garbage,
    deep,
    empty,
    no_choices,
    a_list,
    no_text,
    a_number,
    broken_off,
    not_compressed,
    busy,
    busy_without_a_word,
    crashed,
    away,
)


def twice(handler: Handler, prompt: str, attempt: int) -> None:
    """The right answer, and once more unasked on the same connection."""
    handler.good(prompt)
    handler.good(prompt)
