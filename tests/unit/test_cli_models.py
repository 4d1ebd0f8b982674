import csv
import gzip
import json

import pytest
from click.testing import CliRunner

from fate_llm_ext.cli.models import models
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.corpus import drop_containing, read_documents

SENTENCES = [f"number {i} is followed by number {i + 1} and that is the whole story of it" for i in range(300)]


def call(*arguments):
    result = CliRunner().invoke(models, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def corpus(tmp_path):
    rows = [{"prompt": text[:20], "completion": text[20:] + "<|endoftext|>", "template": "t"} for text in SENTENCES]
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


SMALL = ("--hidden", 16, "--layers", 1, "--context", 32, "--batch-tokens", 128, "--vocab-size", 300, "--steps", 5)


def test_tiny_then_show_then_refuse_then_force(corpus, tmp_path):
    out = tmp_path / "model"
    result = call("tiny", "--corpus", corpus, "--out", out, "--threads", 1, *SMALL)
    assert result.exit_code == 0, result.output
    assert "300 documents" in result.output
    assert "bits/byte" in result.output
    shown = call("show", out).output
    for fact in ("GPT2LMHeadModel", "300", "context     32", "width       16"):
        assert fact in shown
    assert "corpus.jsonl.gz" in (out / "README.md").read_text()
    with pytest.raises(ExtensionError, match="E453"):
        call("tiny", "--corpus", corpus, "--out", out, *SMALL)
    call("tiny", "--corpus", corpus, "--out", out, "--force", "--arch", "llama", *SMALL, "--tokenizer", out)
    assert "LlamaForCausalLM" in call("show", out).output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl.gz", "model"]


def test_parameters_are_counted_without_loading(corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    call("tiny", "--corpus", corpus, "--out", tmp_path / "model", "--untie", *SMALL)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert f"{model.num_parameters():,}" in call("show", tmp_path / "model").output


def test_excluded_documents_are_counted(corpus, tmp_path):
    path = tmp_path / "test.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["1", "Short", SENTENCES[7].upper() + "!"], ["2", "Short", SENTENCES[8]]])
    result = call("tiny", "--corpus", corpus, "--out", tmp_path / "model", "--exclude", path, *SMALL)
    assert "excluded  2 of 300 documents: they contain one of 2 texts (4 of less than 8 words" in result.output
    assert "Excluded 2 documents (texts of test.csv)" in (tmp_path / "model" / "README.md").read_text()


def test_only_whole_texts_exclude():
    text = "one two three four five six seven eight nine"
    documents = [f"zero {text} ten", f"zero {text}teen", text.upper().replace(" ", ", "), "something else"]
    assert drop_containing(documents, [text, "too short"]) == ([documents[1], documents[3]], 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.csv", 'text,label\n"one, two",1\nthree,2\n', ["one, two", "three"]),
        ("a.tsv", "sentence\tlabel\none\t1\n", ["one"]),
        ("a.jsonl", '{"instruction": "ask\\n", "output": "say<|endoftext|>"}\n', ["ask\nsay"]),
        ("a.json", '[{"question": "ask", "answer": "say"}]', ["ask say"]),
        ("a.txt", "one\ntwo\n\n\nthree\n", ["one\ntwo", "three"]),
        ("b.txt", "one\n\ntwo\n<|endoftext|>\nthree\n", ["one\n\ntwo", "three"]),
    ],
)
def test_documents(tmp_path, name, content, documents):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert list(read_documents(tmp_path / name)) == documents


def test_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,other,third\n1,2,3\n", encoding="utf-8")
    assert list(read_documents(tmp_path / "a.csv", ("other",))) == ["2"]
    assert list(read_documents(tmp_path / "a.csv", ("other", "third"))) == ["2 3"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.csv", "x,y\n1,2\n", "E451 .*a.csv has no column .*columns: x, y"),
        ("a.jsonl", "{oops\n", "E204 .*not JSON"),
        ("a.jsonl.gz", "not gzip", "E204 .*cannot be read"),
        ("a.parquet", "x", "E204 .*not Parquet"),
    ],
)
def test_unusable_corpora(tmp_path, name, content, code):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ExtensionError, match=code):
        call("tiny", "--corpus", tmp_path / name, "--out", tmp_path / "model", *SMALL)
    assert not (tmp_path / "model").exists()


def test_wrong_settings_and_folders(corpus, tmp_path):
    with pytest.raises(ExtensionError, match=r"E450 .* multiple of 8"):
        call("tiny", "--corpus", corpus, "--out", tmp_path / "model", "--hidden", 20)
    with pytest.raises(ExtensionError, match=r"E450 .* either seconds or steps"):
        call("tiny", "--corpus", corpus, "--out", tmp_path / "model", "--seconds", 1, *SMALL)
    with pytest.raises(ExtensionError, match="E454"):
        call("show", tmp_path)
    lonely = call("tiny", "--corpus", corpus, "--out", tmp_path / "model", "--prompt-column", "prompt")
    assert lonely.exit_code == 2
