"""A task's private table, and the way into its ledger: before anything computed from it leaves the party."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from fate_llm_ext.privacy.events import DataSet, fingerprint_records


def data_set(reader: Any, rows: Sequence[Mapping[str, Any]]) -> DataSet:
    """The private table as the ledger knows it.

    Args:
        reader: FATE's reader of the data input; it knows namespace and name.
        rows: all of its records, columns as in the file.
    """
    metadata = reader.artifact.metadata
    folder = Path(reader.get_directory()).name
    table = f"{metadata.namespace or 'unnamed'}/{metadata.name or folder}"
    return DataSet(table, fingerprint_records(rows), len(rows))


def job_id(ctx: Any) -> str:
    """What the ledger calls the job: FATE's federation id of this task, the same at every party."""
    return str(ctx.federation.session_id)
