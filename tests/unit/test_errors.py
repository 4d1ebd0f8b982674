"""The catalogue and the code that raises from it belong together."""

from __future__ import annotations

import ast
import pickle
import re
import string
from pathlib import Path

import pytest

import fate_llm_ext
from fate_llm_ext.errors import CATALOGUE, ErrorKind, ExtensionError, Problem

PACKAGE = Path(fate_llm_ext.__file__).parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "errors.py"]
CODE = re.compile(r"E\d{3}")


def placeholders(kind: ErrorKind) -> set[str]:
    fields = (field for text in (kind.problem, kind.next_step) for _, field, _, _ in string.Formatter().parse(text))
    return {re.split(r"[.\[]", field)[0] for field in fields if field}


def mentioned_codes() -> dict[str, str]:
    """Every string constant of the package that looks like a code -> where it stands."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found[node.value] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return found


def raising_calls() -> list[tuple[str, str, set[str]]]:
    """(where, code, keywords) of each ExtensionError("Exxx", name=...) without ``**``."""
    calls = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ExtensionError" and node.args):
                continue
            code, keywords = node.args[0], {keyword.arg for keyword in node.keywords}
            if isinstance(code, ast.Constant) and None not in keywords:
                calls.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", code.value, keywords))
    return calls


def test_every_code_in_the_package_is_in_the_catalogue() -> None:
    unknown = {code: where for code, where in mentioned_codes().items() if code not in CATALOGUE}
    assert not unknown


def test_every_entry_of_the_catalogue_is_raised() -> None:
    unused = sorted(set(CATALOGUE) - set(mentioned_codes()))
    assert not unused, f"nothing raises {unused}: remove them or raise them"


def test_every_raise_gives_the_facts_of_its_entry() -> None:
    calls = raising_calls()
    assert calls
    missing = {
        f"{where} {code}": sorted(placeholders(CATALOGUE[code]) - keywords)
        for where, code, keywords in calls
        if code in CATALOGUE and placeholders(CATALOGUE[code]) - keywords
    }
    assert not missing


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_entry_is_well_formed(code: str) -> None:
    kind = CATALOGUE[code]
    assert CODE.fullmatch(code)
    assert code[1] in "12345678"
    assert kind.problem.strip() == kind.problem != ""
    assert kind.next_step.strip() == kind.next_step != ""
    assert "\n" not in kind.problem + kind.next_step


def test_message_is_code_problem_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "E999", ErrorKind("got {got}, expected {expected}.", "give {expected}."))
    error = ExtensionError("E999", got=3, expected=4)
    assert str(error) == "E999 got 3, expected 4. Next: give 4."
    assert str(Problem("a.b", error)) == "a.b: E999 got 3, expected 4. Next: give 4."


def test_error_survives_pickling() -> None:
    code = sorted(CATALOGUE)[0]
    error = ExtensionError(code, **dict.fromkeys(placeholders(CATALOGUE[code]), "x"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.facts, str(again)) == (error.code, error.facts, str(error))
