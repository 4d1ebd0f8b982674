"""What the LLM and the SLM read, from the job's templates.

A question comes from another party: it is data. It may have several lines, as the client's template has rendered them,
but no empty one, and none that begins like a part of the prompt (``Q:``, ``A:``, or what the job's own template puts
there): so it can neither close the demonstration that it stands in, nor pass for another one or for its answer. What
the LLM has written stands in a prompt as one line.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from fate_llm_ext.algo.fedcot.config import (
    MOST_CHOICES,
    DecodingConfig,
    Demonstration,
    LearningConfig,
    QuestionConfig,
    RationaleConfig,
)
from fate_llm_ext.algo.fedcot.questions import Outgoing, made_up
from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.prompts import PromptTemplate, Shown
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError

_TEXT, _CHOICE = "\U00013000", "\U00013001"  # for a text and a choice, to see what a template puts around them
_JOINERS = "\u200c\u200d"  # not printable, but part of words in some scripts
_SPACE = rf"[\s{_JOINERS}]*"


class Prompts:
    """The prompts of a job.

    Attributes:
        rationale: how rationales are asked for, and how an answer is read in one.
        decode_stop: a decoded rationale ends before the first of these: with its paragraph, or where the SLM begins
            another question.

    Raises:
        ExtensionError: E209 a template is broken or names something unknown; E700 it leaves out what it is about; E768
            there are demonstrations and it shows none.
    """

    def __init__(self, config: RationaleConfig, decoding: DecodingConfig) -> None:
        self.rationale = config
        self._llm = PromptTemplate(
            "rationale.prompt", config.prompt, ("demonstrations", "question", "choices"), ("question",)
        )
        if config.demonstrations and "demonstrations" not in self._llm.used:
            raise ExtensionError("E768", count=len(config.demonstrations), used=", ".join(self._llm.used))
        self._decode = PromptTemplate(
            "decoding.prompt", decoding.prompt, ("perturbed", "rationale", "question"), ("rationale", "question")
        )
        heads = _heads(self._decode.render(perturbed=_TEXT, rationale=_TEXT, question=_TEXT).splitlines())
        self._decode_marks = _marks(heads)
        self.decode_stop = ("\n\n", *(f"\n{head}" for head in heads))
        self._marks = _marks(_heads([*self._around().splitlines(), *config.stop]))
        self.demonstrations = [self._shown(one) for one in config.demonstrations]

    def llm(self, question: str, choices: Sequence[str], demonstrations: Optional[int] = None) -> str:
        """Asks the LLM for a rationale and an answer.

        Args:
            question: as a client has sent it.
            choices: the task's closed list of answers, if it has one.
            demonstrations: show the first so many; default: all.
        """
        return self._render(self.demonstrations[:demonstrations], block(question, self._marks), choices)

    def decode(self, perturbed: str, rationale: str, question: str) -> str:
        """Asks the SLM for a rationale for ``question``, after the LLM's rationale for the perturbed one."""
        marks = self._decode_marks
        return self._decode.render(
            perturbed=block(perturbed, marks), rationale=one_line(rationale), question=block(question, marks)
        )

    def _around(self) -> str:
        """What the template puts around texts; it may need some choices, or not bear many."""
        one = dict.fromkeys(("question", "rationale", "answer"), _TEXT)
        for count in (2, 5, MOST_CHOICES):
            try:
                return self._render([one] * len(self.rationale.demonstrations), _TEXT, [_CHOICE] * count)
            except ExtensionError as error:
                problem = error
        raise problem

    def _shown(self, one: Demonstration) -> Dict[str, str]:
        return {
            "question": block(one.question, self._marks),
            "rationale": one_line(one.rationale),
            "answer": one_line(one.answer),
        }

    def _render(self, demonstrations: Sequence[Mapping[str, str]], question: str, choices: Sequence[str]) -> str:
        words = [one_line(choice) for choice in choices]
        return self._llm.render(demonstrations=list(demonstrations), question=question, choices=words)


def one_line(text: str) -> str:
    """The text as one line of what can be seen, with single spaces."""
    if not text.isprintable():
        text = "".join(letter for letter in text if letter.isprintable() or letter.isspace() or letter in _JOINERS)
    return " ".join(text.split()).strip(_JOINERS + " ")


def block(text: str, marks: re.Pattern[str]) -> str:
    """The lines of a text without empty ones, and without what ``marks`` finds at the beginning of one."""
    lines = (marks.sub("", one_line(line), count=1) for line in text.splitlines())
    return "\n".join(filter(None, lines))


def _heads(lines: Iterable[str]) -> List[str]:
    """What lines of a prompt begin with before the texts in them, the longest first."""
    heads = {line.partition(_TEXT)[0].strip() for line in lines}  # one with a choice in it finds nothing
    return sorted(heads - {""}, key=lambda head: (-len(head), head))


def _marks(heads: Sequence[str]) -> re.Pattern[str]:
    """Finds heads, again and again, at the beginning of a line."""
    marks = "|".join(map(_loose, heads))
    return re.compile(rf"\A(?:{_SPACE}(?:{marks}))+{_SPACE}" if marks else r"\A\Z", re.IGNORECASE)


def _loose(mark: str) -> str:
    """An expression for a mark, whatever white space there is between its words and signs."""
    parts = re.findall(r"\w+|[^\w\s]", mark)
    return _SPACE.join(map(re.escape, parts)) + (r"(?!\w)" if parts[-1].isalnum() else "")


# --- what `check` shows -------------------------------------------------------------------------------


def shown(parameters: Mapping[str, Any], role: str, peers: Mapping[str, Mapping[str, Any]]) -> List[Shown]:
    """What a role's models read, and what leaves a client, with made-up texts.

    Args:
        parameters: the valid ones of a party; what is missing has its default.
        peers: those of the other parties, by name; the arbiter's LLM reads the questions of clients.
    """
    rationale = parameters.get("rationale") or RationaleConfig()
    decoding = parameters.get("decoding") or DecodingConfig()
    if role == "arbiter":
        forms: List[Tuple[Any, Any]] = []
        names: List[List[str]] = []
        for name, one in peers.items() or [("", parameters)]:
            form = (one.get("task"), one.get("question"))
            if form not in forms:
                forms.append(form)
                names.append([])
            names[forms.index(form)].append(name)
        return [
            _of_llm(rationale, decoding, task, question, ", ".join(filter(None, whose)))
            for (task, question), whose in zip(forms, names)
            if task is not None
        ]
    task, question = parameters.get("task"), parameters.get("question")
    if task is None:
        return []
    found = [
        Shown("question.template", "what leaves for the LLM in place of a prompt", lambda: _question(task, question))
    ]
    if decoding.method == "model":
        found.append(
            Shown(
                "decoding.prompt", "SLM, to decode a rationale", lambda: _decoded(rationale, decoding, task, question)
            )
        )
    return [*found, *_of_slm(parameters, explain=True)]


def shown_in_predict(parameters: Mapping[str, Any], role: str, peers: Mapping[str, Mapping[str, Any]]) -> List[Shown]:
    """What the SLM reads in the predict stage."""
    if role == "arbiter" or parameters.get("task") is None:
        return []
    return _of_slm(parameters, explain=bool(parameters.get("explain")))


def _question(task: TaskConfig, question: Optional[QuestionConfig]) -> str:
    outgoing = Outgoing(task, question or QuestionConfig())
    return outgoing.render(made_up(outgoing))


def _own(task: TaskConfig) -> str:
    """A prompt of the task with made-up fields."""
    template = get_template(task)
    return template.render({name: f"<{name}>" for name in template.prompt_fields}).prompt


def _decoded(
    rationale: RationaleConfig, decoding: DecodingConfig, task: TaskConfig, question: Optional[QuestionConfig]
) -> str:
    return Prompts(rationale, decoding).decode(_question(task, question), "<rationale>", _own(task))


def _of_llm(
    rationale: RationaleConfig,
    decoding: DecodingConfig,
    task: TaskConfig,
    question: Optional[QuestionConfig],
    whose: str,
) -> Shown:
    def render() -> str:
        prompts = Prompts(rationale, decoding)
        choices = Outgoing(task, question or QuestionConfig()).choices
        prompts.llm("<question>", choices, 0)  # what is left if there is no room for demonstrations
        return prompts.llm(_question(task, question), choices)

    return Shown("rationale.prompt", f"LLM, for a rationale{whose and f' for a question of {whose}'}", render)


def _of_slm(parameters: Mapping[str, Any], explain: bool) -> List[Shown]:
    learning: LearningConfig = parameters.get("learning") or LearningConfig()
    task = parameters["task"]
    found = [Shown("task.prompt", "SLM, for the answer", lambda: learning.predict + _own(task))]
    if explain:
        found.append(Shown("task.prompt", "SLM, for the rationale", lambda: learning.explain + _own(task)))
    return found
