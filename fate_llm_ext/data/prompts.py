"""Prompts of a job: Jinja templates over a fixed set of variables, sandboxed and strict."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Sequence

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fate_llm_ext.config import ControlConfig
from fate_llm_ext.errors import ExtensionError


class PromptTemplate:
    """A prompt with named gaps; what it may hold is decided by ``variables`` alone.

    Args:
        field: the parameter that holds it, for errors.
        source: Jinja; all white space counts, also a line end at its end.
        variables: the names it may use.
        needed: those of them without which it makes no sense.

    Attributes:
        used: those of them that it does use, in their order.

    Raises:
        ExtensionError: E209 it is broken or names something else; E700 it leaves out what it is about.
    """

    def __init__(self, field: str, source: str, variables: Sequence[str], needed: Sequence[str] = ()) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self.field = field
        self.variables = tuple(variables)
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ExtensionError("E209", field=field, reason=str(error).rstrip(".")) from None
        unknown = sorted(names - set(variables))
        if unknown:
            reason = f"{', '.join(unknown)} unknown here, there are {', '.join(variables)}"
            raise ExtensionError("E209", field=field, reason=reason)
        if not names:
            raise ExtensionError("E209", field=field, reason=f"it uses none of {', '.join(variables)}")
        self.used = tuple(name for name in variables if name in names)
        missing = [name for name in needed if name not in names]
        if missing:
            raise ExtensionError("E700", field=field, missing=", ".join(missing), used=", ".join(self.used))

    def render(self, **values: Any) -> str:
        """The prompt; every variable of the template has to be given.

        Raises:
            ExtensionError: E209 the template fails on these values.
        """
        try:
            return self._template.render(**values)
        except Exception as error:  # noqa: BLE001 - a user's template can raise anything, and quote a text in it
            raise ExtensionError("E209", field=self.field, reason=f"it raises {type(error).__name__}") from None


class Shown(NamedTuple):
    """A prompt of a job with made-up values, for `check` and for the user's eyes.

    Attributes:
        field: the parameter that holds the template, e.g. ``prompts.judge``.
        title: whom it is for.
        render: gives the text; raises an :class:`ExtensionError` if the template is wrong.
    """

    field: str
    title: str
    render: Callable[[], str]


def shown_control(control: ControlConfig) -> List[Shown]:
    """What a generator reads before it writes, for each control code."""

    def prompt(code: str) -> str:
        return PromptTemplate("control.prompt", control.prompt, ("code",)).render(code=code.strip())

    return [
        Shown("control.prompt", f"generator, for {code.strip()}", lambda code=code: prompt(code))  # type: ignore[misc]
        for code in control.values
    ]
