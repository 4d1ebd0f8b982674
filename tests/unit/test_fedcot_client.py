"""A FedCoT client and an arbiter without a federation: what is sent, and what comes of what comes back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fedcot_scene import CPU, Metrics, small_model

from fate_llm_ext.algo.fedcot.arbiter import Arbiter
from fate_llm_ext.algo.fedcot.client import Client
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.handshake import Agreed
from fate_llm_ext.algo.fedcot.protocol import Hello, Proxies, Questions, Rationales, Welcome
from fate_llm_ext.algo.messages import pack_texts
from fate_llm_ext.algo.party import Party
from fate_llm_ext.algo.session import UNTOLD_CAUSE, wire_cause
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Peer
from fate_llm_ext.federation.codec import decode, encode
from fate_llm_ext.models.engines.base import Completion, Engine
from fate_llm_ext.privacy.ledger import Ledger
from fate_llm_ext.progress import emit
from fate_llm_ext.site import load_sites

TASK = {"prompt": "{{ name }} on {{ day }}: {{ text }}", "answer": "{{ label }}", "choices": ["late", "broken", "lost"]}
LABELS = ("late", "broken", "lost")
CLEAR = {"strategy": "none"}
WORDS = {"strategy": "fixed_vocabulary", "epsilon": 6.0}
Answer = Callable[[str], str]
SILENT: dict[str, Any] = {"party": "guest 9999", "message": "m", "silence": 9, "limit": 8, "doing": "d"}
SILENT["setting"] = "silence_seconds"


def rows(count: int = 24) -> list[dict[str, str]]:
    """Sorted by label, with a name and a number in each, and a column that the task does not know."""
    texts = [row["text"] for row in generate_tickets(count, seed=3)]
    return [
        {
            "name": f"Zq{'bcdfghjklmnpqrstvwxz'[number % 20]}vx{number}",
            "day": f"{1 + number} May",
            "text": text,
            "label": LABELS[number * 3 // count],
            "account": f"acc-{number}",
        }
        for number, text in enumerate(texts)
    ]


class Wire:
    """The channel's verbs; what is sent is kept as bytes, and the LLM's answers come from a function."""

    def __init__(self, answer: Answer = lambda text: "It is so. So the answer is late.", local: str = "guest 9999"):
        self.local = local
        self.peers = [SimpleNamespace(name="arbiter 9998")]
        self.sent: list[tuple[str, bytes]] = []
        self.signs: list[str] = []
        self._answer = answer

    def heartbeat(self, doing: str) -> None:
        self.signs.append(doing)

    def send(self, peer: Any, message: Any, round: int) -> None:
        self.sent.append((message.name, encode(message)))

    def receive(self, peer: Any, expected: Any, round: int) -> Any:
        if expected is Welcome:
            return Welcome(1, "gpt")
        (blob,) = [blob for name, blob in self.sent if name == "questions"]
        asked = decode(blob, Questions, "guest")
        texts = [self._answer(text) for text in asked.texts()]
        some = [index for index, text in enumerate(texts) if text][::-1]
        packed: dict[str, Any] = pack_texts(asked.codes[some], [texts[index] for index in some])
        return Rationales(**packed, dropped={}, note="", unfinished=np.zeros(len(some), np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "slm")


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., Client]:
    """A client with a table on disk and a ledger."""

    def made(table: list[dict[str, str]], wire: Wire | None = None, allowed: Any = math.inf, **changes: Any) -> Client:
        folder = tmp_path / "table"
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / "train.jsonl", table)
        sites = tmp_path / "sites.yaml"
        budget = {"llm/mail": {"epsilon": allowed, "delta": 1e-3}}
        section = {"models": {"slm": str(model)}, "budgets": budget, "state": str(tmp_path / "state")}
        sites.write_text(json.dumps({"guest_9999": {"tables": {"llm/mail": str(folder)}, **section}}, allow_nan=True))
        base = {
            "task": {**TASK, "max_length": 128},
            "perturbation": WORDS,
            "question": {"fields": ["text"], "max_words": 12},
            "vocabulary": {"size": 100},
            "quality": {"min_words": 1},
            "student": {"name": "slm"},
        }
        party: Any = Party(
            ctx=None,
            config=FedCoTConfig(**{**base, **changes}),
            site=load_sites(sites)["guest_9999"],
            channel=wire or Wire(),  # type: ignore[arg-type]
            metrics=Metrics(),  # type: ignore[arg-type]
            device=CPU,
            role="guest",
            name="guest 9999",
            others=("arbiter 9998",),
            owners=1,
            job="job",
        )
        metadata = SimpleNamespace(namespace="llm", name="mail")
        reader = SimpleNamespace(get_directory=lambda: str(folder), artifact=SimpleNamespace(metadata=metadata))
        return Client(party, reader)

    return made


def asked(wire: Wire) -> list[str]:
    (blob,) = [blob for name, blob in wire.sent if name == "questions"]
    return decode(blob, Questions, "guest").texts()


# --- what is sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fixed_vocabulary", "metric", "exponential"])
@pytest.mark.parametrize("fields", [["text"], []])
def test_nothing_but_vocabulary_and_choices_is_on_the_wire(
    make: Callable[..., Client], strategy: str, fields: list[str]
) -> None:
    """The whole conversation of a client: no label beyond the choices, no name, no number, no unlisted column."""
    wire = Wire()
    how = {"strategy": strategy, "epsilon": 6.0}
    client = make(rows(), wire, perturbation=how, question={"fields": fields, "max_words": 12})
    client.agree()
    client.learn()
    client.charge()
    client.ask()
    assert [name for name, _ in wire.sent] == ["hello", "questions"]
    assert decode(wire.sent[0][1], Hello, "guest").choices == list(LABELS)
    vocabulary = set(client.strategy.vocabulary.words)  # type: ignore[union-attr]
    whole = b"".join(blob for _, blob in wire.sent)
    for row in rows():
        for name in ("name", "day", "account"):
            assert row[name].encode() not in whole
        assert row["text"].encode()[:30] not in whole
    for text in asked(wire):
        words, _, choices = text.partition(" Answer choices: ")
        assert choices == "late, broken, lost"
        assert set(words.split()) <= vocabulary
        assert 1 <= len(words.split()) <= 12
    assert len(asked(wire)) == len(rows())


def test_the_order_says_nothing_about_the_table(make: Callable[..., Client]) -> None:
    """The table is sorted by label, and the questions are not; neither depends on the order of the rows."""
    wire, other = Wire(), Wire()
    for one, table in ((wire, rows()), (other, rows()[::-1])):
        make(table, one, perturbation=CLEAR).ask()
    assert asked(wire) == asked(other) == sorted(asked(wire))
    places = [next(row["label"] for row in rows() if row["text"][:30] in text) for text in asked(wire)]
    assert places != sorted(places, key=LABELS.index)


def test_positions_leave_for_a_recording_only(make: Callable[..., Client]) -> None:
    wire = Wire()
    make(rows(), wire, perturbation=CLEAR, rationale={"recorded": True}).ask()
    message = decode(wire.sent[0][1], Questions, "guest")
    np.testing.assert_array_equal(message.codes, np.arange(len(rows())))
    assert [text[:20] for text in message.texts()] == [row["text"][:20] for row in rows()]


def test_a_record_without_allowed_fields_asks_nothing(make: Callable[..., Client], capsys: Any) -> None:
    """It has a prompt, for the SLM, and nothing that may leave. Neither the others nor the job suffer."""
    task = {**TASK, "max_length": 128, "prompt": "{{ text }}{% if more is defined %} {{ more }}{% endif %}"}
    table = [{**row, **({"more": row["name"]} if number % 3 == 0 else {})} for number, row in enumerate(rows())]
    for recorded in (False, True):
        wire = Wire(lambda text: f"Because {text}. So the answer is late.")
        client = make(
            table,
            wire,
            task=task,
            perturbation=CLEAR,
            question={"fields": ["more"], "template": "{% if more is defined %}{{ more }}{% endif %}"},
            rationale={"recorded": recorded},
            quality={"min_words": 1, "consistent": False, "max_copy": 1.0},
        )
        client.ask()
        assert sorted(asked(wire)) == sorted(row["name"] for row in table[::3])
        codes = decode(wire.sent[0][1], Questions, "guest").codes.tolist()
        assert codes == (list(range(0, len(table), 3)) if recorded else list(range(8)))
        client.receive()
        client.decode()
        assert (client.questions, client.received, len(client.rationales)) == (8, 8, 8)
        for pair in client.rationales:
            name = re.search(r"Zq\w+", pair.target)
            assert name is not None
            assert name[0] in pair.prompt


def test_a_text_without_end_asks_nothing(make: Callable[..., Client]) -> None:
    table = rows()
    table[5]["text"] = "x" * 300_000
    wire = Wire()
    client = make(table, wire, perturbation=CLEAR)
    client.ask()
    assert client.questions == len(table) - 1
    client.receive()


# --- what comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [False, True])
def test_each_rationale_finds_its_record(make: Callable[..., Client], recorded: bool) -> None:
    """In whatever order they come, and whichever are missing; learned in the order of the records."""

    def answer(text: str) -> str:
        return f"It reads {text[:25]} here." if len(text) % 3 else ""

    quality = {"min_words": 1, "consistent": False, "max_copy": 1.0}
    client = make(rows(), Wire(answer), perturbation=CLEAR, quality=quality, rationale={"recorded": recorded})
    client.ask()
    client.receive()
    client.decode()
    assert 0 < client.received < client.questions == len(rows())
    prompts = [one.prompt for one in client.records.examples]
    assert [prompts.index(pair.prompt) for pair in client.rationales] == sorted(
        prompts.index(pair.prompt) for pair in client.rationales
    )
    for pair in client.rationales:
        assert pair.target[len("It reads ") :][:20] in pair.prompt


def test_only_rationales_with_the_own_label_are_learned(make: Callable[..., Client]) -> None:
    client = make(rows(), Wire(), perturbation=CLEAR)
    client.ask()
    client.receive()
    client.decode()
    right = [one.prompt for one in client.records.examples if one.answer == " late"]
    assert [pair.prompt for pair in client.rationales] == right
    assert client.dropped["inconsistent"] == len(rows()) - len(right)


def test_a_rationale_for_no_question_is_refused(make: Callable[..., Client]) -> None:
    wire = Wire()
    client = make(rows(), wire)
    client.ask()
    whole = wire.receive(None, Rationales, 0)
    strange = Rationales(**{**vars(whole), "codes": whole.codes.astype(np.int64) + 1})
    wire.receive = lambda *_: strange  # type: ignore[method-assign]
    with pytest.raises(ExtensionError, match=r"E301 arbiter 9998 .*1 of 24 rationales are for no question"):
        client.receive()


# --- before anything leaves -----------------------------------------------------------------------------


def test_the_ledger_is_asked_first_and_charged_once(make: Callable[..., Client], tmp_path: Path) -> None:
    wire = Wire()
    client = make(rows(), wire, allowed=80.0)
    assert not wire.sent
    client.agree()
    (entry_before, sent) = (Ledger(tmp_path / "state").entries(), [name for name, _ in wire.sent])
    assert (entry_before, sent) == ([], ["hello"])
    client.charge()
    found = [path.parent for path in (tmp_path / "state").rglob("*.jsonl")]
    (entry,) = Ledger(found[0]).entries()
    assert entry.release.mechanisms == client.planned.release.mechanisms


@pytest.mark.parametrize(("how", "code"), [(CLEAR, "E611"), ({**WORDS, "epsilon": 60.0}, "E610")])
def test_what_the_budget_does_not_allow_reads_no_row(make: Callable[..., Client], how: Any, code: str) -> None:
    wire = Wire()
    with pytest.raises(ExtensionError, match=code):
        make(rows(), wire, allowed=80.0, perturbation=how)
    assert not wire.sent


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label": None}, "E787"),
        ({"label": "other"}, "E211"),
        ({"text": None}, "E210"),
    ],
)
def test_a_row_that_does_not_fit_is_nobody_elses_news(make: Callable[..., Client], change: Any, code: str) -> None:
    table = rows()
    table[7].update(change)
    with pytest.raises(ExtensionError, match=code) as caught:
        make([{name: value for name, value in row.items() if value is not None} for row in table])
    assert wire_cause(caught.value, "preparing the records") == UNTOLD_CAUSE


def test_an_empty_table_and_a_column_that_is_not_there(make: Callable[..., Client]) -> None:
    with pytest.raises(ExtensionError, match=r"E203 .*no rows"):
        make([])
    with pytest.raises(ExtensionError, match=r"body"):
        make(rows(), task={**TASK, "columns": {"text": "body"}})


def test_an_slm_without_room_to_decode_is_found_before_anything_is_charged(make: Callable[..., Client]) -> None:
    with pytest.raises(ExtensionError, match=r"E665 .*5000"):
        make(rows(), decoding={"method": "model", "max_new_tokens": 5000})
    assert make(rows(), decoding={"method": "model", "max_new_tokens": 20})
    assert make(rows(), decoding={"method": "substitution", "max_new_tokens": 5000}), "nothing is written then"


@pytest.mark.parametrize("field", ["text", "name"])
def test_a_field_that_repeats_the_answer_does_not_leave(make: Callable[..., Client], field: str) -> None:
    table = [{**row, field: row["label"].upper()} for row in rows()]
    with pytest.raises(ExtensionError, match=f"E792 .*{field}") as caught:
        make(table, question={"fields": ["name", "text"]})
    assert wire_cause(caught.value, "preparing the records") == UNTOLD_CAUSE


def test_one_record_is_enough(make: Callable[..., Client]) -> None:
    wire = Wire()
    client = make(rows()[:1], wire, perturbation=CLEAR)
    for step in (client.agree, client.learn, client.charge, client.ask, client.receive, client.decode):
        step()
    assert len(client.rationales) == 1


def test_signs_of_life_count_no_records(make: Callable[..., Client]) -> None:
    wire = Wire()
    client = make(rows(), wire)
    for step in (client.agree, client.learn, client.charge, client.ask, client.receive):
        step()
    assert not [sign for sign in wire.signs if re.search(r"\d", sign)]


# --- the arbiter ----------------------------------------------------------------------------------------


class Says(Engine):
    """An LLM that gives each prompt a rationale; ``during`` runs while it writes."""

    name = "says"

    def __init__(self, during: Callable[[int], None] = lambda done: None) -> None:
        self.during = during
        self.prompts: list[str] = []

    def fits(self, prompts: Any, config: GenerationConfig) -> np.ndarray:
        return np.ones(len(prompts), dtype=bool)

    def generate(
        self, prompts: Any, config: Any, *, seed: int, stop: Any = (), step: Any = None, keys: Any = None
    ) -> Any:
        made = []
        for done, prompt in enumerate(prompts, 1):
            self.prompts.append(prompt)
            self.during(done)
            step(done, len(prompts))
            made.append(Completion(f"It says {len(prompt)}. So the answer is a.", True))
        return made


class Lines:
    """The arbiter's channel: clients whose messages are prepared, of which some abort."""

    def __init__(self, **inbox: list[Any]) -> None:
        self.peers = [Peer(name.replace("_", " ")) for name in inbox]
        self.inbox = {name.replace("_", " "): list(messages) for name, messages in inbox.items()}
        self.sent: list[tuple[str, Any]] = []
        self.lost: dict[str, str] = {}

    def tolerate(self) -> None:
        pass

    def leave_out(self, peer: Peer, reason: str) -> None:
        if peer in self.peers:
            self.peers.remove(peer)
            self.lost[peer.name] = reason

    def heartbeat(self, doing: str) -> None:
        for peer in list(self.peers):
            if peer.abort_reason:
                self.leave_out(peer, peer.abort_reason)

    def send(self, peer: Peer, message: Any, round: int) -> None:
        assert peer in self.peers
        self.sent.append((peer.name, message))

    def receive(self, peer: Peer, expected: Any, round: int) -> Any:
        found = self.inbox[peer.name].pop(0)
        if isinstance(found, BaseException):
            raise found
        return decode(encode(found), expected, peer.name)


def arbiter(lines: Lines, engine: Engine, proxies: bool = False) -> Arbiter:
    from fate_llm_ext.algo.fedcot import arbiter as module

    config = FedCoTConfig(task=TASK, perturbation=WORDS, llm={"name": "gpt"})
    party: Any = SimpleNamespace(
        config=config,
        channel=lines,
        site=None,
        device=CPU,
        metrics=Metrics(),
        phase=lambda arm, name, round=0: emit("phase", arm=arm, round=round, phase=name),
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "open_engine", lambda *args, **more: engine)
    try:
        made = Arbiter(party)
    finally:
        patch.undo()
    made._clients = [Agreed(peer, LABELS, 1.0, 1e-3, proxies) for peer in lines.peers]
    return made


def questions(kind: Any, *texts: str) -> Any:
    return kind(**pack_texts(np.arange(len(texts))[::-1].copy(), list(texts)))


def test_every_client_gets_its_own_rationales() -> None:
    lines = Lines(guest_9999=[questions(Questions, "one", "two")], host_10000=[questions(Questions, "three")])
    made = arbiter(lines, Says())
    made.serve()
    made.say_who_is_lost()
    assert [name for name, _ in lines.sent] == ["guest 9999", "host 10000"]
    assert [message.codes.tolist() for _, message in lines.sent] == [[1, 0], [0]]
    assert made._party.metrics.logged["clients_lost"] == 0  # type: ignore[attr-defined]


def test_no_questions_are_answered_by_no_rationales() -> None:
    lines = Lines(guest_9999=[questions(Questions)])
    arbiter(lines, Says()).serve()
    ((_, message),) = lines.sent
    assert message.texts() == []
    decode(encode(message), Rationales, "arbiter 9998")


def test_public_prompts_come_before_all_questions() -> None:
    """A client learns from them for a while: meanwhile the others have theirs answered."""
    both = [questions(Proxies, "public"), questions(Questions, "one")]
    lines = Lines(guest_9999=list(both), host_10000=list(both))
    arbiter(lines, Says(), proxies=True).serve()
    assert [(name, message.name) for name, message in lines.sent] == [
        ("guest 9999", "explained"),
        ("host 10000", "explained"),
        ("guest 9999", "rationales"),
        ("host 10000", "rationales"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        ExtensionError("E303", party="guest 9999", reason="it broke"),
        ExtensionError("E304", **SILENT),
        ExtensionError("E305", party="guest 9999", message="m", reason="gone"),
    ],
)
def test_who_drops_out_is_left_out(error: ExtensionError, capsys: Any) -> None:
    lines = Lines(guest_9999=[error], host_10000=[questions(Questions, "three")])
    made = arbiter(lines, Says())
    made.serve()
    assert [name for name, _ in lines.sent] == ["host 10000"]
    assert set(lines.lost) == {"guest 9999"}
    made.say_who_is_lost()
    assert made._party.metrics.logged["clients_lost"] == 1  # type: ignore[attr-defined]


def test_nothing_more_is_written_for_a_client_that_has_gone() -> None:
    lines = Lines(guest_9999=[questions(Questions, *map(str, range(50)))], host_10000=[questions(Questions, "three")])
    guest = lines.peers[0]

    def during(done: int) -> None:
        if done == 3:
            guest.abort_reason = "it broke"

    engine = Says(during)
    made = arbiter(lines, engine)
    made.serve()
    assert len(engine.prompts) <= 3 + 1 + 1
    assert [name for name, _ in lines.sent] == ["host 10000"]
    assert lines.lost == {"guest 9999": "it broke"}


def test_without_clients_the_arbiter_fails() -> None:
    lines = Lines(guest_9999=[ExtensionError("E303", party="guest 9999", reason="it broke.")])
    made = arbiter(lines, Says())
    made.serve()
    with pytest.raises(ExtensionError, match=r"E788 1 of 1 clients dropped out: guest 9999: it broke"):
        made.say_who_is_lost()


def test_nonsense_from_a_client_costs_this_client_alone() -> None:
    double = Questions(**pack_texts(np.array([1, 1]), ["one", "two"]))
    lines = Lines(guest_9999=[double], host_10000=[questions(Questions, "three")])
    made = arbiter(lines, Says())
    made.serve()
    assert [name for name, _ in lines.sent] == ["host 10000"]
    assert lines.lost == {"guest 9999": "2 questions, 1 different numbers"}


@pytest.mark.parametrize(
    "error",
    [
        ExtensionError("E306", party="guest 9999", differences="all"),
        ExtensionError("E304", **{**SILENT, "party": "host 10000"}),
        ExtensionError("E301", sender="arbiter 9998", message="questions", reason="odd"),
    ],
)
def test_what_is_not_the_clients_own_failure_stops_all(error: ExtensionError) -> None:
    with pytest.raises(ExtensionError, match=error.code):
        arbiter(Lines(guest_9999=[error], host_10000=[questions(Questions, "three")]), Says()).serve()
