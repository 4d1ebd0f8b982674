"""What may leave a client: a fixed form around allow-listed fields.

The template of a question sees the allow-listed fields, as a strategy has perturbed them, and the task's public
choices; there is no other variable, so neither a label nor a raw field can be reached. A field that the answer is made
of cannot be listed.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from fate_llm_ext.algo.fedcot.config import QuestionConfig
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.builtin import LETTERS, is_missing
from fate_llm_ext.data.prompts import PromptTemplate
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError


class Outgoing:
    """The form of a job's questions.

    Attributes:
        fields: names of the fields that may leave.
        choices: the task's closed list of answers without separators; empty if each row has its own.

    Raises:
        ExtensionError: E784 a listed field is none of the prompt's, or holds the answer; E785 there is none; E786
            `question.max_words` is below their number; E208, E209 the task's or the question's template is broken or
            names something else.
    """

    def __init__(self, task: TaskConfig, question: QuestionConfig) -> None:
        template = get_template(task)
        known = template.prompt_fields
        self.fields: Tuple[str, ...] = tuple(question.fields) or known
        self.choices: Tuple[str, ...] = tuple(choice.strip() for choice in template.choices or ())
        odd = [name for name in self.fields if name not in known]
        columns = {task.columns.get(name, name) for name in template.hidden_fields}
        odd += [name for name in self.fields if task.columns.get(name, name) in columns]
        if odd:
            hidden = [name for name in odd if name in template.hidden_fields or name in known]
            why = "the answer is made of it" if hidden else "the task's prompt does not show it"
            raise ExtensionError("E784", field=(hidden or odd)[0], why=why, known=", ".join(known) or "none")
        if not self.fields:
            raise ExtensionError("E785", answer=", ".join(template.answer_fields))
        if question.max_words < len(self.fields):
            raise ExtensionError("E786", words=question.max_words, fields=len(self.fields))
        source = question.template or _form(self.fields, bool(self.choices))
        self._template = PromptTemplate("question.template", source, (*self.fields, "choices"))

    def pick(self, fields: Mapping[str, Any]) -> Dict[str, str]:
        """The allow-listed ones of a row's canonical fields that are there, as text."""
        return {name: _text(fields[name]) for name in self.fields if not is_missing(fields.get(name))}

    def telling(self, fields: Sequence[Mapping[str, str]], answers: Sequence[Optional[str]]) -> Optional[str]:
        """The name of a field that is the answer itself in every record that has one, if there is such a field.

        A column under another name may hold the labels once more; whether a field tells them in other words, nobody
        can see here.

        Args:
            fields: of each record, as :meth:`pick` gives them.
            answers: of each record, with or without a separator.
        """
        told = [(one, _plain(answer)) for one, answer in zip(fields, answers) if answer]
        if len({answer for _, answer in told}) < 2:
            return None
        same = (name for name in self.fields if all(_plain(one.get(name, "")) == answer for one, answer in told))
        return next(same, None)

    def render(self, values: Mapping[str, str]) -> str:
        """A question of (perturbed) fields.

        Raises:
            ExtensionError: E209 the template fails on them.
        """
        allowed = {name: values[name] for name in self.fields if name in values}
        return self._template.render(**allowed, choices=list(self.choices)).strip()


def _form(fields: Tuple[str, ...], closed: bool) -> str:
    """The question of a job that gives none: the texts, then the options or choices."""
    texts = [name for name in fields if name not in LETTERS]
    options = [name for name in fields if name in LETTERS]
    form = " ".join(f"{{% if {name} is defined %}}{{{{ {name} }}}}{{% endif %}}" for name in texts)
    if options:
        form += " Answer choices:"
        form += "".join(f"{{% if {one} is defined %}} ({one.lower()}) {{{{ {one} }}}}{{% endif %}}" for one in options)
    elif closed:
        form += " Answer choices: {{ choices | join(', ') }}"
    return form


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return str(value)


def made_up(outgoing: Outgoing) -> Dict[str, str]:
    """A word for each field, to show the form."""
    return {name: f"<{name}, perturbed>" for name in outgoing.fields}
