"""The parties of DP-KD, and the arithmetic of who does what."""

from __future__ import annotations

from typing import List

import numpy as np

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records, read_records
from fate_llm_ext.algo.dpkd.checks import looked_up
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.party import Party
from fate_llm_ext.config import ModelConfig, Weights

DPKDParty = Party[DPKDConfig]


def load(which: str, party: DPKDParty) -> Model:
    """The ``teacher`` or ``student`` of a party's site.

    Raises:
        ExtensionError: E110 and E111 for the site file, E402 to E408 as
            :func:`~fate_llm_ext.models.loading.load_base`.
    """
    config = party.config
    settings: ModelConfig = getattr(config, which)
    weights: Weights = getattr(config, f"{which}_weights")
    return Model(
        party.site.lookup("models", settings.name),
        settings,
        weights,
        config.lora,
        config.control,
        config.seed,
        party.device,
        party.channel.heartbeat,
    )


def public_test(party: DPKDParty) -> Records:
    """The test split of the public set; none if the job names no public set or the party judges nothing."""
    config = party.config
    if config.public is None or "public" not in looked_up(config, party.role):
        return Records(np.zeros(0, dtype=np.int32), [])
    return read_records(party.site.lookup("public", config.public.name), "test", config.control)


def split_steps(steps: int, rounds: int) -> List[int]:
    """Steps of each round, as even as can be; they sum to ``steps``."""
    edges = [steps * round // rounds for round in range(rounds + 1)]
    return [last - first for first, last in zip(edges, edges[1:])]


def split_counts(counts: np.ndarray, owners: int, rank: int) -> np.ndarray:
    """How many texts of each code an owner samples (int64 [C]); over all ranks they sum to ``counts``.

    What cannot be divided goes to one owner after the other, so that all have the same work but one text.
    """
    before = np.cumsum(counts) - counts
    first = before // owners + (before % owners > rank)
    last = (before + counts) // owners + ((before + counts) % owners > rank)
    return np.asarray(last - first, dtype=np.int64)
