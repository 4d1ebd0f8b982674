"""FDKT's generator: valid texts, and what is kept of a generator."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import ValidityConfig
from fate_llm_ext.algo.fdkt.generator import (
    FILE,
    load_generator,
    read_generator,
    sample_valid,
    save_generator,
    valid,
)
from fate_llm_ext.algo.fdkt.validity import REASONS, repetition, words
from fate_llm_ext.algo.synthesis import sample_texts
from fate_llm_ext.config import ControlConfig, LoraConfig, ModelConfig, SynthesisConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model, train_lm
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.events import DataSet, NonPrivate, PoissonGaussian, Release

LABELS = ["billing", "login"]
CONTROL = ControlConfig(code="{{ label }}", values=LABELS, max_length=64)
SAMPLING = SynthesisConfig(samples=40, max_new_tokens=24, top_k=20, top_p=0.9, batch_size=16)
CPU = torch.device("cpu")


def marks(texts: list[str], ended: bool = True, control: ControlConfig = CONTROL, **config: Any) -> dict[str, int]:
    """Reasons and how often, of texts of the first label."""
    records = Records(np.zeros(len(texts), dtype=np.int32), texts)
    kept, dropped = valid(records, np.full(len(texts), ended), control, ValidityConfig(**config))
    assert len(kept) + sum(dropped.values()) == len(texts)
    return {reason: count for reason, count in dropped.items() if count}


# --- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Die Z\u00fcge, die FAHREN.", ["die", "z\u00fcge", "die", "fahren"]),
        ("\u732b\u304c\u597d\u304d GPT-2", ["\u732b", "\u304c", "\u597d", "\u304d", "gpt", "2"]),
        ("... !?", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def slow_repetition(text: str) -> float:
    every = words(text)
    pairs = [(every[i], every[i + 1]) for i in range(len(every) - 1)]
    repeated = sum(pair in pairs[:index] for index, pair in enumerate(pairs))
    return repeated / len(pairs) if pairs else 0.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "C", "d.", ","]), max_size=25))
def test_repetition_is_the_slow_reference_s(parts: list[str]) -> None:
    text = " ".join(parts)
    assert repetition(text) == pytest.approx(slow_repetition(text))


# --- validity -----------------------------------------------------------------------------------------


def test_the_first_reason_counts() -> None:
    good = "the invoice of March is wrong"
    texts = ["", "two words", good, "go on go on go on go on", " The  invoice of march is\nWRONG", "other words here"]
    assert marks(texts) == {"empty": 1, "short": 1, "repetitive": 1, "duplicate": 1}
    assert marks(texts, ended=False) == marks(texts)
    assert marks(texts, ended=False, finished=True) == {"empty": 1, "unfinished": 5}
    assert marks(texts, min_words=0) == {"empty": 1, "repetitive": 1, "duplicate": 1}
    assert marks(texts, max_repetition=1.0) == {"empty": 1, "short": 1, "duplicate": 1}


def test_limits_are_inclusive() -> None:
    assert marks(["one two three"], min_words=3) == {}
    assert marks(["one two three"], min_words=4) == {"short": 1}
    text = "a b a b a"  # of 4 pairs 2 repeat
    assert marks([text], max_repetition=0.5) == {}
    assert marks([text], max_repetition=0.49) == {"repetitive": 1}


@pytest.mark.parametrize(
    ("prompt", "text", "found"),
    [
        ("{{ code }}\n\n", "cannot sign in\nbilling\n\nwrong invoice", True),
        ("{{ code }}\n\n", "cannot sign in today\nlogin", True),  # what follows was cut or cleaned away
        ("{{ code }}\n\n", "billing\n\nthe invoice is wrong", True),
        ("{{ code }}\n\n", "billing is wrong, and login fails", False),
        ("{{ code }}\n\n", "a question about billing\n\nIs it wrong?", False),
        ("Topic: {{ code }}\nText: ", "it fails\nTopic: login\nText: again", True),
        ("Topic: {{ code }}\nText: ", "it fails, Topic: login", False),
        ("{{ code }} ", "billing is wrong again", False),  # too short to be told from a text
    ],
)
def test_a_text_that_goes_on_to_the_next_record(prompt: str, text: str, found: bool) -> None:
    assert marks([text], control=CONTROL.copy(update={"prompt": prompt})) == ({"prompt": 1} if found else {})


def test_labels_stay_with_their_texts() -> None:
    records = Records(np.array([0, 0, 1, 1], dtype=np.int32), ["x", "one two three", "one two three", "four five six"])
    kept, dropped = valid(records, np.ones(4, dtype=bool), CONTROL, ValidityConfig())
    assert (kept.codes.tolist(), kept.texts) == ([0, 1], ["one two three", "four five six"])
    assert tuple(dropped) == REASONS


# --- sampling -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned what tickets look like."""
    folder = tmp_path_factory.mktemp("base") / "model"
    corpus = [row["text"] for row in generate_tickets(400, seed=1)]
    tokenizer = train_tokenizer(corpus, 400)
    config = TinyConfig(hidden=32, layers=1, context=96, batch_tokens=1024, steps=60, seed=0)
    network = build_model(config, tokenizer)
    train_lm(network, tokenizer, corpus, config)
    save_model(network, tokenizer, folder, "card")
    return folder


def model(base: Path, weights: Any = "lora") -> Model:
    return Model(base, ModelConfig(name="tiny"), weights, LoraConfig(dropout=0.0), CONTROL, 0, CPU, lambda _: None)


def ask(generator: Model, counts: list[int], **changes: Any) -> tuple[Records, dict[str, int]]:
    sampling = SAMPLING.copy(update=changes.pop("sampling", {}))
    validity = ValidityConfig(**changes)
    return sample_valid(generator, CONTROL, np.array(counts), sampling, validity, seed=3)


def test_texts_of_each_label_are_sampled_and_filtered(base: Path) -> None:
    generator = model(base)
    records, dropped = ask(generator, [30, 10], finished=True)
    assert len(records) + sum(dropped.values()) == 40
    assert (np.diff(records.codes) >= 0).all()
    assert 0 < len(records) < 40
    assert dropped["unfinished"] > 0
    assert all(len(words(text)) >= 3 and repetition(text) <= 0.5 for text in records.texts)
    again, same = ask(generator, [30, 10], finished=True)
    assert (again.texts, same) == (records.texts, dropped)
    loose, _ = ask(generator, [30, 10])
    assert len(loose) > len(records)


def test_the_batch_size_changes_nothing(base: Path) -> None:
    generator = model(base)
    one, _ = ask(generator, [8, 8], sampling={"batch_size": 3})
    other, _ = ask(generator, [8, 8], sampling={"batch_size": 16})
    assert one.texts == other.texts


def test_an_ended_text_is_one_before_whose_end_there_was_room(base: Path) -> None:
    """Sampled again with more room, ended texts stay as they are and the others go on."""
    generator = model(base)
    rooms = [SAMPLING.copy(update={"max_new_tokens": room}) for room in (12, 40)]
    (short, ended), (long, _) = (
        sample_texts(generator.network, generator.tokenizer, CONTROL, np.array([40, 0]), room, seed=1) for room in rooms
    )
    assert 0 < ended.sum() < 40
    assert [one == other for one, other in zip(short.texts, long.texts)].count(False) > 0.9 * (~ended).sum()
    for one, other, own in zip(short.texts, long.texts, ended.tolist()):
        assert other == one if own else other.startswith(one)


def test_a_label_without_a_valid_text_is_told(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = model(base)
    with caplog.at_level(logging.WARNING):
        for seed in range(50):
            records, _ = sample_valid(generator, CONTROL, np.array([20, 1]), SAMPLING, ValidityConfig(), seed=seed)
            if 1 not in records.codes:
                break
    assert 1 not in records.codes
    assert "none of 1 texts of label 2 of 2 is valid" in caplog.text
    assert not any(text in caplog.text for text in records.texts)


def test_no_valid_text_at_all(base: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E730 None of the 12 texts .*short: 1?\d.*privacy.epsilon") as caught:
        ask(model(base), [6, 6], min_words=500)
    assert not caught.value.shared, "a generator of a comparison is not private"


def test_nothing_asked_nothing_given(base: Path) -> None:
    records, dropped = ask(model(base), [0, 0])
    assert (len(records), sum(dropped.values())) == (0, 0)


def test_no_room(base: Path) -> None:
    with pytest.raises(ExtensionError, match="E662"):
        ask(model(base), [1, 1], sampling={"max_new_tokens": 64})


# --- kept ---------------------------------------------------------------------------------------------

DATA = DataSet("llm/tickets", "0" * 64, 1000)


def statement(private: bool = True) -> dict[str, Any]:
    mechanism = PoissonGaussian(0.1, 1.0, 50) if private else NonPrivate()
    release = Release("fdkt", "job", "texts", ("arbiter 9998",), (mechanism,))
    return report.statement("guest 9999", "fdkt", data=DATA, releases=[release], delta=1e-4 if private else None)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_generator_read_again_writes_the_same_texts(base: Path, tmp_path: Path, weights: str) -> None:
    generator = model(base, weights)
    before, _ = ask(generator, [4, 4])
    with torch.no_grad():
        for parameter in generator.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected, _ = ask(generator, [4, 4])
    assert expected.texts != before.texts

    folder = tmp_path / "generator"
    generator.save(folder, "card")
    save_generator(generator, CONTROL, SAMPLING, statement(), folder)
    saved = read_generator(folder)
    assert (saved.base_model, saved.weights) == ("tiny", weights)
    assert (saved.control, saved.synthesis) == (CONTROL, SAMPLING)

    network, tokenizer = load_generator(folder, base, ModelConfig(name="tiny"), CPU)
    texts, ended = sample_texts(network, tokenizer, saved.control, np.array([4, 4]), saved.synthesis, seed=3)
    assert valid(texts, ended, saved.control, ValidityConfig())[0].texts == expected.texts


def test_what_is_kept_states_the_guarantee(base: Path, tmp_path: Path) -> None:
    said = statement()
    save_generator(model(base), CONTROL, SAMPLING, said, tmp_path)
    saved = read_generator(tmp_path)
    assert saved.guarantee == (said["guarantee"]["epsilon"], 1e-4)
    assert saved.guarantee[0] > 0
    assert saved.privacy == report.headline(said)
    assert "llm/tickets" in saved.privacy
    assert json.loads((tmp_path / "privacy.json").read_text(encoding="utf-8")) == said
    assert str(base) not in (tmp_path / FILE).read_text(encoding="utf-8"), "no path of this machine travels"


def test_no_privacy_is_kept_as_such(base: Path, tmp_path: Path) -> None:
    save_generator(model(base), CONTROL, SAMPLING, statement(private=False), tmp_path)
    assert read_generator(tmp_path).guarantee == (math.inf, None)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["epsilon"] == "infinity"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "E731 .*No such file"),
        ("not json", "E733 .*it is no JSON"),
        ([], "E733 .*its `format` is not fdkt_generator"),
        ({"format": "other"}, "E733 .*its `format` is not fdkt_generator"),
        ({"version": 2}, "E732 .*is of version 2, this release reads version 1"),
        ({"weights": "some", "control": {"values": []}}, "E733 .*`weights`: .*`control.code`: field required"),
        ({"epsilon": "infinity"}, "E733 .*infinity and"),
        ({"delta": None}, "E733 .*is None"),
        ({"epsilon": -1.0}, "E733 .*-1.0"),
        ({"surprise": 1}, "E733 .*`surprise`: extra fields"),
    ],
)
def test_a_folder_that_holds_no_generator(base: Path, tmp_path: Path, change: Any, message: str) -> None:
    save_generator(model(base), CONTROL, SAMPLING, statement(), tmp_path)
    path = tmp_path / FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change, encoding="utf-8")
    else:
        path.write_text(json.dumps({**content, **change} if isinstance(change, dict) else change), encoding="utf-8")
    with pytest.raises(ExtensionError, match=message):
        read_generator(tmp_path)
    with pytest.raises(ExtensionError, match=message[:4]):
        load_generator(tmp_path, base, ModelConfig(name="tiny"), CPU)
