from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from fate_llm_ext.data.datasets import has_split, iter_rows, list_splits, read_rows, split_file, write_jsonl
from fate_llm_ext.errors import ExtensionError

DATA = Path(__file__).resolve().parents[3] / "shared" / "assets" / "data"
ROWS = [{"text": 'say "hi",\nthen\tgo', "label": "1"}, {"text": "caf\u00e9 \u2028 x\x85y", "label": "0"}]


def _save(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _table(separator: str, end: str = "\r\n") -> bytes:
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "label"], delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def _code(call, *arguments, **keywords) -> ExtensionError:
    with pytest.raises(ExtensionError) as caught:
        call(*arguments, **keywords)
    return caught.value


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl-in-json", "json", "csv", "tsv", "csv-lf", "tsv-lf"])
def test_every_text_format_gives_the_same_rows(tmp_path, kind, zipped, bom):
    content = {
        "jsonl": "\r\n\r\n".join(json.dumps(row) for row in ROWS).encode(),
        "jsonl-in-json": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
        "json": json.dumps(ROWS, indent=1).encode(),
        "csv": _table(","),
        "tsv": _table("\t"),
        "csv-lf": _table(",", "\n"),
        "tsv-lf": _table("\t", "\n"),
    }[kind]
    suffix = {"jsonl-in-json": "json"}.get(kind, kind.split("-")[0])
    path = _save(tmp_path / f"data.{suffix}{zipped}", bom + content)
    assert read_rows(path) == ROWS


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_parquet(tmp_path, zipped):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "plain")
    assert read_rows(_save(tmp_path / f"data.parquet{zipped}", (tmp_path / "plain").read_bytes())) == ROWS
    assert _code(read_rows, _save(tmp_path / "bad.parquet", b"PAR1 no")).code == "E204"


@pytest.mark.parametrize(
    ("file", "count", "columns"),
    [
        ("ag_news/test.csv", 7600, ["0", "1", "2"]),
        ("ag_news/sample5000.csv", 5000, ["0", "1"]),
        ("ag_news/sample4000.csv", 4000, ["0", "1"]),
        ("yelp/dev.csv", 5000, ["text", "label1", "label2"]),
        ("sst2/train.tsv", 6920, ["0", "1"]),
        ("arc/ARC-Easy/test.json", 2376, ["instruction", "input", "output", "answer"]),
        ("dialogsum/dialogsum.dev.jsonl", 500, ["fname", "dialogue", "summary", "topic"]),
        ("imdb/imdb_test_first5000.jsonl.gz", 5000, ["file", "label", "text"]),
        ("../rationales/cqa/cqa_test.json", 1221, None),
    ],
)
def test_real_files(file, count, columns):
    rows = read_rows(DATA / file)
    assert len(rows) == count
    assert columns is None or all(list(row) == columns for row in rows)


def test_text_file_is_one_row_per_line_with_words():
    rows = read_rows(DATA / "wikitext2" / "test.txt")
    assert rows[0] == {"text": "= Robert <unk> ="}
    assert all(row["text"].strip() for row in rows)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("text,label\nmy phone broke,technical\nmy bill,billing\n", ["text", "label"]),
        ("my phone broke,technical\nmy bill,billing\nwhere is it,technical\n", ["0", "1"]),  # technical recurs
        ("Class Index,Title,Description\n3,a,b\n", ["Class Index", "Title", "Description"]),
        (",text,label\n0,a,b\n", ["index", "text", "label"]),
        ("a,a\nb,c\n", ["0", "1"]),
    ],
)
def test_header_detection(tmp_path, content, names):
    rows = read_rows(_save(tmp_path / "x.csv", content.encode()))
    assert list(rows[0]) == names
    assert len(rows) == content.count("\n") - (names[0] != "0")


def test_tsv_quote_that_never_closes_is_text(tmp_path):
    path = _save(tmp_path / "glue.tsv", b'index\ts\tlabel\n1\t"never closed\t0\n2\tplain\t1\n3\t"a" b\t1\n')
    assert [row["s"] for row in read_rows(path)] == ['"never closed', "plain", '"a" b']


def test_columns_are_renamed_and_swapped(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"a": 1, "b": 2, "c": 3}, {"a": 4, "c": 5}])
    assert path == 2
    path = tmp_path / "x.jsonl"
    assert read_rows(path, columns={"a": "b", "b": "a"}) == [{"c": 3, "a": 2, "b": 1}, {"c": 5, "b": 4}]
    assert read_rows(path, columns={"text": "c"})[1] == {"a": 4, "text": 5}
    error = _code(read_rows, tmp_path / "x.jsonl", columns={"text": "cc"})
    assert error.code == "E205"
    assert "Did you mean 'c'?" in str(error)
    assert "a, b, c" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("x.jsonl", b'{"a": 1}\n\n{"a": \n', 3, "not JSON"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', 2, "a JSON object was expected, not list"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', 2, "not UTF-8"),
        ("x.jsonl", b'{"a": "\\ud83d"}\n', 1, "surrogate"),
        ("x.json", b'[{"a": 1},\n{"a": 2,}]\n', 2, "not JSON"),
        ("x.csv", b'text,label\na,b\n"x\ny",c\nd,e,f\n', 5, "3 cells, the first line has 2"),
        ("x.csv", b'text,label\na,b\n"open,c\nd,e\n', 3, "not CSV"),
        ("x.tsv", b"text\tlabel\na\tb\nc\n", 3, "1 cells, the first line has 2"),
    ],
)
def test_broken_line_is_named(tmp_path, name, content, line, reason):
    error = _code(read_rows, _save(tmp_path / name, content))
    assert error.code == "E204"
    assert error.facts["line"] == line
    assert reason in str(error)


def test_truncated_gzip_is_an_error(tmp_path):
    whole = gzip.compress("\n".join(json.dumps({"n": n}) for n in range(5000)).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert _code(read_rows, tmp_path / "x.jsonl.gz").code == "E204"


def test_path_format_and_empty_errors(tmp_path):
    _save(tmp_path / "train.xyz", b"")
    _save(tmp_path / "empty.jsonl", b"\n\n")
    _save(tmp_path / "header.csv", b"text,label\n")
    assert _code(read_rows, tmp_path / "train.xyz").code == "E202"
    assert _code(read_rows, tmp_path / "empty.jsonl").code == "E203"
    assert _code(read_rows, tmp_path / "header.csv").code == "E203"
    assert "Did you mean 'empty.jsonl'?" in str(_code(read_rows, tmp_path / "emty.jsonl"))


def test_splits_of_a_folder(tmp_path):
    assert list_splits(DATA / "sst2") == ["train", "validation", "test"]
    assert len(read_rows(DATA / "sst2", "validation")) == 872
    assert len(read_rows(DATA / "sst2", "dev")) == 872
    assert has_split(DATA / "arc" / "ARC-Easy", "test")
    assert not has_split(DATA / "arc" / "ARC-Easy", "validation")
    assert has_split(DATA / "ag_news" / "test.csv", "train")
    assert not has_split(DATA / "ag_news" / "test.csv", "test")
    error = _code(read_rows, DATA / "arc" / "ARC-Easy", "dev")
    assert (error.code, error.facts["found"]) == ("E206", "train, test")
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "train.jsonl.gz", ROWS)
    assert _code(split_file, tmp_path).code == "E207"


def test_writing_is_atomic_and_deterministic(tmp_path):
    for name in ("x.jsonl", "x.jsonl.gz"):
        assert write_jsonl(tmp_path / name, ROWS) == 2
        assert read_rows(tmp_path / name) == ROWS
        before = (tmp_path / name).read_bytes()

        def failing():
            yield ROWS[0]
            raise RuntimeError("disk")

        with pytest.raises(RuntimeError):
            write_jsonl(tmp_path / name, failing())
        assert (tmp_path / name).read_bytes() == before
        write_jsonl(tmp_path / "again.gz" if name.endswith("gz") else tmp_path / "again", ROWS)
    assert (tmp_path / "again.gz").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "again.gz", "x.jsonl", "x.jsonl.gz"]


def test_rows_are_streamed(tmp_path):
    path = _save(tmp_path / "x.jsonl", b'{"a": 1}\nbroken\n')
    assert next(iter_rows(path)) == {"a": 1}
