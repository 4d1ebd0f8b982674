"""What the `fedmkt` component runs: one party's whole task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from fate_llm_ext import __version__
from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.algo.fedmkt.alone import Alone
from fate_llm_ext.algo.fedmkt.arms import main_arm, paper_arm
from fate_llm_ext.algo.fedmkt.client import Client
from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.fedmkt.earlier import Earlier, read_earlier
from fate_llm_ext.algo.fedmkt.handshake import greet, welcome
from fate_llm_ext.algo.fedmkt.learner import Learner
from fate_llm_ext.algo.fedmkt.public import labelled, load_labelled, load_public, load_test
from fate_llm_ext.algo.fedmkt.release import ARBITER_ADAPTER, CLIENT_ADAPTER, POOLED, release
from fate_llm_ext.algo.fedmkt.server import Server
from fate_llm_ext.algo.fedmkt.teaching import Translator
from fate_llm_ext.algo.private import Planned, charge, data_set, job_id, refuse_early, statement
from fate_llm_ext.algo.session import federated_task, untold
from fate_llm_ext.data.datasets import read_rows
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.models.loading import resolve_device
from fate_llm_ext.privacy import report
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Site, current_site


def run_train(
    ctx: Any, role: Any, parameters: Dict[str, Any], train_data: Any, output_model: Any, warm_start_model: Any = None
) -> None:
    """The train stage of one party.

    Args:
        ctx: FATE's context.
        role: FATE's role.
        parameters: fields of :class:`FedMKTConfig` that the job gives.
        train_data: reader of the private table (guest and hosts).
        output_model: writer of the model directory.
        warm_start_model: reader of the model directory of an earlier job, to go on from; may be None.
    """
    config = FedMKTConfig(**parameters)
    with federated_task(ctx, config.network) as channel:
        emit("phase", arm="", round=0, phase="loading")
        channel.heartbeat("reading the data")
        site = current_site(role.name, ctx.federation.local_party[1])
        task = _Task(ctx, config, site, channel, read_earlier(warm_start_model, channel.local))
        if role.is_arbiter:
            task.arbiter()
        else:
            task.client(train_data)
        folder = Path(output_model.get_directory())
        task.learner.save(folder, _model_card(config, role.name, task.statement, task.notes))
        report.save(task.statement, folder)
        output_model.write_metadata({"algorithm": "fedmkt", "version": __version__, "base_model": config.model.name})


class _Task:
    """The steps of one party, in order: data, handshake, model, comparisons, FedMKT."""

    def __init__(
        self, ctx: Any, config: FedMKTConfig, site: Site, channel: Channel, earlier: Optional[Earlier] = None
    ) -> None:
        self.config = config
        self.channel = channel
        self.metrics = Metrics(ctx)
        self._job = job_id(ctx)
        self._site = site
        self._model_folder = site.lookup("models", config.model.name)
        self._device = resolve_device(site.device)
        self._public_path = site.lookup("public", config.public.name)
        self.public, self.fingerprint = load_public(self._public_path, config)
        self._earlier = earlier.folder if earlier else None
        self.notes = earlier.notes if earlier else ()
        self.learner: Learner
        self.statement: Dict[str, Any] = {}

    def client(self, train_data: Any) -> None:
        """A guest's or host's task."""
        config, channel = self.config, self.channel
        table = Path(train_data.get_directory())
        with untold():
            rows = read_rows(table, "train")
            data = data_set(train_data, rows)
        planned = Planned(release(self._job, [peer.name for peer in channel.peers]))
        refuse_early(self._site, data, planned)
        with untold():
            private = labelled(rows, config, table)
            if not private:
                raise ExtensionError("E332", table=table.name, rows=len(rows))
            test = load_test(table, self._public_path, config)
        self._load(test, lambda doing: channel.heartbeat(doing.partition(",")[0]))
        teacher = greet(channel, self.learner, self.fingerprint)
        # Nothing up to here derives from the private rows; the scores of the first round do.
        ledger = charge(self._site, data, planned)
        more = {"artefacts": [CLIENT_ADAPTER], "notes": self.notes}
        self._publish(statement(channel.local, data, planned, ledger, **more))
        channel.heartbeat("tokenising the private rows")
        with untold():
            items = self.learner.gold_items(private)
        gold = self.learner.public_items(np.arange(len(self.public.labelled)), {})
        for arm in config.compare:
            if arm in ("zero_shot", "standalone", "standalone_public"):
                phases = {"zero_shot": [], "standalone": [items], "standalone_public": [items, gold]}[arm]
                Alone(arm, phases, self.learner, self.metrics).run()
        translator = Translator(self.learner, teacher, channel.peers[0].name, channel.heartbeat)
        for rows_of_arm in self._federated_arms():
            Client(rows_of_arm, self.learner, items, channel, translator, self.metrics).run()

    def arbiter(self) -> None:
        """The arbiter's task."""
        config, channel = self.config, self.channel
        self._load(load_test(self._public_path, self._public_path, config), channel.heartbeat)
        vocabularies = welcome(channel, self.learner, self.fingerprint)
        artefacts = [ARBITER_ADAPTER, *([POOLED] if "centralized" in config.compare else [])]
        self._publish(report.statement(channel.local, "fedmkt", artefacts=artefacts, notes=self.notes))
        gold = self.learner.public_items(np.arange(len(self.public.labelled)), {})
        for arm in config.compare:
            if arm in ("zero_shot", "standalone_public"):
                phases = [] if arm == "zero_shot" else [[], gold]
                Alone(arm, phases, self.learner, self.metrics).run()
            elif arm == "centralized":
                phases = [self.learner.gold_items(self._pooled()), gold]
                Alone(arm, phases, self.learner, self.metrics).run()
        translators = {n: Translator(self.learner, v, n, channel.heartbeat) for n, v in vocabularies.items()}
        for rows_of_arm in self._federated_arms():
            Server(rows_of_arm, self.learner, channel, translators, self.metrics).run()

    def _publish(self, statement: Dict[str, Any]) -> None:
        self.statement = statement
        report.publish(statement)

    def _load(self, test: List[Example], heartbeat: Callable[[str], None]) -> None:
        places = self._model_folder, self.config, self._device
        self.learner = Learner(*places, self.public, test, heartbeat, self._earlier)

    def _federated_arms(self) -> list[Any]:
        # The method comes last: its model is the task's output.
        compared = [paper_arm(self.public)] if "paper" in self.config.compare and self.public.unlabelled else []
        return [*compared, main_arm(self.public)]

    def _pooled(self) -> List[Example]:
        return load_labelled(self._site.lookup("public", "centralized"), "train", self.config)


def _model_card(config: FedMKTConfig, role: str, statement: Dict[str, Any], notes: Sequence[str]) -> str:
    began = " It began with the adapter of an earlier job." if notes else ""
    return (
        "---\nlibrary_name: peft\ntags: [fedmkt, federated-learning, lora]\n---\n\n"
        f"# FedMKT adapter ({role})\n\n"
        f"LoRA adapter for the base model `{config.model.name}`, trained by fate-llm-ext {__version__} with FedMKT "
        f"(arXiv 2406.02224): {config.rounds} rounds, seed {config.seed}.{began}\n\n" + report.card(statement)
    )
