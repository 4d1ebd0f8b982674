"""deploy/federation.sh ends all that it has started, also what was killed, interrupted, or never came up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Iterator

import psutil
import pytest
import requests
from machine import free_base, kill, marked, touching
from sites import ENVIRONMENT, SCRIPTS, Federation, script

PARTIES = "9999 10000"


@pytest.fixture(scope="module")
def pair(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Two sites that are installed; nothing of them runs."""
    folder = tmp_path_factory.mktemp("pair")
    sites = Federation(folder, folder)
    base = free_base()
    try:
        with socket.create_server(("127.0.0.1", base + 22)):  # the gateway of the second
            done = script("up", folder, BASE_PORT=str(base), PARTIES=PARTIES)
            (folder / "first_up.txt").write_text(f"{done.returncode}\n{done.stderr}")
            (folder / "left.txt").write_text("\n".join(_running(sites, except_port=base + 22)))
        yield sites
    finally:
        sites.down()


def _running(sites: Federation, except_port: int = 0) -> list[str]:
    """Processes (killed now) and open ports of the sites."""
    return [*kill(touching(sites.folder)), *(f"port {port}" for port in sites.open_ports() if port != except_port)]


def test_up_starts_all_or_nothing(pair: Federation) -> None:
    code, *lines = (pair.folder / "first_up.txt").read_text().splitlines()
    assert code == "1"
    port = pair.site("10000").settings["PROXY_PORT"]
    told = [line for line in lines if f"port {port} of 127.0.0.1 (proxy) is taken" in line]
    assert len(told) == 1, lines
    assert "Next: " in told[0]
    assert (pair.folder / "left.txt").read_text() == ""


def test_down_after_kill(pair: Federation) -> None:
    up = script("up", pair.folder, PARTIES=PARTIES)
    assert up.returncode == 0, up.stderr + pair.logs()
    assert script("status", pair.folder).returncode == 0
    first, second = pair.site("9999"), pair.site("10000")
    before = {process.pid for process in marked(pair.folder)}
    assert script("up", pair.folder, PARTIES=PARTIES).returncode == 0, "a second up finds all of it running"
    assert {process.pid for process in marked(pair.folder)} >= before - _short_lived(before)
    _gateway(first.settings["PROXY_PORT"])

    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=ENVIRONMENT)
    try:
        for path in ("flow.pid", "proxy/nginx.pid", "broker/pid"):  # of the first site the heads alone
            os.kill(int((first.folder / path).read_text()), signal.SIGKILL)
        kill(touching(second.folder))  # of the second all at once
        # After a restart of the machine a pid file may name somebody else.
        (first.folder / "flow.pid").write_text(str(stranger.pid))
        time.sleep(0.5)
        assert script("status", pair.folder).returncode == 1
        down = script("down", pair.folder)
        assert down.returncode == 0, down.stderr
        assert _running(pair) == []
        assert stranger.poll() is None
        assert script("down", pair.folder).returncode == 0, "nothing to do any more"
    finally:
        stranger.kill()
        stranger.wait()


def _short_lived(pids: set[int]) -> set[int]:
    """Those that have ended by themselves: what services run for a moment."""
    return {pid for pid in pids if not psutil.pid_exists(pid)}


def _gateway(port: str) -> None:
    """Partners' requests pass, also a body that nginx does not hold in memory: its workers may not write here."""
    address, headers = f"http://127.0.0.1:{port}/v2", {"dest-party-id": "9999"}
    body = {"dag": {"kind": "none", "ballast": "x" * 300_000}}
    answer = requests.post(f"{address}/partner/job/create", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text[:300]
    assert answer.json()["code"] != 0  # FATE Flow has read it
    assert requests.get(f"{address}/job/query", headers=headers, timeout=30).status_code == 403


def test_down_after_interrupted_up(pair: Federation) -> None:
    """Killed while the brokers start, which have not yet written whose process they are."""
    env = {**ENVIRONMENT, "PARTIES": PARTIES}
    call = ["bash", str(SCRIPTS / "federation.sh"), "up", str(pair.folder)]
    process = subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        pid_files = [site.folder / "broker/pid" for site in pair.sites.values()]
        deadline = time.monotonic() + 60
        while not _brokers(pair.folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        started = _brokers(pair.folder)
        assert started
        assert not all(path.exists() for path in pid_files), "too late to be interrupted here"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert any(one.is_running() for one in started), "brokers outlive the script"
    assert script("down", pair.folder).returncode == 0
    assert _running(pair) == []


def _brokers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in marked(folder):
        with suppress(psutil.NoSuchProcess):
            if process.name() in ("beam.smp", "rabbitmq-server"):
                found.append(process)
    return found
