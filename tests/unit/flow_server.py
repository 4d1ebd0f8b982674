"""A small HTTP server in this process that answers as FATE Flow does, or as a test says."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

JOB = "202600000000000000001"
PREFIX = "[INFO][2026-11-21 00:16:26,406][2634][progress.emit][line:32]: "


class Server(ThreadingHTTPServer):
    """``answers``: path below /v2 -> what is answered, or a function of (handler, arguments) that answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self._serve(url.path, dict(parse_qsl(url.query)))

    def do_POST(self) -> None:
        self._serve(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, path: str, arguments: dict[str, Any]) -> None:
        self.server.asked.append((path, arguments, dict(self.headers)))
        answer = self.server.answers.get(path.removeprefix("/v2"), {"code": 6000, "message": "<NotFound '404'>"})
        if callable(answer):
            answer = answer(self, arguments)
        if answer is not None:
            self.reply(answer)

    def reply(self, answer: Any, status: int = 200, kind: str = "application/json", size: int | None = None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def running(**answers: Any) -> Iterator[Server]:
    """A server that answers; names are paths with _ for /."""
    with Server() as server:
        server.answers.update({f"/{name.replace('__', '/')}": answer for name, answer in answers.items()})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def job_row(status: str = "running", role: str = "guest", party_id: str = "9999", **fields: Any) -> dict[str, Any]:
    """A row of job/query."""
    parties = [{"role": "guest", "party_id": ["9999"]}, {"role": "host", "party_id": ["10000"]}]
    dag = {"conf": {}, "parties": parties, "stage": "train", "tasks": {}}
    row = {"job_id": JOB, "role": role, "party_id": party_id, "status": status, "progress": 0, "parties": parties}
    row.update(create_time=1_000, start_time=2_000, end_time=5_000, model_id=JOB, model_version="0")
    row.update(dag={"dag": dag, "schema_version": "2.2.0"})
    return {**row, **fields}


def task_row(status: str = "running", **fields: Any) -> dict[str, Any]:
    """A row of job/task/query."""
    row: dict[str, Any] = {"task_name": "fedmkt_0", "role": "guest", "party_id": "9999", "task_version": 0}
    row.update(party_status=status, create_time=1_000, start_time=2_000, end_time=None, error_report="")
    return {**row, **fields}


def data(content: Any) -> dict[str, Any]:
    """FATE Flow's frame of an answer."""
    return {"code": 0, "message": "success", "data": content}


def event(type: str, **fields: Any) -> str:
    """A line of a task's log."""
    return PREFIX + "event " + json.dumps({"time": 1.0, "type": type, **fields})


def log(lines: Callable[[], list[str]], partial: str = "") -> Callable[[Handler, dict[str, Any]], dict[str, Any]]:
    """The answers of log/query to a growing log, the last line of which may not be complete."""

    def answer(_handler: Handler, arguments: dict[str, Any]) -> dict[str, Any]:
        begin = int(arguments.get("begin", 1))
        rest = lines()[begin - 1 :]
        if not rest and not partial:
            return data([])
        return data([{"line_num": begin + n, "content": one} for n, one in enumerate([*rest, partial])])

    return answer


def archive(files: dict[str, bytes], members: list[tarfile.TarInfo] | None = None, mode: str = "w") -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for member in members or []:
            tar.addfile(member)
    return buffer.getvalue()


def sends(content: bytes, kind: str = "application/x-tar", size: int | None = None) -> Callable[..., None]:
    """Answers with a file."""

    def answer(handler: Handler, _arguments: dict[str, Any]) -> None:
        handler.reply(content, kind=kind, size=size)

    return answer
