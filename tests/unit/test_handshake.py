"""What a peer's introduction may hold, and that a busy party says so while it maps the peer's vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from fate_llm_ext.algo.agreement import vocabulary_of
from fate_llm_ext.algo.fedmkt.protocol import Hello, Welcome
from fate_llm_ext.errors import CATALOGUE, ExtensionError
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.models.vocabulary import map_vocabulary, read_vocabulary


def welcome(eos_id: int = 1, lengths: tuple[int, ...] = (1, 2)) -> Welcome:
    sizes = np.array(lengths, np.uint16)
    return Welcome(eos_id, np.frombuffer(b"abc", np.uint8), sizes, np.full(len(sizes), 2, np.uint8))


def test_a_sound_vocabulary() -> None:
    assert vocabulary_of(welcome(), "arbiter 9998").tokens() == [b"a", b"bc"]


@pytest.mark.parametrize("message", [welcome(lengths=(1, 1)), welcome(eos_id=2), welcome(eos_id=1 << 70)])
def test_a_malformed_vocabulary_names_its_sender(message: Welcome) -> None:
    with pytest.raises(ExtensionError, match="E301 arbiter 9998 sent an invalid 'welcome' message: "):
        vocabulary_of(message, "arbiter 9998")


def test_a_client_is_named_too() -> None:
    one = welcome(eos_id=2)
    hello = Hello("0.1.0", 1, "f", {}, one.eos_id, one.blob, one.lengths, one.kind)
    with pytest.raises(ExtensionError, match="E301 host 10000 sent an invalid 'hello' message: "):
        vocabulary_of(hello, "host 10000")


def test_mapping_by_edit_distance_gives_signs_of_life() -> None:
    one, other = (train_tokenizer([text], 300) for text in ("the cat sees a dog " * 9, "an owl hears 40 mice " * 9))
    calls: list[int] = []
    map_vocabulary(read_vocabulary(one), read_vocabulary(other), other, "min_ed", lambda: calls.append(1))
    assert calls


@pytest.mark.parametrize("code", [code for code, kind in CATALOGUE.items() if kind.shared])
def test_what_is_shared_has_no_place_for_paths(code: str) -> None:
    text = CATALOGUE[code].problem + CATALOGUE[code].next_step
    assert not [name for name in ("{path", "{folder", "{table", "{where", "{log", "{name") if name in text]
