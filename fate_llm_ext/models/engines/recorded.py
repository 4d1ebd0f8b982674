"""An engine that replays what an LLM has written earlier: for measurements with an LLM that is not at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines.base import Completion, Engine, cut
from fate_llm_ext.models.scoring import Step

_KEY = re.compile(r"(?P<client>\w+ \w+)/(?P<row>\d{1,9})")


class RecordedEngine(Engine):
    """Answers by what a prompt is about, whatever the prompt says.

    The folder has a file for each client, `guest_9999.jsonl` for `guest 9999`; line i (from 0) is the answer about row
    i of its table: `{"answer": "..."}` or the text alone, as JSON. `{"answer": null}` stands for an LLM that refused;
    `"finished": false` for a text that had been cut. Files are read when they are first needed, and kept.

    Args:
        folder: of the recording.
        name: its name in the site file.

    Raises:
        ExtensionError: E418 the folder holds no recording.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._answers: Dict[str, List[Completion]] = {}
        if not any(folder.glob("*.jsonl")):
            raise self._broken(folder, "there is no .jsonl file in it")

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
        """See :meth:`Engine.generate`; only ``keys`` and ``stop`` have a meaning here. An answer is never shortened.

        Raises:
            ExtensionError: E418 a client has no file, or it cannot be read, or the prompts come without keys; E419 a
                client's file has no answer about a row.
        """
        if keys is None or len(keys) != len(prompts):
            reason = f"{len(keys or ())} of {len(prompts)} prompts say which row of which client they are about"
            raise self._broken(self._folder, reason)
        results = []
        for done, key in enumerate(keys, 1):
            one = self._answer(key)
            text, stopped = cut(one.text, stop)
            results.append(Completion(text, stopped or one.finished, one.refused))
            step(done, len(keys))
        return results

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        """True for every prompt (bool [N]): nobody reads them."""
        return np.ones(len(prompts), dtype=bool)

    def _answer(self, key: str) -> Completion:
        found = _KEY.fullmatch(key)
        if found is None:
            raise self._broken(self._folder, "a prompt names no row of a client")
        client, row = found["client"], int(found["row"])
        if client not in self._answers:
            self._answers[client] = self._read(client)
        lines = self._answers[client]
        if row >= len(lines):
            raise ExtensionError("E419", name=self.name, lines=len(lines), client=client, row=row)
        return lines[row]

    def _read(self, client: str) -> List[Completion]:
        path = self._folder / f"{client.replace(' ', '_')}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            there = ", ".join(sorted(one.name for one in self._folder.glob("*.jsonl"))[:8])
            raise self._broken(path, f"it is not there (there are: {there})") from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._broken(path, type(error).__name__) from None
        if not lines[-1].strip():
            lines.pop()
        return [self._completion(line, path, number) for number, line in enumerate(lines, 1)]

    def _completion(self, line: str, path: Path, number: int) -> Completion:
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise self._broken(path, f"line {number} is no JSON") from None
        entry = {"answer": value} if isinstance(value, str) else value
        if not isinstance(entry, dict) or "answer" not in entry or entry.keys() - {"answer", "finished"}:
            raise self._broken(path, f"line {number} is neither a text nor a mapping with `answer`")
        text, finished = entry["answer"], entry.get("finished", True)
        if not (text is None or isinstance(text, str)) or not isinstance(finished, bool):
            raise self._broken(path, f"line {number}: `answer` is a text or null, `finished` is true or false")
        return Completion(text or "", finished, refused=text is None)

    def _broken(self, path: Path, reason: str) -> ExtensionError:
        return ExtensionError("E418", name=self.name, path=path, reason=reason)
