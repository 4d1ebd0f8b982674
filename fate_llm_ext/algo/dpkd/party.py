"""What every part of a party's DP-KD task needs: job, site, the others, and the arithmetic of who does what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple

import numpy as np
import torch

from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.algo.dpkd.checks import looked_up
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.text import Records, read_records
from fate_llm_ext.federation.aggregation import SecureMean
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Site


@dataclass(frozen=True)
class Party:
    """One party of the task.

    Attributes:
        role: guest, host or arbiter.
        name: e.g. ``guest 9999``.
        others: names of all other parties.
        owners: number of data owners.
        job: what the ledger calls the job.
    """

    ctx: Any
    config: DPKDConfig
    site: Site
    channel: Channel
    metrics: Metrics
    device: torch.device
    role: str
    name: str
    others: Tuple[str, ...]
    owners: int
    job: str

    def saying(self, doing: str) -> Callable[[str], None]:
        """A heartbeat that tells the others ``doing`` and nothing else.

        What a step would say of itself stays here: how many records it has sampled is secret.
        """
        return lambda _: self.channel.heartbeat(doing)

    def phase(self, arm: str, name: str, round: int = 0) -> None:
        """Say which phase begins."""
        emit("phase", arm=arm, round=round, phase=name)
        self.channel.heartbeat(name)

    def log_loss(self, arm: str, loss: float, round: int = 0) -> None:
        """The loss of noisy training, for this party's eyes; it is no number if no record was sampled."""
        if math.isfinite(loss):
            self.metrics.log(arm, round, "private_loss", loss)

    def log_traffic(self, mean: Optional[SecureMean]) -> None:
        """Bytes of all messages of the task, those of the secure aggregation included."""
        sent, received = self.channel.bytes_sent, self.channel.bytes_received
        if mean is not None:
            sent, received = sent + mean.bytes_sent, received + mean.bytes_received
        self.metrics.log("dp_kd", 0, "bytes_sent", sent)
        self.metrics.log("dp_kd", 0, "bytes_received", received)

    def test(self) -> Records:
        """The test split of the public set; none if the job names no public set or the party judges nothing."""
        config = self.config
        if config.public is None or "public" not in looked_up(config, self.role):
            return Records(np.zeros(0, dtype=np.int32), [])
        return read_records(self.site.lookup("public", config.public.name), "test", config.control)


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


def derived_seed(seed: int, *salt: int) -> int:
    """A seed for one use of many; equal across arms, so that these differ in what they compare only."""
    return int(np.random.SeedSequence([seed, *salt]).generate_state(1)[0] % (1 << 31))
