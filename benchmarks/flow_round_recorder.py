"""What a process of a task used: the sitecustomize.py of the benchmark's provider, so it runs first in each of them.

When the process started and ended, its CPU, when the functions in ``WATCHED`` began and returned: one JSON file for
each process, in the folder ``records`` beside this file.
"""

from __future__ import annotations

import atexit
import importlib.abc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
BEGAN = time.time()
JOB = (
    " ".join(sys.orig_argv) + os.environ.get("FATE_TASK_CONFIG", "")[:100_000]
)  # FATE Flow's worker drops the variable
WATCHED = {
    "fate.components.core.component_desc._component": {"Component.execute": "component"},
    "fate.arch.federation.api._federation": {"Federation.push_bytes": "put", "Federation.pull_bytes": "get"},
    "fate_llm_ext.federation.channel": {"Channel.__init__": "open", "Channel.close": "goodbye"},
}
spans: list[tuple[str, float, float, str]] = []


def watched(label: str, function: Any) -> Any:
    """The function, noting when it ran; of messages also their name."""

    def noted(self: Any, *given: Any, **named: Any) -> Any:
        start = time.time()
        try:
            return function(self, *given, **named)
        finally:
            spans.append((label, start, time.time(), str(named.get("name", ""))))

    return noted


class Finder(importlib.abc.MetaPathFinder):
    """Puts the watch around the functions once their module is there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Of a watched module, as the other finders see it."""
        functions = WATCHED.pop(name, None)
        if functions is None:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(found for found in specs if found is not None)
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            for place, label in functions.items():
                owner, function = place.split(".")
                kind = getattr(module, owner)
                setattr(kind, function, watched(label, getattr(kind, function)))

        spec.loader.exec_module = exec_module
        return spec


def record() -> None:
    """Write what was seen."""
    times = os.times()
    arguments = sys.orig_argv[1:]
    seen = {
        "program": Path(arguments[0]).stem if arguments else "",
        "command": arguments[2] if len(arguments) > 2 else "",
        "began": BEGAN,
        "ended": time.time(),
        "cpu": times.user + times.system,
        "ours": "fate_llm_ext" in sys.modules,
        "spans": spans,
        "job": JOB,
    }
    if seen["program"].endswith("executor"):
        RECORDS.mkdir(exist_ok=True)
        (RECORDS / f"{os.getpid()}-{BEGAN}.json").write_text(json.dumps(seen), encoding="utf-8")


sys.meta_path.insert(0, Finder())
atexit.register(record)
