"""The ledger: what it allows, what it refuses, what it notices, and what a crash at any write leaves."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import chain as chains
from fate_llm_ext.privacy.accountants import epsilon
from fate_llm_ext.privacy.events import (
    Budget,
    DataSet,
    Gaussian,
    Mechanism,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    Release,
)
from fate_llm_ext.privacy.ledger import Ledger, left_over

NEWS = DataSet("llm/news", "ab" * 32, 1000)
BUDGET = Budget(2.0, 1e-6)
WIDE = Budget(1e6, 1e-6)


def release(*mechanisms: Mechanism, algorithm: str = "dpkd", what: str = "adapter", job: str = "job 1") -> Release:
    return Release(algorithm, job, what, ("arbiter 9998",), mechanisms)


def error_of(code: str, call: Callable[[], Any]) -> ExtensionError:
    with pytest.raises(ExtensionError) as caught:
        call()
    assert caught.value.code == code
    return caught.value


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger")


def test_an_empty_ledger(ledger: Ledger) -> None:
    assert ledger.entries() == []
    assert ledger.verify() == []
    assert ledger.spent(NEWS, 1e-6) == ledger.spent("llm/news", 1e-6) == 0
    assert not ledger.folder.exists()


def test_charges_add_up_and_come_back_as_written(ledger: Ledger) -> None:
    first, second = release(Gaussian(10.0), PureDP(0.01)), release(PoissonGaussian(0.01, 2.0, 100), job="job 2")
    receipts = [ledger.charge(NEWS, one, BUDGET) for one in (first, second)]
    assert [entry.release for entry in ledger.entries()] == [first, second]
    assert [entry.data for entry in ledger.entries()] == [NEWS, NEWS]
    assert [entry.hash for entry in ledger.entries()] == [receipt.hash for receipt in receipts]
    assert receipts[0].composed == receipts[0].alone == epsilon(first.mechanisms, 1e-6)
    both = [*first.mechanisms, *second.mechanisms]
    assert receipts[1].composed == ledger.spent(NEWS, 1e-6) == epsilon(both, 1e-6)
    assert ledger.spent("llm/news", 1e-6, "rdp") == epsilon(both, 1e-6, "rdp")
    assert sorted(path.name for path in ledger.folder.iterdir()) == [f"{NEWS.fingerprint}.jsonl", "heads.json", "lock"]


def test_over_budget(ledger: Ledger) -> None:
    small, large = release(Gaussian(10.0)), release(Gaussian(1.0))
    ledger.charge(NEWS, small, BUDGET)
    error = error_of("E610", lambda: ledger.charge(NEWS, large, BUDGET))
    alone, spent = epsilon(large.mechanisms, 1e-6), epsilon(small.mechanisms, 1e-6)
    composed = epsilon([*small.mechanisms, *large.mechanisms], 1e-6)
    for number in (f"{alone:.4g}", f"{spent:.4g}", f"{composed:.4g}", "allowed are 2 (δ = 1e-06"):
        assert number in error.problem
    assert len(ledger.entries()) == 1
    # What the message says is left does fit, and hardly more would.
    left = left_over(small.mechanisms, BUDGET)
    assert f"{left:.3g}" in error.next_step
    mu = next(mu / 1000 for mu in range(1, 2000) if epsilon([Gaussian(1000 / mu)], 1e-6) > left) - 0.001
    ledger.charge(NEWS, release(Gaussian(1 / mu)), BUDGET)
    error_of("E610", lambda: ledger.charge(NEWS, release(Gaussian(20.0)), BUDGET))


def test_exactly_the_budget_is_allowed(ledger: Ledger) -> None:
    cost = epsilon([Gaussian(4.0)], 1e-6)
    ledger.charge(NEWS, release(Gaussian(4.0)), Budget(cost, 1e-6))
    error = error_of("E610", lambda: ledger.charge(NEWS, release(PureDP(1e-6)), Budget(cost, 1e-6)))
    assert "Nothing is left" in error.next_step


def test_the_budgets_delta_decides(ledger: Ledger) -> None:
    one = release(Gaussian(4.0))
    loose, tight = epsilon(one.mechanisms, 1e-3), epsilon(one.mechanisms, 1e-9)
    assert loose < tight
    error_of("E610", lambda: ledger.charge(NEWS, one, Budget(loose, 1e-9)))
    assert ledger.charge(NEWS, one, Budget(loose, 1e-3)).alone == loose


def test_a_grown_or_renamed_table_keeps_its_history(ledger: Ledger) -> None:
    one = release(Gaussian(2.5))
    ledger.charge(NEWS, one, BUDGET)
    grown = DataSet("llm/news", "cd" * 32, 1001)
    renamed = DataSet("llm/other", "ab" * 32, 1000)
    for data in (grown, renamed):
        assert ledger.spent(data, 1e-6) == ledger.spent(NEWS, 1e-6)
        error_of("E610", lambda data=data: ledger.charge(data, one, BUDGET))
    far = DataSet("llm/other", "ef" * 32, 900)
    ledger.charge(far, one, BUDGET)  # nothing connects it with the first
    ledger.charge(renamed, release(Gaussian(50.0)), WIDE)  # now this does
    everything = epsilon([Gaussian(2.5, count=2), Gaussian(50.0)], 1e-6)
    assert ledger.spent(far, 1e-6) == ledger.spent("llm/news", 1e-6) == everything
    assert ledger.spent(DataSet("llm/mail", "01" * 32, 1000), 1e-6) == 0


def test_not_private(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    logits = release(NonPrivate(), algorithm="fedmkt", what="scores")
    error = error_of("E611", lambda: ledger.charge(NEWS, logits, BUDGET))
    assert "ε = 2 at" in error.problem
    error_of("E616", lambda: ledger.charge(NEWS, release(Gaussian(4.0)), None))
    assert ledger.entries() == []
    with caplog.at_level(logging.WARNING, logger="fate_llm_ext"):
        receipt = ledger.charge(NEWS, logits, None)
    assert "without differential privacy" in caplog.text
    assert receipt.alone == receipt.composed == ledger.spent(NEWS, 1e-6) == math.inf
    # What has left once cannot be called back by a budget set later.
    error = error_of("E610", lambda: ledger.charge(NEWS, release(Gaussian(40.0)), BUDGET))
    assert "no budget can hold" in error.next_step
    ledger.charge(NEWS, release(Gaussian(4.0)), Budget(math.inf, 1e-6))
    ledger.charge(NEWS, logits, Budget(math.inf, 1e-6))


def test_budgets_hold_across_algorithms(ledger: Ledger) -> None:
    sgd = release(PoissonGaussian(0.02, 1.5, 200))
    tokens = release(PureDP(0.05, count=4), algorithm="fedcot", what="prompts")
    histogram = release(Gaussian(10.0), algorithm="fdkt", what="label counts")
    together = [*sgd.mechanisms, *tokens.mechanisms, *histogram.mechanisms]
    budget = Budget(epsilon(together, 1e-6), 1e-6)
    for one in (sgd, tokens):
        ledger.charge(NEWS, one, budget)
    error_of("E611", lambda: ledger.charge(NEWS, release(NonPrivate(), algorithm="fedmkt"), budget))
    assert ledger.charge(NEWS, histogram, budget).composed == budget.epsilon
    for one in (release(PureDP(0.02), algorithm="fedcot"), release(Gaussian(50.0), algorithm="fdkt")):
        error_of("E610", lambda one=one: ledger.charge(NEWS, one, budget))


def test_charging_twice_costs_twice_unless_resumed(ledger: Ledger) -> None:
    one = release(Gaussian(4.0))
    first = ledger.charge(NEWS, one, WIDE)
    twice = ledger.charge(NEWS, one, WIDE).composed
    assert twice == epsilon([Gaussian(4.0, count=2)], 1e-6) > first.composed
    again = ledger.charge(NEWS, release(Gaussian(4.0), job="job 2"), Budget(twice, 1e-6), resumes=first.hash)
    assert again.composed == twice
    assert [entry.resumes for entry in ledger.entries()] == [None, None, first.hash]
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("data", "other", "reason"),
    [
        (NEWS, release(Gaussian(3.9)), "mechanisms"),
        (NEWS, release(Gaussian(4.0, count=2)), "mechanisms"),
        (NEWS, release(Gaussian(4.0), what="texts"), "what is released"),
        (NEWS, release(Gaussian(4.0), algorithm="fdkt"), "algorithm"),
        (DataSet("llm/news", "cd" * 32, 1000), release(Gaussian(4.0)), "data set"),
        (NEWS, Release("dpkd", "job 1", "adapter", ("host 10000",), (Gaussian(4.0),)), "recipients"),
    ],
)
def test_only_the_very_same_release_is_resumed(ledger: Ledger, data: DataSet, other: Release, reason: str) -> None:
    receipt = ledger.charge(NEWS, release(Gaussian(4.0)), WIDE)
    assert reason in error_of("E617", lambda: ledger.charge(data, other, WIDE, resumes=receipt.hash)).problem
    error_of("E617", lambda: ledger.charge(NEWS, release(Gaussian(4.0)), WIDE, resumes="0" * 64))
    assert len(ledger.entries()) == 1


def test_what_cannot_be_classified_is_refused(ledger: Ledger) -> None:
    error_of("E619", lambda: ledger.charge(NEWS, release(), WIDE))
    error_of("E619", lambda: ledger.charge(DataSet("llm/news", "../../etc", 10), release(Gaussian(4.0)), WIDE))
    error_of("E619", lambda: ledger.charge(DataSet("", "ab" * 32, 10), release(Gaussian(4.0)), WIDE))
    error_of("E602", lambda: ledger.charge(NEWS, release(Gaussian(-1.0)), WIDE))
    assert not ledger.folder.exists() or ledger.entries() == []


def test_quote_writes_nothing(ledger: Ledger) -> None:
    ledger.charge(NEWS, release(Gaussian(10.0)), BUDGET)
    quoted = ledger.quote(NEWS, release(Gaussian(8.0)), BUDGET)
    error_of("E610", lambda: ledger.quote(NEWS, release(Gaussian(1.0)), BUDGET))
    error_of("E610", lambda: ledger.quote(NEWS, release(Gaussian(8.0)), BUDGET, pending=[Gaussian(2.0)]))
    assert len(ledger.entries()) == 1
    assert ledger.charge(NEWS, release(Gaussian(8.0)), BUDGET).composed == quoted


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error_of("E618", lambda: Ledger(tmp_path / "file").charge(NEWS, release(Gaussian(4.0)), WIDE))


# Tampering ------------------------------------------------------------------------------------------------


def edited(lines: List[bytes]) -> List[bytes]:
    return [lines[0], lines[1].replace(b'"noise_multiplier":5.0', b'"noise_multiplier":50.0'), *lines[2:]]


def rehashed(lines: List[bytes]) -> List[bytes]:
    """An edit by somebody who knows how to compute the hash of the edited entry, but no further."""
    entry: Dict[str, Any] = json.loads(edited(lines)[1])
    entry["hash"] = chains.digest(entry)
    return [lines[0], json.dumps(entry).encode() + b"\n", *lines[2:]]


def last_rehashed(lines: List[bytes]) -> List[bytes]:
    entry: Dict[str, Any] = json.loads(lines[-1])
    entry["release"]["mechanisms"] = []
    entry["hash"] = chains.digest(entry)
    return [*lines[:-1], json.dumps(entry).encode() + b"\n"]


def forged_marker(lines: List[bytes]) -> List[bytes]:
    marker: Dict[str, Any] = {"sequence": 1, "torn": {"bytes": 5, "sha256": "0" * 64}, "previous": "x"}
    marker["hash"] = chains.digest(marker)
    return [lines[0], json.dumps(marker).encode() + b"\n", *lines[2:]]


TAMPERED: Dict[str, Callable[[List[bytes]], List[bytes]]] = {
    "edited": edited,
    "edited and hashed anew": rehashed,
    "last one edited and hashed anew": last_rehashed,
    "first removed": lambda lines: lines[1:],
    "middle removed": lambda lines: [lines[0], *lines[2:]],
    "last removed": lambda lines: lines[:-1],
    "two last removed": lambda lines: lines[:-2],
    "all removed": lambda lines: [],
    "reordered": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "repeated": lambda lines: [*lines[:2], *lines[1:]],
    "last cut in the middle": lambda lines: [*lines[:-1], lines[-1][:40]],
    "last made unreadable": lambda lines: [*lines[:-1], b"x" * 100 + b"\n"],
    "middle made unreadable": lambda lines: [lines[0], b"\0" * 100 + b"\n", *lines[2:]],
    "middle not UTF-8": lambda lines: [lines[0], b"\xff\xfe{}\n", *lines[2:]],
    "junk between": lambda lines: [lines[0], b"junk\n", *lines[1:]],
    "replaced by a marker": forged_marker,
    "a number instead": lambda lines: [lines[0], b"17\n", *lines[2:]],
}


@pytest.fixture
def four(ledger: Ledger) -> Path:
    """A ledger of four entries; its file."""
    for sigma in (4.0, 5.0, 6.0, 7.0):
        ledger.charge(NEWS, release(Gaussian(sigma)), WIDE)
    assert ledger.verify() == []
    return ledger.folder / f"{NEWS.fingerprint}.jsonl"


def assert_refuses(ledger: Ledger) -> None:
    problems = ledger.verify()
    assert problems
    assert not {problem.error.code for problem in problems} <= {"E615"}
    other = DataSet("llm/mail", "01" * 32, 10)
    for call in (
        lambda: ledger.charge(NEWS, release(Gaussian(4.0)), WIDE),
        lambda: ledger.charge(other, release(Gaussian(4.0)), WIDE),
        lambda: ledger.spent(NEWS, 1e-6),
        ledger.entries,
    ):
        assert str(len(problems)) in error_of("E612", call).problem


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_noticed(ledger: Ledger, four: Path, how: str) -> None:
    changed = TAMPERED[how](four.read_bytes().splitlines(keepends=True))
    four.write_bytes(b"".join(changed))
    assert_refuses(ledger)
    assert four.read_bytes() == b"".join(changed)


def test_a_missing_file_is_noticed(ledger: Ledger, four: Path) -> None:
    four.unlink()
    assert_refuses(ledger)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"a": 1}', b"\xff"])
def test_a_missing_or_broken_head_is_noticed(ledger: Ledger, four: Path, content: Optional[bytes]) -> None:
    head = four.with_name("heads.json")
    if content is None:
        head.unlink()
    else:
        head.write_bytes(content)
    assert_refuses(ledger)


def test_an_older_head_is_noticed(ledger: Ledger, four: Path) -> None:
    """One behind is what a crash leaves; more, or another hash, is not."""
    head = four.with_name("heads.json")
    lines = [json.loads(line) for line in four.read_bytes().splitlines()]
    head.write_text(json.dumps({NEWS.fingerprint: {"entries": 3, "last": lines[2]["hash"]}}))
    assert ledger.verify() == []
    for entries, last in ((2, lines[1]["hash"]), (3, lines[1]["hash"]), (4, lines[2]["hash"]), (5, lines[3]["hash"])):
        head.write_text(json.dumps({NEWS.fingerprint: {"entries": entries, "last": last}}))
        assert_refuses(ledger)


@pytest.mark.parametrize(
    "mechanism", [{"kind": "shuffle", "epsilon": 1.0}, {"kind": "pure"}, {"kind": "pure", "epsilon": -1.0}, {}]
)
def test_an_unknown_mechanism_is_noticed(ledger: Ledger, mechanism: Dict[str, Any]) -> None:
    """Written by another version: the chain is whole, but nobody can say what it costs."""
    ledger.charge(NEWS, release(Gaussian(4.0)), WIDE)
    with chains.locked(ledger.folder):
        (chain,) = chains.read_all(ledger.folder)
        content = {key: chain.lines[0][key] for key in ("time", "data", "release", "resumes")}
        chains.append(ledger.folder, chain, {**content, "release": {**content["release"], "mechanisms": [mechanism]}})
    assert_refuses(ledger)


# Crashes --------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


class Disk:
    """Lets a number of operations on the disk pass, then stops the process within the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, survive: int, share: float) -> None:
        self.left = survive
        self.share = share
        self.real: Dict[str, Any] = {"write": os.write, "fsync": os.fsync, "replace": Path.replace}
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", lambda handle: self.step() or self.real["fsync"](handle))
        monkeypatch.setattr(Path, "replace", lambda path, target: self.step() or self.real["replace"](path, target))

    def step(self) -> None:
        if self.left == 0:
            raise Crash
        self.left -= 1

    def write(self, handle: int, data: bytes) -> int:
        if self.left == 0:
            self.real["write"](handle, data[: round(len(data) * self.share)])
            raise Crash
        self.left -= 1
        return int(self.real["write"](handle, data))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_a_crash_at_any_write_never_lowers_the_spending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Crash in the first charge, in a later one, and in the one that mends after a crash; then go on."""
    steps = 0
    while True:
        ledger, done = Ledger(tmp_path / str(steps)), []
        crashes = 0
        for number in range(4):
            with monkeypatch.context() as patch:
                Disk(patch, survive=steps if number < 3 else 1000, share=share)
                try:
                    done.append(ledger.charge(NEWS, release(Gaussian(4.0 + number)), WIDE).hash)
                except Crash:
                    crashes += 1
            assert {problem.error.code for problem in ledger.verify()} <= {"E615"}
            recorded = [entry.hash for entry in ledger.entries()]
            assert set(done) <= set(recorded)
            assert len(recorded) <= number + 1
        assert ledger.verify() == []
        assert len(ledger.entries()) >= len(done) >= 1
        if not crashes:
            break
        steps += 1
    assert steps > 5


def test_a_torn_end_is_marked_and_stays_visible(ledger: Ledger, four: Path) -> None:
    spent = ledger.spent(NEWS, 1e-6)
    whole = four.read_bytes()
    four.write_bytes(whole + b'{"data":{"fing')
    (problem,) = ledger.verify()
    assert problem.error.code == "E615"
    assert "14 bytes" in problem.error.problem
    assert ledger.spent(NEWS, 1e-6) == spent
    ledger.charge(NEWS, release(Gaussian(9.0)), WIDE)
    assert ledger.verify() == []
    assert four.read_bytes().startswith(whole + b'{"data":{"fing\n')
    # Cutting out torn bytes that have their marker is an edit like any other.
    four.write_bytes(four.read_bytes().replace(b'{"data":{"fing\n', b""))
    assert_refuses(ledger)


def test_an_entry_without_its_line_break_counts(ledger: Ledger, four: Path) -> None:
    four.write_bytes(four.read_bytes()[:-1])
    assert ledger.verify() == []
    assert len(ledger.entries()) == 4
    ledger.charge(NEWS, release(Gaussian(9.0)), WIDE)
    assert len(ledger.entries()) == 5
    assert ledger.verify() == []


def test_a_full_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.charge(NEWS, release(Gaussian(4.0)), WIDE)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:30]))
        assert "only 30 of" in error_of("E618", lambda: ledger.charge(NEWS, release(Gaussian(5.0)), WIDE)).problem
    assert len(ledger.entries()) == 1
    ledger.charge(NEWS, release(Gaussian(6.0)), WIDE)
    assert [entry.release.mechanisms for entry in ledger.entries()] == [(Gaussian(4.0),), (Gaussian(6.0),)]
    assert ledger.verify() == []
