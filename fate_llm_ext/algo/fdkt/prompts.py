"""What the LLM and the task model read, from the job's templates.

Texts, labels and descriptions that come from another party are data: each of them stands in a prompt as one line, so
that none can pass for a further demonstration, a further candidate or an answer.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

from fate_llm_ext.algo.fdkt.config import AugmentationConfig, FilterConfig, PromptsConfig
from fate_llm_ext.data.prompts import PromptTemplate, Shown, shown_control

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

    Args:
        only: the templates that are needed.

    Raises:
        ExtensionError: E209 a template is broken or names something unknown; E700 it leaves out what it is about.
    """

    def __init__(self, config: PromptsConfig, only: Sequence[str] = tuple(VARIABLES)) -> None:
        self._templates = {name: template(config, name) for name in VARIABLES if name in only}

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
    return PromptTemplate(f"prompts.{name}", getattr(config, name), *VARIABLES[name])


def shown(parameters: Mapping[str, Any], role: str, peers: Mapping[str, Mapping[str, Any]]) -> List[Shown]:
    """What a role's models read, with made-up texts.

    Args:
        parameters: the valid ones of a party; what is missing has its default.
        peers: those of the other parties, by name; the arbiter's LLM reads the labels and descriptions of clients.
    """
    config: PromptsConfig = parameters.get("prompts") or PromptsConfig()
    if role != "arbiter":
        generator = shown_control(parameters["control"]) if "control" in parameters else []
        return [*generator, *shown_in_predict(parameters, role, peers)]
    clients: Dict[Tuple[str, Tuple[str, ...]], List[str]] = {}
    for name, one in peers.items() or [("", parameters)]:
        clients.setdefault((one.get("description") or "a text", _labels(one)), []).append(name)
    size = (parameters.get("filter") or FilterConfig()).samples_per_cluster
    shots = (parameters.get("augmentation") or AugmentationConfig()).shots
    return [
        one
        for (description, labels), names in clients.items()
        for one in _of_llm(config, size, shots, description, labels, ", ".join(names))
    ]


def shown_in_predict(parameters: Mapping[str, Any], role: str, peers: Mapping[str, Mapping[str, Any]]) -> List[Shown]:
    """What the task model reads; with a classification head, nothing but the text."""
    if role == "arbiter" or parameters.get("head") == "classification":
        return []
    config: PromptsConfig = parameters.get("prompts") or PromptsConfig()
    labels = _labels(parameters)
    return [Shown("prompts.student", "task model", lambda: Prompts(config, ["student"]).student("<text>", labels))]


def _labels(parameters: Mapping[str, Any]) -> Tuple[str, ...]:
    control = parameters.get("control")
    return tuple(map(one_line, control.values)) if control else ("<label 1>", "<label 2>")


def _of_llm(
    config: PromptsConfig, size: int, shots: int, description: str, labels: Sequence[str], whose: str
) -> List[Shown]:
    """What the LLM reads for clients with the same labels."""
    texts = [f"<text {number}>" for number in range(1, 1 + max(size, shots * len(labels)))]
    pairs = list(zip([label for _ in range(shots) for label in labels], texts))

    def judge() -> str:
        prompts = Prompts(config, ["judge"])
        prompts.judge(description, labels, texts[:1])  # the smallest cluster
        return prompts.judge(description, labels, texts[:size])

    def augment() -> str:
        prompts = Prompts(config, ["augment"])
        prompts.augment(description, labels, pairs[:1], labels[0])
        return prompts.augment(description, labels, pairs, labels[0])

    def label() -> str:
        return Prompts(config, ["label"]).label(description, labels, "<text>")

    whose = whose and f" of {whose}"
    return [
        Shown("prompts.judge", f"LLM, about a cluster of texts{whose}", judge),
        Shown("prompts.augment", f"LLM, for a text with the label {labels[0]}{whose}", augment),
        Shown("prompts.label", f"LLM, for the label of a text{whose}", label),
    ]
