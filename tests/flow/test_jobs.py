"""The job of conf/fedmkt/three_sites between three servers of FATE Flow."""

from __future__ import annotations

from sites import CONF, Federation


def test_raw_dag(federation: Federation) -> None:
    job_id = federation.succeeds(CONF / "dag.yaml")
    for party in federation.sites:
        (task,) = federation.tasks(job_id, party)
        assert task["status"] == "success"
