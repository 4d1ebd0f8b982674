"""What goes wrong in FDKT jobs: one clear error, nothing charged that was not released, nobody hangs."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fdkt_jobs import RECORDS, FDKTFiles, events, one_client, two_domains
from jobs import ENVIRONMENT, PROGRAM, failed, nothing_started, one_error

from fate_llm_ext.data.corpus import DEPARTMENTS
from fate_llm_ext.data.datasets import read_rows, write_jsonl

pytestmark = pytest.mark.integration

GUEST, HOST, ARBITER = "guest_9999", "host_10000", "arbiter_9998"
Change = Callable[[FDKTFiles], None]


@pytest.fixture
def job(world: Path, tmp_path: Path) -> FDKTFiles:
    """One client, as small as it gets."""
    return one_client(world, tmp_path)


def setting(name: str, value: Any) -> Change:
    def change(job: FDKTFiles) -> None:
        *groups, field = name.split(".")
        place = job.parameters
        for group in groups:
            place = place[group]
        place[field] = value

    return change


# --- found before anything starts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("privacy.epsilon", 0), ("privacy.epsilon", "greater than 0")),
        (setting("privacy.epsilon", -1.0), ("privacy.epsilon", "greater than 0", "-1.0")),
        (setting("control.values", ["billing"]), ("`control.values` holds 1 label",)),
        (setting("llm", {"name": "gpt"}), ("E131", "'gpt'", "llm")),
        (setting("llm", None), ("E670", "arbiter", "llm")),
        (setting("generator", None), ("E670", "guest", "generator")),
        (setting("student", {"name": "other"}), ("E110", "'other'", "slm")),
        (setting("prompts", {"augment": "{% for one in demonstrations %}"}), ("E209", "prompts", "augment")),
        (setting("prompts", {"judge": "Which of {{ candidates }}?"}), ("E209", "candidates")),
        (setting("prompts", {"label": "Which of {{ labels | join }}?"}), ("E700", "prompts.label", "text")),
        (setting("synthesis.max_new_tokens", 96), ("synthesis.max_new_tokens", "96")),
    ],
    ids=[
        "epsilon 0",
        "epsilon below 0",
        "one label",
        "unknown LLM",
        "no LLM",
        "no generator",
        "unknown student",
        "broken template",
        "template of something else",
        "template without its text",
        "no room for a text",
    ],
)
def test_a_job_that_cannot_be(job: FDKTFiles, change: Change, words: tuple[str, ...]) -> None:
    change(job)
    done = job.run()
    assert done.returncode == 1, done.stdout
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    nothing_started(job)


def test_a_host_without_a_generator(world: Path, tmp_path: Path) -> None:
    job = two_domains(world, tmp_path)
    job.own(HOST)["generator"] = None
    job.parameters.pop("generator")
    job.dag["dag"]["party_tasks"][GUEST] = {
        "parties": [{"role": "guest", "party_id": ["9999"]}],
        "tasks": {"fdkt_0": {"parameters": {"generator": {"name": "slm"}}}},
    }
    failed(job, "E670", "host", "generator")
    nothing_started(job)


def test_a_table_without_a_budget(job: FDKTFiles) -> None:
    job.sites[GUEST]["budgets"] = {"llm/other": {"epsilon": 1.0, "delta": 0.01}}
    failed(job, "E616", "llm/private", "guest 9999", "llm/other")
    nothing_started(job)


# --- found by a party, before anything is charged -------------------------------------------------------


def empty_table(job: FDKTFiles) -> None:
    (Path(job.sites[GUEST]["tables"]["llm/private"]) / "train.jsonl").write_text("")


def empty_text(job: FDKTFiles) -> None:
    table = Path(job.sites[GUEST]["tables"]["llm/private"]) / "train.jsonl"
    rows = read_rows(table)
    write_jsonl(table, [*rows[:-1], {**rows[-1], "text": "  "}])


def other_test_labels(job: FDKTFiles) -> None:
    table = Path(job.sites[GUEST]["tables"]["llm/private"]) / "test.jsonl"
    write_jsonl(table, [{**row, "label": "other"} for row in read_rows(table)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("privacy.delta", 0.05), ("0.05", str(RECORDS))),
        (setting("privacy.batch_size", RECORDS + 1), ("E630", str(RECORDS + 1), str(RECORDS))),
        (setting("privacy.epsilon", 12.5), ("E610", "12.5", "12")),
        (setting("privacy.epsilon", float("inf")), ("E611", "12")),
        (setting("control.values", list(DEPARTMENTS[:-1])), ("E660", "4")),
        (empty_text, ("E661", f"1 of {RECORDS}")),
        (other_test_labels, ("E660", "5")),
        (empty_table, ("E203", "no rows")),
        (setting("control.max_length", 400), ("E408", "400", "192")),
        (setting("control.max_length", 22), ("E662", "22")),
        (setting("prompts", {"student": "Read this with care. " * 20 + "{{ text }}"}), ("E720", "room for 88")),
    ],
    ids=[
        "delta",
        "batch",
        "budget too small",
        "no noise",
        "label outside the list",
        "empty text",
        "label of a test row outside the list",
        "empty table",
        "texts longer than the context",
        "no room for a text beside its label",
        "no room for the task model's prompt",
    ],
)
def test_a_job_that_does_not_fit_the_table(job: FDKTFiles, change: Change, words: tuple[str, ...]) -> None:
    change(job)
    line = failed(job, "E521 guest 9999", *words)
    assert "billing" not in line, "labels of rows are private"
    assert job.ledger(GUEST) == []
    (told,) = [one for one in events(job.directory(), ARBITER) if one["type"] == "error"]
    assert told["code"] == "E303"
    assert not [word for word in ("llm/private", "train.jsonl", "billing") if word in told["message"]]
    if words[0] in ("E660", "E661"):  # it depends on single rows
        constant = "E303 guest 9999 stopped the job: it could not prepare its data (see its own log). Next: "
        assert told["message"].startswith(constant)


def test_an_endpoint_that_is_down(job: FDKTFiles) -> None:
    """The arbiter asks before it greets anybody, so no client has trained or charged for nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job.sites[ARBITER] = {
        "endpoints": {"llm": {"url": f"http://127.0.0.1:{port}/v1", "retries": 0, "deadline_seconds": 5.0}},
        "models": {"encoder": "models/neox"},
        "device": "cpu",
    }
    job.parameters["embedder"] = {"name": "encoder"}
    failed(job, "E521 arbiter 9998", "E414", "'llm'")
    assert job.ledger(GUEST) == []
    (told,) = [one for one in events(job.directory(), GUEST) if one["type"] == "error"]
    assert str(port) not in told["message"], "the site file is the arbiter's"


def test_clients_that_do_not_run_the_arbiters_job(world: Path, tmp_path: Path) -> None:
    job = two_domains(world, tmp_path)
    job.own(HOST)["augmentation"] = {**job.parameters["augmentation"], "samples": 11}
    failed(job, "E521 arbiter 9998", "E306", "host 10000", "augmentation.samples is 11 there and 10 here")
    assert job.ledger(GUEST) == job.ledger(HOST) == []


# --- no failure ------------------------------------------------------------------------------------------


def test_a_generator_without_a_valid_text_stops_nobody(job: FDKTFiles) -> None:
    """The client sends no text, says so twice, and keeps what it has: its generator and a model of its own records."""
    job.parameters["validity"] = {"min_words": 1000}
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    told = [one["code"] for one in events(job.directory(), GUEST) if one["type"] == "warning"]
    assert told == ["E730", "E740"]
    assert len(job.ledger(GUEST)) == 1
    outputs = job.directory() / "fdkt_0" / GUEST / "model"
    assert {path.name for path in outputs.glob("*/*.safetensors")} == {"adapter_model.safetensors", "model.safetensors"}
    card = (outputs / "output_model" / "README.md").read_text()
    assert "not differentially private" in card.partition("## Privacy")[0]


# --- found late -----------------------------------------------------------------------------------------


def test_the_arbiter_is_killed_while_it_writes(job: FDKTFiles) -> None:
    """The client has released its texts: that is charged, and the client ends with an error, not in wait."""
    job.parameters["augmentation"].update(samples=100_000, max_new_tokens=60)
    job.parameters["network"]["silence_seconds"] = 10.0
    command = [PROGRAM, *job.write()]
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: is_writing(job), 150)
        (victim,) = [one for one in job.alive() if is_component(one.cmdline(), ARBITER)]
        victim.kill()
        began = time.monotonic()
        _, stderr = running.communicate(timeout=90)
        assert time.monotonic() - began < 60
        assert running.returncode == 1, stderr
        one_error(job, stderr, "E522 arbiter 9998 was killed by SIGKILL")
    finally:
        running.kill()
    assert len(job.ledger(GUEST)) == 1


def is_component(command: list[str], party: str) -> bool:
    """A party's own process, not the guard above it."""
    return command[1:3] == ["-m", "fate.components"] and any(f"/{party}/task.yaml" in word for word in command)


def is_writing(job: FDKTFiles) -> bool:
    files = list(job.out.rglob(f"{ARBITER}/events.jsonl")) if job.out.exists() else []
    return any("writing texts for" in file.read_text() for file in files)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
