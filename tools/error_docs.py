"""Write the page of error codes from the catalogue: python tools/error_docs.py docs/errors.md."""

from __future__ import annotations

import sys
from pathlib import Path

from fate_llm_ext.errors import CATALOGUE

HEADINGS = {
    "E1": "Job, parameters and site files",
    "E2": "Data",
    "E3": "Federation and protocol",
    "E4": "Models and training",
    "E5": "Engine and environment",
    "E6": "Privacy",
    "E7": "Texts made by models (FDKT, FedCoT)",
    "E8": "FATE Flow: servers, providers, sites",
}


def page() -> str:
    """The whole page, as Markdown."""
    lines = [
        "# Error codes",
        "",
        "Codes are stable. Words in braces are filled in with the facts. This page is generated (`make docs`).",
    ]
    for prefix, heading in HEADINGS.items():
        codes = sorted(code for code in CATALOGUE if code.startswith(prefix))
        if codes:
            lines += ["", f"## {heading}", "", "| code | problem | next |", "|---|---|---|"]
        for code in codes:
            kind = CATALOGUE[code]
            lines.append(f"| {code} | {_cell(kind.problem)} | {_cell(kind.next_step)} |")
    return "\n".join(lines) + "\n"


def _cell(template: str) -> str:
    text = template.replace("|", "\\|").replace("<", "&lt;")
    return text.replace("{{", "\0").replace("}}", "\1").replace("\0", "{").replace("\1", "}")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
