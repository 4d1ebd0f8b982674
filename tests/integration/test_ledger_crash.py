"""The ledger under real processes that are killed at any moment, or that want the last of a budget at once."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.events import DataSet, Gaussian, Release
from fate_llm_ext.privacy.ledger import Ledger
from fate_llm_ext.site import Budget

pytestmark = pytest.mark.integration

DATA = DataSet("llm/news", "5e" * 32, 1000)
STEP = Release("dpkd", "job", "adapter", ("arbiter",), (Gaussian(60.0),))
LAST = Release("fdkt", "job", "texts", ("arbiter",), (Gaussian(3.0),))
WIDE = {"llm/news": Budget(1e6, 1e-6)}
KILLS = 200
REFUSED = 7


def in_fresh_process(target: Callable[..., None], *arguments: object) -> None:
    """Run ``target`` in a process of its own, from which forking is safe; it imports no torch."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def fork(work: Callable[[], int]) -> int:
    """Start a child that does ``work`` and exits with its result."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def charge_and_release(folder: Path, released: Path) -> int:
    """Charge, then publish the receipt, again and again until killed."""
    handle = os.open(released, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        receipt = Ledger(folder).charge(DATA, STEP, WIDE)
        os.write(handle, (receipt.hash + "\n").encode())


def kill_many_times(folder: Path, released: Path, seed: int, report: Path) -> None:
    """Fork, kill at a random moment, repeat; write down how each child ended."""
    moments = random.Random(seed)
    Ledger(folder).charge(DATA, STEP, WIDE)  # imports what is needed
    assert "torch" not in sys.modules
    ends: List[int] = []
    for number in range(KILLS):
        if number % 25 == 0:  # how long a charge takes on this machine, at this length of the ledger
            began = time.monotonic()
            Ledger(folder).charge(DATA, STEP, WIDE)
            duration = time.monotonic() - began
        child = fork(lambda: charge_and_release(folder, released))
        time.sleep(moments.uniform(0, 3 * duration))
        os.kill(child, signal.SIGKILL)
        ends.append(os.waitpid(child, 0)[1])
    report.write_text(json.dumps(ends))


def test_killed_at_random_moments_the_spending_is_never_below_what_was_released(tmp_path: Path) -> None:
    folder, released, report = tmp_path / "ledger", tmp_path / "released", tmp_path / "report.json"
    in_fresh_process(kill_many_times, folder, released, random.randrange(1 << 30), report)
    ends = json.loads(report.read_text())
    assert ends == [signal.SIGKILL] * KILLS, "a child stopped by itself: the ledger refused after a crash"

    ledger = Ledger(folder)
    assert {problem.error.code for problem in ledger.verify()} <= {"E615"}
    recorded = [entry.hash for entry in ledger.entries()]
    published = released.read_text().split()
    assert len(set(recorded)) == len(recorded)
    assert set(published) <= set(recorded)
    # Children died both before and after a release, or the test shows nothing; the parent charged nine times.
    assert len(recorded) > len(published) + 9
    assert len(published) > KILLS / 10

    before = ledger.spent(DATA, 1e-6)
    assert before > 0
    receipt = ledger.charge(DATA, STEP, WIDE)
    assert receipt.composed >= before
    assert ledger.verify() == []
    assert len(ledger.entries()) == len(recorded) + 1


def run(ledger: Ledger, budgets: Dict[str, Budget], read_end: int, write_end: int) -> int:
    """One racer, which starts when the parent closes the pipe."""
    os.close(write_end)
    os.read(read_end, 1)
    try:
        ledger.charge(DATA, LAST, budgets)
    except ExtensionError as error:
        return REFUSED if error.code == "E610" else 8
    return 0


def race(folder: Path, racers: int, rounds: int, report: Path) -> None:
    """In each round all racers want the last of the budget at once; write down how each ended."""
    budgets = {"llm/news": Budget(2.0, 1e-6)}
    results: List[Dict[str, int]] = []
    for number in range(rounds):
        ledger = Ledger(folder / str(number))
        ledger.charge(DATA, STEP, budgets)
        read_end, write_end = os.pipe()

        children = [fork(functools.partial(run, ledger, budgets, read_end, write_end)) for _ in range(racers)]
        os.close(write_end)
        os.close(read_end)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        recorded = len(ledger.entries())
        results.append({"passed": codes.count(0), "refused": codes.count(REFUSED), "recorded": recorded})
    report.write_text(json.dumps(results))


@pytest.mark.parametrize(("racers", "rounds"), [(2, 30), (8, 10)])
def test_exactly_one_gets_the_last_of_a_budget(tmp_path: Path, racers: int, rounds: int) -> None:
    report = tmp_path / "report.json"
    in_fresh_process(race, tmp_path / "ledgers", racers, rounds, report)
    assert json.loads(report.read_text()) == [{"passed": 1, "refused": racers - 1, "recorded": 2}] * rounds
    assert all(Ledger(tmp_path / "ledgers" / str(number)).verify() == [] for number in range(rounds))
