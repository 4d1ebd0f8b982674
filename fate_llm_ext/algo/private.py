"""A task's private table, what the task releases about it, and the way into its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from fate_llm_ext.privacy.events import DataSet, Release, fingerprint_records
from fate_llm_ext.privacy.report import TrainingFacts


@dataclass(frozen=True)
class Planned:
    """What a task would release at one owner, before anything runs.

    Attributes:
        release: as the task charges it.
        delta: δ of the job; None where nothing is differentially private.
        accountant: who composes.
        training: parameters of DP-SGD, if it runs.
    """

    release: Release
    delta: Optional[float] = None
    accountant: str = "prv"
    training: Optional[TrainingFacts] = None


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
