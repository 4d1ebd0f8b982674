"""What goes wrong in real jobs: one catalogued error with the next step, no process left, soon."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import ENVIRONMENT, PROGRAM, JobFiles, failed, nothing_started, one_error

pytestmark = pytest.mark.integration


def copy_model(job: JobFiles, world: Path, party: str, arch: str) -> Path:
    """A model folder of this test alone, in the place of the party's."""
    folder = job.folder / "broken"
    shutil.copytree(world / "models" / arch, folder)
    models = job.sites[party]["models"]
    models[next(iter(models))] = str(folder)
    return folder


# --- found before anything starts ---------------------------------------------------------------------


def test_a_missing_file(job: JobFiles) -> None:
    job.sites["host_10000"]["tables"]["llm/tickets"] = "data/hots_10000"
    failed(job, "E111", "hots_10000", "host 10000")
    nothing_started(job)


def test_an_unknown_parameter(job: JobFiles) -> None:
    job.parameters["round"] = job.parameters.pop("rounds")
    failed(job, "E119", "'round'", "Did you mean 'rounds'?", "tasks.fedmkt_0.parameters.round")
    nothing_started(job)


def test_an_unknown_key_of_a_group(job: JobFiles) -> None:
    job.parameters["train"]["epoch"] = 3
    failed(job, "tasks.fedmkt_0.parameters.train.epoch", "epochs")
    nothing_started(job)


def test_a_role_that_does_not_exist(job: JobFiles) -> None:
    job.dag["dag"]["parties"][1]["role"] = "hots"
    done = job.run()
    assert done.returncode == 1
    assert "parties.1: E103" in done.stderr
    assert "'hots'" in done.stderr
    assert "Traceback" not in done.stderr
    nothing_started(job)


def test_a_role_the_component_has_no_part_for(job: JobFiles) -> None:
    """Without the arbiter there is no LLM."""
    job.dag["dag"]["parties"].pop()
    job.dag["dag"]["party_tasks"] = {}
    failed(job, "E118", "arbiter")
    nothing_started(job)


# --- found by a party -----------------------------------------------------------------------------------


def test_a_corrupt_model_folder(job: JobFiles, world: Path) -> None:
    """One host fails early; guest and arbiter do not wait for it."""
    weights = copy_model(job, world, "host_10000", "llama") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    failed(job, "E521 host 10000", "E402", "broken")
    told = (job.directory() / "fedmkt_0" / "arbiter_9998" / "events.jsonl").read_text()
    assert "E303 host 10000 stopped the job: E402 while loading the model (see its own log)." in told
    check_private(job, "host_10000", str(weights.parent), "broken")


def check_private(job: JobFiles, failing: str, *private: str) -> None:
    """What only the failing party may know stands in no file of the others, and does in its own."""
    task = job.directory() / "fedmkt_0"
    for party in task.iterdir():
        for name in ("events.jsonl", "log.txt", "stdout.txt"):
            text = (party / name).read_text(errors="replace") if (party / name).exists() else ""
            found = [word for word in private if word in text]
            assert not found or party.name == failing, f"{party.name}/{name}: {found}"
    assert private[0] in (task / failing / "events.jsonl").read_text()


def test_an_exception_that_nobody_foresaw(job: JobFiles, world: Path) -> None:
    """The others learn its type and nothing that it says."""
    file = copy_model(job, world, "guest_9999", "gpt2") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "activation_function": "Qzxv77321"}))
    failed(job, "E521 guest 9999", "KeyError", "Qzxv77321")
    check_private(job, "guest_9999", "Qzxv77321")
    told = (job.directory() / "fedmkt_0" / "arbiter_9998" / "events.jsonl").read_text()
    assert "E303 guest 9999 stopped the job: KeyError while loading the model (see its own log)." in told


def test_a_label_that_is_no_choice(job: JobFiles, world: Path) -> None:
    """The error names the row; what the row says stands nowhere, not at the failing party either."""
    table = job.folder / "table"
    shutil.copytree(world / "data" / "guest_9999", table)
    file = table / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2].update(text=f"Order Qzxv77321 {rows[2]['text']}", label="Wvuq99812")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job.sites["guest_9999"]["tables"]["llm/tickets"] = str(table)
    line = failed(job, "E521 guest 9999", "E211", "row 3", "9 characters", "billing")
    told = (job.directory() / "fedmkt_0" / "arbiter_9998" / "events.jsonl").read_text()
    assert "E303 guest 9999 stopped the job: it could not prepare its data (see its own log)." in told
    assert "E211" not in told, "which error it is depends on a row"
    assert "Wvuq99812" not in line
    looked_at = [path for path in job.out.rglob("*") if path.is_file()]
    assert len(looked_at) > 10
    for path in looked_at:
        text = path.read_text(errors="replace")
        assert not [word for word in ("Qzxv77321", "Wvuq99812") if word in text], path


def test_sequences_longer_than_the_context(job: JobFiles) -> None:
    job.parameters["task"]["max_length"] = 193
    line = failed(job, "E521", "E408", "193 tokens", "positions for 192", "Lower `task.max_length`")
    assert "E303" not in line


def test_different_public_sets(job: JobFiles, world: Path) -> None:
    rows = (world / "data" / "public" / "train.jsonl").read_text().splitlines()
    other = job.folder / "public"
    other.mkdir()
    (other / "train.jsonl").write_text("\n".join(rows[:-3]) + "\n")
    job.sites["host_10000"]["public"]["tickets"] = str(other)
    line = failed(job, "E302", "host 10000", "E521 arbiter 9998")
    assert f"host 10000 holds {len(rows) - 3} public examples" in line
    assert f"the arbiter holds {len(rows)}" in line


def test_different_parameters(job: JobFiles) -> None:
    guest = [job.dag["dag"]["parties"][0]]
    job.dag["dag"]["party_tasks"]["guest_9999"] = {
        "parties": guest,
        "tasks": {"fedmkt_0": {"parameters": {"rounds": 2}}},
    }
    failed(job, "E306", "guest 9999", "rounds is 2 there and 1 here")


def test_an_empty_data_set(job: JobFiles) -> None:
    empty = job.folder / "empty"
    empty.mkdir()
    (empty / "train.jsonl").touch()
    job.sites["guest_9999"]["tables"]["llm/tickets"] = str(empty)
    failed(job, "E521 guest 9999", "E203")


@pytest.mark.parametrize(
    ("party", "arch", "name"), [("guest_9999", "gpt2", "guest 9999"), ("arbiter_9998", "neox", "arbiter 9998")]
)
def test_weights_that_are_nan(job: JobFiles, world: Path, party: str, arch: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    file = copy_model(job, world, party, arch) / "model.safetensors"
    weights = load_file(file)
    first = next(key for key, value in weights.items() if value.is_floating_point() and value.dim() == 2)
    weights[first] = weights[first] * float("nan")
    save_file(weights, file, {"format": "pt"})
    line = failed(job, f"E521 {name}")
    assert "E406" in line or "E407" in line


# --- from outside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code", "group"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_stopped_by_a_signal(job: JobFiles, number: signal.Signals, code: int, group: bool) -> None:
    """Ctrl-C goes to the whole foreground group, TERM to the program."""
    job.parameters["rounds"] = 1000
    running = subprocess.Popen(
        [PROGRAM, *job.write()], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: is_training(job), 90)
        assert len(job.alive()) >= 3
        if group:
            import os

            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        began = time.monotonic()
        _, stderr = running.communicate(timeout=30)
        assert time.monotonic() - began < 20
        assert running.returncode == code, stderr
        one_error(job, stderr, "E526", number.name)
    finally:
        running.kill()
    assert json.loads((job.directory() / "job.json").read_text())["status"] == "stopped"
    assert not (job.directory() / ".scratch").exists()


@pytest.mark.parametrize(("party", "name"), [("host_10000", "host 10000"), ("arbiter_9998", "arbiter 9998")])
def test_a_party_is_killed(job: JobFiles, party: str, name: str) -> None:
    """As when memory runs out: no last words, no abort."""
    job.parameters["rounds"] = 1000
    running = subprocess.Popen(
        [PROGRAM, *job.write()], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: is_training(job), 90)
        (victim,) = [one for one in job.alive() if is_component(one.cmdline(), party)]
        victim.kill()
        began = time.monotonic()
        _, stderr = running.communicate(timeout=60)
        assert time.monotonic() - began < 30
        assert running.returncode == 1, stderr
        one_error(job, stderr, f"E522 {name} was killed by SIGKILL")
    finally:
        running.kill()


def is_component(command: list[str], party: str) -> bool:
    """A party's own process, not the guard above it."""
    return command[1:3] == ["-m", "fate.components"] and any(f"/{party}/task.yaml" in word for word in command)


def is_training(job: JobFiles) -> bool:
    files = list(job.out.rglob("guest_9999/events.jsonl")) if job.out.exists() else []
    return any('"phase": "private training"' in file.read_text() for file in files)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
