"""Each mistake in a job gives its code at its dotted path, and all of them at once."""

import copy

import pytest
import yaml
from fate.components.core import GUEST, HOST, cpn

from fate_llm_ext.pipelines import catalog
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import parse_dag
from fate_llm_ext.pipelines.prompts import render

JOB = yaml.safe_load("""
dag:
  parties:
  - {role: guest, party_id: ['9999']}
  - {role: host, party_id: ['10000']}
  - {role: arbiter, party_id: ['9998']}
  stage: train
  tasks:
    train:
      component_ref: fedmkt
      parameters:
        rounds: 3
        task: {template: ag_news}
        public: {name: news_public}
        model: {name: slm}
        distill: {top_k: 32}
      inputs:
        data:
          train_data:
            data_warehouse:
            - namespace: llm
              name: news
              parties: [{role: guest, party_id: ['9999']}, {role: host, party_id: ['10000']}]
    test:
      component_ref: text_evaluation
      stage: default
      parameters: {task: {template: ag_news}, model: {name: slm}}
      inputs:
        data: {test_data: {data_warehouse: [{namespace: llm, name: news}]}}
        model: {input_model: {task_output_artifact: {producer_task: train, output_artifact_key: output_model}}}
  party_tasks:
    big: {parties: [{role: arbiter, party_id: ['9998']}], tasks: {train: {parameters: {model: {name: llm}}}}}
schema_version: 2.2.0
kind: fate
""")

TRAIN = "tasks.train"
LINK = "tasks.test.inputs.model.input_model.task_output_artifact"
HOST_ONLY = [{"role": "host", "party_id": ["10000"]}]
TWO_PARTIES = [{"role": "guest", "party_id": ["9999"]}, {"role": "host", "party_id": ["10000"]}]


def set_at(raw, path, value):
    raw = copy.deepcopy(raw)
    node = raw if path.split(".")[0] in ("kind", "schema_version", "/dags") else raw["dag"]
    *steps, last = path.split(".")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return raw


def found(raw, *args):
    return {(problem.where, problem.error.code) for problem in check(parse_dag(raw), *args)}


def test_a_good_job_has_no_problem():
    assert found(JOB) == set()


@pytest.mark.parametrize(
    ("path", "value", "where", "code"),
    [
        ("kind", "bfia", "kind", "E104"),
        ("schema_version", "1.0", "schema_version", "E104"),
        ("/dags", {}, "/dags", "E102"),
        ("taks", {}, "taks", "E102"),
        ("tasks.train.parameter", {}, f"{TRAIN}.parameter", "E102"),
        ("tasks.train.inputs.datas", {}, f"{TRAIN}.inputs.datas", "E102"),
        ("tasks", {}, "tasks", "E103"),
        ("stage", "training", "stage", "E103"),
        ("parties.1.party_id", [], "parties.1", "E108"),
        ("parties.1.party_id", ["10000", "10000"], "parties", "E107"),
        ("parties.1.role", "client", "parties.1", "E103"),
        ("tasks.train.component_ref", "fedmk", f"{TRAIN}.component_ref", "E115"),
        ("tasks.train.stage", "cross_validation", f"{TRAIN}.stage", "E116"),
        ("tasks.test.stage", "train", "tasks.test.stage", "E116"),
        ("tasks.test.parties", [{"role": "arbiter", "party_id": ["9998"]}], "tasks.test.parties", "E117"),
        ("party_tasks.big.tasks.test", {"parameters": {"max_new_tokens": 3}}, "party_tasks.big.tasks.test", "E117"),
        ("parties", TWO_PARTIES, TRAIN, "E118"),
        ("party_tasks.big.parties", [{"role": "host", "party_id": ["1"]}], "party_tasks.big.parties", "E106"),
        ("party_tasks.big.tasks.trian", {}, "party_tasks.big.tasks.trian", "E124"),
        ("tasks.train.parameters.round", 3, f"{TRAIN}.parameters.round", "E119"),
        ("tasks.train.parameters.task", {"template": "tikets"}, f"{TRAIN}.parameters.task", "E208"),
        (
            "tasks.train.parameters.task",
            {"prompt": "{{ text", "answer": "{{ label }}"},
            f"{TRAIN}.parameters.task",
            "E209",
        ),
        ("tasks.train.parameters.distill.topk", 3, f"{TRAIN}.parameters.distill.topk", "E119"),
        ("tasks.train.parameters.distill.top_k", 0, f"{TRAIN}.parameters.distill.top_k", "E120"),
        ("tasks.train.parameters.rounds", "many", f"{TRAIN}.parameters.rounds", "E120"),
        ("tasks.train.parameters.rounds", 0, f"{TRAIN}.parameters.rounds", "E120"),
        ("tasks.train.parameters.compare", ["papr"], f"{TRAIN}.parameters.compare.0", "E120"),
        ("tasks.train.parameters.direction", "up", f"{TRAIN}.parameters.direction", "E120"),
        ("tasks.train.parameters.task", {}, f"{TRAIN}.parameters.task", "E120"),
        ("tasks.train.parameters.public", ..., f"{TRAIN}.parameters.public", "E121"),
        (
            "party_tasks.big.tasks.train.parameters.model.nam",
            "x",
            "party_tasks.big.tasks.train.parameters.model.nam",
            "E119",
        ),
        ("tasks.train.inputs", {}, f"{TRAIN}.inputs.data.train_data", "E123"),
        (
            "tasks.train.inputs.data.train_data.data_warehouse.0.parties",
            HOST_ONLY,
            f"{TRAIN}.inputs.data.train_data",
            "E123",
        ),
        ("tasks.train.inputs.data.trian_data", {"data_warehouse": []}, f"{TRAIN}.inputs.data.trian_data", "E122"),
        (
            "tasks.train.inputs.data.train_data.data_warehouse",
            [{"namespace": "llm", "name": "a"}, {"namespace": "llm", "name": "b"}],
            f"{TRAIN}.inputs.data.train_data",
            "E130",
        ),
        (f"{LINK}.producer_task", "trian", f"{LINK}.producer_task", "E124"),
        (f"{LINK}.output_artifact_key", "output_modle", f"{LINK}.output_artifact_key", "E125"),
        (
            "tasks.train.inputs.model.x",
            {"task_output_artifact": {"producer_task": "train", "output_artifact_key": "output_model"}},
            "tasks",
            "E127",
        ),
    ],
)
def test_one_mistake(path, value, where, code):
    assert (where, code) in found(set_at(JOB, path, value))


def test_links_between_different_types_are_noticed(monkeypatch):
    @cpn.component(roles=[GUEST, HOST])
    def maker(
        ctx,
        role,
        frame: cpn.dataframe_output(),
        folder: cpn.data_directory_output(),
        any_: cpn.data_unresolved_output(),
    ):
        """Gives one output of each kind."""

    monkeypatch.setitem(catalog.plugins()[0], "maker", maker)
    where = "tasks.test.inputs.data.test_data.task_output_artifact.output_artifact_key"
    for key, expected in (("frame", {(where, "E126")}), ("folder", set()), ("any_", set())):
        link = {"task_output_artifact": {"producer_task": "a", "output_artifact_key": key}}
        test = {**JOB["dag"]["tasks"]["test"], "inputs": {"data": {"test_data": link}}}
        raw = set_at(JOB, "tasks", {"a": {"component_ref": "maker", "stage": "default"}, "test": test})
        assert found(set_at(raw, "party_tasks", ...)) == expected


def test_hints_name_the_near_match():
    text = "\n".join(map(str, check(parse_dag(set_at(JOB, "tasks.train.parameters.round", 1)))))
    assert "Did you mean 'rounds'?" in text
    assert "FATE would ignore it" in text


def test_all_problems_at_once():
    raw = set_at(JOB, "tasks.train.parameters.round", 1)
    raw = set_at(raw, "tasks.train.parameters.distill.top_k", 0)
    raw = set_at(raw, "tasks.test.component_ref", "text_evaluatoin")
    assert {code for _, code in found(raw)} == {"E119", "E120", "E115"}


@pytest.fixture
def sites(tmp_path):
    for folder in ("slm", "llm", "public", "news"):
        (tmp_path / folder).mkdir()
    party = {"tables": {"llm/news": "news"}, "models": {"slm": "slm"}, "public": {"news_public": "public"}}
    settings = {key: copy.deepcopy(party) for key in ("guest_9999", "host_10000")}
    settings["arbiter_9998"] = {"models": {"llm": "llm"}, "public": {"news_public": "public"}}

    def write(change=lambda settings: None):
        change(settings)
        path = tmp_path / "sites.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def test_names_of_the_site_file_are_found(sites):
    assert found(JOB, sites()) == set()


@pytest.mark.parametrize(
    ("change", "where", "code"),
    [
        (lambda s: s["guest_9999"].pop("models"), f"{TRAIN}.parameters.model.name (guest 9999)", "E110"),
        (
            lambda s: s["arbiter_9998"]["models"].update(llm="nowhere"),
            "party_tasks.big.tasks.train.parameters.model.name (arbiter 9998)",
            "E111",
        ),
        (lambda s: s["host_10000"].pop("public"), f"{TRAIN}.parameters.public.name (host 10000)", "E110"),
        (
            lambda s: s["host_10000"].pop("tables"),
            f"{TRAIN}.inputs.data.train_data.data_warehouse.0 (host 10000)",
            "E110",
        ),
        (lambda s: s.pop("host_10000"), "host 10000", "E114"),
        (
            lambda s: s["host_10000"].update(budgets={"llm/other": {"epsilon": 8, "delta": 1e-6}}),
            f"{TRAIN}.inputs.data.train_data.data_warehouse.0 (host 10000)",
            "E616",
        ),
    ],
)
def test_names_missing_at_a_site(sites, change, where, code):
    assert (where, code) in found(JOB, sites(change))


def test_what_releases_nothing_needs_no_budget(sites):
    budgets = {"llm/other": {"epsilon": 8, "delta": 1e-6}}
    problems = found(JOB, sites(lambda s: s["host_10000"].update(budgets=budgets)))
    assert not [where for where, _ in problems if where.startswith("tasks.test")]


def test_an_unreadable_site_file_is_one_problem(tmp_path):
    path = tmp_path / "none.yaml"
    assert found(JOB, path) == {(str(path), "E112")}


# --- prompts ------------------------------------------------------------------------------------------

FDKT = yaml.safe_load("""
dag:
  parties:
  - {role: guest, party_id: ['9999']}
  - {role: host, party_id: ['10000']}
  - {role: arbiter, party_id: ['9998']}
  stage: train
  tasks:
    train:
      component_ref: fdkt
      parameters:
        control: {code: '{{ label }}', values: [World, Sports]}
        privacy: {epsilon: 3}
        generator: {name: slm}
        student: {name: slm}
        llm: {name: llm}
      inputs:
        data:
          train_data:
            data_warehouse:
            - namespace: llm
              name: news
              parties: [{role: guest, party_id: ['9999']}, {role: host, party_id: ['10000']}]
  party_tasks:
    mood:
      parties: [{role: host, party_id: ['10000']}]
      tasks:
        train: {parameters: {description: a review, control: {code: '{{ label }}', values: [good, bad]}}}
schema_version: 2.2.0
kind: fate
""")
PARAMETERS = f"{TRAIN}.parameters"
MOOD = "party_tasks.mood.tasks.train.parameters"


def test_good_prompts_are_no_problem():
    assert found(FDKT) == set()
    dpkd = copy.deepcopy(FDKT)
    dpkd["dag"]["tasks"]["train"]["component_ref"] = "dpkd"
    assert "E209" not in {code for _, code in found(dpkd)}


@pytest.mark.parametrize(
    ("path", "value", "where", "code"),
    [
        (f"{PARAMETERS}.control.prompt", "{{ code", f"{PARAMETERS}.control.prompt", "E209"),
        (f"{PARAMETERS}.control.prompt", "{{ label }}", f"{PARAMETERS}.control.prompt", "E209"),
        (f"{PARAMETERS}.control.prompt", "A text:", f"{PARAMETERS}.control.prompt", "E209"),
        (f"{MOOD}.control.prompt", "{{ codes }}", f"{MOOD}.control.prompt", "E209"),
        (f"{PARAMETERS}.prompts.judge", "{% for text in texts %}", f"{PARAMETERS}.prompts.judge", "E209"),
        (f"{PARAMETERS}.prompts.judge", "{{ texts[1] }}", f"{PARAMETERS}.prompts.judge", "E209"),
        (f"{PARAMETERS}.prompts.judge", "{{ description }}", f"{PARAMETERS}.prompts.judge", "E700"),
        (f"{PARAMETERS}.prompts.augment", "{{ label }}:", f"{PARAMETERS}.prompts.augment", "E700"),
        (f"{PARAMETERS}.prompts.label", "{{ text.size() }}", f"{PARAMETERS}.prompts.label", "E209"),
        (f"{PARAMETERS}.prompts.student", "{{ txt }}", f"{PARAMETERS}.prompts.student", "E209"),
        (f"{MOOD}.prompts.student", "{{ labels }}", f"{MOOD}.prompts.student", "E700"),
    ],
)
def test_each_wrong_prompt_is_found_at_its_path(path, value, where, code):
    assert found(set_at(FDKT, path, value)) == {(where, code)}


def test_the_prompt_of_dpkd_is_found_too():
    raw = set_at(FDKT, f"{PARAMETERS}.control.prompt", "{{ code")
    raw["dag"]["tasks"]["train"]["component_ref"] = "dpkd"
    assert (f"{PARAMETERS}.control.prompt", "E209") in found(raw)


def test_wrong_prompts_are_found_beside_other_problems():
    raw = set_at(FDKT, f"{PARAMETERS}.prompts", {"judge": "{{ texts", "label": "{{ texts }}"})
    raw = set_at(set_at(raw, f"{PARAMETERS}.seed", -1), f"{PARAMETERS}.privacy", ...)
    assert found(raw) == {
        (f"{PARAMETERS}.prompts.judge", "E209"),
        (f"{PARAMETERS}.prompts.label", "E209"),
        (f"{PARAMETERS}.seed", "E120"),
        (f"{PARAMETERS}.privacy", "E121"),
    }


def test_prompts_are_shown_per_task_party_and_client():
    raw = set_at(FDKT, f"{PARAMETERS}.filter", {"samples_per_cluster": 3})
    shown = [
        (", ".join(map(str, one.parties)), one.field, one.title.partition(",")[2].strip(), one.text)
        for one in render(parse_dag(raw))
    ]
    judge = "Here are 3 candidates for {}.\n\n[1] <text 1>\n[2] <text 2>\n[3] <text 3>\n\n"
    assert [(who, field, text) for who, field, _, text in shown if field != "prompts.judge"] == [
        ("guest 9999", "control.prompt", "World\n\n"),
        ("guest 9999", "control.prompt", "Sports\n\n"),
        ("guest 9999, host 10000", "prompts.student", "<text>\nLabel:"),
        ("host 10000", "control.prompt", "good\n\n"),
        ("host 10000", "control.prompt", "bad\n\n"),
        ("arbiter 9998", "prompts.augment", "World: <text 1>\n\nSports: <text 2>\n\nWorld:"),
        ("arbiter 9998", "prompts.label", "<text>\nWhich of World, Sports?\nAnswer:"),
        ("arbiter 9998", "prompts.augment", "good: <text 1>\n\nbad: <text 2>\n\ngood:"),
        ("arbiter 9998", "prompts.label", "<text>\nWhich of good, bad?\nAnswer:"),
    ]
    judges = [(title, text) for _, field, title, text in shown if field == "prompts.judge"]
    assert [title for title, _ in judges] == [
        "about a cluster of texts of guest 9999",
        "about a cluster of texts of host 10000",
    ]
    assert [text.startswith(judge.format(what)) for what, (_, text) in zip(("a text", "a review"), judges)] == [
        True
    ] * 2


def test_clients_with_the_same_labels_share_their_prompts():
    raw = copy.deepcopy(FDKT)
    del raw["dag"]["party_tasks"]
    shown = render(parse_dag(raw))
    assert [", ".join(map(str, one.parties)) for one in shown] == ["guest 9999, host 10000"] * 3 + ["arbiter 9998"] * 3
    assert shown[3].title.endswith("of guest 9999, host 10000")


def test_what_reads_no_prompt_is_shown_none():
    shown = render(parse_dag(set_at(FDKT, f"{PARAMETERS}.head", "classification")))
    assert "prompts.student" not in {one.field for one in shown}
    predict = set_at(FDKT, "tasks.train.stage", "predict")
    reading = [(one.field, ", ".join(map(str, one.parties))) for one in render(parse_dag(predict))]
    assert reading == [("prompts.student", "guest 9999, host 10000")]
    assert (f"{PARAMETERS}.prompts.student", "E209") in found(set_at(predict, f"{PARAMETERS}.prompts.student", "{{"))
