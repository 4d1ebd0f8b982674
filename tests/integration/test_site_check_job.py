"""The site check between real processes: sites that are alike, and sites that are not."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fate_llm_ext.algo.site_check.findings import PACKAGES
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import load_dag, parse_dag
from fate_llm_ext.pipelines.local import JobResult, run_job
from fate_llm_ext.report import write_report

pytestmark = pytest.mark.integration
CONF = Path(__file__).resolve().parents[2] / "conf" / "site_check"
TASK = "site_check_0"
SKEW = 5.0


def events(result: JobResult, party: str) -> list[dict[str, Any]]:
    lines = (result.directory / TASK / party / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def of_type(result: JobResult, party: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(result, party) if event["type"] == kind]


def results(result: JobResult, party: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for event in of_type(result, party, "result"):
        found.setdefault(event["arm"], {})[event["metric"]] = event["value"]
    return found


def run(folder: Path, host: str = "", parties: tuple[str, ...] = ("10000",), **parameters: Any) -> JobResult:
    """Run the shipped job, changed; ``host`` is Python that host 10000 runs before anything else."""
    raw = yaml.safe_load((CONF / "dag.yaml").read_text())
    raw["dag"]["parties"][1]["party_id"] = list(parties)
    raw["dag"]["tasks"][TASK]["parameters"].update(parameters)
    sites = {key: {"device": "cpu"} for key in ("guest_9999", *(f"host_{one}" for one in parties), "arbiter_10001")}
    (folder / "sites.yaml").write_text(yaml.safe_dump(sites))
    (folder / "changed").mkdir()
    (folder / "changed" / "sitecustomize.py").write_text(host)
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in */host_10000/*) export PYTHONPATH={folder}/changed:$PYTHONPATH ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    dag = parse_dag(raw)
    assert check(dag, folder / "sites.yaml") == []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return run_job(dag, folder / "sites.yaml", None, folder / "runs", python=str(python))


@pytest.mark.smoke
def test_the_shipped_job(tmp_path: Path) -> None:
    dag = load_dag(CONF / "dag.yaml")
    assert check(dag, CONF / "sites.yaml") == []
    done = run_job(dag, CONF / "sites.yaml", None, tmp_path)
    assert done.error is None
    everywhere = [of_type(done, party, "site") for party in ("guest_9999", "host_10000", "arbiter_10001")]
    without_time = [[{**event, "time": 0} for event in one] for one in everywhere]
    assert without_time[0] == without_time[1] == without_time[2]
    sites = {event["party"]: event for event in everywhere[0]}
    assert list(sites) == ["arbiter 10001", "guest 9999", "host 10000"]
    for name, site in sites.items():
        assert set(site["versions"]) == set(PACKAGES)
        assert site["site_file"] == ""
        if name != "arbiter 10001":
            assert site["steady"]
            assert abs(site["offset"]) <= site["uncertainty"] + 1e-3  # one machine, one clock
            assert 0 < site["round_trip_min"] <= site["round_trip_median"]
            assert site["bytes_per_second"] > 10_000
    assert not of_type(done, "arbiter_10001", "warning")
    page = write_report([done.directory], tmp_path / "report.html").read_text(encoding="utf-8")
    for metric in ("round_trip_seconds", "clock_offset_seconds", "bytes_per_second"):
        assert metric.replace("_", " ") in page or metric in page


def test_four_sites_one_with_a_wrong_clock(tmp_path: Path) -> None:
    skewed = f"import time\nright = time.time\ntime.time = lambda: right() + {SKEW}\n"
    done = run(tmp_path, skewed, ("10000", "10002"), message_bytes=0, round_trips=3)
    assert done.error is None
    numbers = results(done, "arbiter_10001")
    assert set(numbers) == {"guest 9999", "host 10000", "host 10002"}
    for party, values in numbers.items():
        offset = SKEW if party == "host 10000" else 0.0
        assert abs(values["clock_offset_seconds"] - offset) <= values["clock_uncertainty_seconds"] + 1e-3
        assert "bytes_per_second" not in values
    assert set(results(done, "host_10002")) == {"arbiter 10001"}
    for party in ("guest_9999", "host_10000", "host_10002", "arbiter_10001"):
        (warning,) = of_type(done, party, "warning")
        assert warning["code"] == "E837"
        assert "host 10000" in warning["message"]
    messages = [event["name"] for event in of_type(done, "host_10002", "message")]
    assert messages == ["hello", *["ping", "pong"] * 3, "findings"]


def test_all_differences_at_once(tmp_path: Path) -> None:
    """Another release of ours, another FATE, no site file: the arbiter and all others say so; nobody else's paths."""
    lines = [
        "import os",
        "import fate_llm_ext",
        "fate_llm_ext.__version__ = '0.0.9'",
        "os.environ['FATE_LLM_EXT_SITE'] = '/nowhere/private.yaml'",
    ]
    folder = tmp_path / "changed" / "pyfate-2.1.0.dist-info"
    lines += [
        "from pathlib import Path",
        f"Path({str(folder)!r}).mkdir(exist_ok=True)",
        f"Path({str(folder / 'METADATA')!r}).write_text('Metadata-Version: 2.1\\nName: pyfate\\nVersion: 2.1.0\\n')",
    ]
    done = run(tmp_path, "\n".join(lines))
    assert done.error is not None
    text = str(done.error)
    assert "E835" in text
    for words in (
        "3 thing(s)",
        "fate-llm-ext: 0.0.9 (host 10000)",
        "pyfate: 2.1.0 (host 10000)",
        "host 10000 cannot use",
    ):
        assert words in text, text
    for party in ("guest_9999", "arbiter_10001"):
        assert len(of_type(done, party, "site")) == 3
        assert of_type(done, party, "error")[0]["code"] in ("E835", "E303")
        assert "private.yaml" not in json.dumps(events(done, party))
    assert [event["code"] for event in of_type(done, "host_10000", "warning")][:1] == ["E112"]


def test_a_silent_site_is_named(tmp_path: Path) -> None:
    silent = (
        "import time\nimport fate_llm_ext.algo.site_check.entry as entry\nentry.answer = lambda *_: time.sleep(600)\n"
    )
    began = time.monotonic()
    network = {"silence_seconds": 4.0, "startup_seconds": 60.0, "heartbeat_seconds": 1.0}
    done = run(tmp_path, silent, network=network)
    assert time.monotonic() - began < 150
    assert done.error is not None
    assert "E304 No sign of life from host 10000" in str(done.error)
    assert "'pong'" in str(done.error)
