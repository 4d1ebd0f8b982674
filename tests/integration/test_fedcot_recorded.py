"""A job with recorded answers: each rationale reaches the row that it was recorded for, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedcot_jobs import GUEST, HOST, RECORDS, FedCoTFiles, metrics, private_rows, two_clients

pytestmark = pytest.mark.integration


def recorded(world: Path, folder: Path) -> FedCoTFiles:
    """Recorded answers: of every four, two that give the row's label, one that gives another, and one refused."""
    job = two_clients(world, folder)
    job.parameters.update(compare=[], attack={"methods": []}, perturbation={"strategy": "none"})
    job.parameters["rationale"] = {"recorded": True}
    job.parameters["quality"] = {"min_words": 1, "consistent": True, "answered": True, "max_copy": 1.0}
    del job.own(HOST)["perturbation"]
    (folder / "recording").mkdir()
    for party in (GUEST, HOST):
        rows = private_rows(job, party)
        labels = sorted({row["label"] for row in rows})
        lines = []
        for number, row in enumerate(rows):
            other = next(label for label in labels if label != row["label"])
            said = {2: other, 3: None}.get(number % 4, row["label"])
            text = (
                said
                and f" Because of it. So the answer is {said}.\n\nQ: another one?\nA: So the answer is {labels[0]}."
            )
            lines.append(json.dumps({"answer": text}))
        (folder / "recording" / f"{party}.jsonl").write_text("\n".join(lines) + "\n")
        job.sites[party]["budgets"]["llm/private"]["epsilon"] = float("inf")
    job.sites["arbiter_9998"] = {"recordings": {"llm": str(folder / "recording")}, "device": "cpu"}
    return job


def test_each_answer_is_about_its_row(world: Path, tmp_path: Path) -> None:
    job = recorded(world, tmp_path)
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    for party in (GUEST, HOST):
        found = metrics(job.directory(), party)
        assert found["questions"] == RECORDS
        assert found["rationales_dropped_refused"] == RECORDS // 4
        assert found["rationales"] == 3 * RECORDS // 4
        assert found["rationales_kept"] == RECORDS // 2, found
        assert found["rationales_inconsistent"] == RECORDS // 4


@pytest.mark.slow
def test_a_recording_that_is_too_short_ends_the_job_with_both_numbers(world: Path, tmp_path: Path) -> None:
    job = recorded(world, tmp_path)
    path = tmp_path / "recording" / f"{HOST}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    done = job.run()
    assert done.returncode != 0
    said = done.stderr + done.stdout
    assert f"E419 The recording 'llm' holds {RECORDS - 3} answers for host 10000" in " ".join(said.split())
    assert "Traceback" not in said
