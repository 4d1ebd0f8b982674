"""One federation for all tests of this folder: three sites of FATE Flow with brokers and gateways of their own.

``PROVIDER_ENVIRONMENT`` names a provider environment to be used as it is (default: .venv-provider, which is made or
renewed by `fate-llm-ext provider build`). ``FEDERATION`` names a folder of deploy/federation.sh whose sites run, have
the provider and the tables, and shall be left running: for work on the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from machine import missing_packages
from sites import CONF, REPOSITORY, SCRIPTS, Federation, FederationError, prepare


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.flow)
    items.sort(key=lambda item: item.path.name == "test_faults.py")  # last: it breaks what the others use


@pytest.fixture(scope="session", autouse=True)
def _terminated() -> Iterator[None]:
    """SIGTERM ends the session as Ctrl-C does: finalizers run."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once; the finalizers take a few seconds
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def packages() -> None:
    """What a federation needs of this machine; the tests fail where it is missing."""
    if missing := missing_packages():
        pytest.fail(
            f"FATE Flow's sites need {' '.join(missing)}: run deploy/packages.sh, or make test-flow", pytrace=False
        )


@pytest.fixture(scope="session")
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three sites that are up, know the provider and have the table llm/news."""
    request.getfixturevalue("packages")
    if running := os.environ.get("FEDERATION"):
        folder = Path(running).resolve()
        data = Path(os.environ.get("FEDERATION_DATA") or REPOSITORY / "runs/three_sites").resolve()
        if not (folder / "sites.yaml").exists():
            text = (CONF / "sites.yaml").read_text().replace("../../../runs/three_sites", str(data))
            (folder / "sites.yaml").write_text(text)
        yield Federation(folder, data)
        return
    folder = tmp_path_factory.mktemp("federation")
    environment = os.environ.get("PROVIDER_ENVIRONMENT")
    sites = Federation(folder, folder / "data", Path(environment).resolve() if environment else None)
    guard = _guard(folder)
    try:
        data = prepare(sites.data)
        try:
            sites.up()
            text = data.communicate(timeout=300)[0]
        finally:
            if data.poll() is None:
                os.killpg(data.pid, signal.SIGKILL)
                data.wait()
        if data.returncode:
            raise FederationError(f"conf/fedmkt/three_sites/prepare.sh:\n{text}")
        yield sites
    finally:
        guard.kill()
        guard.wait()
        left = sites.down()
        _tidy(sites, keep=bool(left) or bool(request.session.testsfailed))
    assert not left, "\n".join(left)


def _guard(folder: Path) -> subprocess.Popen[bytes]:
    """Takes the sites down if this process is killed and cannot."""
    wait = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; exec bash "$2" down "$3"'
    call = ["bash", "-c", wait, "guard", str(os.getpid()), str(SCRIPTS / "federation.sh"), str(folder)]
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _tidy(sites: Federation, keep: bool) -> None:
    """Nothing stays of a session that passed; of one that failed, logs and configurations do."""
    if not keep:
        shutil.rmtree(sites.folder, ignore_errors=True)
    for site in sites.sites.values():
        for name in ("server", "broker/mnesia", "provider"):
            shutil.rmtree(site.folder / name, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """With a failed test go the error reports and logs of the jobs that ran in it, from every site."""
    report = yield
    sites = getattr(item, "funcargs", {}).get("federation")
    if report.failed and isinstance(sites, Federation):
        for job_id in sites.jobs(since=call.start if call.when == "call" else time.time() - 60):
            try:
                report.sections.append((f"job {job_id}", sites.report(job_id)))
            except Exception as error:  # noqa: BLE001 - the report of the failure shall not fail
                report.sections.append((f"job {job_id}", f"no report: {error}"))
    return report
