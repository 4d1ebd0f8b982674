"""A report is passed on: no folder of this machine in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fate_llm_ext.report.page import base_names, write_report


def test_no_absolute_path_in_the_page(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "20261120-1"
    party = run / "fedmkt_0" / "host_10000"
    party.mkdir(parents=True)
    error = f"E402 {tmp_path}/models/slm holds no causal language model that can be loaded: no file {tmp_path}/a.bin."
    (party / "events.jsonl").write_text(json.dumps({"type": "error", "code": "E402", "message": error}) + "\n")
    record = {
        "dag": str(tmp_path / "conf" / "quickstart" / "dag.yaml"),
        "status": "failed",
        "error": f"E521 host 10000 failed: {error} Next: See {party / 'log.txt'}.",
    }
    (run / "job.json").write_text(json.dumps(record))
    page = write_report([run], run / "report.html").read_text()
    assert str(tmp_path) not in page
    assert str(tmp_path.parent) not in page
    for words in ("quickstart/dag.yaml", "20261120-1", "E402 slm holds no causal", "See log.txt"):
        assert words in page, words


@pytest.mark.parametrize(
    "text", ["https://example.org/a/b", "12.0 kB/s", "E207 2/3 done", "Sci/Tech", "conf/a/b.yaml", "and/or/not"]
)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert base_names(text) == text
