"""Which strategy needs a DP generator, and whether its texts can be the task's prompts. Imports nothing heavy."""

from __future__ import annotations

from typing import Collection, List

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.errors import ExtensionError


def input_problems(config: FedCoTConfig, role: str, inputs: Collection[str]) -> List[ExtensionError]:
    """What is wrong between a party's strategy and its input ``generator``.

    Args:
        inputs: names of the inputs that the task gives the party.

    Returns:
        E776 a generator is needed and not there; E777 it is there and not needed; E778 as :func:`text_field`.
    """
    strategy, generator = config.perturbation.strategy, "generator" in inputs
    if role == "arbiter":
        return []
    if strategy != "dp_generator":
        return [ExtensionError("E777", role=role, strategy=strategy)] if generator else []
    found = [] if generator else [ExtensionError("E776", role=role, strategy=strategy)]
    try:
        text_field(config)
    except ExtensionError as error:
        found.append(error)
    return found


def text_field(config: FedCoTConfig) -> str:
    """The one field of the task's prompt in whose place a generated text stands.

    Raises:
        ExtensionError: E778 the prompt is made of more than one; those of the task's and the question's templates.
    """
    template, fields = get_template(config.task), Outgoing(config.task, config.question).fields
    if len(fields) == 1:
        try:
            template.render({fields[0]: "text"})
        except ExtensionError as error:
            if error.code != "E210":
                raise
        else:
            return fields[0]
    shown = ", ".join(template.prompt_fields)
    raise ExtensionError("E778", fields=len(template.prompt_fields), shown=shown, listed=", ".join(fields))
