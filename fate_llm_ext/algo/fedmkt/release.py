"""What a client of FedMKT releases about its private table: without noise, so ε = ∞."""

from __future__ import annotations

from typing import Sequence

from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.private import Planned
from fate_llm_ext.privacy.events import DataSet, NonPrivate, Release
from fate_llm_ext.privacy.report import Artefact

WHAT = (
    "on the public set, each round: likelihoods, predicted answers (generated text where there are no choices) and "
    "top-k log-probabilities of a model trained on the table"
)

CLIENT_ADAPTER = Artefact("adapter", False, "ε = ∞, trained on the private records and on the LLM's messages")
ARBITER_ADAPTER = Artefact(
    "adapter",
    False,
    "ε = ∞, trained on the clients' messages, which are not differentially private, and on public rows",
)
POOLED = Artefact(
    "comparison `centralized`",
    False,
    "ε = ∞, trained on the clients' rows pooled for a trial; only its metrics are kept",
)


def release(job: str, recipients: Sequence[str]) -> Release:
    """All `scores` and `signals` of a job as one release.

    Args:
        job: the job's id.
        recipients: the arbiter; what it computes from them goes on to every other client.
    """
    return Release("fedmkt", job, WHAT, tuple(recipients), (NonPrivate(),))


def plan(config: FedMKTConfig, data: DataSet, job: str, others: Sequence[str]) -> Planned:
    """What the train stage would release; ``others`` are all other parties of the task."""
    return Planned(release(job, [party for party in others if party.startswith("arbiter")]))
