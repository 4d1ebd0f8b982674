"""What every part of a party's task needs: job, site, the others, and how it tells them and the user what it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Generic, Optional, Tuple, TypeVar

import numpy as np
import torch

from fate_llm_ext.algo import private
from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.federation.aggregation import SecureMean
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.models.loading import resolve_device
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Site, current_site

C = TypeVar("C")


@dataclass(frozen=True)
class Party(Generic[C]):
    """One party of the task.

    Attributes:
        role: guest, host or arbiter.
        name: e.g. ``guest 9999``.
        others: names of all other parties.
        owners: number of data owners.
        job: what the ledger calls the job.
    """

    ctx: Any
    config: C
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

    def log_traffic(self, arm: str, mean: Optional[SecureMean] = None) -> None:
        """Bytes of all messages of the task, those of the secure aggregation included."""
        sent, received = self.channel.bytes_sent, self.channel.bytes_received
        if mean is not None:
            sent, received = sent + mean.bytes_sent, received + mean.bytes_received
        self.metrics.log(arm, 0, "bytes_sent", sent)
        self.metrics.log(arm, 0, "bytes_received", received)


def this_party(ctx: Any, config: C, role: str, channel: Channel) -> Party[C]:
    """The party that runs in this process, with its site.

    Raises:
        ExtensionError: E112 to E114 for the site file, E401 for its device.
    """
    site = current_site(role, ctx.federation.local_party[1])
    everyone = [f"{one} {party_id}" for one, party_id in ctx.federation.parties]
    return Party(
        ctx=ctx,
        config=config,
        site=site,
        channel=channel,
        metrics=Metrics(ctx),
        device=resolve_device(site.device),
        role=role,
        name=channel.local,
        others=tuple(name for name in everyone if name != channel.local),
        owners=sum(not name.startswith("arbiter") for name in everyone),
        job=private.job_id(ctx),
    )


def derived_seed(seed: int, *salt: int) -> int:
    """A seed for one use of many; equal across arms, so that these differ in what they compare only."""
    return int(np.random.SeedSequence([seed, *salt]).generate_state(1)[0] % (1 << 31))
