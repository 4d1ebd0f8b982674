"""What every part of a party's task needs: job, site, the others, and how it tells them and the user what it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Generic, Optional, Sequence, Tuple, TypeVar, cast

import numpy as np
import torch

from fate_llm_ext.algo import private
from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.algo.private import Planned
from fate_llm_ext.algo.session import untold
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.formats import Row
from fate_llm_ext.federation.aggregation import SecureMean
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.models.loading import resolve_device
from fate_llm_ext.privacy.dp_training import DPPlan
from fate_llm_ext.privacy.events import DataSet
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


@dataclass(frozen=True)
class PrivateTable:
    """A data owner's table, read once, and what the task would release about it.

    Attributes:
        folder: of the data input.
        rows: of its train split, columns as in the file.
        planned: the release; its ledger would not refuse it.
        plan: of the noisy training in it.
    """

    folder: Path
    rows: Sequence[Row]
    data: DataSet
    planned: Planned
    plan: DPPlan


def private_table(party: Party[C], train_data: Any, plan: Callable[..., Planned]) -> PrivateTable:
    """Read a party's table, plan the release and ask the ledger; nothing is written.

    What the ledger would refuse ends here: before the templates, which the job chooses, are applied to rows, and
    before other owners have charged theirs.

    Args:
        train_data: FATE's reader of the table.
        plan: (config, data set, job, other parties) -> what would be released, by DP training and more.

    Raises:
        ExtensionError: the table cannot be read, the plan cannot be made, the site does not allow it.
    """
    folder = Path(train_data.get_directory())
    party.phase("", "reading the data")
    with untold():
        rows = read_rows(folder, "train")
        data = private.data_set(train_data, rows)
    party.phase("", "asking the ledger")
    planned = plan(party.config, data, party.job, party.others)
    private.refuse_early(party.site, data, planned)
    return PrivateTable(folder, rows, data, planned, cast(DPPlan, planned.training))


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
