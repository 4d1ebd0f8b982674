from __future__ import annotations

import collections
from pathlib import Path

import pytest

from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.builtin import BUILT_IN
from fate_llm_ext.data.datasets import iter_rows, read_rows
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"
DATA = ASSETS / "data"
TOPICS = (" World", " Sports", " Business", " Technology")


def _template(name=None, **fields):
    return get_template(TaskConfig(template=name, **fields))


def _error(call, *arguments) -> ExtensionError:
    with pytest.raises(ExtensionError) as caught:
        call(*arguments)
    return caught.value


# file, template, rows, answers that occur (counts of the real files, taken independently of this code)
REAL = [
    ("ag_news/test.csv", "ag_news", dict.fromkeys(TOPICS, 1900)),
    ("ag_news/sample5000.csv", "ag_news", dict(zip(TOPICS, (1259, 1257, 1281, 1203)))),
    ("ag_news/train_first2000.csv", "ag_news", dict(zip(TOPICS, (477, 338, 408, 777)))),
    ("ag_news/sample4000.csv", "ag_news", {" World": 2000, " Technology": 2000}),
    ("sst2/train.tsv", "sst2", {" positive": 3610, " negative": 3310}),
    ("misc-cls/mr_test.jsonl", "sst2", {" positive": 1000, " negative": 1000}),
    ("imdb/imdb_test_first5000.jsonl.gz", "sst2", {" positive": 2500, " negative": 2500}),
    ("yelp/test.csv", "yelp", {" 5": 2241, " 4": 1073, " 3": 545, " 2": 419, " 1": 722}),
    ("commonsenseqa/dev_rand_split.jsonl", "commonsenseqa", {" A": 239, " B": 255, " C": 241, " D": 251, " E": 235}),
    ("arc/ARC-Easy/train.json", "arc", {" A": 548, " B": 588, " C": 578, " D": 535, " E": 2}),
    ("arc/ARC-Challenge/test.json", "arc", {" A": 266, " B": 311, " C": 310, " D": 285}),
]


@pytest.mark.parametrize(("file", "name", "counts"), REAL, ids=[row[0] for row in REAL])
def test_real_file(file, name, counts):
    template = _template(name)
    rows = read_rows(DATA / file)
    examples = list(template.examples(rows))
    assert collections.Counter(example.answer for example in examples) == counts
    for row, example in zip(rows[:200], examples):
        assert example.prompt == example.prompt.rstrip()
        assert example.answer in example.choices
        assert example.text == example.prompt + example.answer
        canonical = template.canonical(row)
        assert template.canonical(canonical) == canonical
        assert all(isinstance(value, str) for value in canonical.values())
        assert template.render(canonical) == example
        bare = {key: value for key, value in canonical.items() if key not in template.answer_fields}
        assert template.render(bare) == type(example)(example.prompt, None, example.choices)


def test_rendered_forms():
    row = read_rows(DATA / "commonsenseqa" / "dev_rand_split.jsonl")[0]
    assert _template("commonsenseqa").render(row).text == (
        "Question: A revolving door is convenient for two direction travel, but it also serves as a security measure"
        " at a what?\nA. bank\nB. library\nC. department store\nD. mall\nE. new york\nAnswer: A"
    )
    row = read_rows(DATA / "arc" / "ARC-Easy" / "train.json")[0]
    assert _template("arc").render(row).text == (
        "Question: Which factor will most likely cause a person to develop a fever?\nA. a leg muscle relaxing after"
        " exercise\nB. a bacterial population in the bloodstream\nC. several viral particles on the skin\nD."
        " carbohydrates being digested in the stomach\nAnswer: B"
    )


def test_rationale_file_agrees_with_the_original():
    original = read_rows(DATA / "commonsenseqa" / "dev_rand_split.jsonl")
    other = {row["id"]: row for row in iter_rows(ASSETS / "rationales" / "cqa" / "cqa_test.json")}
    template = _template("commonsenseqa")
    pairs = [(template.render(row), template.render(other[row["id"]])) for row in original]
    assert len(pairs) == 1221
    assert all(one.prompt == two.prompt for one, two in pairs)
    unlike = [template.canonical(row) for row, (one, two) in zip(original, pairs) if one != two]
    assert len(unlike) == 2  # an option is there twice: by its text the answer cannot be told
    assert all(len({row[letter] for letter in "ABCDE"}) == 4 for row in unlike)


def test_dialogsum_references():
    template = _template("dialogsum")
    dev, test = (read_rows(DATA / "dialogsum" / f"dialogsum.{split}.jsonl") for split in ("dev", "test"))
    assert len(template.references(dev[0])) == 1
    references = [template.references(row) for row in test]
    assert all(len(three) == 3 for three in references)
    assert template.render(test[0]).answer == " " + test[0]["summary1"].strip()
    assert template.render(test[0]).choices is None
    assert references[0][2] == test[0]["summary3"].strip()
    assert template.answer_fields == ("summary", "summary2", "summary3")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"text": "a", "label": 0}, " World"),
        ({"text": "a", "label": "3"}, " Technology"),
        ({"text": "a", "label": 1.0}, " Sports"),
        ({"text": "a", "label": "Sci/Tech"}, " Technology"),
        ({"text": "a", "label": "business"}, " Business"),
        ({"label": 1, "title": "a", "description": "b"}, " World"),
        ({"class": "4", "title": "a", "description": "b"}, " Technology"),
        ({"Class Index": "2", "Title": "a", "Description": "b"}, " Sports"),
        ({"0": "3", "1": "a", "2": "b"}, " Business"),
        ({"0": "a", "1": "2"}, " Business"),
        ({"text": "a"}, None),
        ({"text": "a", "label": None}, None),
        ({"text": "a", "label": " "}, None),
        ({"text": "a", "label": float("nan")}, None),
        ({"text": "a", "label": -1}, None),
    ],
)
def test_ag_news_forms(row, answer):
    assert _template("ag_news").render(row).answer == answer


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a", "label": 4}, "(1 characters)"),
        ({"label": 0, "title": "a", "description": "b"}, "(1 characters)"),
        ({"text": "a", "label": "weather"}, "(7 characters)"),
    ],
)
def test_answer_outside_the_choices(row, reason):
    error = _error(_template("ag_news").render, row, 7, "x.csv")
    assert error.code == "E211"
    for part in (reason, "x.csv, row 7", "World, Sports, Business, Technology"):
        assert part in str(error)
    assert "weather" not in str(error), "what a row says is private"


def test_fine_grained_labels_do_not_pass_as_two_classes():
    error = _error(list, _template("sst2").examples(iter_rows(DATA / "misc-cls" / "sst5_test.jsonl")))
    assert error.code == "E211"


@pytest.mark.parametrize(
    ("name", "row", "answer", "count"),
    [
        ("openbookqa", {"question_stem": "q", "choices": {"text": list("wxyz"), "label": list("ABCD")},
                        "answerKey": "C"}, " C", 4),
        ("arc", {"question": {"stem": "q", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]},
                 "answerKey": "2"}, " B", 2),
        ("arc", {"question": "q", "choices": ["-1", "7", "8"], "answer": "-1"}, " A", 3),
        ("openbookqa", {"question": "q", "A": "w", "B": "x", "answer": "B"}, " B", 2),
        ("openbookqa", {"question": "q", "A": "w", "B": "x", "answer": ""}, None, 2),
        ("boolq", {"passage": "p", "question": "is it", "answer": True}, " yes", 2),
        ("boolq", {"passage": "p", "question": "is it", "label": "0"}, " no", 2),
        ("rte", {"sentence1": "p", "sentence2": "h", "label": "not_entailment"}, " false", 2),
        ("rte", {"premise": "p", "hypothesis": "h", "label": 0}, " true", 2),
        ("wic", {"word": "w", "sentence1": "a", "sentence2": "b", "label": False}, " no", 2),
        ("yelp", {"text": "t", "label": 0}, " 1", 5),
        ("yelp", {"text": "t", "stars": 4.0}, " 4", 5),
        ("tickets", {"text": "t", "label": "billing"}, " billing", 5),
    ],
)  # fmt: skip
def test_published_forms(name, row, answer, count):
    template = _template(name)
    example = template.render(row)
    assert (example.answer, len(example.choices)) == (answer, count)
    assert template.render(template.canonical(row)) == example
    assert not example.prompt.endswith(" ")


def test_text_template():
    example = _template("text").render(read_rows(DATA / "wikitext2" / "test.txt")[0])
    assert (example.prompt, example.answer, example.choices) == ("", "= Robert <unk> =", None)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_unfit_row_names_row_and_columns(name):
    error = _error(_template(name).render, {"foo": "1", "bar": 2}, 3)
    assert error.code == "E210"
    assert "row 3" in str(error)
    assert "foo, bar" in str(error)


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "separator"),
    [
        ("Q: {{ q }} A:", "{{ a }}", "Q: x A: y", " "),
        ("Q: {{ q }} A: ", "{{ a }}", "Q: x A: y", " "),
        ("Q: {{ q }} A:", "\n{{ a }}", "Q: x A:\ny", "\n"),
        ("Q: {{ q }}\n\n", "{{ a }}", "Q: x\ny", "\n"),  # a YAML block adds the last line end
        ("Q: {{ q }}\n", "{{ a }}", "Q: x y", " "),
        ("{{ q }}", "{{ a }}{{ a }}", "x yy", " "),
    ],
)
def test_separator_belongs_to_the_answer(prompt, answer, text, separator):
    choices = ["y", "yy", "n"]
    example = _template(prompt=prompt, answer=answer, choices=choices).render({"q": "x \n", "a": "y"})
    if "{{ q }}\n\n" not in prompt and prompt != "Q: {{ q }}\n" and prompt != "{{ q }}":
        text = text.replace("x", "x \n")
    assert example.text == text
    assert example.choices == tuple(separator + choice for choice in choices)


def test_own_template_parts_and_unlabelled_rows():
    template = _template(prompt="{{ q }}{% if hint is defined %} ({{ hint }}){% endif %}", answer="{{ a }}")
    assert template.render({"q": "x", "hint": None, "a": "y"}).text == "x y"
    for row in ({"q": "x"}, {"q": "x", "a": None}, {"q": "x", "a": ""}):
        assert template.render(row).answer is None
    mixed = _template("ag_news", prompt="{{ text }} =>")
    assert mixed.render({"text": "t", "label": 0}).text == "t => World"
    assert template.answer_fields == ("a",)


def test_text_is_nfc_in_every_part():
    template = _template(prompt="{{ q }}", answer="{{ a }}", choices=["cafe\u0301", "the\u0301"])
    example = template.render({"q": "re\u0301sume\u0301\r\nx", "a": "caf\u00e9"})
    assert example.prompt == "r\u00e9sum\u00e9\nx"
    assert example.answer == " caf\u00e9"
    assert example.choices == (" caf\u00e9", " th\u00e9")


@pytest.mark.parametrize(
    ("fields", "code", "part"),
    [
        ({"template": "agnews"}, "E208", "Did you mean 'ag_news'?"),
        ({"prompt": "{{ q", "answer": "a"}, "E209", "prompt"),
        ({"prompt": "q", "answer": "{% foo %}"}, "E209", "answer"),
        ({"prompt": "q", "answer": "a", "choices": ["x", "x "]}, "E209", "2 given"),
    ],
)
def test_wrong_templates(fields, code, part):
    error = _error(lambda: get_template(TaskConfig(**fields)))
    assert error.code == code
    assert part in str(error)


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("{{ titel }}", "Did you mean 'title'"),
        ("{{ title.__class__.__mro__ }}", "SecurityError"),
        ("{{ title + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ {'a': 1}[title] }}", "UndefinedError"),
    ],
)
def test_rendering_errors_name_row_and_field(prompt, part):
    error = _error(_template(prompt=prompt, answer="x").render, {"title": "Qzxv77321"}, 5)
    assert "Qzxv77321" not in str(error)
    assert error.code == "E210"
    assert "row 5, prompt" in str(error)
    assert part in str(error)
