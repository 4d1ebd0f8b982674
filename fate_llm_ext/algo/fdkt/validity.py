"""Which texts of a generator are worth sending; decided from each text alone."""

from __future__ import annotations

import re
from typing import List, Optional, Sequence

from fate_llm_ext.algo.control import control_prompt
from fate_llm_ext.algo.fdkt.config import ValidityConfig
from fate_llm_ext.config import ControlConfig

REASONS = ("empty", "unfinished", "prompt", "short", "repetitive", "duplicate")

# Languages that put no spaces between words (Thai, Japanese, Chinese): there each sign counts as a word.
_SIGNS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")


def words(text: str) -> List[str]:
    """The words of a text without case and punctuation."""
    return _WORD.findall(text.casefold())


def repetition(text: str) -> float:
    """Share of a text's pairs of neighbouring words that repeat an earlier pair; 0 for less than two words."""
    every = words(text)
    pairs = list(zip(every, every[1:]))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0


class Validity:
    """Finds what is wrong with a text.

    Args:
        control: whose prompts a text must not hold.
    """

    def __init__(self, config: ValidityConfig, control: ControlConfig) -> None:
        self._config = config
        self._headers = headers(control)

    def problem(self, text: str, ended: bool) -> Optional[str]:
        """One of :data:`REASONS`, or None if there is nothing wrong; whether it is a duplicate is not asked here.

        Args:
            text: as :func:`~fate_llm_ext.algo.control.clean` gives it.
            ended: whether the model has ended it itself.
        """
        if not text:
            return "empty"
        if self._config.finished and not ended:
            return "unfinished"
        lines = f"\n{text}\n\n"
        if any(header in lines for header in self._headers):
            return "prompt"
        if len(words(text)) < self._config.min_words:
            return "short"
        if repetition(text) > self._config.max_repetition:
            return "repetitive"
        return None


def headers(control: ControlConfig) -> Sequence[str]:
    """What a text that goes on to a next record holds: a prompt at the beginning of a line.

    A prompt that is the code alone, within one line, is no header: a text about world news may begin with "World".
    """
    template = control_prompt(control)
    prompts = [(code, template.render(code=code).replace("\r\n", "\n").lstrip()) for code in control.values]
    return [f"\n{prompt}" for code, prompt in prompts if prompt.strip(" ") not in ("", code.strip())]
