"""The privacy statement: true numbers, nothing private, infinity in words."""

import json
import math
from dataclasses import dataclass

import pytest

from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.events import DataSet, Gaussian, NonPrivate, PoissonGaussian, Release
from fate_llm_ext.site import Budget

DATA = DataSet("llm/yelp", "ab" * 32, 2000)
SGD = PoissonGaussian(0.128, 1.86, 79)
HISTOGRAM = Gaussian(10.0)


@dataclass(frozen=True)
class Plan:
    sampling_rate: float = 0.128
    steps: int = 79
    noise_multiplier: float = 1.86
    max_grad_norm: float = 1.0


def release(*mechanisms, what="synthetic texts"):
    return Release("dpkd", "job-1", what, ("arbiter 9998",), mechanisms)


def dp_statement(**more):
    releases = [release(SGD), release(HISTOGRAM, what="noisy counts of the codes")]
    facts = {"training": Plan(), "clipping": "per-record gradients by hooks", **more}
    return report.statement("guest 9999", "dpkd", data=DATA, releases=releases, delta=1e-5, **facts)


def test_releases_are_composed_and_cross_checked():
    from fate_llm_ext.privacy.accountants import epsilon

    made = dp_statement()
    guarantee = made["guarantee"]
    assert guarantee["epsilon"] == pytest.approx(epsilon([SGD, HISTOGRAM], 1e-5), rel=1e-6)
    assert [one["epsilon"] for one in made["releases"]] == [epsilon([SGD], 1e-5), epsilon([HISTOGRAM], 1e-5)]
    assert max(one["epsilon"] for one in made["releases"]) < guarantee["epsilon"]
    assert guarantee["cross_check"]["epsilon"] == pytest.approx(guarantee["epsilon"], rel=0.01)
    assert "PRV" in guarantee["accountant"]
    assert (guarantee["unit"], guarantee["adjacency"]) == ("one record", "add or remove one record")


def test_the_card_says_what_the_statement_has_to_say():
    card = report.card(dp_statement(audit={"epsilon_lower": 0.41, "confidence": 0.95}, public=["the control codes"]))
    for text in (
        "one record",
        "add or remove",
        "2,000 records (N)",
        "rate 0.128 (q)",
        "79 steps (T)",
        "1.86 (σ)",
        "clipped to 1 (C)",
        "per-record gradients by hooks",
        "δ = 1e-05",
        "PRV",
        "PLD",
        "operating system's entropy",
        "hyper-parameters",
        "the control codes",
        "number of records",
        "epsilon_lower 0.41",
        "arbiter 9998",
        "noisy counts",
    ):
        assert text in card, text
    assert "nan" not in card


def test_what_the_others_may_notice_is_not_covered():
    text = "; ".join(dp_statement()["not_covered"])
    for words in ("when messages come", "how many records a step samples", "that a task fails, and when"):
        assert words in text
    assert "stands at several owners pays at each of them" in text


def test_one_release_without_privacy_makes_the_whole_infinite():
    made = report.statement("guest 9999", "x", data=DATA, releases=[release(SGD), release(NonPrivate())], delta=1e-5)
    assert made["guarantee"]["epsilon"] == "infinity"
    assert [one["epsilon"] for one in made["releases"]][1] == "infinity"
    assert isinstance(made["releases"][0]["epsilon"], float)
    assert made["guarantee"]["text"].startswith("Not differentially private: ε = ∞")
    assert made["randomness"] == ""
    assert "ε = ∞" in report.headline(made)


@pytest.mark.parametrize("mechanism", [PoissonGaussian(0.1, 0.0, 5), Gaussian(0.0)])
def test_no_noise_is_infinite_whatever_was_asked_for(mechanism):
    made = report.statement("guest 9999", "x", data=DATA, releases=[release(mechanism)], delta=1e-5)
    assert made["guarantee"]["epsilon"] == "infinity"


def test_without_a_delta_nothing_is_claimed():
    made = report.statement("guest 9999", "x", data=DATA, releases=[release(SGD)])
    assert made["guarantee"]["epsilon"] == "infinity"


def test_it_is_json_without_infinities_and_without_the_fingerprint():
    total = report.LedgerTotal(math.inf, 1e-6, 3, Budget(math.inf, 1e-6))
    for made in (dp_statement(ledger=total), report.statement("guest 9999", "x", data=DATA, releases=[], ledger=total)):
        text = json.dumps(made, allow_nan=False)
        assert DATA.fingerprint not in text + report.card(made)
        assert made["ledger"]["left"] == "infinity"


def test_who_has_no_data_or_gives_nothing_away_says_so():
    arbiter = report.statement(
        "arbiter 9998", "x", artefacts=[report.Artefact("student", True, "from synthetic texts")]
    )
    assert report.headline(arbiter) == "arbiter 9998: no private table"
    assert "- student: differentially private: from synthetic texts" in report.card(arbiter)
    guest = report.statement("guest 9999", "x", data=DATA)
    assert guest["guarantee"]["epsilon"] == 0.0
    assert "nothing computed from llm/yelp leaves" in report.headline(guest)


def test_the_headline_names_guarantee_and_ledger():
    made = dp_statement(ledger=report.LedgerTotal(2.0, 1e-5, 1, Budget(8.0, 1e-5)))
    epsilon = report.show_epsilon(made["guarantee"]["epsilon"])
    assert report.headline(made) == f"guest 9999: (ε, δ) = ({epsilon}, 1e-05) for llm/yelp; ledger: 2.00 of 8.00"
    assert made["ledger"]["left"] == 6.0
    other = dp_statement(ledger=report.LedgerTotal(2.0, 1e-6, 1, Budget(8.0, 1e-6)))
    assert report.headline(other).endswith("ledger: 2.00 of 8.00 at δ = 1e-06")


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (1.9987, "2.00", "1.99"),
        (0.1, "0.1", "0.1"),
        (12.31, "12.4", "12.3"),
        (24.0, "24.0", "24.0"),
        (123.4, "124", "123"),
        (math.inf, "∞", "∞"),
        (0.0, "0", "0"),
    ],
)
def test_epsilon_is_never_shown_too_small(value, up, down):
    assert report.show_epsilon(value) == up
    assert report.show_epsilon(value, down=True) == down


def test_it_is_published_as_an_event_and_one_line_of_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FATE_LLM_EXT_EVENTS", str(tmp_path / "events.jsonl"))
    made = dp_statement()
    with caplog.at_level("INFO"):
        report.publish(made)
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["type"] == "privacy"
    assert {name: event[name] for name in made} == json.loads(json.dumps(made))
    assert [record.getMessage() for record in caplog.records] == [f"privacy: {report.headline(made)}"]


def test_it_lies_beside_the_model(tmp_path):
    made = dp_statement()
    report.save(made, tmp_path)
    assert json.loads((tmp_path / "privacy.json").read_text()) == json.loads(json.dumps(made))


def write_run(folder, statements):
    for party, said in statements.items():
        place = folder / "task_0" / party
        place.mkdir(parents=True)
        events = [{"time": 1.0, "type": "phase", "arm": "", "phase": "loading"}]
        events += [] if said is None else [{"time": 2.0, "type": "privacy", **said}]
        (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "dag.yaml").write_text("dag: {}\n")
    (folder / "job.json").write_text(json.dumps({"dag": "conf/x/dag.yaml", "status": "success", "order": ["task_0"]}))
    return folder


def test_the_page_has_a_section_with_every_party(tmp_path):
    from fate_llm_ext.report import write_report

    guest = dp_statement(ledger=report.LedgerTotal(2.5, 1e-6, 2, Budget(8.0, 1e-6)))
    host = {**guest, "party": "host 10000"}
    arbiter = report.statement("arbiter 9998", "dpkd")
    said = {"guest_9999": guest, "host_10000": host, "arbiter_9998": arbiter, "host_10001": None}
    run = write_run(tmp_path / "20261120-1", said)
    page = write_report([run], run / "report.html").read_text()
    epsilon = report.show_epsilon(guest["guarantee"]["epsilon"])
    for text in (
        f"<td>2,000</td><td>{epsilon}</td><td>1e-05</td><td>2.50</td><td>1e-06</td><td>8.00</td><td>5.50</td>",
        "<h4>guest 9999, host 10000</h4>",
        "noisy counts of the codes",
        "This party has no private table in this task.",
        "No statement from host 10001",
    ):
        assert text in page, text
    assert page.count(report.TRUST_PRIVATE.split(":")[0]) == 1, "what several parties say alike stands there once"


def test_a_run_without_statements_has_no_section(tmp_path):
    from fate_llm_ext.report import write_report

    run = write_run(tmp_path / "20261120-1", {"guest_9999": None})
    assert "<h3>Privacy</h3>" not in write_report([run], run / "report.html").read_text()


def test_a_run_ends_with_a_line_per_owner_from_whom_something_left(tmp_path):
    from click.testing import CliRunner

    from fate_llm_ext.cli.main import main

    said = {"arbiter_9998": report.statement("arbiter 9998", "x"), "guest_9999": dp_statement(),
            "host_1": report.statement("host 1", "x", data=DATA)}  # fmt: skip
    run = write_run(tmp_path / "20261120-1", said)
    shown = CliRunner().invoke(main, ["report", str(run)]).output.splitlines()
    assert report.headline(dp_statement()) in shown
    assert not [line for line in shown if line.startswith(("arbiter", "host"))]
