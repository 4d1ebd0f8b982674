"""docs/operate.md: the commands of the page, in its order, on empty homes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest
from sites import ENVIRONMENT, REPOSITORY, free_base, port_is_free, touching

PAGE = REPOSITORY / "docs/operate.md"
SECONDS = 1200  # on a busy machine; a few minutes on a quiet one
# First line of each frame that is not run -> why.
NOT_RUN = {
    "git clone REPOSITORY fate-llm-ext && cd fate-llm-ext": "fetches from a network; the test runs in a checkout",
    "fate-llm-ext provider build /srv/fate/provider --server-python /opt/fate_flow/bin/python": "other folders",
    "ufw allow from PARTNER to any port 9390,5672 proto tcp": "changes the machine's firewall",
    "fate-llm-ext provider wheelhouse wheels": "downloads 2 GB; tests of the provider do it with a small one",
    "[Service]": "a file of systemd",
    'rm -rf "$TRIAL"': "the test keeps the folder to look into it",
}


@dataclass(frozen=True)
class Frame:
    """A fenced part of the page."""

    kind: str
    line: int
    text: str

    @property
    def first_line(self) -> str:
        return self.text.splitlines()[0]


def frames() -> list[Frame]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Frame(one[1], text.count("\n", 0, one.start(2)) + 1, one[2]) for one in found]


def test_frames_are_run_or_listed() -> None:
    kinds = {frame.kind for frame in frames()}
    assert kinds == {"sh", "console"}
    assert [frame.first_line for frame in frames() if frame.kind == "console"] == list(NOT_RUN)


@dataclass
class Walk:
    """What running the page left: the folder, and the output of each frame by its line on the page."""

    folder: Path
    base: int
    outputs: dict[int, str]
    returncode: int
    tail: str

    def output(self, words: str) -> str:
        """Of the frame that holds these words."""
        (line,) = [frame.line for frame in frames() if frame.kind == "sh" and words in frame.text]
        return self.outputs[line]


@pytest.fixture(scope="module")
def walk(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Run all frames in one shell, as somebody who copies them one after the other; stops at the first that fails."""
    folder = tmp_path_factory.mktemp("operate") / "fate-trial"
    base = free_base()
    parts = [f"echo '### {frame.line}'\n{frame.text}" for frame in frames() if frame.kind == "sh"]
    script = folder.with_name("page.sh")
    script.write_text("set -euo pipefail\n" + "\n".join(parts), encoding="utf-8")
    uv = Path(sys.executable).with_name("uv")
    variables = {
        **{name: value for name, value in ENVIRONMENT.items() if not name.startswith("FATE_LLM_EXT_")},
        "TRIAL": str(folder),
        "BASE_PORT": str(base),
        "ENVIRONMENT": str(REPOSITORY / ".venv-provider"),  # once for all tests of this folder, not 2 GB for each
        "PYTHON": sys.executable,
        **({"UV": str(uv)} if uv.exists() else {}),
    }
    output = folder.with_name("output.txt")
    try:
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", str(script)],
                cwd=REPOSITORY,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(SECONDS)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = output.read_text(errors="replace")
        pieces = re.split(r"^### (\d+)\n", text, flags=re.MULTILINE)
        yield Walk(folder, base, dict(zip(map(int, pieces[1::2]), pieces[2::2])), process.returncode, text[-6000:])
    finally:  # also when the walk is interrupted
        down = ["bash", str(REPOSITORY / "deploy/federation.sh"), "down", str(folder)]
        subprocess.run(down, env=ENVIRONMENT, check=False, timeout=120)
        for stray in touching(folder):
            stray.kill()


def test_every_command_works(walk: Walk) -> None:
    assert walk.returncode == 0, walk.tail
    assert list(walk.outputs) == [frame.line for frame in frames() if frame.kind == "sh"]


def test_nothing_runs_after_the_page(walk: Walk) -> None:
    assert [process.cmdline() for process in touching(walk.folder)] == []
    ports = [walk.base + 10 * kind + number for kind in range(7) for number in range(1, 5)]
    assert [port for port in ports if not port_is_free(port)] == []


def test_models_and_reports_are_there(walk: Walk) -> None:
    runs = sorted((walk.folder / "runs").iterdir())
    assert len(runs) == 4, "three training jobs and a prediction"
    for run in runs:
        assert json.loads((run / "job.json").read_text())["status"] == "success"
        assert (run / "report.html").exists()
    adapters = [path for run in runs for path in run.rglob("adapter_config.json")]
    assert len(adapters) == 3
    answers = [path for run in runs for path in run.rglob("predictions.jsonl")]
    assert len(answers) == 1
    assert list((walk.folder / "runs_of_10000").rglob("adapter_config.json"))


def test_the_new_site_shook_hands(walk: Walk) -> None:
    assert "10002" in walk.output("guest:10002")


def test_secrets_are_the_owners(walk: Walk) -> None:
    for site in walk.folder.glob("site_*"):
        assert (site / "secrets").stat().st_mode & 0o077 == 0
        assert (site / "flow/conf/service_conf.yaml").stat().st_mode & 0o077 == 0
