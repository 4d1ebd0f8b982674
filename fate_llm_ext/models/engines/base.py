"""What an LLM that writes can do, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import List, Optional, Sequence, Tuple, Type

import numpy as np

from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.models.scoring import Step


@dataclass(frozen=True)
class Completion:
    """What was written behind one prompt.

    Attributes:
        text: without the prompt, the end token and the stop string.
        finished: it ended by itself or at a stop string; False: it was cut at ``max_new_tokens``.
        refused: a server would not answer this prompt (too long, or its content filter); the text is empty. A local
            model refuses none.
    """

    text: str
    finished: bool
    refused: bool = False


class Engine(ABC):
    """Continues prompts. A context manager: leaving it closes the engine.

    Attributes:
        name: the LLM's name in the site file, for messages.
    """

    name: str

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Step = lambda done, total: None,
        keys: Optional[Sequence[str]] = None,
    ) -> List[Completion]:
        """One completion of each prompt, in their order; all of them or an error.

        A prompt that is refused for what it says has an empty completion in its place, see :class:`Completion`.

        Args:
            seed: the same one gives the same texts, as far as the engine can promise it.
            stop: a text ends before the first of these strings that it holds.
            step: called with (done, total) prompts as they are done.
            keys: what each prompt is about, as `guest 9999/17`: whose it is, and its row. Only a recording looks at
                them; they never leave the process.

        Raises:
            ExtensionError: a prompt has no answer, or all are refused; none is left out.
        """

    @abstractmethod
    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        """Whether prompt and ``max_new_tokens`` fit into the context (bool [N]); True where the engine cannot tell."""

    def close(self) -> None:
        """Let go of connections and memory. A closed engine is not used again; closing twice is harmless."""
        return

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def cut(text: str, stop: Sequence[str]) -> Tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    places = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
