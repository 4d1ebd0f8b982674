"""What the LLM and the task model read, from the job's templates.

Texts, labels and descriptions that come from another party are data: each of them stands in a prompt as one line, so
that none can pass for a further demonstration, a further candidate or an answer.
"""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

from fate_llm_ext.algo.fdkt.config import PromptsConfig
from fate_llm_ext.data.prompts import PromptTemplate
from fate_llm_ext.errors import ExtensionError

# Per template: the variables that it may use, and those of them without which it makes no sense.
VARIABLES: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = {
    "judge": (("description", "labels", "texts"), ("texts",)),
    "augment": (("description", "labels", "demonstrations", "label"), ("demonstrations", "label")),
    "label": (("description", "labels", "text"), ("text",)),
    "student": (("text", "labels"), ("text",)),
}


def one_line(text: str) -> str:
    """The text with every run of white space, line ends of all kinds among it, as one space."""
    return " ".join(text.split())


class Prompts:
    """The prompts of a job.

    Raises:
        ExtensionError: E209 a template is broken or names something unknown; E700 it leaves out what it is about.
    """

    def __init__(self, config: PromptsConfig) -> None:
        self._templates = {name: template(config, name) for name in VARIABLES}

    def judge(self, description: str, labels: Sequence[str], texts: Sequence[str]) -> str:
        """Asks the LLM which ``texts`` are eligible; it is to answer with their numbers, from 1."""
        return self._render("judge", description, labels, texts=[one_line(text) for text in texts])

    def augment(
        self, description: str, labels: Sequence[str], demonstrations: Sequence[Tuple[str, str]], label: str
    ) -> str:
        """Asks the LLM for a text of ``label`` after demonstrations (label, text)."""
        shown = [{"label": one_line(name), "text": one_line(text)} for name, text in demonstrations]
        return self._render("augment", description, labels, demonstrations=shown, label=one_line(label))

    def label(self, description: str, labels: Sequence[str], text: str) -> str:
        """Asks the LLM which of ``labels`` the text has."""
        return self._render("label", description, labels, text=one_line(text))

    def student(self, text: str, labels: Sequence[str]) -> str:
        """What the task model reads before it answers; the text keeps its line ends, for it stands alone."""
        return self._templates["student"].render(text=text, labels=[one_line(name) for name in labels])

    def _render(self, name: str, description: str, labels: Sequence[str], **values: object) -> str:
        words = [one_line(word) for word in labels]
        return self._templates[name].render(description=one_line(description), labels=words, **values)


def template(config: PromptsConfig, name: str) -> PromptTemplate:
    """One of the templates, checked.

    Raises:
        ExtensionError: as :class:`Prompts`.
    """
    known, needed = VARIABLES[name]
    found = PromptTemplate(f"prompts.{name}", getattr(config, name), known)
    missing = [variable for variable in needed if variable not in found.used]
    if missing:
        raise ExtensionError("E700", field=found.field, missing=", ".join(missing), used=", ".join(found.used))
    return found
