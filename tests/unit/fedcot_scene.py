"""A client of FedCoT without a federation: real small models, a public set, records; the LLM is a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional

import torch

from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.algo.fedcot.strategies import FedCoTParty, PrivateRecords, Scene
from fate_llm_ext.algo.fedcot.student import RationaleModel
from fate_llm_ext.algo.party import Party
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model, train_lm
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.site import Site

CPU = torch.device("cpu")


class Metrics:
    """Keeps what a party measures."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def log(self, arm: str, round: int, name: str, value: float) -> None:
        self.logged[name] = value


class Silent:
    """A channel that carries nothing."""

    local = "guest 9999"

    def heartbeat(self, doing: str) -> None:
        pass


def small_model(folder: Path, rows: int = 300) -> Path:
    """A causal LM that has learned what tickets look like."""
    corpus = [row["text"] for row in generate_tickets(rows, seed=1)]
    tokenizer = train_tokenizer(corpus, 600)
    config = TinyConfig(hidden=32, layers=1, context=192, batch_tokens=1024, steps=40, seed=0)
    network = build_model(config, tokenizer)
    train_lm(network, tokenizer, corpus, config)
    save_model(network, tokenizer, folder, "card")
    return folder


def fedcot_party(config: FedCoTConfig, site: Site) -> FedCoTParty:
    return Party(
        ctx=None,
        config=config,
        site=site,
        channel=Silent(),  # type: ignore[arg-type]
        metrics=Metrics(),  # type: ignore[arg-type]
        device=CPU,
        role="guest",
        name="guest 9999",
        others=("arbiter 9998",),
        owners=1,
        job="job",
    )


def records(config: FedCoTConfig, rows: List[dict[str, Any]]) -> PrivateRecords:
    template, outgoing = get_template(config.task), Outgoing(config.task, config.question)
    return PrivateRecords(list(template.examples(rows)), [outgoing.pick(template.canonical(row)) for row in rows])


def scene(
    config: FedCoTConfig,
    site: Site,
    rows: List[dict[str, Any]],
    explained: Callable[[List[str]], List[Optional[str]]] = lambda texts: [None] * len(texts),
    generator: Optional[Path] = None,
) -> Scene:
    assert config.student is not None
    folder = site.lookup("models", config.student.name)
    return Scene(
        party=fedcot_party(config, site),
        outgoing=Outgoing(config.task, config.question),
        records=records(config, rows),
        student=RationaleModel(folder, config.student, config, CPU),
        prompts=Prompts(config.rationale, config.decoding),
        explained=explained,
        generator=generator,
    )
