"""Reading a YAML document: errors in one line, duplicate keys noticed (YAML readers keep the last one silently)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import yaml

from fate_llm_ext.errors import ExtensionError


def read_document(path: Path) -> Tuple[Dict[str, Any], List[Tuple[str, str]]]:
    """The mapping of a YAML file, and (dotted path, key) of each key given twice.

    Raises:
        ExtensionError: E100 if it cannot be read or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExtensionError("E100", path=path, reason=" ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        raise ExtensionError("E100", path=path, reason="it holds no mapping")
    twice: List[Tuple[str, str]] = []
    _find_duplicates(node, "", twice)
    return raw, twice


def parse_value(text: str) -> Any:
    """The value of a `path=value` option, read as YAML (``1e-4`` is a number, as FATE reads it)."""
    try:
        return float(text) if "e" in text.lower() and text[:1] in "+-.0123456789" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def _find_duplicates(node: Any, path: str, found: List[Tuple[str, str]]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            at = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                found.append((at[4:] if at.startswith("dag.") else at, str(key.value)))
            seen.add(key.value)
            _find_duplicates(value, at, found)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _find_duplicates(value, f"{path}.{index}", found)
