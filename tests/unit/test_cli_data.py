from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fate_llm_ext.cli.main import main
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data import partition
from fate_llm_ext.data.builtin import BUILT_IN
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.templates import get_template

DATA = Path(__file__).resolve().parents[3] / "shared" / "assets" / "data"


def _run(*arguments, code=0):
    result = CliRunner().invoke(main, ["data", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    path = tmp_path_factory.mktemp("tickets") / "tickets.jsonl"
    assert "600 rows" in _run("generate", "tickets", "--rows", 600, "--seed", 1, "--out", path)
    return path


def _split(tickets, out, *more, code=0):
    arguments = ("--template", "tickets", "--out", out, "--parties", "guest_9999=100,host_10000=80")
    return _run("split", tickets, *arguments, "--public", 50, "--unlabelled", 60, "--test", 40, *more, code=code)


def _files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_split_writes_every_folder(tickets, tmp_path):
    out = tmp_path / "new" / "split"
    output = _split(tickets, out, "--alpha", 0.3)
    assert sorted(_files(out)) == sorted(
        ["split.json", *(f"{f}/{s}.jsonl" for f in ("guest_9999", "host_10000", "public") for s in ("train", "test"))]
    )
    sizes = {folder: len(read_rows(out / folder)) for folder in ("guest_9999", "host_10000", "public")}
    assert sizes == {"guest_9999": 100, "host_10000": 80, "public": 110}
    public = read_rows(out / "public")
    assert ["label" in row for row in public] == [True] * 50 + [False] * 60
    assert len({(out / folder / "test.jsonl").read_bytes() for folder in sizes}) == 1
    texts = [row["text"] for folder in sizes for row in read_rows(out / folder)]
    texts += [row["text"] for row in read_rows(out / "public", "test")]
    assert len(texts) == len(set(texts)) == 330
    assert "billing" in output
    assert not any(text in output for text in texts)
    again = tmp_path / "again"
    _split(tickets, again, "--alpha", 0.3)
    assert _files(again) == _files(out)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_split_does_not_overwrite(tickets, tmp_path):
    out = tmp_path / "split"
    _split(tickets, out)
    before = _files(out)
    assert "E213" in _split(tickets, out, "--seed", 1, code=1)
    assert _files(out) == before
    _split(tickets, out, "--seed", 1, "--force")
    assert sorted(_files(out)) == sorted(before)
    assert _files(out) != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "E213" in _split(tickets, tmp_path / "mine", "--force", code=1)
    assert sorted(_files(tmp_path / "mine")) == ["thesis.txt"]


def test_split_is_all_or_nothing(tickets, tmp_path, monkeypatch):
    out = tmp_path / "split"
    _split(tickets, out)
    before = _files(out)
    whole = partition.plan_split

    def unwritable(*arguments):
        plan = whole(*arguments)
        plan["public"]["test"] = [{"text": "\ud800"}]
        return plan

    monkeypatch.setattr(partition, "plan_split", unwritable)
    result = CliRunner().invoke(
        main, ["data", "split", str(tickets), "--template", "tickets", "--out", str(out), "--force",
               "--parties", "guest_9999=10", "--public", "5"],
    )  # fmt: skip
    assert isinstance(result.exception, UnicodeEncodeError)
    assert _files(tmp_path) == {f"split/{name}": content for name, content in before.items()}


def test_split_reports_all_problems_at_once(tickets, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    output = _run(
        "split", tickets, tmp_path / "absent.csv", DATA / "ag_news" / "test.csv", "--template", "tickets",
        "--out", tmp_path / "out", "--parties", "a=0,public=4,../b=3,c=1,c=2", "--alpha", 0, code=1,
    )  # fmt: skip
    assert output.count("E214 --parties") == 4
    for code in ("E214 --alpha", "E213", "E201", "E210"):
        assert output.count(code) == 1, code
    assert "test.csv, row 1" in output


def test_split_states_both_numbers(tickets, tmp_path):
    output = _split(tickets, tmp_path / "out", "--parties", "a=5000", code=1)
    assert "E212 5,150 usable rows" in output
    assert not (tmp_path / "out").exists()


def test_split_of_real_files_in_three_forms(tmp_path):
    folder = DATA / "ag_news"
    out = tmp_path / "news"
    _run(
        "split", folder / "sample5000.csv", folder / "train_first2000.csv", folder / "sample4000.csv",
        "--template", "ag_news", "--out", out, "--parties", "guest_9999=400,host_10000=400", "--alpha", 0.3,
        "--public", 500, "--unlabelled", 1200, "--test", 1000, "--test-from", folder / "test.csv",
    )  # fmt: skip
    rows = read_rows(out / "guest_9999") + read_rows(out / "host_10000") + read_rows(out / "public")
    assert len(rows) == 2500
    assert {tuple(row) for row in rows} == {("text", "label"), ("text",)}
    assert {row["label"] for row in rows if "label" in row} == {"World", "Sports", "Business", "Technology"}
    test = read_rows(out / "public", "test")
    assert len(test) == 1000
    official = {row["1"].strip() + " " + row["2"].strip() for row in read_rows(folder / "test.csv")}
    assert all(row["text"] in official for row in test)
    keys = {partition.text_key(text)[:100] for text in official}
    assert keys.isdisjoint(partition.text_key(row["text"])[:100] for row in rows)


def test_show_prints_samples_on_request_only():
    path = DATA / "sst2"
    first = read_rows(path)[0]["0"]
    assert "6,920" in _run("show", path)
    quiet = _run("show", path, "--template", "sst2")
    assert first not in quiet
    assert "train, validation, test" in quiet
    assert "3,610" in quiet
    loud = _run("show", path, "--template", "sst2", "--examples", "-n", 2)
    assert loud.count("\nReview: ") == 2
    assert first in loud
    assert "872" in _run("show", path, "--split", "validation")
    _run("show", path, "--examples", code=2)


def test_show_does_not_print_free_form_answers():
    path = DATA / "dialogsum" / "dialogsum.dev.jsonl"
    output = _run("show", path, "--template", "dialogsum")
    assert "500 labelled" in output
    assert read_rows(path)[0]["summary"] not in output


def test_fingerprint_depends_on_rows_not_on_the_format(tickets, tmp_path):
    rows = read_rows(tickets)
    tsv = tmp_path / "tickets.tsv"
    tsv.write_text("body\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    one = _run("fingerprint", tickets, "--template", "tickets").split()
    two = _run("fingerprint", tsv, "--template", "tickets", "--column", "text=body").split()
    assert one[1] != two[1]
    assert one[3] == two[3]
    assert len(one[3]) == 16
    _run("fingerprint", tsv, "--column", "text", code=2)


def test_templates_and_catalogued_errors(tickets):
    assert [line.split()[0] for line in _run("templates").splitlines()] == list(BUILT_IN)
    assert "Did you mean 'tickets'?" in _run("show", tickets, "--template", "ticket", code=1)
    assert "E213" in _run("generate", "tickets", "--rows", 1, "--out", tickets, code=1)
    assert get_template(TaskConfig(template="tickets")).choices is not None


def test_import_is_light():
    heavy = "import sys, fate_llm_ext.cli.data, fate_llm_ext.data.datasets, fate_llm_ext.data.templates\n"
    heavy += "assert not {'torch', 'pandas', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True)
