"""The built-in templates and their canonical forms: small functions from what is published to flat fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

Fields = Dict[str, Any]
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class BuiltIn:
    """A built-in template.

    ``answers`` are the canonical fields that an unlabelled row lacks; those after the first are
    alternative references. ``choices``: a tuple, ``"letters"`` (as many as the row has options) or None.
    """

    about: str
    canonical: Callable[[Mapping[str, Any]], Fields]
    prompt: str
    answers: Tuple[str, ...]
    choices: Any = None


class Unfit(Exception):
    """The row has none of the forms that the template knows."""


def is_missing(value: Any) -> bool:
    """None, NaN, or nothing but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _columns(row: Mapping[str, Any], *layouts: Tuple[str, ...]) -> Fields:
    """Lower-case column names, empty values dropped; a file without header gets the layout of its width."""
    names = list(row)
    if names == [str(position) for position in range(len(names))]:
        names = list(next((layout for layout in layouts if len(layout) == len(names)), names))
    pairs = zip((name.strip().lower().replace(" ", "_") for name in names), row.values())
    return {name: value for name, value in pairs if not is_missing(value)}


def _need(fields: Fields, *names: str) -> str:
    for name in names:
        if name in fields:
            return str(fields[name]).strip()
    raise Unfit("no column " + " or ".join(repr(name) for name in names) + ", or it is empty")


def _flat(**fields: Optional[str]) -> Fields:
    return {name: value for name, value in fields.items() if value}


def _word(fields: Fields, names: Tuple[str, ...], words: Mapping[str, str]) -> Optional[str]:
    """The label as the template's word; unknown labels stay, so that the error can name them; -1 is no label."""
    raw = next((str(fields[name]).strip() for name in names if name in fields), None)
    key = re.sub(r"\.0\Z", "", raw.lower()) if raw else ""
    if key == "-1" and words:
        return None
    return words.get(key, next((word for word in words.values() if word.lower() == key), raw))


_TOPICS = ("World", "Sports", "Business", "Technology")
_TOPIC_WORDS = {
    **{topic.lower(): topic for topic in _TOPICS},
    **dict.fromkeys(("sci/tech", "sci_tech", "scitech", "sci-tech", "science/technology"), "Technology"),
}


def _ag_news(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row, ("text", "label"), ("label", "title", "description"))
    first = 0 if "text" in fields else 1  # text, label 0-3 (Hugging Face) or label 1-4, title, description (official)
    text = f"{_need(fields, 'title')} {_need(fields, 'description')}" if first else _need(fields, "text")
    numbers = {str(number): topic for number, topic in enumerate(_TOPICS, first)}
    label = _word(fields, ("label", "class", "class_index"), {**numbers, **_TOPIC_WORDS})
    return _flat(text=text, label=label)


def _sst2(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row, ("sentence", "label"))
    words = {"0": "negative", "1": "positive", "neg": "negative", "pos": "positive"}
    return _flat(sentence=_need(fields, "sentence", "text"), label=_word(fields, ("label",), words))


def _yelp(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row, ("text", "label1", "label2"))
    tags = dict(str(fields[name]).partition(": ")[::2] for name in ("label1", "label2") if name in fields)
    stars = _word({**tags, **fields}, ("stars", "Review Stars"), {str(n): str(n) for n in range(1, 6)})
    if stars is None:  # Hugging Face: label 0-4
        stars = _word(fields, ("label",), {str(n): str(n + 1) for n in range(5)})
    category = fields.get("category", tags.get("Business Category"))
    return _flat(text=_need(fields, "text"), stars=stars, category=category)


_ARC = re.compile(
    r"(?:Please choose the correct answer to the question:)?(.*?)\n\nAnswer1:(.*)\n\nAnswer format:.*", re.S
)


def _options(fields: Fields) -> Tuple[str, List[str], List[str]]:
    """Question, option texts and what the answer column calls them."""
    question: Any = fields.get("question", fields.get("question_stem"))
    options: Any = fields.get("choices", ())
    if isinstance(question, Mapping):  # original JSONL of CommonsenseQA, ARC and OpenBookQA
        question, options = question.get("stem"), question.get("choices")
    if match := _ARC.fullmatch(str(fields.get("instruction", ""))):  # instruction form of ARC
        texts = re.split(r"\s*Answer\d:\s*", match[2].strip())
        return match[1].strip(), texts, [f"answer{n}" for n in range(1, len(texts) + 1)]
    if isinstance(options, Mapping):  # Hugging Face
        texts, marks = list(options.get("text") or ()), list(options.get("label") or ())
    elif options and all(isinstance(option, Mapping) for option in options):
        texts, marks = [option.get("text") for option in options], [option.get("label") for option in options]
    elif options and not isinstance(options, str):  # a list of texts; the answer is one of them
        texts, marks = list(options), list(options)
    else:  # columns A, B, ...: our own flat form, and MMLU's
        texts = [fields[letter.lower()] for letter in LETTERS if letter.lower() in fields]
        marks = list(LETTERS[: len(texts)])
    return str(question or "").strip(), [str(text).strip() for text in texts], [str(mark).strip() for mark in marks]


def _multiple_choice(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row)
    question, texts, marks = _options(fields)
    if not question or not 2 <= len(texts) <= len(LETTERS) or len(marks) != len(texts):
        raise Unfit(f"no question with 2 to {len(LETTERS)} options")
    answer = _word(fields, ("answerkey", "answer"), {})
    if answer in marks:
        answer = LETTERS[marks.index(answer)]
    return _flat(question=question, **dict(zip(LETTERS, texts)), answer=answer)


_TRUTH = {"0": "no", "1": "yes", "false": "no", "true": "yes", "f": "no", "t": "yes"}


def _boolq(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row)
    label = _word(fields, ("label", "answer"), _TRUTH)
    return _flat(passage=_need(fields, "passage"), question=_need(fields, "question"), label=label)


def _rte(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row)
    words = {"entailment": "true", "not_entailment": "false", "0": "true", "1": "false"}  # GLUE: 0 is entailment
    premise, hypothesis = _need(fields, "premise", "sentence1"), _need(fields, "hypothesis", "sentence2")
    return _flat(premise=premise, hypothesis=hypothesis, label=_word(fields, ("label",), words))


def _wic(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row)
    texts = {name: _need(fields, name) for name in ("word", "sentence1", "sentence2")}
    return _flat(**texts, label=_word(fields, ("label",), _TRUTH))


def _dialogsum(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row)
    first = _word(fields, ("summary", "summary1"), {})
    others = {name: _word(fields, (name,), {}) for name in ("summary2", "summary3")}
    return _flat(dialogue=_need(fields, "dialogue"), summary=first, **others)


def _labelled_text(row: Mapping[str, Any]) -> Fields:
    fields = _columns(row, ("text", "label"))
    return _flat(text=_need(fields, "text"), label=_word(fields, ("label",), {}))


def _plain(row: Mapping[str, Any]) -> Fields:
    return _flat(text=_need(_columns(row, ("text",)), "text"))


_QUESTION = (
    "Question: {{ question }}\n"
    + "".join(f"{{% if {name} is defined %}}{name}. {{{{ {name} }}}}\n{{% endif %}}" for name in LETTERS)
    + "Answer:"
)
_BOOLQ = "{{ passage }}\nQuestion: {{ question.rstrip('?') }}?\nAnswer:"
_RTE = "{{ premise }}\nQuestion: {{ hypothesis }} True or false?\nAnswer:"
_WIC = (
    "Sentence 1: {{ sentence1 }}\nSentence 2: {{ sentence2 }}\n"
    'Question: Does "{{ word }}" mean the same in both sentences?\nAnswer:'
)
_ANSWER, _LABEL = ("answer",), ("label",)

BUILT_IN: Dict[str, BuiltIn] = {
    "ag_news": BuiltIn("News topic, 4 classes.", _ag_news, "Article: {{ text }}\nTopic:", _LABEL, _TOPICS),
    "sst2": BuiltIn(
        "Sentiment, 2 classes; also MR and IMDB.",
        _sst2,
        "Review: {{ sentence }}\nSentiment:",
        _LABEL,
        ("negative", "positive"),
    ),
    "yelp": BuiltIn("Stars of a review, 1-5.", _yelp, "Review: {{ text }}\nStars:", ("stars",), tuple("12345")),
    "commonsenseqa": BuiltIn("Multiple choice, 5 options.", _multiple_choice, _QUESTION, _ANSWER, "letters"),
    "arc": BuiltIn("Multiple choice, 3 to 5 options.", _multiple_choice, _QUESTION, _ANSWER, "letters"),
    "openbookqa": BuiltIn("Multiple choice, 4 options.", _multiple_choice, _QUESTION, _ANSWER, "letters"),
    "boolq": BuiltIn("Question about a passage, no or yes.", _boolq, _BOOLQ, _LABEL, ("no", "yes")),
    "rte": BuiltIn("Entailment, true or false.", _rte, _RTE, _LABEL, ("true", "false")),
    "wic": BuiltIn("Same word sense, no or yes.", _wic, _WIC, _LABEL, ("no", "yes")),
    "dialogsum": BuiltIn(
        "Summary of a dialogue, up to 3 references.",
        _dialogsum,
        "{{ dialogue }}\nSummary:",
        ("summary", "summary2", "summary3"),
    ),
    "tickets": BuiltIn(
        "Department of a support ticket (fate-llm-ext data generate tickets).",
        _labelled_text,
        "Ticket: {{ text }}\nDepartment:",
        _LABEL,
        ("billing", "technical", "shipping", "account", "sales"),
    ),
    "reviews": BuiltIn(
        "Sentiment of a restaurant review (fate-llm-ext data generate reviews).",
        _labelled_text,
        "Review: {{ text }}\nSentiment:",
        _LABEL,
        ("negative", "mixed", "positive"),
    ),
    "errands": BuiltIn(
        "Where an errand leads (fate-llm-ext data generate errands).",
        _labelled_text,
        "Errand: {{ text }}\nPlace:",
        _LABEL,
        ("bakery", "butcher", "florist", "garage", "library", "pharmacy", "post", "tailor"),
    ),
    "text": BuiltIn("Plain text for language modelling: empty prompt, the text is the answer.", _plain, "", ("text",)),
}
