"""What breaks between three sites: every job ends, every site learns why, nothing of it is left.

Marked ``slow``, which ``make test-flow`` leaves out, is what differs from another test in the party or the way only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import (
    EVERYWHERE,
    SILENCE,
    Job,
    fedmkt,
    kill_server,
    kill_site,
    left_at_broker,
    purge,
    site_check,
    task_of,
    wait_for,
)
from sites import ROLES, Federation

SOON = 15.0  # seconds until a killed party's job has ended everywhere, on a machine that is not overloaded
EXCHANGING = "round trips"
TRAINING = 'training"}'  # the phase, of FedMKT or of one of its baselines


@pytest.fixture(autouse=True)
def _as_before(federation: Federation) -> Iterator[None]:
    """After each test all services run again, and no job does; else the next one would tell of this one."""
    yield
    for party in EVERYWHERE:
        done = federation.site(party).script("site", "start")
        assert done.returncode == 0, done.stderr


def soon() -> float:
    """:data:`SOON` where there is a core for each process that wants one, else in proportion."""
    return SOON * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def clean(*jobs: Job) -> None:
    """No broker holds anything of these jobs."""

    def left() -> list[str]:
        return [one for job in jobs for party in EVERYWHERE for one in left_at_broker(job.federation.site(party), job)]

    wait_for(lambda: not left(), 90, lambda: "\n".join(left()))


def named(job: Job, party: str, *words: str) -> None:
    """These words stand in the error report of a party's own site."""
    wait_for(lambda: all(word in job.report(party) for word in words), 10, lambda: f"{words} of {party}: {job}")


# --- a worker is killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("party", "kinds"),
    [
        ("9999", ["execute"]),
        ("10000", ["entrypoint"]),
        ("10001", ["entrypoint", "execute"]),
        pytest.param("10000", ["execute"], marks=pytest.mark.slow),
        pytest.param("10001", ["execute"], marks=pytest.mark.slow),
    ],
)
def test_a_worker_is_killed(federation: Federation, party: str, kinds: list[str]) -> None:
    """``execute`` runs the component; ``entrypoint`` is FATE Flow's own process above it."""
    job = Job(federation, site_check())
    job.wait_for_log("10001", EXCHANGING)
    job.kill(party, *kinds)
    assert job.wait(60, status="failed") < soon()
    for other in EVERYWHERE:
        named(job, other, "E309", f"The process of {ROLES[party]} {party} was killed")
    job.nothing_runs()
    clean(job)


def test_a_worker_is_killed_while_all_train(federation: Federation) -> None:
    job = Job(federation, fedmkt(rounds=1000))
    job.wait_for_log("10000", TRAINING, 180)
    job.kill("9999", "execute")
    assert job.wait(60, status="failed") < soon()
    for other in EVERYWHERE:
        named(job, other, "E309", "The process of guest 9999 was killed")
    job.nothing_runs()
    clean(job)


def test_a_job_that_is_stopped(federation: Federation) -> None:
    job = Job(federation, site_check())
    job.wait_for_log("10001", EXCHANGING)
    began = time.monotonic()
    assert job.command("stop")["code"] == 0
    job.nothing_runs(soon())
    job.wait(soon())
    assert time.monotonic() - began < soon()
    assert job.status("9999") == "canceled"
    for party in EVERYWHERE:
        named(job, party, "E310")
    clean(job)


# --- a site is gone ---------------------------------------------------------------------------------------


def test_the_arbiters_site_is_gone_for_good(federation: Federation) -> None:
    job = Job(federation, site_check())
    job.wait_for_log("10001", EXCHANGING)
    kill_site(federation.site("10001"))
    assert job.wait(120, at=("9999", "10000"), status="failed") < 2 * SILENCE + soon()
    # Who loses patience first fails, and FATE Flow ends the other one, which has heard nothing either.
    for party in ("9999", "10000"):
        named(job, party, "from arbiter 10001 for")
        assert job.task(party).status == "failed"
    assert any("E304 No sign of life from arbiter 10001" in job.report(party) for party in ("9999", "10000"))
    job.nothing_runs(at=("9999", "10000"))


@pytest.mark.slow
def test_the_schedulers_site_is_gone_and_comes_back(federation: Federation) -> None:
    """Nobody but the scheduler ends a job in FATE Flow; the others' workers end by themselves and say why."""
    job = Job(federation, site_check())
    job.wait_for_log("10001", EXCHANGING)
    kill_site(federation.site("9999"))
    living = ("10000", "10001")
    wait_for(
        lambda: all(job.task(party).status == "failed" for party in living), 2 * SILENCE + soon(), lambda: f"{job}"
    )
    for party in living:
        named(job, party, "No sign of life from guest 9999")
        assert job.status(party) == "running", "as FATE Flow sees it"
        # The client says what is known here, though the server calls the job running.
        said = federation.site(party).cli("status", job.id)
        assert "No sign of life from guest 9999" in said.stdout + said.stderr
    job.nothing_runs(at=living)
    assert federation.site("9999").script("site", "start").returncode == 0
    job.wait(90, status="failed")
    clean(job)


# --- a service restarts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "party", [pytest.param("9999", marks=pytest.mark.slow), pytest.param("10000", marks=pytest.mark.slow), "10001"]
)
def test_a_server_is_killed_and_comes_back(federation: Federation, party: str) -> None:
    job = Job(federation, site_check(200))
    job.wait_for_log("10001", EXCHANGING)
    kill_server(federation.site(party))
    time.sleep(5)
    assert federation.site(party).script("server", "start").returncode == 0
    job.wait(180, status="success")
    assert [len(job.metrics(one)) for one in EVERYWHERE] == [4, 4, 5]
    clean(job)


def test_a_server_is_away_while_others_finish_and_there_are_metrics(federation: Federation) -> None:
    """What FATE's reporters post once is not lost, at the scheduler's site either."""
    job = Job(federation, fedmkt(rounds=1))
    job.wait_for_log("9999", "private " + TRAINING, 180)
    kill_server(federation.site("9999"))
    wait_for(
        lambda: job.task("10000").status == "success" or '"type": "done"' in job.log("9999"), 240, lambda: f"{job}"
    )
    assert federation.site("9999").script("server", "start").returncode == 0
    job.wait(120, status="success")
    logged = {(one["arm"], one["round"], one["name"]) for one in job.events("9999") if one["type"] == "metric"}
    kept = {
        (metric["groups"][-1]["name"], int(point["step"]), metric["name"])
        for metric in job.metrics("9999")
        for point in metric["data"]
        if metric["step_axis"]
    }
    assert len(logged) >= 3
    assert kept == logged


@pytest.mark.slow
def test_the_gateway_restarts(federation: Federation) -> None:
    job = Job(federation, site_check(200))
    job.wait_for_log("10001", EXCHANGING)
    for command in ("stop", "start"):
        assert federation.site("9999").script("proxy", command).returncode == 0
    job.wait(180, status="success")


@pytest.mark.parametrize("party", ["10000", pytest.param("10001", marks=pytest.mark.slow)])
def test_a_broker_restarts(federation: Federation, party: str) -> None:
    """Messages in a broker are lost with it; if none was, the job goes on, else it ends with an error that says so."""
    job = Job(federation, site_check(500, silence_seconds=60))
    job.wait_for_log("10001", EXCHANGING)
    for command in ("stop", "start"):
        assert federation.site(party).script("broker", command).returncode == 0
    job.wait(240)
    if job.status("9999") != "success":
        assert [one for one in EVERYWHERE if "E866" in job.report(one)], f"{job}"
    job.nothing_runs()


@pytest.mark.slow
def test_a_message_that_a_broker_lost(federation: Federation) -> None:
    """What waits for the arbiter's broker is deleted: the later messages arrive, and the error says what is missing."""
    job = Job(federation, site_check(silence_seconds=45))
    job.wait_for_log("10001", EXCHANGING)
    assert federation.site("10001").script("broker", "stop").returncode == 0
    wait_for(lambda: purge(federation.site("10000"), job, "arbiter") > 0, 60)
    assert federation.site("10001").script("broker", "start").returncode == 0
    job.wait(180, status="failed")
    named(job, "10001", "E866 Messages from host 10000 are lost")
    named(job, "9999", "Messages from host 10000 are lost")


@pytest.mark.slow
def test_a_broker_is_gone(federation: Federation) -> None:
    job = Job(federation, site_check())
    job.wait_for_log("10001", EXCHANGING)
    assert federation.site("10000").script("broker", "stop").returncode == 0
    assert job.wait(120, status="failed") < 2 * SILENCE + soon() + 10
    named(job, "10001", "No sign of life from host 10000")
    # Both wait equally long. If the arbiter loses patience first, FATE Flow ends the host before it can say E865.
    wait_for(lambda: any(code in job.report("10000") for code in ("E865", "E311")), 10, lambda: str(job))
    job.nothing_runs()


# --- again ------------------------------------------------------------------------------------------------


def test_a_second_try_is_a_fresh_start(federation: Federation) -> None:
    content = site_check(400)
    content["dag"]["conf"]["auto_retries"] = 1
    job = Job(federation, content)
    job.wait_for_log("10001", EXCHANGING)
    job.kill("10000", "execute")
    wait_for(lambda: job.task("10001").version == 1, 60, lambda: f"{job}")
    job.succeeds_after_all(240)
    assert [job.task(party).version for party in EVERYWHERE] == [1, 1, 1]
    assert [len(job.metrics(party)) for party in EVERYWHERE] == [4, 4, 5]
    clean(job)


def test_a_failed_job_runs_again(federation: Federation) -> None:
    job = Job(federation, site_check(400))
    job.wait_for_log("10001", EXCHANGING)
    job.kill("10001", "execute")
    job.wait(60, status="failed")
    assert job.command("rerun")["code"] == 0
    wait_for(lambda: job.task("10001").version == 1, 60, lambda: f"{job}")
    job.succeeds_after_all(240)
    assert [job.task(party).version for party in EVERYWHERE] == [1, 1, 1]
    assert [len(job.metrics(party)) for party in EVERYWHERE] == [4, 4, 5]
    clean(job)


# --- a wrong job ------------------------------------------------------------------------------------------


def wrong_table(job: dict[str, Any], name: str) -> dict[str, Any]:
    """The host reads another table than the guest."""
    (guest, *_) = task_of(job)["inputs"]["data"]["train_data"]["data_warehouse"]
    host = {**guest, "name": name, "parties": [{"role": "host", "party_id": ["10000"]}]}
    guest["parties"] = [{"role": "guest", "party_id": ["9999"]}]
    task_of(job)["inputs"]["data"]["train_data"]["data_warehouse"] = [guest, host]
    return job


def test_a_table_without_the_columns(federation: Federation, tmp_path: Path) -> None:
    folder = tmp_path / "Qzxv77321"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"Wvuq99812": 1}\n' * 20)
    federation.site("10000").tables(columns=folder)
    job = Job(federation, wrong_table(fedmkt(), "columns"))
    job.wait(180, status="failed")
    named(job, "10000", "E2", "Wvuq99812")
    for party in ("9999", "10001"):
        named(job, party, "host 10000")
        assert not [word for word in ("Qzxv77321", "Wvuq99812") if word in job.report(party) + job.log(party)]


@pytest.mark.slow
def test_a_table_whose_files_are_gone(federation: Federation, tmp_path: Path) -> None:
    federation.site("10000").tables(gone=tmp_path / "Qzxv77321")
    job = Job(federation, wrong_table(fedmkt(), "gone"))
    job.wait(180, status="failed")
    named(job, "10000", "Qzxv77321")
    for party in ("9999", "10001"):
        named(job, party, "host 10000")
        assert "Qzxv77321" not in job.report(party) + job.log(party)


def test_a_table_that_nobody_bound(federation: Federation) -> None:
    """FATE Flow finds it before the component starts: the others can only be told that it was another site."""
    job = Job(federation, wrong_table(fedmkt(), "unbound"))
    job.wait(180, status="failed")
    named(job, "10000", "unbound")
    job.nothing_runs()


def test_an_unknown_parameter(federation: Federation) -> None:
    """`check` refuses it; FATE drops it without a word, so a job that was submitted all the same is refused by us."""
    content = site_check(5)
    task_of(content)["parameters"]["round_trip"] = task_of(content)["parameters"].pop("round_trips")
    said = federation.site("9999").cli("check", federation_file(federation, content))
    assert said.returncode == 1
    assert "E119" in said.stderr + said.stdout
    job = Job(federation, content)
    job.wait(120, status="failed")
    # All find it at about the same time; FATE Flow kills who is seconds later than the first, before it has begun.
    said_so = [party for party in EVERYWHERE if "E312" in job.report(party) and "round_trip" in job.report(party)]
    assert said_so, f"{job}"
    assert not [party for party in EVERYWHERE if party not in said_so and job.report(party)], f"{job}"
    job.nothing_runs()


def federation_file(federation: Federation, content: dict[str, Any]) -> Path:
    """A DAG as a file."""
    import yaml

    path = federation.folder / "fault.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_an_unknown_component(federation: Federation) -> None:
    content = site_check(5)
    task_of(content)["component_ref"] = "site_chek"
    said = federation.site("9999").cli("check", federation_file(federation, content))
    assert said.returncode == 1
    assert "site_chek" in said.stderr + said.stdout
    job = Job(federation, content)
    job.wait(120, status="failed")
    assert any("site_chek" in job.report(party) for party in EVERYWHERE), f"{job}"


# --- many jobs --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_short_jobs_leave_nothing(federation: Federation) -> None:
    jobs = []
    for _ in range(4):
        three = [Job(federation, site_check(3)) for _ in range(3)]
        for job in three:
            job.wait(240, status="success")
        jobs += three
    clean(*jobs)
