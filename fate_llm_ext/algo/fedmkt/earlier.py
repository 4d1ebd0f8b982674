"""The warm start: a party goes on from the adapter of an earlier FedMKT job of its own.

Everything of the task starts there, the comparisons too: `zero_shot` is the earlier adapter as it came, and
`standalone` what it would become without the others.

An adapter tells about the table it was trained on, and what is released now is computed by it. That is covered where
an earlier FedMKT has made it, because the ledger of that table says ε = ∞ since then; an adapter that never was in a
federation would take its table past its ledger. Hence the look at who has made it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Tuple

from fate_llm_ext.errors import ExtensionError

STATEMENT = "privacy.json"  # as fate_llm_ext.privacy.report writes it beside each model


@dataclass(frozen=True)
class Earlier:
    """An adapter to go on from.

    Attributes:
        folder: model directory of the earlier job.
        notes: what the privacy statement has to say about it.
    """

    folder: Path
    notes: Tuple[str, ...]


def read_earlier(reader: Any, party: str) -> Optional[Earlier]:
    """What the input `warm_start_model` holds; None without one.

    Args:
        reader: FATE's reader of the model directory.
        party: this party, e.g. ``guest 9999``.

    Raises:
        ExtensionError: E851 if it is no model directory that FedMKT has made at this party.
    """
    if reader is None:
        return None
    folder = Path(reader.get_directory())
    statement = _statement(folder, party)
    maker, algorithm = statement.get("party"), statement.get("algorithm")
    if algorithm != "fedmkt" or maker != party:
        raise ExtensionError("E851", party=party, reason=f"it was made by {algorithm} at {maker}")
    data = statement.get("data")
    if data is None:
        note = "It continues from the adapter of an earlier job."
    else:
        note = (
            f"It continues from an adapter that an earlier job has trained on {data['table']} ({data['records']} "
            "records): what leaves now derives from that table too, for which ε = ∞ since that job."
        )
    before = [text for text in statement.get("notes", ()) if text != note]
    return Earlier(folder, (note, *before))


def _statement(folder: Path, party: str) -> Any:
    try:
        found = json.loads((folder / STATEMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExtensionError("E851", party=party, reason=f"it has no readable {STATEMENT}") from error
    if not isinstance(found, dict):
        raise ExtensionError("E851", party=party, reason=f"its {STATEMENT} is no statement")
    return found
