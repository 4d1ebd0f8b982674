"""What must hold whatever the numbers are: FedMKT of real learners in one process, over queues."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fate_llm_ext.algo.fedmkt.arms import main_arm, paper_arm
from fate_llm_ext.algo.fedmkt.client import Client
from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.algo.fedmkt.learner import Learner
from fate_llm_ext.algo.fedmkt.protocol import Request
from fate_llm_ext.algo.fedmkt.public import load_public
from fate_llm_ext.algo.fedmkt.server import Server
from fate_llm_ext.algo.fedmkt.teaching import Translator
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.templates import get_template
from fate_llm_ext.federation.codec import decode, encode
from fate_llm_ext.models.lora import adapter_state
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

State = dict[str, torch.Tensor]
PARTIES = {"arbiter": "llama", "guest 1": "gpt2", "host 2": "opt", "host 3": "gpt2"}
SEED = 5


def configuration(**changes: Any) -> FedMKTConfig:
    settings: dict[str, Any] = {
        "rounds": 2,
        "seed": SEED,
        "task": {"template": "tickets", "max_length": 128},
        "public": {"name": "p"},
        "model": {"name": "m"},
        "lora": {"r": 2, "alpha": 8, "dropout": 0.1},
        "train": {"learning_rate": 1e-2, "batch_size": 8},
        "distill": {"supervised_weight": 0.5, "top_k": 8, "margin": 0.0, "calibration_share": 0.4},
        "evaluation": {"each_round": False},
    }
    return FedMKTConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights, each with a tokenizer of its own, and a public set of 12 + 8 rows."""
    root = tmp_path_factory.mktemp("world")
    rows = generate_tickets(200, seed=1)
    for number, (party, arch) in enumerate(PARTIES.items()):
        kind = "sentencepiece_bpe" if arch == "llama" else "byte_bpe"
        tokenizer = train_tokenizer([row["text"] for row in rows], 400 + 20 * number, kind)
        config = TinyConfig(arch=arch, hidden=16, layers=1, context=160, steps=1, seed=number)
        build_model(config, tokenizer).save_pretrained(root / party)
        tokenizer.save_pretrained(root / party)
    public = [*rows[:12], *({"text": row["text"]} for row in rows[12:20])]
    (root / "public.jsonl").write_text("".join(json.dumps(row) + "\n" for row in public))
    return root


class Baton:
    """One party at a time: training draws from torch's global random state."""

    lock = threading.Lock()


class QueueChannel:
    """The channel's face, over queues; every message is encoded and decoded."""

    def __init__(self, name: str, peers: list[str], boxes: dict[tuple[str, str], queue.Queue[bytes]]) -> None:
        self.name = name
        self.peers = [SimpleNamespace(name=peer) for peer in peers]
        self.boxes = boxes
        self.bytes_sent = self.bytes_received = 0
        self.requests: list[list[int]] = []

    def send(self, peer: Any, message: Any, round: int) -> None:
        if isinstance(message, Request):
            self.requests.append([round, peer.name, *message.rows.tolist()])
        self.boxes[self.name, peer.name].put(encode(message))

    def receive(self, peer: Any, expected: Any, round: int) -> Any:
        Baton.lock.release()
        try:
            blob = self.boxes[peer.name, self.name].get(timeout=120)
        finally:
            Baton.lock.acquire()
        return decode(blob, expected, peer.name)

    def receive_all(self, expected: Any, round: int) -> list[Any]:
        return [self.receive(peer, expected, round) for peer in self.peers]


def quiet() -> Any:
    return SimpleNamespace(log=lambda *a: None, results=lambda *a: None)


def make_learner(world: Path, party: str, config: FedMKTConfig) -> Learner:
    public, _ = load_public(world / "public.jsonl", config)
    return Learner(world / party, config, torch.device("cpu"), public, [], lambda doing: None)


def private_items(learner: Learner, party: str) -> Any:
    rows = generate_tickets(16, seed=100 + sorted(PARTIES).index(party))
    return learner.gold_items(list(get_template(learner.config.task).examples(rows)))


def federate(
    world: Path, clients: list[str], arm: Callable[..., Any] = main_arm, **changes: Any
) -> tuple[dict[str, State], Any]:
    """All adapters after FedMKT, and the arbiter's requests."""
    config = configuration(**changes)
    boxes = {pair: queue.Queue() for c in clients for pair in (("arbiter", c), (c, "arbiter"))}
    learners = {party: make_learner(world, party, config) for party in ["arbiter", *clients]}
    channels = {party: QueueChannel(party, ["arbiter"] if party != "arbiter" else clients, boxes) for party in learners}
    hub, failures = learners["arbiter"], []

    def party_loop(party: str) -> None:
        learner, channel = learners[party], channels[party]
        with Baton.lock:
            try:
                rows = arm(learner.public)
                if party == "arbiter":
                    translators = {c: Translator(hub, learners[c].answerer.vocabulary, c) for c in clients}
                    Server(rows, hub, channel, translators, quiet()).run()  # type: ignore[arg-type]
                else:
                    translator = Translator(learner, hub.answerer.vocabulary, "arbiter")
                    Client(rows, learner, private_items(learner, party), channel, translator, quiet()).run()  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

    threads = [threading.Thread(target=party_loop, args=(party,), daemon=True) for party in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads)
    return {party: adapter_state(learner.model) for party, learner in learners.items()}, channels["arbiter"].requests


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CLIENTS = [party for party in PARTIES if party != "arbiter"]


ARMS: dict[str, Callable[..., Any]] = {"paper": paper_arm, "fedmkt": main_arm}
Once = tuple[dict[str, State], Any, Callable[..., Any]]


@pytest.fixture(scope="module", params=list(ARMS))
def once(world: Path, request: pytest.FixtureRequest) -> Once:
    return (*federate(world, CLIENTS, ARMS[request.param]), ARMS[request.param])


def test_something_was_learned_and_taught(world: Path, once: Once) -> None:
    """Otherwise the equalities below say nothing."""
    adapters, requests, arm = once
    for party, state in adapters.items():
        assert not same(state, adapter_state(make_learner(world, party, configuration()).model)), party
    if arm is paper_arm:  # whether random models differ in held-out skill is a matter of luck
        assert any(len(request) > 2 for request in requests), "no client taught anything"


def test_same_seed_same_adapters_bit_for_bit(world: Path, once: Once) -> None:
    adapters, requests = federate(world, CLIENTS, once[2])
    assert requests == once[1]
    for party, state in adapters.items():
        assert same(state, once[0][party]), party


def test_another_seed_gives_other_adapters(world: Path, once: Once) -> None:
    adapters, _ = federate(world, CLIENTS, once[2], seed=SEED + 1, rounds=1)
    assert not any(same(state, once[0][party]) for party, state in adapters.items())


def test_the_order_of_the_parties_does_not_matter(world: Path) -> None:
    """By the paper's yardstick, where losses are real numbers; ties are settled by the channel's fixed order."""
    first, requests = federate(world, CLIENTS, paper_arm, rounds=1)
    second, others = federate(world, CLIENTS[::-1], paper_arm, rounds=1)
    assert sorted(requests) == sorted(others)
    assert sum(len(request) > 2 for request in requests) >= 2, "at least two clients teach"
    for party, state in first.items():
        assert same(state, second[party]), party


def test_a_phase_of_a_single_step_trains(world: Path) -> None:
    """Its rate must not be that of a warm-up's first step, 0."""
    learner = make_learner(world, "guest 1", configuration())
    before = adapter_state(learner.model)
    learner.train(private_items(learner, "guest 1")[:8], 1, "training", SEED)
    assert not same(before, adapter_state(learner.model))


def test_weight_one_and_no_teacher_is_plain_training(world: Path) -> None:
    """λ = 1: the paper's labelled rows carry gold terms only, whoever teaches."""
    for taught in ("mutual", "llm_to_slm"):
        adapters, _ = federate(
            world, ["guest 1"], paper_arm, direction=taught, rounds=1, distill={"supervised_weight": 1.0, "top_k": 8}
        )
        for party in ("arbiter", "guest 1"):
            assert same(adapters[party], plain(world, party, distill={"supervised_weight": 1.0})), (party, taught)


def test_weight_below_one_with_a_teacher_is_not_plain_training(world: Path) -> None:
    settings = {"supervised_weight": 0.5, "top_k": 8}
    adapters, requests = federate(world, ["guest 1"], paper_arm, rounds=1, distill=settings)
    assert len(requests[0]) > 2
    assert not same(adapters["arbiter"], plain(world, "arbiter", distill=settings))


def plain(world: Path, party: str, **changes: Any) -> State:
    """Private epoch, then public gold epoch, with the seeds of the phases, without any federation."""
    from fate_llm_ext.algo.fedmkt.arms import phase_seed

    learner = make_learner(world, party, configuration(rounds=1, **changes))
    learner.reset()
    if party != "arbiter":
        learner.train(private_items(learner, party), 1, "private", phase_seed(SEED, 0, 0))
    gold = learner.public_items(np.arange(len(learner.public.labelled)), {})
    learner.train(gold, 1, "public", phase_seed(SEED, 0, 1))
    return adapter_state(learner.model)


def test_a_teacher_that_agrees_with_the_gold_answer_is_a_heavier_gold_answer(world: Path) -> None:
    """All of the teacher's mass on the gold token: λ CE + (1 - λ) CE = CE, to rounding."""
    from fate_llm_ext.data.collate import Item, TeacherTargets

    states = []
    for weight, certain in itertools.product((1.0, 0.3), (True,)):
        learner = make_learner(world, "guest 1", configuration(lora={"r": 2, "alpha": 8, "dropout": 0.0}))
        items = []
        for one in private_items(learner, "guest 1"):
            slots = np.arange(len(one.answer), dtype=np.int32)
            targets = TeacherTargets(slots, one.ids[one.answer][:, None], np.zeros((len(slots), 1), np.float32))
            teacher = targets if certain and weight < 1 else None
            items.append(Item(one.ids, one.answer, weight, teacher, 1.0 - weight))
        loss = learner.train(items, 1, "training", SEED)
        states.append((loss, adapter_state(learner.model)))
    (loss, state), (other_loss, other) = states
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
