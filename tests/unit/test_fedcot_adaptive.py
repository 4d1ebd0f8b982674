"""A model that rewrites prompts: what it learns from, what it reads of private ones, and what leaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
import torch
from fedcot_scene import Metrics, scene, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fate_llm_ext.algo.fedcot.adaptive import BETWEEN, PLACEHOLDER, REWRITE, Adaptive, balanced
from fate_llm_ext.algo.fedcot.config import FedCoTConfig
from fate_llm_ext.algo.fedcot.perturbation.words import split
from fate_llm_ext.algo.fedcot.strategies import Scene
from fate_llm_ext.algo.fedcot.student import Pair
from fate_llm_ext.algo.session import UNTOLD_CAUSE, wire_cause
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.site import Site

Row = dict[str, Any]
SECRETS = ["Anna", "4711", "zq7xk", "a.b@mail.org", "AB-1234/x", "Dr.Müller"]
ROWS: List[Row] = [
    {"text": f"my order {secret} is late and i want my money", "label": "shipping"} for secret in SECRETS
]


def config(**changes: Any) -> FedCoTConfig:
    base = {
        "task": {"template": "tickets", "max_length": 160},
        "perturbation": {"strategy": "adaptive_exponential", "epsilon": 3.0, "proxy": "proxies", "proxy_rows": 24},
        "student": {"name": "slm"},
        "train": {"learning_rate": 1e-2, "batch_size": 16, "epochs": 6, "warmup_ratio": 0.1},
        "decoding": {"max_new_tokens": 12},
    }
    return FedCoTConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("world")
    rows = [{"text": row["text"]} for row in generate_tickets(40, seed=5)]  # public prompts have no labels
    (folder / "proxies.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return Site(models={"slm": str(small_model(folder / "model"))}, public={"proxies": str(folder / "proxies.jsonl")})


def reasons(texts: List[str]) -> List[Optional[str]]:
    return [f"because of the {text.split()[0].lower()}" for text in texts]


def none(texts: List[str]) -> List[Optional[str]]:
    return [None] * len(texts)


def adaptive(
    site: Site,
    rows: List[Row] = ROWS,
    explained: Callable[[List[str]], List[Optional[str]]] = reasons,
    seed: Optional[int] = 0,
    **changes: Any,
) -> Adaptive:
    generator = None if seed is None else np.random.default_rng(seed)
    return Adaptive(scene(config(**changes), site, rows, explained), generator)


def weights(scene: Scene) -> List[torch.Tensor]:
    return [one.detach().clone() for one in scene.student.network.parameters()]


def same(one: List[torch.Tensor], other: List[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


# --- proxies ------------------------------------------------------------------------------------------


def never(texts: List[str]) -> List[Optional[str]]:
    raise AssertionError("nothing may be sent")


@pytest.mark.parametrize("change", [str, str.upper, lambda text: text.replace(" ", "  ,  ") + "!\n"])
def test_private_rows_among_the_proxies_are_refused(site: Site, tmp_path: Path, change: Callable[[str], str]) -> None:
    proxies = [{"text": f"a public question number {number}"} for number in range(30)]
    proxies[28:] = [{"text": change(row["text"])} for row in ROWS[:2]]  # behind `proxy_rows`: they count as well
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, proxies)) + "\n")
    mixed = site.copy(update={"public": {"proxies": str(tmp_path / "mixed.jsonl")}})
    with pytest.raises(ExtensionError, match=r"E779 2 of the 30 rows .* among the 6 records") as caught:
        adaptive(mixed, explained=never)
    assert not caught.value.shared
    assert wire_cause(caught.value, "preparing") == UNTOLD_CAUSE, "even the code says something about a row"
    assert not any(row["text"][:12] in str(caught.value) for row in ROWS)


def test_an_unknown_proxy_set(site: Site) -> None:
    with pytest.raises(ExtensionError, match="E110"):
        adaptive(site.copy(update={"public": {}}))


# --- learning -----------------------------------------------------------------------------------------


def test_only_public_prompts_are_shown_and_learned(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: List[str] = []
    learned: List[Pair] = []
    made = adaptive(site, explained=lambda texts: sent.extend(texts) or reasons(texts))  # type: ignore[func-returns-value]
    student, before = made.scene.student, weights(made.scene)
    original = student.learn
    monkeypatch.setattr(student, "learn", lambda pairs, *a, **k: learned.extend(pairs) or original(pairs, *a, **k))
    made.learn()
    clear, perturbed = sent[:24], sent[24:]
    public = [row["text"] for row in generate_tickets(40, seed=5)]
    assert made.vocabulary is not None
    for text, question, other in zip(public, clear, perturbed):
        assert question.split()[:5] == text.split()[:5]
        shown = other.split(" Answer choices:")[0].split()
        assert len(shown) == len(split(text)[:64])
        assert set(shown) <= set(made.vocabulary.words)
    encoding, decoding = learned[:24], learned[24:]
    assert [pair.prompt.startswith(REWRITE) for pair in learned] == [True] * 24 + [False] * 24
    assert [pair.target for pair in decoding] == reasons(clear)
    for pair, text in zip(decoding, reasons(perturbed)):
        assert str(text) in pair.prompt
    assert [pair.target for pair in encoding] == [text.split(" Answer choices:")[0] for text in perturbed]
    assert sum(pair.weight for pair in encoding) == pytest.approx(sum(pair.weight for pair in decoding))
    assert same(before, weights(made.scene)), "the multi-task training starts from the base model"
    metrics = made.scene.party.metrics
    assert isinstance(metrics, Metrics)
    assert metrics.logged["proxy_rationales"] == 24
    assert 0 < metrics.logged["proxy_loss"] < 10


def test_rationales_of_one_side_alone_teach_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: List[Pair] = []

    def some(texts: List[str]) -> List[Optional[str]]:
        return [None if index in (0, 24 + 1) or (index == 2) else "a reason" for index in range(len(texts))]

    made = adaptive(site, explained=some)
    monkeypatch.setattr(made.scene.student, "learn", lambda pairs, *a, **k: learned.extend(pairs) or 1.0)
    made.learn()
    encoding, decoding = learned[:24], learned[24:]
    assert len(decoding) == 21
    assert sum(pair.weight for pair in encoding) == pytest.approx(sum(pair.weight for pair in decoding))


def test_an_llm_without_answers_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Row] = []
    monkeypatch.setattr(
        "fate_llm_ext.algo.fedcot.adaptive.emit", lambda type, **facts: events.append({"type": type, **facts})
    )
    made = adaptive(site, explained=none)
    made.learn()
    assert [(event["type"], event["code"]) for event in events] == [("warning", "E780")]
    assert len(made.ask().texts) == len(ROWS)


@given(st.integers(1, 9), st.integers(0, 9))
def test_both_tasks_have_half_of_the_loss(encoding: int, decoding: int) -> None:
    pairs = balanced([Pair("e", "e")] * encoding, [Pair("d", "d")] * decoding)
    shares: Counter[str] = Counter()
    for pair in pairs:
        shares[pair.prompt] += pair.weight / len(pairs)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["e"] == pytest.approx(0.5 if decoding else 1.0)


def test_the_slm_learns_to_rewrite(site: Site) -> None:
    """What it writes is made of words of the vocabulary far more often than before."""
    made = adaptive(site, rows=generate_tickets(16, 77), train={**config().train.dict(), "epochs": 16})
    written: List[List[str]] = []
    original = made.scene.student.write

    def write(*args: Any, **kwargs: Any) -> List[str]:
        written.append(original(*args, **kwargs))
        return written[-1]

    made.scene.student.write = write  # type: ignore[method-assign]
    made.ask()
    made.learn()
    made.ask()
    assert made.vocabulary is not None
    known = [np.concatenate([made.vocabulary.ids(split(text)) for text in texts]) >= 0 for texts in written]
    before, after = (float(one.mean()) for one in known)
    assert after > 0.9 > before, (before, after)


# --- private prompts ----------------------------------------------------------------------------------


def watched(made: Adaptive, answer: Callable[[str], str]) -> List[str]:
    """Replace what the SLM writes; returns what it will have read."""
    read: List[str] = []

    def write(prompts: List[str], *_: Any, **__: Any) -> List[str]:
        read.extend(prompts)
        return [answer(prompt) for prompt in prompts]

    made.scene.student.write = write  # type: ignore[method-assign,assignment]
    return read


def test_the_slm_reads_words_of_the_vocabulary_and_placeholders(site: Site) -> None:
    made = adaptive(site)
    read = watched(made, lambda prompt: "")
    made.ask()
    assert made.vocabulary is not None
    for prompt, row in zip(read, ROWS):
        units = split(row["text"])
        known = made.vocabulary.ids(units) >= 0
        shown = prompt.removeprefix(REWRITE).split()
        assert len(shown) == len(units)
        assert [word == PLACEHOLDER for word in shown] == (~known).tolist()
        assert all(word == unit.lower() for word, unit, is_known in zip(shown, units, known) if is_known)
        assert not known[2], "the secret"
    assert len(set(read)) == 1, "the records differ in their secrets only"


@settings(max_examples=60, deadline=None)
@given(written=st.text(max_size=80) | st.sampled_from([*SECRETS, BETWEEN * 5, "my order is late " * 9, PLACEHOLDER]))
def test_whatever_the_slm_writes_words_of_the_vocabulary_leave(made: Adaptive, written: str) -> None:
    watched(made, lambda prompt: f"{written} {prompt}")
    asked = made.ask()
    assert asked.perturbed is not None
    assert made.vocabulary is not None
    for index, row in enumerate(ROWS):
        shown = asked.texts[index].split(" Answer choices:")[0].split()
        assert len(shown) == len(split(row["text"]))
        assert set(shown) <= set(made.vocabulary.words)
        assert shown == [made.vocabulary.words[one] for one in asked.perturbed.drawn[index]]
        assert asked.perturbed.units[index] == split(row["text"])
    outside = re.sub(r" Answer choices:.*", "", " ".join(asked.texts)).lower()
    for secret in SECRETS:
        assert secret.lower() not in outside


@pytest.fixture(scope="module")
def made(site: Site) -> Adaptive:
    return adaptive(site)


def test_unknown_units_are_all_alike(site: Site) -> None:
    """Two tables that differ in names and numbers only give the same questions from the same chance."""
    other = [{**row, "text": row["text"].replace(secret, f"X{secret[::-1]}9")} for row, secret in zip(ROWS, SECRETS)]
    one, two = (adaptive(site, rows) for rows in (ROWS, other))
    assert one.ask().texts == two.ask().texts


def test_words_that_the_slm_leaves_out_are_drawn_uniformly(site: Site) -> None:
    rows = [{"text": "late " * 60, "label": "shipping"}] * 400
    made = adaptive(site, rows, vocabulary={"size": 40})
    watched(made, lambda prompt: "xx1 9 LATE" * 20)
    asked = made.ask()
    assert asked.perturbed is not None
    assert made.vocabulary is not None
    counts = np.bincount(np.concatenate(asked.perturbed.drawn), minlength=len(made.vocabulary))
    assert len(counts) == len(made.vocabulary)
    assert chisquare(counts).pvalue > 1e-4


def test_fields_keep_their_words(site: Site) -> None:
    task = {"prompt": "{{ title }}\n{{ text }}\nLabel:", "answer": "{{ label }}", "max_length": 160}
    rows = [{"title": "my order", "text": "is late and i want my money", "label": "x"}, {"title": "?", "text": "late"}]
    proxies = Path(site.public["proxies"]).with_name("titled.jsonl")
    proxies.write_text(json.dumps({"title": "a title", "text": "the text of a public row"}) + "\n")
    question = {"fields": ["title", "text"]}
    made = adaptive(site.copy(update={"public": {"proxies": str(proxies)}}), rows, task=task, question=question)
    assert made.vocabulary is not None
    title, *others = (word for word in made.vocabulary.words if word not in ROWS[0]["text"])
    read = watched(made, lambda prompt: f"{title} {title} {title} {BETWEEN} {others[0]}")
    asked = made.ask()
    assert read[0].count(BETWEEN) == 1
    first = asked.texts[0].split()
    assert first[:3] == [title, title, others[0]]
    assert len(first) == 2 + 7
    assert asked.texts[1].split() == [title, others[0]], "a field of punctuation alone is one unknown word"


def test_chance_comes_from_the_operating_system(site: Site) -> None:
    made = adaptive(site, seed=None)
    seeds: List[int] = []
    original = made.scene.student.write

    def write(*args: Any, seed: int, **kwargs: Any) -> List[str]:
        seeds.append(seed)
        return original(*args, seed=seed, **kwargs)

    made.scene.student.write = write  # type: ignore[method-assign]
    texts = [made.ask().texts for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert texts[0] != texts[1]
    again = [adaptive(site, seed=3).ask().texts for _ in range(2)]
    assert again[0] == again[1]


def test_the_slm_that_has_learned_rewrites_and_decodes(site: Site) -> None:
    made = adaptive(site)
    made.learn()
    base = weights(made.scene)
    during: List[bool] = []
    original = made.scene.student.write

    def write(*args: Any, **kwargs: Any) -> List[str]:
        during.append(same(base, weights(made.scene)))
        return original(*args, **kwargs)

    made.scene.student.write = write  # type: ignore[method-assign]
    asked = made.ask()
    decoded = made.decode(asked, np.array([2, 0]), ["a first reason", "a second one"])
    assert len(decoded) == 2
    assert during == [False, False]
    assert same(base, weights(made.scene))


def test_decoding_can_be_switched_off(site: Site) -> None:
    made = adaptive(site, decoding={"method": "none"})
    watched(made, lambda prompt: "late")
    assert made.decode(made.ask(), np.array([1]), ["as it is"]) == ["as it is"]


# --- parameters ---------------------------------------------------------------------------------------


def test_the_slm_decodes_by_default() -> None:
    assert config().decoding.method == "model"
    assert config(decoding={"method": "none"}).decoding.method == "none"
    with pytest.raises(ValueError, match="puts single words back"):
        config(decoding={"method": "substitution"})
    word_by_word = {"strategy": "metric", "epsilon": 1.0}
    assert config(perturbation=word_by_word).decoding.method == "substitution"


@pytest.mark.parametrize("strategy", [{}, {"strategy": "dp_generator"}])
def test_a_recording_knows_no_other_texts(strategy: Row) -> None:
    with pytest.raises(ValueError, match="by the row's position"):
        config(rationale={"recorded": True}, **({"perturbation": strategy} if strategy else {}))
