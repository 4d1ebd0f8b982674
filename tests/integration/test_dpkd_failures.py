"""What goes wrong in DP-KD jobs: one clear error, nothing charged that was not released, nobody hangs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dpkd_jobs import CODES, DPKDFiles, events, one_owner, two_owners
from jobs import ENVIRONMENT, PROGRAM, failed, nothing_started, one_error

from fate_llm_ext.privacy.ledger import Ledger

pytestmark = pytest.mark.integration


@pytest.fixture
def job(world: Path, tmp_path: Path) -> DPKDFiles:
    """One owner, as small as it gets."""
    made = one_owner(world, tmp_path)
    made.parameters["synthesis"]["samples"] = 10
    return made


def charged(job: DPKDFiles, party: str = "guest_9999") -> int:
    folder = Path(job.sites[party]["state"])
    found = {path.parent for path in folder.rglob("*.jsonl")}
    return sum(len(Ledger(one).entries()) for one in found)


# --- found before anything starts ---------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0, -1.0])
def test_an_epsilon_that_is_none(job: DPKDFiles, epsilon: float) -> None:
    job.parameters["privacy"]["epsilon"] = epsilon
    failed(job, "tasks.dpkd_0.parameters.privacy.epsilon", "greater than 0", str(epsilon))
    nothing_started(job)


def test_an_empty_control_code(job: DPKDFiles) -> None:
    job.parameters["control"]["values"] = [*CODES[:2], " "]
    failed(job, "tasks.dpkd_0.parameters.control.values", "control code 2 of 3 is empty")
    nothing_started(job)


def test_a_table_without_a_budget(job: DPKDFiles) -> None:
    job.sites["guest_9999"]["budgets"] = {"llm/other": {"epsilon": 1.0, "delta": 0.01}}
    failed(job, "E616", "llm/tickets", "guest 9999", "llm/other")
    nothing_started(job)


def test_a_party_without_its_model(job: DPKDFiles) -> None:
    del job.parameters["student"]
    failed(job, "E670", "guest", "student", "student_at: guest")
    nothing_started(job)


def test_hidden_states_do_not_travel(world: Path, tmp_path: Path) -> None:
    job = two_owners(world, tmp_path)
    job.parameters["distill"]["hidden_weight"] = 0.5
    done = job.run()
    assert done.returncode == 1
    assert "hidden states never cross the wire" in done.stderr
    assert "Traceback" not in done.stderr
    nothing_started(job)


# --- found by the owner, before anything is charged ---------------------------------------------------


def settings(name: str, value: Any) -> Callable[[DPKDFiles], None]:
    def change(job: DPKDFiles) -> None:
        group, field = name.split(".")
        job.parameters[group][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings("privacy.delta", 0.0625), ("0.0625", "16")),
        (settings("privacy.batch_size", 17), ("E630", "17", "16")),
        (settings("control.values", CODES[:-1]), ("E660", "4")),
        (settings("control.code", "{{ text[:0] }}"), ("E661", "16")),
    ],
    ids=["delta", "batch", "code not in the list", "empty code in the data"],
)
def test_a_job_that_does_not_fit_the_table(job: DPKDFiles, change: Callable[[DPKDFiles], None], words: Any) -> None:
    change(job)
    line = failed(job, "E521 guest 9999", *words)
    assert "billing" not in line, "codes of rows are private"
    assert charged(job) == 0
    told = [one for one in events(job.directory(), "arbiter_9998") if one["type"] == "error"]
    assert told[0]["code"] == "E303"
    assert not [word for word in ("llm/tickets", "train.jsonl", "billing") if word in told[0]["message"]]
    if words[0] in ("E660", "E661"):  # it depends on single rows
        constant = "E303 guest 9999 stopped the job: it could not prepare its data (see its own log). Next: "
        assert told[0]["message"].startswith(constant)


def test_the_ledger_ends_what_the_budget_does_not_allow(job: DPKDFiles) -> None:
    """The same job twice: each costs 8, 12 are allowed. The second one neither trains nor charges."""
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert charged(job) == 1
    job.parameters["control"]["code"] = "{{ text[:0] }}"  # would be E661, were it applied to the rows at all
    failed(job, "E521 guest 9999", "E610", "8", "12", "llm/tickets")
    assert charged(job) == 1
    phases = [one["phase"] for one in events(job.directory(), "guest_9999") if one["type"] == "phase"]
    assert "training the teacher" not in phases
    assert not list((job.directory() / "dpkd_0").rglob("*.safetensors"))


def test_owners_of_unlike_teachers(world: Path, tmp_path: Path) -> None:
    job = two_owners(world, tmp_path)
    job.sites["host_10000"]["models"]["teacher"] = "models/neox"
    failed(job, "E521 arbiter 9998", "E672", "host 10000", "guest 9999")
    assert charged(job) + charged(job, "host_10000") == 0


# --- found late ---------------------------------------------------------------------------------------


def test_an_owner_is_killed_during_secure_aggregation(world: Path, tmp_path: Path) -> None:
    """Guest and arbiter wait inside FATE, which would wait for ever."""
    job = two_owners(world, tmp_path)
    job.parameters["rounds"] = 1000
    job.parameters["privacy"]["epochs"] = 600
    job.parameters["control"]["frequencies"] = "uniform"
    command = [PROGRAM, *job.write()]
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: is_averaging(job), 150)
        (victim,) = [one for one in job.alive() if is_component(one.cmdline(), "host_10000")]
        victim.kill()
        began = time.monotonic()
        _, stderr = running.communicate(timeout=90)
        assert time.monotonic() - began < 60
        assert running.returncode == 1, stderr
        one_error(job, stderr, "E522 host 10000 was killed by SIGKILL")
    finally:
        running.kill()
    assert charged(job) == charged(job, "host_10000") == 1, "it cost its budget, though nothing came of it"
    shutil.rmtree(job.out)


def is_component(command: list[str], party: str) -> bool:
    """A party's own process, not the guard above it."""
    return command[1:3] == ["-m", "fate.components"] and any(f"/{party}/task.yaml" in word for word in command)


def is_averaging(job: DPKDFiles) -> bool:
    files = list(job.out.rglob("guest_9999/events.jsonl")) if job.out.exists() else []
    return any('"name": "aggregation"' in file.read_text() for file in files)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
