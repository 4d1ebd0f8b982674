"""What a job would cost, against the ledger that would be asked when it runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from fate_llm_ext.algo.dpkd.release import release as dpkd_release
from fate_llm_ext.algo.private import Planned, charge
from fate_llm_ext.pipelines.dag import load_dag
from fate_llm_ext.pipelines.plan import JOB, PLANS, Line, plan
from fate_llm_ext.privacy.accountants import default_delta, epsilon
from fate_llm_ext.privacy.dp_training import plan_training
from fate_llm_ext.privacy.events import DataSet, NonPrivate, Release
from fate_llm_ext.site import load_sites

GUEST, ARBITER = {"role": "guest", "party_id": ["9999"]}, {"role": "arbiter", "party_id": ["9998"]}
DATA = {"train_data": {"data_warehouse": [{"namespace": "llm", "name": "mail", "parties": [GUEST]}]}}
ROWS = 200
PRIVACY = {"epsilon": 2.0, "delta": 1e-4, "batch_size": 50, "epochs": 2, "accountant": "rdp"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class World:
    """A site with one table, and jobs that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guest: dict[str, Any] = {"tables": {"llm/mail": "mail.jsonl"}, "models": {"m": "m"}}
        self.tasks: dict[str, Any] = {}
        (folder / "m").mkdir()
        self.write_rows(ROWS)

    def write_rows(self, count: int) -> None:
        rows = [json.dumps({"text": f"number {row}", "label": "ab"[row % 2]}) for row in range(count)]
        (self.folder / "mail.jsonl").write_text("\n".join(rows) + "\n")

    def dpkd(self, name: str = "dpkd_0", **privacy: Any) -> None:
        control = {"code": "{{ label }}", "values": ["a", "b"], "frequencies": "histogram"}
        parameters = {"control": control, "privacy": {**PRIVACY, **privacy}, "teacher": {"name": "m"}}
        parameters.update(student={"name": "m"}, public={"name": "p"})
        self.add(name, "dpkd", parameters)

    def fedmkt(self, name: str = "fedmkt_0") -> None:
        parameters = {"task": {"template": "ag_news"}, "public": {"name": "p"}, "model": {"name": "m"}}
        self.add(name, "fedmkt", parameters)

    def add(self, name: str, component: str, parameters: dict[str, Any], **more: Any) -> None:
        task = {"component_ref": component, "parameters": parameters, "inputs": {"data": copy.deepcopy(DATA)}, **more}
        self.tasks[name] = task

    @property
    def sites(self) -> Path:
        path = self.folder / "sites.yaml"
        path.write_text(yaml.safe_dump({"guest_9999": self.guest, "arbiter_9998": {"models": {"m": "m"}}}))
        return path

    @property
    def dag(self) -> Path:
        path = self.folder / "dag.yaml"
        dag = {"parties": [GUEST, ARBITER], "stage": "train", "tasks": self.tasks}
        path.write_text(yaml.safe_dump({"dag": dag, "schema_version": "2.2.0", "kind": "fate"}))
        return path

    def plan(self) -> list[Line]:
        return plan(load_dag(self.dag), self.sites)


def test_the_plan_is_what_the_task_itself_would_charge(world: World) -> None:
    world.guest["budgets"] = {"llm/mail": {"epsilon": 3, "delta": 1e-4}}
    world.dpkd()
    (line,) = world.plan()
    config = line.planned and load_config(world)
    training = plan_training(config.privacy, ROWS, line.planned.release.mechanisms[1:])
    assert line.planned.release == dpkd_release(config, training.mechanism(), JOB, ["arbiter 9998"])
    assert len(line.planned.release.mechanisms) == 2, "the histogram is part of it"
    assert (line.refused, line.spent, line.delta) == (None, 0.0, 1e-4)
    assert line.epsilon == line.after == pytest.approx(2.0, rel=0.01)
    assert line.epsilon <= 2.0
    assert line.data is not None
    assert line.data.records == ROWS


def load_config(world: World) -> Any:
    from fate_llm_ext.algo.dpkd.config import DPKDConfig

    return DPKDConfig(**world.tasks["dpkd_0"]["parameters"])


def test_what_was_spent_and_what_earlier_tasks_would_spend_counts(world: World) -> None:
    world.guest["budgets"] = {"llm/mail": {"epsilon": 3, "delta": 1e-4}}
    world.dpkd()
    (first,) = world.plan()
    site = load_sites(world.sites)["guest_9999"]
    charge(site, first.data, first.planned)
    (second,) = world.plan()
    assert second.spent == pytest.approx(first.after)
    assert second.refused is None
    assert first.after < second.after < 3
    world.dpkd("dpkd_1")
    second, third = world.plan()
    assert third.spent == pytest.approx(second.after)
    assert third.refused is not None
    assert third.refused.code == "E610"
    assert third.after > 3
    assert len(list(site.ledger().glob("*.jsonl"))) == 1, "planning writes nothing"


def test_earlier_tasks_count_as_the_ledger_will_relate_them(world: World) -> None:
    """Two names of one table, and a third that held it once: the last task is asked with what all spend."""
    for name in ("copy", "notes"):
        (world.folder / f"{name}.jsonl").write_text((world.folder / "mail.jsonl").read_text())
        world.guest["tables"][f"llm/{name}"] = f"{name}.jsonl"
    world.guest["budgets"] = {f"llm/{name}": {"epsilon": 5, "delta": 1e-4} for name in ("mail", "copy", "notes")}
    world.dpkd()
    (line,) = world.plan()
    charge(load_sites(world.sites)["guest_9999"], dataclasses.replace(line.data, table="llm/notes"), line.planned)
    notes = (world.folder / "notes.jsonl").read_text().replace("number", "line")
    (world.folder / "notes.jsonl").write_text(notes)
    for number, name in ((1, "notes"), (2, "copy")):
        world.dpkd(f"dpkd_{number}")
        world.tasks[f"dpkd_{number}"]["inputs"]["data"]["train_data"]["data_warehouse"][0]["name"] = name
    del world.tasks["dpkd_0"]
    first, second = world.plan()
    # `notes` has other rows now, and `copy` never had a release: only by what is charged do they belong together.
    assert (first.table, second.table) == ("llm/notes", "llm/copy")
    assert first.data.fingerprint != second.data.fingerprint
    assert first.spent == pytest.approx(line.after)
    assert second.spent == pytest.approx(first.after)
    assert second.after > first.after


def test_a_changed_table_keeps_its_history(world: World) -> None:
    world.guest["budgets"] = {"llm/mail": {"epsilon": 2, "delta": 1e-4}}
    world.dpkd()
    (line,) = world.plan()
    charge(load_sites(world.sites)["guest_9999"], line.data, line.planned)
    world.write_rows(ROWS + 1)
    (line,) = world.plan()
    assert line.refused is not None


@pytest.mark.parametrize(
    ("privacy", "budget", "code"),
    [
        ({}, None, "E616"),
        ({"epsilon": 4.0}, {"epsilon": 3, "delta": 1e-4}, "E610"),
        ({}, {"epsilon": 3, "delta": 1 / ROWS}, "E608"),
        ({"batch_size": ROWS + 1}, {"epsilon": 3, "delta": 1e-4}, "E630"),
        ({"delta": 1 / ROWS}, {"epsilon": 3, "delta": 1e-4}, "E607"),
    ],
)
def test_refusals_are_told_before(world: World, privacy: Any, budget: Any, code: str) -> None:
    if budget:
        world.guest["budgets"] = {"llm/mail": budget}
    world.dpkd(**privacy)
    (line,) = world.plan()
    assert line.refused is not None
    assert line.refused.code == code


@pytest.mark.parametrize(("budget", "code"), [(None, None), (8.0, "E611"), (math.inf, None)])
def test_fedmkt_costs_infinity(world: World, budget: Any, code: Any) -> None:
    if budget:
        world.guest["budgets"] = {"llm/mail": {"epsilon": budget, "delta": 1e-4}}
    world.fedmkt()
    (line,) = world.plan()
    assert line.epsilon == line.after == math.inf
    assert (line.refused and line.refused.code) == code
    assert line.planned.release.recipients == ("arbiter 9998",)
    assert line.delta == (1e-4 if budget else default_delta(ROWS))
    assert ("no budget" in line.note) == (budget is None)


def test_a_table_without_budget_at_a_site_with_budgets(world: World) -> None:
    world.guest["budgets"] = {"llm/other": {"epsilon": math.inf, "delta": 1e-4}}
    world.fedmkt()
    (line,) = world.plan()
    assert line.refused is not None
    assert line.refused.code == "E616"


def test_after_a_release_without_privacy_no_finite_budget_holds(world: World) -> None:
    """Budgets hold across algorithms, also when they are set too late."""
    world.dpkd()
    world.guest["budgets"] = {"llm/mail": {"epsilon": 8, "delta": 1e-4}}
    (line,) = world.plan()
    without = Planned(Release("fedmkt", "j", "signals", ("arbiter 9998",), (NonPrivate(),)))
    world.guest["budgets"] = {}
    charge(load_sites(world.sites)["guest_9999"], DataSet("llm/mail", "0" * 64, 3), without)
    world.guest["budgets"] = {"llm/mail": {"epsilon": 8, "delta": 1e-4}}
    (line,) = world.plan()
    assert line.spent == math.inf
    assert line.refused is not None


def test_what_stays_and_what_nobody_knows(world: World) -> None:
    common = {"task": {"template": "ag_news"}, "model": {"name": "m"}}
    world.add("test_0", "text_evaluation", common, stage="default")
    world.tasks["test_0"]["inputs"] = {"data": {"test_data": DATA["train_data"]}}
    world.add("psi_0", "psi", {}, stage="default")
    world.tasks["psi_0"]["inputs"] = {"data": {"input_data": DATA["train_data"]}}
    foreign, stays = sorted(world.plan(), key=lambda line: line.task)
    assert (stays.stays, stays.planned) == (True, None)
    assert not foreign.stays
    assert "not known" in foreign.note


def test_a_budget_at_another_delta_is_explained(world: World) -> None:
    world.guest["budgets"] = {"llm/mail": {"epsilon": 8, "delta": 1e-6}}
    world.dpkd()
    (line,) = world.plan()
    assert line.epsilon == pytest.approx(epsilon(line.planned.release.mechanisms, 1e-6, "rdp"))
    assert line.epsilon > 2
    assert "at the job's δ = 0.0001" in line.note


def test_every_planned_stage_is_there() -> None:
    import importlib

    for path in PLANS.values():
        module, name = path.split(":")
        assert callable(getattr(importlib.import_module(module), name))
