"""What a train stage leaves beside its model, so that a later stage uses the model as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence

from fate_llm_ext.errors import ExtensionError


class Difference(NamedTuple):
    """A parameter, what a model was trained with, and what it is to be used with."""

    parameter: str
    trained: Any
    asked: Any


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the parameters, by name."""
    path.write_text(json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def difference(
    path: Path, asked: Mapping[str, Any], unreadable: Callable[[str], ExtensionError], order: Sequence[str] = ()
) -> Optional[Difference]:
    """The first parameter in which a model differs from what is asked, if there is one.

    Args:
        path: of the file that :func:`write_facts` has written.
        unreadable: makes the error of a file that is not there or cannot be read, from the reason.
        order: parameters to look at first; the others as they come.

    Raises:
        ExtensionError: that of ``unreadable``.
    """
    try:
        trained: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise unreadable(f"it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise unreadable(f"{path.name}: {type(error).__name__}") from None
    if not isinstance(trained, dict):
        raise unreadable(f"{path.name} holds no mapping")
    names = [*(name for name in order if name in asked), *(name for name in asked if name not in order)]
    return next(
        (Difference(name, trained.get(name), asked[name]) for name in names if trained.get(name) != asked[name]), None
    )
