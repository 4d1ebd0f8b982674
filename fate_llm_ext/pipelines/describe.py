"""A component's parameters and artifacts as rows of text (`desc`, documentation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Tuple

_LIMITS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


@dataclass(frozen=True)
class ParameterRow:
    """One parameter or one field of a group (dotted name)."""

    name: str
    type: str
    default: str
    range: str
    help: str


def title(whole: Any) -> str:
    """Name, roles, stages and description of a component."""
    stages = ", ".join(one.name for one in whole.stage_components) or "default"
    roles = ", ".join(role.name for role in whole.roles)
    return f"{whole.name} {whole.version} (stages: {stages}; roles: {roles})\n{whole.description}\n"


def parameter_rows(whole: Any) -> List[ParameterRow]:
    """All parameters of all stages, each group followed by its fields."""
    mapping: Dict[str, Any] = dict(whole.parameters.mapping)
    for stage in whole.stage_components:
        for name, one in stage.parameters.mapping.items():
            mapping.setdefault(name, one)
    rows: List[ParameterRow] = []
    for name, one in mapping.items():
        fields = getattr(one.type, "__fields__", None)
        default = "required" if not one.optional else _text(None if one.default is ... else one.default)
        if fields:
            rows.append(ParameterRow(name, "group", "required" if not one.optional else "", "", one.desc))
            rows += list(_fields(name, one.type))
        else:
            rows.append(ParameterRow(name, _type(one.type), default, _range(one.type), one.desc))
    return rows


def artifact_rows(whole: Any) -> List[Tuple[str, str, str, str, str]]:
    """Name, type, stages, roles and help of each input and output."""
    rows: List[Tuple[str, str, str, str, str]] = []
    for part in whole.stage_components or [whole]:
        stage = part.name if whole.stage_components else "default"
        for direction in ("inputs", "outputs"):
            for kind in ("data", "model"):
                for name, one in getattr(part.artifacts, f"{kind}_{direction}").items():
                    types = " or ".join(sorted(type_.get_type().type_name for type_ in one.types))
                    need = "" if direction == "outputs" or one.optional else ", required"
                    roles = ", ".join(role.name for role in one.roles)
                    rows.append((f"{direction[:-1]} {name}", types + need, stage, roles, one.desc or ""))
    return rows


def _fields(prefix: str, model: Any) -> Iterator[ParameterRow]:
    for field in model.__fields__.values():
        default = "required" if field.required else _text(field.get_default())
        info = field.field_info
        limits = [f"{sign} {getattr(info, key)}" for key, sign in _LIMITS if getattr(info, key, None) is not None]
        kind = _type(field.outer_type_)
        yield ParameterRow(f"{prefix}.{field.name}", kind, default, ", ".join(limits), info.description or "")


def _range(kind: Any) -> str:
    limits = ((sign, getattr(kind, key, None)) for key, sign in _LIMITS)
    return ", ".join(f"{sign} {value}" for sign, value in limits if value is not None)


def _type(kind: Any) -> str:
    """A type as an author of YAML thinks of it; constrained types by their base."""
    if hasattr(kind, "item_type"):  # a list with limits on its length
        return f"List[{_type(kind.item_type)}]"
    if isinstance(kind, type) and not getattr(kind, "__args__", None):
        base = next((one for one in (bool, int, float, str) if issubclass(kind, one)), kind)
        return str(getattr(base, "__name__", base))
    text = str(kind).replace("typing.", "").replace("typing_extensions.", "")
    if "Literal[" in text:
        inner = text[text.index("Literal[") + 8 : text.rindex("]")].rstrip("]").replace("'", "")
        return f"list of: {inner}" if text.startswith("List") else inner.replace(", ", " | ")
    return text


def _text(value: Any) -> str:
    return "" if value is None or value in ({}, []) else str(value)
