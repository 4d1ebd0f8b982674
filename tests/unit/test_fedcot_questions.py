"""What may leave: allow-listed fields in a fixed form, and neither a label nor another field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fate_llm_ext.algo.fedcot.config import QuestionConfig
from fate_llm_ext.algo.fedcot.questions import Outgoing, made_up
from fate_llm_ext.algo.fedcot.strategies import first_words, units_of
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.builtin import BUILT_IN
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError

OWN = {"prompt": "{{ name }} writes: {{ text }}", "answer": "{{ label }}", "choices": ["yes", "no"]}


def outgoing(task: dict[str, Any], **question: Any) -> Outgoing:
    return Outgoing(TaskConfig(**task), QuestionConfig(**question))


# --- which fields ---------------------------------------------------------------------------------------


def test_the_fields_of_the_built_in_templates() -> None:
    found = {name: outgoing({"template": name}).fields for name in BUILT_IN if name not in ("text", "dialogsum")}
    assert found["tickets"] == found["ag_news"] == found["yelp"] == ("text",)
    assert found["commonsenseqa"] == ("question", *"ABCDEFGH")
    assert found["rte"] == ("premise", "hypothesis")
    assert found["boolq"] == ("passage", "question")
    assert found["wic"] == ("sentence1", "sentence2", "word"), "in the order of the prompt"
    for name, fields in found.items():
        assert not {"label", "answer", "stars"} & set(fields), name


def test_the_columns_of_an_own_template() -> None:
    assert outgoing(OWN).fields == ("name", "text")
    assert outgoing(OWN, fields=["text"]).fields == ("text",)


@pytest.mark.parametrize(
    ("task", "question", "code", "words"),
    [
        (OWN, {"fields": ["label"]}, "E784", ["label", "the answer is made of it", "name, text"]),
        ({**OWN, "columns": {"name": "label"}}, {}, "E784", ["name", "the answer is made of it"]),
        ({"template": "ag_news", "columns": {"text": "label", "label": "label"}}, {}, "E784", ["text", "the answer"]),
        (OWN, {"fields": ["text", "birthday"]}, "E784", ["birthday", "does not show it"]),
        ({"template": "tickets"}, {"fields": ["label"]}, "E784", ["label", "the answer is made of it", "text"]),
        ({"template": "dialogsum"}, {"fields": ["summary2"]}, "E784", ["summary2", "the answer"]),
        ({"template": "text"}, {}, "E785", ["text"]),
        ({"prompt": "{{ text }}", "answer": "{{ text }}"}, {}, "E785", ["text"]),
        ({"template": "commonsenseqa"}, {"max_words": 8}, "E786", ["8", "9 fields"]),
        (OWN, {"template": "{{ label }}"}, "E209", ["question.template", "label"]),
        (OWN, {"template": "{{ text", "fields": ["text"]}, "E209", ["question.template"]),
        (OWN, {"template": "{{ name }}", "fields": ["text"]}, "E209", ["question.template", "name"]),
    ],
)
def test_forms_that_cannot_be(task: dict[str, Any], question: dict[str, Any], code: str, words: list[str]) -> None:
    with pytest.raises(ExtensionError) as caught:
        outgoing(task, **question)
    assert caught.value.code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_label_that_the_prompt_shows_does_not_leave() -> None:
    """The task's own prompt may show more than a question may."""
    task = {"prompt": "{{ text }} (so far: {{ label }})", "answer": "{{ label }}"}
    form = outgoing(task)
    assert form.fields == ("text",)
    row = {"text": "hello", "label": "secret"}
    assert form.pick(row) == {"text": "hello"}
    assert "secret" not in form.render(form.pick(row))


# --- the form -------------------------------------------------------------------------------------------


def test_only_what_is_listed_is_picked() -> None:
    row = {"name": "Anna", "text": "hello", "label": "yes", "birthday": "1990"}
    assert outgoing(OWN, fields=["text"]).pick(row) == {"text": "hello"}
    assert outgoing(OWN).pick({**row, "name": None, "text": ["so", "it", ["is"]]}) == {"text": "so it is"}
    assert outgoing(OWN).pick({**row, "name": float("nan"), "text": 7}) == {"text": "7"}


def test_whatever_is_rendered_only_listed_fields_are_seen() -> None:
    """Even if somebody hands over a whole row."""
    said = outgoing(OWN, fields=["text"]).render({"text": "hello", "name": "Anna", "label": "yes"})
    assert said == "hello Answer choices: yes, no"
    with pytest.raises(ExtensionError, match="E209"):
        outgoing(OWN, fields=["text"], template="{{ self._TemplateReference__context }} {{ text.__class__ }}").render(
            {"text": "hello"}
        )


def test_choices_are_the_tasks_and_not_the_rows() -> None:
    assert outgoing({"template": "tickets"}).choices == ("billing", "technical", "shipping", "account", "sales")
    assert outgoing({"template": "commonsenseqa"}).choices == ()
    said = outgoing({"template": "tickets"}).render({"text": "my bill"})
    assert said == "my bill Answer choices: billing, technical, shipping, account, sales"


def test_multiple_choice() -> None:
    form = outgoing({"template": "commonsenseqa"})
    said = form.render({"question": "Where is it?", "A": "here", "B": "there"})
    assert said == "Where is it? Answer choices: (a) here (b) there"
    assert form.render({}) == "Answer choices:"


def test_an_own_form() -> None:
    form = outgoing(OWN, fields=["text"], template="Text: {{ text }}\nOne of {{ choices | join(' / ') }}?\n")
    assert form.render({"text": "hello"}) == "Text: hello\nOne of yes / no?"
    assert "<text, perturbed>" in form.render(made_up(form))


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("text", "dialogsum")])
def test_no_form_of_a_built_in_template_shows_the_answer(name: str) -> None:
    """Every canonical field holds a word of its own; those of the listed fields leave, no other."""
    template, form = get_template(TaskConfig(template=name)), outgoing({"template": name})
    everything = {*template.prompt_fields, *template.answer_fields}
    row = {field: f"word{number}x" for number, field in enumerate(sorted(everything))}
    said = form.render(form.pick(row))
    assert set(re.findall(r"word\d+x", said)) == {row[field] for field in form.fields}


# --- how much -------------------------------------------------------------------------------------------


def test_at_most_so_many_words_of_a_record() -> None:
    fields = {"a": "one two three", "b": "four five", "c": "six"}
    assert units_of(fields, 100) == {"a": ["one", "two", "three"], "b": ["four", "five"], "c": ["six"]}
    assert units_of(fields, 5) == {"a": ["one", "two"], "b": ["four", "five"], "c": ["six"]}
    assert units_of(fields, 4) == {"a": ["one", "two"], "b": ["four"], "c": ["six"]}
    assert units_of(fields, 3) == {"a": ["one"], "b": ["four"], "c": ["six"]}
    assert units_of({}, 3) == {}
    assert list(units_of({"b": "one two", "a": "three"}, 9)) == ["b", "a"], "in the order of the fields"


def test_a_short_question_survives_a_long_passage() -> None:
    found = units_of({"passage": "word " * 500, "question": "is this so or not"}, 64)
    assert {name: len(units) for name, units in found.items()} == {"passage": 59, "question": 5}


@pytest.mark.parametrize("limit", [3, 4, 5, 17, 64])
def test_the_words_of_a_record_never_exceed_the_limit(limit: int) -> None:
    """Empty fields and fields of punctuation count one each: they leave as one word."""
    for sizes in ((0, 0, 0), (0, 50, 3), (1, 0, 90), (40, 40, 40), (2, 1, 0)):
        fields = {name: "word " * size + "..." for name, size in zip("abc", sizes)}
        found = units_of(fields, limit)
        assert sum(max(1, len(units)) for units in found.values()) <= limit
        whole = sum(max(1, size) for size in sizes)
        assert sum(max(1, len(units)) for units in found.values()) == min(limit, whole)


def test_in_clear_the_same_limit_holds() -> None:
    fields = {"a": "one  two\nthree", "b": "four five"}
    assert first_words(fields, 100) == fields, "as it is, white space and all"
    assert first_words(fields, 4) == {"a": "one two", "b": "four five"}
    assert first_words({**fields, "b": "four"}, 4)["a"] == fields["a"]
    assert first_words(fields, 3) == {"a": "one two", "b": "four"}


def test_a_field_that_is_the_answer_under_another_name_is_found() -> None:
    form = outgoing(OWN)
    fields = [{"name": "Yes ", "text": "a"}, {"name": "no", "text": "yes"}, {"text": "b"}]
    assert form.telling(fields, [" yes", " no", None]) == "name"
    assert form.telling(fields, [" yes", " no", " no"]) is None
    assert form.telling(fields[:1], [" yes"]) is None, "one answer tells nothing apart"
    assert form.telling([], []) is None
