"""Every job that is shipped is a valid one, and its site file covers it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import load_dag
from fate_llm_ext.site import load_sites

CONF = Path(__file__).resolve().parents[2] / "conf"
JOBS = sorted([*CONF.glob("*/dag.yaml"), *CONF.glob("*/*/dag.yaml")])
OTHERS = sorted(path for path in CONF.glob("*/*/*.yaml") if path.name not in ("dag.yaml", "sites.yaml"))


def test_there_are_jobs() -> None:
    assert {path.parent.name for path in (CONF / "fedmkt").glob("*/dag.yaml")} >= {
        "quickstart",
        "ag_news",
        "commonsenseqa",
    }
    assert {path.parent.name for path in (CONF / "dpkd").glob("*/dag.yaml")} >= {"quickstart", "ag_news", "yelp"}
    assert {path.parent.name for path in (CONF / "fdkt").glob("*/dag.yaml")} >= {"quickstart"}
    assert {path.parent.name for path in (CONF / "fedcot").glob("*/dag.yaml")} >= {
        "quickstart",
        "commonsenseqa",
        "arc_easy",
    }


@pytest.mark.parametrize("path", [*JOBS, *OTHERS], ids=lambda path: str(path.relative_to(CONF)))
def test_the_job_and_its_site_file_fit(path: Path, tmp_path: Path) -> None:
    for site in load_sites(path.with_name("sites.yaml"), str(tmp_path)).values():
        for kind in (site.tables, site.models, site.public):
            for value in kind.values():
                site.path(value).mkdir(parents=True, exist_ok=True)
    problems = check(load_dag(path), path.with_name("sites.yaml"), str(tmp_path))
    assert [str(problem) for problem in problems] == []


@pytest.mark.parametrize("path", JOBS, ids=lambda path: f"{path.parent.parent.name}/{path.parent.name}")
def test_a_job_is_short(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 40


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.sh")), ids=lambda path: f"{path.parent.parent.name}/{path.parent.name}"
)
def test_the_preparation_is_valid_shell(path: Path) -> None:
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


def test_a_small_llm_has_read_the_prompts_that_it_will_get() -> None:
    """The quickstart's preparation describes the texts with the very words of its job."""
    folder = CONF / "fdkt" / "quickstart"
    job = load_dag(folder / "dag.yaml")
    (task,) = job.tasks.values()
    said = {task.parameters_of(party)["description"] for party in job.parties if party.role != "arbiter"}
    assert len(said) == 2
    prepared = (folder / "prepare.sh").read_text()
    assert all(f"'{one}'" in prepared for one in said)
