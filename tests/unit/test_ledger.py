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
    DataSet,
    Gaussian,
    Mechanism,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    Release,
)
from fate_llm_ext.privacy.ledger import Ledger
from fate_llm_ext.privacy.limits import Charge, left_over
from fate_llm_ext.privacy.report import show_epsilon
from fate_llm_ext.site import Budget

NEWS = DataSet("llm/news", "ab" * 32, 1000)
TABLES = ("llm/news", "llm/other", "llm/mail")


def budgets(epsilon: float, delta: float = 1e-6) -> Dict[str, Budget]:
    """The same for every table."""
    return dict.fromkeys(TABLES, Budget(epsilon, delta))


BUDGET = Budget(2.0, 1e-6)
SMALL, WIDE = budgets(2.0), budgets(1e6)


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
    receipts = [ledger.charge(NEWS, one, SMALL) for one in (first, second)]
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
    ledger.charge(NEWS, small, SMALL)
    error = error_of("E610", lambda: ledger.charge(NEWS, large, SMALL))
    alone, spent = epsilon(large.mechanisms, 1e-6), epsilon(small.mechanisms, 1e-6)
    composed = epsilon([*small.mechanisms, *large.mechanisms], 1e-6)
    for number in (f"{alone:.4g}", f"{spent:.4g}", f"{composed:.4g}", "allowed are 2 (δ = 1e-06"):
        assert number in error.problem
    assert len(ledger.entries()) == 1
    # What the message says is left does fit, and hardly more would.
    left = left_over(small.mechanisms, BUDGET)
    assert f"{left:.3g}" in error.next_step
    mu = next(mu / 1000 for mu in range(1, 2000) if epsilon([Gaussian(1000 / mu)], 1e-6) > left) - 0.001
    ledger.charge(NEWS, release(Gaussian(1 / mu)), SMALL)
    error_of("E610", lambda: ledger.charge(NEWS, release(Gaussian(20.0)), SMALL))


def test_exactly_the_budget_is_allowed(ledger: Ledger) -> None:
    cost = epsilon([Gaussian(4.0)], 1e-6)
    ledger.charge(NEWS, release(Gaussian(4.0)), budgets(cost))
    error = error_of("E610", lambda: ledger.charge(NEWS, release(PureDP(1e-6)), budgets(cost)))
    assert "Nothing is left" in error.next_step


def test_the_budgets_delta_decides(ledger: Ledger) -> None:
    one = release(Gaussian(4.0))
    loose, tight = epsilon(one.mechanisms, 9e-4), epsilon(one.mechanisms, 1e-9)
    assert loose < tight
    error_of("E610", lambda: ledger.charge(NEWS, one, budgets(loose, 1e-9)))
    assert ledger.charge(NEWS, one, budgets(loose, 9e-4)).alone == loose


def test_a_grown_or_renamed_table_keeps_its_history(ledger: Ledger) -> None:
    one = release(Gaussian(2.5))
    ledger.charge(NEWS, one, SMALL)
    grown = DataSet("llm/news", "cd" * 32, 1001)
    renamed = DataSet("llm/other", "ab" * 32, 1000)
    for data in (grown, renamed):
        assert ledger.spent(data, 1e-6) == ledger.spent(NEWS, 1e-6)
        error_of("E610", lambda data=data: ledger.charge(data, one, SMALL))
    far = DataSet("llm/other", "ef" * 32, 900)
    ledger.charge(far, one, SMALL)  # nothing connects it with the first
    ledger.charge(renamed, release(Gaussian(50.0)), WIDE)  # now this does
    everything = epsilon([Gaussian(2.5, count=2), Gaussian(50.0)], 1e-6)
    assert ledger.spent(far, 1e-6) == ledger.spent("llm/news", 1e-6) == everything
    assert ledger.spent(DataSet("llm/mail", "01" * 32, 1000), 1e-6) == 0


def test_not_private(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    logits = release(NonPrivate(), algorithm="fedmkt", what="scores")
    error = error_of("E611", lambda: ledger.charge(NEWS, logits, SMALL))
    assert "ε = 2 at" in error.problem
    error_of("E616", lambda: ledger.charge(NEWS, release(Gaussian(4.0)), {}))
    assert ledger.entries() == []
    with caplog.at_level(logging.WARNING, logger="fate_llm_ext"):
        receipt = ledger.charge(NEWS, logits, {})
    assert "without differential privacy" in caplog.text
    assert receipt.alone == receipt.composed == ledger.spent(NEWS, 1e-6) == math.inf
    # What has left once cannot be called back by a budget set later.
    error = error_of("E610", lambda: ledger.charge(NEWS, release(Gaussian(40.0)), SMALL))
    assert "no budget can hold" in error.next_step
    ledger.charge(NEWS, release(Gaussian(4.0)), budgets(math.inf))
    ledger.charge(NEWS, logits, budgets(math.inf))


def test_budgets_hold_across_algorithms(ledger: Ledger) -> None:
    sgd = release(PoissonGaussian(0.02, 1.5, 200))
    tokens = release(PureDP(0.05, count=4), algorithm="fedcot", what="prompts")
    histogram = release(Gaussian(10.0), algorithm="fdkt", what="label counts")
    together = [*sgd.mechanisms, *tokens.mechanisms, *histogram.mechanisms]
    allowed = budgets(epsilon(together, 1e-6))
    for one in (sgd, tokens):
        ledger.charge(NEWS, one, allowed)
    error_of("E611", lambda: ledger.charge(NEWS, release(NonPrivate(), algorithm="fedmkt"), allowed))
    assert ledger.charge(NEWS, histogram, allowed).composed == allowed["llm/news"].epsilon
    for one in (release(PureDP(0.02), algorithm="fedcot"), release(Gaussian(50.0), algorithm="fdkt")):
        error_of("E610", lambda one=one: ledger.charge(NEWS, one, allowed))


def test_charging_twice_costs_twice(ledger: Ledger) -> None:
    one = release(Gaussian(4.0))
    first = ledger.charge(NEWS, one, WIDE)
    twice = ledger.charge(NEWS, one, WIDE).composed
    assert twice == epsilon([Gaussian(4.0, count=2)], 1e-6) > first.composed
    error_of("E610", lambda: ledger.charge(NEWS, one, budgets(twice)))


# Several budgets ------------------------------------------------------------------------------------------

OTHER = DataSet("llm/other", NEWS.fingerprint, NEWS.records)  # a copy under another name


@pytest.mark.parametrize("ask", ["charge", "quote"])
def test_a_copy_under_another_name_is_held_to_both_budgets(ledger: Ledger, ask: str) -> None:
    """A job chooses the name; the budget of the name that it does not choose holds too."""
    site = {"llm/news": Budget(2.0, 1e-6), "llm/other": Budget(50.0, 1e-5)}
    ledger.charge(NEWS, release(Gaussian(10.0)), site)
    call = getattr(ledger, ask)
    error = error_of("E610", lambda: call(OTHER, release(Gaussian(1.0)), site))
    assert "of llm/other is refused" in error.problem
    assert "allowed are 2 for llm/news, which the ledger relates to it (δ = 1e-06" in error.problem
    # Under its own budget alone it would pass, and what fits into both does.
    assert ledger.spent(OTHER, 1e-5) + epsilon([Gaussian(1.0)], 1e-5) < 50
    call(OTHER, release(Gaussian(10.0)), site)


def test_budgets_of_tables_that_are_related_in_steps_hold(ledger: Ledger) -> None:
    """News and mail share neither name nor content; what was once in `other` connects them."""
    mail = DataSet("llm/mail", "cd" * 32, 1000)
    site = {"llm/news": Budget(2.0, 1e-6), "llm/other": Budget(50.0, 1e-6), "llm/mail": Budget(50.0, 1e-6)}
    for data in (NEWS, OTHER, DataSet("llm/other", mail.fingerprint, 1000)):
        ledger.charge(data, release(Gaussian(20.0)), site)
    assert "2 for llm/news" in error_of("E610", lambda: ledger.charge(mail, release(Gaussian(1.0)), site)).problem
    apart = DataSet("llm/mail", "ef" * 32, 1000)
    ledger.charge(apart, release(Gaussian(1.0)), site)


def test_what_is_not_private_is_refused_if_a_related_table_has_a_finite_budget(ledger: Ledger) -> None:
    site = {"llm/news": Budget(2.0, 1e-6), "llm/other": Budget(math.inf, 1e-6)}
    ledger.charge(NEWS, release(Gaussian(10.0)), site)
    logits = release(NonPrivate(), algorithm="fedmkt")
    for call in (ledger.charge, ledger.quote):
        assert "ε = 2 for llm/news" in error_of("E611", lambda call=call: call(OTHER, logits, site)).problem
    assert len(ledger.entries()) == 1
    ledger.charge(DataSet("llm/other", "cd" * 32, 1000), logits, site)


def test_what_fits_is_told_for_all_budgets(ledger: Ledger) -> None:
    site = {"llm/news": Budget(2.0, 1e-6), "llm/other": Budget(2.0, 1e-9)}
    ledger.charge(NEWS, release(Gaussian(10.0)), site)
    ledger.charge(OTHER, release(Gaussian(50.0)), site)
    spent = [Gaussian(10.0), Gaussian(50.0)]
    left = left_over(spent, site["llm/news"], others=[site["llm/other"]])
    error = error_of("E610", lambda: ledger.quote(NEWS, release(Gaussian(1.0)), site))
    assert f"ε = {show_epsilon(left, down=True)} at δ = 1e-06" in error.next_step
    assert left < left_over(spent, site["llm/news"]) - 0.01


@pytest.mark.parametrize("kind", [Gaussian(10.0), NonPrivate()])
def test_once_a_site_sets_a_budget_every_table_needs_one(ledger: Ledger, kind: Mechanism) -> None:
    for call in (ledger.charge, ledger.quote):
        error = error_of("E616", lambda call=call: call(OTHER, release(kind), {"llm/news": BUDGET}))
        assert "llm/other (it has budgets for: llm/news)" in error.problem
    assert not ledger.folder.exists()


def test_a_budget_whose_delta_is_no_privacy_is_refused(ledger: Ledger) -> None:
    one = release(Gaussian(10.0))
    for call in (ledger.charge, ledger.quote):
        error = error_of("E608", lambda call=call: call(NEWS, one, budgets(2.0, 1e-3)))
        assert "δ = 0.001, which is not below 1 / N = 0.001 for 1,000 records" in error.problem
    ledger.charge(NEWS, one, budgets(math.inf, 1e-3))  # infinite ε promises nothing
    site = {"llm/news": Budget(2.0, 9e-4), "llm/other": Budget(2.0, 1e-3)}
    assert "budget of llm/other" in error_of("E608", lambda: ledger.charge(OTHER, one, site)).problem
    site["llm/other"] = Budget(2.0, 1e-4)
    grown = DataSet("llm/other", NEWS.fingerprint, 1112)
    assert "budget of llm/news" in error_of("E608", lambda: ledger.charge(grown, one, site)).problem
    assert len(ledger.entries()) == 1


def test_what_cannot_be_classified_is_refused(ledger: Ledger) -> None:
    error_of("E619", lambda: ledger.charge(NEWS, release(), WIDE))
    error_of("E619", lambda: ledger.charge(DataSet("llm/news", "../../etc", 10), release(Gaussian(4.0)), WIDE))
    error_of("E619", lambda: ledger.charge(DataSet("", "ab" * 32, 10), release(Gaussian(4.0)), WIDE))
    error_of("E602", lambda: ledger.charge(NEWS, release(Gaussian(-1.0)), WIDE))
    assert not ledger.folder.exists() or ledger.entries() == []


def test_quote_writes_nothing(ledger: Ledger) -> None:
    ledger.charge(NEWS, release(Gaussian(10.0)), SMALL)
    quoted = ledger.quote(NEWS, release(Gaussian(8.0)), SMALL)
    error_of("E610", lambda: ledger.quote(NEWS, release(Gaussian(1.0)), SMALL))
    error_of(
        "E610",
        lambda: ledger.quote(NEWS, release(Gaussian(8.0)), SMALL, pending=[Charge(NEWS, release(Gaussian(2.0)))]),
    )
    # What is pending counts if it is about the same records, in whatever way it is related, and only then.
    aside = [Charge(DataSet("llm/mail", "cd" * 32, 1000), release(Gaussian(2.0)))]
    assert ledger.quote(NEWS, release(Gaussian(8.0)), SMALL, pending=aside) == quoted
    bridge = [*aside, Charge(DataSet("llm/mail", NEWS.fingerprint, 1000), release(Gaussian(1e3)))]
    error_of("E610", lambda: ledger.quote(NEWS, release(Gaussian(8.0)), SMALL, pending=bridge))
    assert ledger.mechanisms(NEWS, bridge) == (Gaussian(10.0), Gaussian(2.0), Gaussian(1e3))
    assert len(ledger.entries()) == 1
    assert ledger.charge(NEWS, release(Gaussian(8.0)), SMALL).composed == quoted


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error_of("E618", lambda: Ledger(tmp_path / "file").charge(NEWS, release(Gaussian(4.0)), WIDE))


def test_a_new_folder_is_durable_before_the_first_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a path that is made on the way each folder is written to disk, or a crash would take the ledger with it."""
    synced: List[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger = Ledger(tmp_path / "a" / "b" / "ledger")
    ledger.charge(NEWS, release(Gaussian(4.0)), WIDE)
    first = next(number for number, path in enumerate(synced) if path.suffix == ".jsonl")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced[:first])
    synced.clear()
    ledger.charge(NEWS, release(Gaussian(4.0)), WIDE)
    assert {path.parent for path in synced} <= {ledger.folder, ledger.folder.parent}, "only once"


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
        content = {key: chain.lines[0][key] for key in ("time", "data", "release")}
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
