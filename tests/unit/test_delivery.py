"""Metrics reach a server that is away, refuses, or restarts; one that never comes is named."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from fate_llm_ext.algo import delivery
from fate_llm_ext.algo.delivery import Delivery, deliver


class Server:
    """As FATE Flow's: takes metrics at one path, says in the body whether it did."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.taken: list[int] = []
        self.refusals: list[tuple[int, bytes]] = []
        self.looks: list[str] = []
        self._running: HTTPServer | None = None

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = (200, b'{"code": 0}') if not server.refusals else server.refusals.pop(0)
                if status == 200 and b": 0" in answer and self.path == "/v2/worker/metric/save/x":
                    server.taken += [one["number"] for one in body["data"]]
                self._say(status, answer)

            def do_GET(self) -> None:
                server.looks.append(self.path)
                self._say(200, b"{}")

            def _say(self, status: int, answer: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._running = HTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._running.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._running is not None:
            self._running.shutdown()
            self._running.server_close()
            self._running = None

    def delivery(self, last_seconds: float = 20.0) -> Delivery:
        writer = SimpleNamespace(artifact=SimpleNamespace(consumed=lambda: None))
        return Delivery(writer, f"http://127.0.0.1:{self.port}/v2/worker/metric/save/x", last_seconds)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(delivery, "_PAUSE_SECONDS", 0.05)
    one = Server()
    yield one
    one.stop()


def write(one: Delivery, numbers: range) -> None:
    for number in numbers:
        one.write({"number": number})


def test_all_arrive_once_and_in_order(server: Server) -> None:
    server.start()
    one = server.delivery()
    write(one, range(250))
    one.close()
    assert server.taken == list(range(250))
    assert server.looks == ["/v2/server/fateflow"], "the end of the task finds a server"


def test_a_server_that_is_away_is_waited_for_beside_the_work(server: Server) -> None:
    server.start()
    one = server.delivery()
    write(one, range(3))
    while len(server.taken) < 3:
        time.sleep(0.01)
    server.stop()
    began = time.monotonic()
    write(one, range(3, 6))
    assert time.monotonic() - began < 0.05
    threading.Timer(0.5, server.start).start()
    one.close()
    assert server.taken == list(range(6))


@pytest.mark.parametrize("refusal", [(502, b""), (200, b'{"code": 1001, "message": "locked"}'), (200, b"<html>")])
def test_a_refusal_is_no_delivery(server: Server, refusal: tuple[int, bytes]) -> None:
    server.refusals = [refusal, refusal]
    server.start()
    one = server.delivery()
    write(one, range(2))
    one.close()
    assert server.taken == [0, 1]


def test_a_server_that_never_comes_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(delivery, "emit", lambda type, **fields: said.append({"type": type, **fields}))
    one = server.delivery(last_seconds=0.3)
    write(one, range(2))
    one.close()
    one.close()
    (event,) = said
    assert (event["type"], event["code"]) == ("warning", "E867")
    assert "2 metrics" in event["message"]
    assert "ConnectionError" in event["message"]


def test_only_a_server_is_delivered_to_and_once() -> None:
    def handler(address: str) -> Any:
        uri = SimpleNamespace(original_uri=address)
        return SimpleNamespace(_writer=SimpleNamespace(artifact=SimpleNamespace(uri=uri, consumed=lambda: None)))

    file = handler("file:///metrics.json")
    deliver(file)
    assert not isinstance(file._writer, Delivery)
    remote = handler("http://127.0.0.1:1/v2/worker/metric/save/x")
    deliver(remote)
    first = remote._writer
    deliver(remote)
    assert isinstance(first, Delivery)
    assert remote._writer is first
    deliver(SimpleNamespace())  # numbers that stay in memory
