"""What sites of FATE Flow are on this machine: packages, ports, processes."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Iterable, Iterator

import psutil

MARK = "FATE_SITE_FOLDER"  # deploy/lib.sh: in the environment of all that a site runs
PACKAGES = ("rabbitmq-server", "nginx-light", "lsof", "curl")
TENS, SITES = 8, 3  # deploy/federation.sh: of each ten ports from BASE_PORT on, one for each site


def missing_packages() -> list[str]:
    """Debian packages that a federation needs and this machine has not."""
    files = {
        "rabbitmq-server": [Path("/usr/lib/rabbitmq/bin/rabbitmq-server")],
        "nginx-light": [Path("/usr/sbin/nginx"), Path("/usr/bin/nginx")],
        **{name: [Path("/usr/bin") / name, Path("/bin") / name] for name in ("lsof", "curl")},
    }
    return [name for name in PACKAGES if not any(path.exists() for path in files[name])]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_base() -> int:
    """A BASE_PORT for which all ports of three sites are free now; below those that the system hands out."""
    for _ in range(200):
        base = random.randrange(20000, 31000, 100)
        ports = [base + 10 * ten + number for ten in range(TENS) for number in range(1, SITES + 1)]
        if all(map(port_is_free, ports)):
            return base
    raise OSError("no free ports between 20000 and 31000")


def _each_process() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def marked(folder: Path) -> list[psutil.Process]:
    """Processes of the site (or of all sites below) ``folder``: its name is in their environment."""
    found = []
    for process in _each_process():
        try:
            mark = process.environ().get(MARK)
        except (psutil.Error, OSError):
            continue
        if mark is not None and (Path(mark) == folder or folder in Path(mark).parents):
            found.append(process)
    return found


def touching(folder: Path) -> list[psutil.Process]:
    """Processes marked for ``folder``, and those that name a file of it in their command or have one open.

    nginx wipes its environment, and its workers have nothing in their command: they are known by their log.
    """
    known = {process.pid for process in marked(folder)}
    found = []
    for process in _each_process():
        descriptors = Path(f"/proc/{process.pid}/fd")
        try:
            links = [str(link.readlink()) for link in descriptors.iterdir()]
        except OSError:
            links = []
        try:
            words = [word for word in process.cmdline() if str(folder) in word]
        except psutil.Error:
            continue
        if process.pid in known or words or any(link.startswith(f"{folder}/") for link in links):
            found.append(process)
    return found


def kill(processes: Iterable[psutil.Process]) -> list[str]:
    """Kill them; what each was, of those that had not ended meanwhile."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
    return found
