"""Which site does not take a job, and why, out of what FATE Flow's scheduler answers."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from fate_llm_ext.errors import ExtensionError

# The scheduler prints its answers by party: 'host': {'10000': {'code': 0, 'message': 'success'}}. A role's answers
# begin with its name, a site's with its id.
_ANSWER = re.compile(
    r"'(?P<role>guest|host|arbiter|local)': \{|"
    r"'(?P<id>[\w.-]+)': \{'code': (?P<code>\d+), 'message': (?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
)
_MOST_OF_A_REASON = 300


def refusals(message: str) -> List[Tuple[str, str]]:
    """(party, reason) for each site that answered with an error."""
    found, role = [], ""
    for match in _ANSWER.finditer(message):
        role = match["role"] or role
        if match["id"] and int(match["code"]):
            found.append((f"{role} {match['id']}", _words(match["text"][1:-1])))
    return found


def refused(error: ExtensionError) -> Optional[ExtensionError]:
    """E839 that names the sites, for an E806 of the scheduler; None for anything else."""
    found = refusals(str(error.facts.get("whole", ""))) if error.code == "E806" else []
    if not found:
        return None
    told = "; ".join(f"{party}: {reason}" for party, reason in found)
    return ExtensionError("E839", address=error.facts["address"], count=len(found), refusals=told)


def _words(text: str) -> str:
    text = " ".join(text.replace("\\n", " ").split())
    text = re.sub(r"^Create job failed: detail\[(.*)\]$", r"\1", text)
    if re.search(r"50[234] Server Error|Connection refused|timed out|Max retries", text):
        text = f"its FATE Flow cannot be reached ({text})"
    return text[:_MOST_OF_A_REASON]
