"""`fate-llm-ext doctor --flow` at real sites: what is well, what is wrong, and the handshake between them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from sites import REPOSITORY, Federation, Site

PARTIES = "guest:9999,host:10000,arbiter:10001"
SITE_CHECK = REPOSITORY / "conf/site_check/dag.yaml"


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Of ``doctor --json``; its exit code says whether anything is wrong."""
    report = json.loads(done.stdout)
    assert done.returncode == (1 if report["problems"] else 0), done.stderr
    return dict(report)


def codes(report: dict[str, Any]) -> list[str]:
    return [one["code"] for one in report["problems"] if one["where"].startswith("flow.")]


def doctor(site: Site, *arguments: object) -> dict[str, Any]:
    return report_of(site.cli("doctor", "--flow", "--json", *arguments, seconds=400))


def test_a_federation_that_is_well(federation: Federation) -> None:
    """Everything of this site, then the handshake: as the guest's operator types it, for people."""
    done = federation.site("9999").cli("doctor", "--flow", "--parties", PARTIES, seconds=400)
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    for words in (
        "party 9999",
        "default provider: fate:llm_ext_",
        "mode replication",
        "party 10000, party 10001: take connections",
        "table llm/news:",
        "arbiter 10001 guest 9999 host 10000",
        "site file yes yes yes",
        "round trip, median",
        "All is well.",
    ):
        assert words in said, done.stdout + done.stderr
    assert "password" not in said


def test_the_handshake_of_a_job_file_from_another_site(federation: Federation) -> None:
    report = doctor(federation.site("10000"), "--dag", SITE_CHECK)
    assert codes(report) == []
    shaken = report["flow"]["handshake"]
    assert shaken["ok"]
    sites = {site["party"]: site for site in shaken["sites"]}
    assert list(sites) == ["arbiter 10001", "guest 9999", "host 10000"]
    assert len({json.dumps(site["versions"], sort_keys=True) for site in sites.values()}) == 1
    for party in ("guest 9999", "host 10000"):
        assert abs(sites[party]["offset"]) <= sites[party]["uncertainty"] + 1e-3  # one machine, one clock
        assert sites[party]["uncertainty"] < 5
        assert 0 < sites[party]["round_trip_min"] < 10
    assert not any("E837" in warning or "E838" in warning for warning in shaken["warnings"])


def test_the_shipped_job_runs_unchanged(federation: Federation) -> None:
    job = federation.succeeds(SITE_CHECK)
    for party, role in (("9999", "guest"), ("10000", "host"), ("10001", "arbiter")):
        where = {"job_id": job, "role": role, "party_id": party, "task_name": "site_check_0"}
        names = {one["name"] for one in federation.site(party).get("output/metric/query", **where)}
        assert {"seconds", "bytes_sent", "bytes_received", "result"} <= names


def test_tables_and_site_file(federation: Federation, tmp_path: Path) -> None:
    sites = yaml.safe_load(federation.sites_file.read_text())
    sites["guest_9999"]["tables"]["llm/unknown"] = "data/guest_9999"
    sites["guest_9999"]["tables"]["llm/news"] = "data/host_10000"
    changed = tmp_path / "sites.yaml"
    changed.write_text(yaml.safe_dump({"root": str(federation.data), **sites}))
    report = doctor(federation.site("9999"), "--sites", changed, "--parties", PARTIES)
    assert sorted(codes(report)) == ["E807", "E844"]
    assert "handshake" not in report["flow"]  # what is wrong here is repaired first


def test_a_site_without_the_provider_is_named(federation: Federation) -> None:
    arbiter = federation.site("10001")
    spec = json.loads((arbiter.folder / "provider" / "provider.json").read_text())
    arbiter.flow("provider", "delete", "--name", "fate", "--version", spec["version"], "--device", "local")
    try:
        report = doctor(federation.site("9999"), "--parties", PARTIES)
        assert codes(report) == ["E839"]
        (problem,) = [one["problem"] for one in report["problems"] if one["code"] == "E839"]
        assert "1 site(s)" in problem
        assert "arbiter 10001: Not found provider" in problem
        assert codes(doctor(arbiter)) == ["E808"]
    finally:
        answer = arbiter.flow("provider", "register", "-c", arbiter.folder / "provider" / "provider.json")
    assert answer["code"] == 0


def test_a_server_of_another_site_and_no_server(federation: Federation) -> None:
    guest = federation.site("9999")
    assert codes(doctor(guest, "--parties", "guest:1,arbiter:10001")) == ["E846"]
    assert codes(doctor(guest, "--server", "127.0.0.1:9")) == ["E801"]
