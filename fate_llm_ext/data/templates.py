"""Templates: a row of a file becomes a prompt, an answer and the closed list of choices.

Three steps: *canonical* (a small function per template, see ``builtin``, turns the published forms of a data set into
one set of flat fields), *render* (Jinja, sandboxed and strict), *check* (the answer is a choice).
The separator between prompt and answer belongs to the answer and to every choice, because byte-level
BPE and SentencePiece both tokenize " World" as a unit, but not "World" after a trailing space.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Tuple

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.builtin import BUILT_IN, LETTERS, BuiltIn, Fields, Unfit, is_missing
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.hints import near


@dataclass(frozen=True)
class Example:
    """One rendered row, NFC-normalised. ``answer`` and ``choices`` start with their separator, usually one space."""

    prompt: str
    answer: Optional[str]
    choices: Optional[Tuple[str, ...]]

    @property
    def text(self) -> str:
        """Prompt and answer as a model sees them."""
        return self.prompt + (self.answer or "")


class Template:
    """How rows of one task become examples; made by :func:`get_template`."""

    def __init__(self, name: str, prompt: str, answer: str, choices: Any, built_in: Optional[BuiltIn] = None) -> None:
        self.name = name
        self._built_in = built_in
        prompt = re.sub(r"\r?\n\Z", "", prompt)  # the line end a YAML block leaves
        own, trailing = _margin(answer, start=True), _margin(prompt, start=False)
        self.separator = own or trailing or (" " if prompt.strip() else "")
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        fields = ("control.code", "control.text") if name == "control" else ("task.prompt", "task.answer")
        self._prompt, self._shown = _compile(environment, fields[0], prompt.rstrip())
        self._answer, self._needed = _compile(environment, fields[1], answer)
        self._choices = choices if choices == "letters" or choices is None else self._closed(choices)

    @property
    def answer_fields(self) -> Tuple[str, ...]:
        """Canonical fields that hold the answer: leave them out and the row is unlabelled."""
        return self._built_in.answers if self._built_in else tuple(sorted(self._needed))

    @property
    def hidden_fields(self) -> Tuple[str, ...]:
        """Canonical fields that hold the answer or that it is rendered from."""
        return tuple(dict.fromkeys([*self.answer_fields, *self._needed]))

    @property
    def prompt_fields(self) -> Tuple[str, ...]:
        """Canonical fields that the prompt shows, in their order there, :attr:`hidden_fields` left out."""
        return tuple(name for name in self._shown if name not in self.hidden_fields)

    @property
    def choices(self) -> Optional[Tuple[str, ...]]:
        """The closed answers if they are the same for every row."""
        return None if self._choices == "letters" else self._choices

    def canonical(self, row: Mapping[str, Any], number: Optional[int] = None, source: str = "") -> Fields:
        """The row in the template's flat fields (its own columns for a user's template); idempotent."""
        if not self._built_in:
            return {key: value for key, value in row.items() if not is_missing(value)}
        try:
            return self._built_in.canonical(row)
        except Unfit as error:
            raise _failed(row, _where(number, source), "row", f"{error} (template {self.name})") from None

    def render(self, row: Mapping[str, Any], number: Optional[int] = None, source: str = "") -> Example:
        """Render one row; ``number`` (from 1) and ``source`` only serve the error message.

        Raises:
            ExtensionError: E210 a needed column is missing or the Jinja template fails, E211 the
                answer is not a choice. A row whose answer is missing, None or "" gives answer None.
        """
        fields = self.canonical(row, number, source)
        where = _where(number, source)
        prompt = _clean(self._fill(self._prompt, fields, where, "prompt")).rstrip()
        labelled = not any(is_missing(fields.get(name)) for name in self._needed)
        answer = self._fill(self._answer, fields, where, "answer").strip() if labelled else ""
        choices = self._row_choices(fields)
        full = self.separator + _clean(answer) if answer else None
        if full is not None and choices is not None and full not in choices:
            names = ", ".join(choice.strip() for choice in choices)
            raise ExtensionError("E211", where=where, length=len(answer), count=len(choices), choices=names)
        return Example(prompt, full, choices)

    def examples(self, rows: Iterable[Mapping[str, Any]], source: str = "") -> Iterator[Example]:
        """Render rows in order, numbered from 1 in errors."""
        return (self.render(row, number, source) for number, row in enumerate(rows, 1))

    def references(self, row: Mapping[str, Any]) -> Tuple[str, ...]:
        """Every accepted answer of a row, without separator (DialogSum's test rows have three)."""
        if not self._built_in or len(self._built_in.answers) == 1:
            answer = self.render(row).answer
            return (answer[len(self.separator) :],) if answer else ()
        fields = self.canonical(row)
        return tuple(_clean(str(fields[name])) for name in self.answer_fields if name in fields)

    def _row_choices(self, fields: Fields) -> Optional[Tuple[str, ...]]:
        if self._choices == "letters":
            return tuple(self.separator + letter for letter in LETTERS if letter in fields)
        return self.choices

    def _closed(self, choices: Iterable[str]) -> Tuple[str, ...]:
        words = [_clean(str(choice)).strip() for choice in choices]
        if len(words) < 2 or len(set(words)) < len(words) or not all(words):
            raise ExtensionError(
                "E209", field="task.choices", reason=f"{len(words)} given, 2 or more distinct ones needed"
            )
        return tuple(self.separator + word for word in words)

    @staticmethod
    def _fill(template: jinja2.Template, fields: Fields, where: str, field: str) -> str:
        present = {key: value for key, value in fields.items() if value is not None}  # None must not print "None"
        try:
            return template.render(present)
        except Exception as error:  # noqa: BLE001 - a user's template can raise anything
            # Its text may quote the row, unless it only names a variable of the template.
            name = re.fullmatch(r"'(\w+)' is undefined", str(error))
            hint = near(name[1], present) if name else ""
            reason = str(error) if name else f"the template raises {type(error).__name__}"
            raise _failed(fields, where, field, f"{reason}{hint and '.'}{hint.rstrip('?')}") from None


def get_template(task: TaskConfig) -> Template:
    """The template of a task: built-in, the user's own, or a built-in with parts replaced.

    Raises:
        ExtensionError: E208 unknown name, E209 broken Jinja or choices.
    """
    if not task.template:
        return Template("own", task.prompt or "", task.answer or "", task.choices)
    known = BUILT_IN.get(task.template)
    if known is None:
        raise ExtensionError("E208", name=task.template, hint=near(task.template, BUILT_IN))
    answer = task.answer or "{{ " + known.answers[0] + " }}"
    return Template(task.template, task.prompt or known.prompt, answer, task.choices or known.choices, known)


def _compile(environment: jinja2.Environment, field: str, source: str) -> Tuple[jinja2.Template, List[str]]:
    """The template and its variables, in the order in which it names them."""
    try:
        tree = environment.parse(source)
        names = jinja2.meta.find_undeclared_variables(tree) - set(environment.globals)
        named = dict.fromkeys(one.name for one in tree.find_all(jinja2.nodes.Name) if one.name in names)
        return environment.from_string(source), list(named)
    except jinja2.TemplateError as error:
        raise ExtensionError("E209", field=field, reason=str(error).rstrip(".")) from None


def _failed(row: Mapping[str, Any], where: str, field: str, reason: str) -> ExtensionError:
    return ExtensionError("E210", where=where, field=field, reason=reason, columns=", ".join(row))


def _where(number: Optional[int], source: str) -> str:
    return ", ".join(part for part in (source, f"row {number}" if number else "row") if part)


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n"))


def _margin(source: str, start: bool) -> str:
    match = re.match(r"\s*", source) if start else re.search(r"\s*\Z", source)
    return match.group() if match else ""
