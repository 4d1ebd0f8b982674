"""An engine that replays recorded answers: each about its client's row, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fate_llm_ext.config import GenerationConfig, LLMConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import Completion, RecordedEngine, open_engine
from fate_llm_ext.site import Endpoint, Recording, Site

CONFIG = GenerationConfig(max_new_tokens=1)


def recording(folder: Path, **clients: list[Any]) -> RecordedEngine:
    folder.mkdir(exist_ok=True)
    for name, lines in clients.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return RecordedEngine(folder, "palm")


def answers(engine: RecordedEngine, *keys: str, **options: Any) -> list[Completion]:
    return engine.generate(["?"] * len(keys), CONFIG, seed=0, keys=keys, **options)


def test_each_key_has_its_answer_whatever_the_order(tmp_path: Path) -> None:
    engine = recording(tmp_path, guest_9999=["a", {"answer": "b\u2028日本\nb"}], host_x1=[{"answer": "c"}])
    got = answers(engine, "host x1/0", "guest 9999/1", "guest 9999/0", "guest 9999/1")
    assert [one.text for one in got] == ["c", "b\u2028日本\nb", "a", "b\u2028日本\nb"]
    assert all(one.finished and not one.refused for one in got)


def test_an_answer_ends_at_a_stop_string_and_nowhere_else(tmp_path: Path) -> None:
    engine = recording(
        tmp_path, guest_1=["one two\n\nQ: three", {"answer": "one", "finished": False}, {"answer": None}]
    )
    steps: list[tuple[int, int]] = []
    got = answers(engine, "guest 1/0", "guest 1/1", "guest 1/2", stop=("\n\n",), step=lambda *at: steps.append(at))
    assert got == [Completion("one two", True), Completion("one", False), Completion("", True, refused=True)]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert engine.fits(["x" * 10**6], CONFIG).tolist() == [True]


def problem(code: str, engine: RecordedEngine, *keys: str) -> str:
    with pytest.raises(ExtensionError) as caught:
        answers(engine, *keys)
    assert caught.value.code == code
    return str(caught.value)


def test_a_row_that_was_not_recorded(tmp_path: Path) -> None:
    engine = recording(tmp_path, guest_1=["secret", "b"])
    text = problem("E419", engine, "guest 1/2")
    assert "'palm' holds 2 answers for guest 1" in text
    assert "row 2 (from 0)" in text
    assert "secret" not in text


def test_a_client_that_was_not_recorded(tmp_path: Path) -> None:
    text = problem("E418", recording(tmp_path, guest_1=["a"], host_2=["b"]), "host 3/0")
    assert f"{tmp_path / 'host_3.jsonl'}: it is not there (there are: guest_1.jsonl, host_2.jsonl)" in text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is no JSON"),
        ("", "line 2 is no JSON"),
        ("3", "line 2 is neither a text nor a mapping with `answer`"),
        ('{"text": "secret"}', "line 2 is neither"),
        ('{"answer": "secret", "extra": 1}', "line 2 is neither"),
        ('{"answer": 3}', "line 2: `answer` is a text or null"),
        ('{"answer": "secret", "finished": 1}', "`finished` is true or false"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("\ud800", "UnicodeDecodeError"),
    ],
)
def test_a_broken_file(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "guest_1.jsonl").write_bytes(f'"a"\n{line}\n"c"'.encode(errors="surrogatepass"))
    text = problem("E418", RecordedEngine(tmp_path, "palm"), "guest 1/0")
    assert reason in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "key", ["guest 1", "guest 1/", "guest 1/-1", "../guest 1/0", "guest ../x/0", "guest 1/0/0", ""]
)
def test_a_key_names_a_row_of_a_client_and_no_path(tmp_path: Path, key: str) -> None:
    assert "names no row of a client" in problem("E418", recording(tmp_path, guest_1=["a"]), key)


def test_prompts_without_keys(tmp_path: Path) -> None:
    engine = recording(tmp_path, guest_1=["a"])
    for keys, there in ((None, 0), (["guest 1/0"], 1)):
        with pytest.raises(ExtensionError, match=rf"E418 .*{there} of 2 prompts say"):
            engine.generate(["?", "?"], CONFIG, seed=0, keys=keys)


def test_a_folder_without_a_recording(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E418 .*there is no \.jsonl file in it"):
        RecordedEngine(tmp_path, "palm")


def test_the_site_names_it(tmp_path: Path) -> None:
    recording(tmp_path / "palm", guest_1=["a"])
    site = Site(root=str(tmp_path), recordings={"palm": "palm", "gone": "x", "both": "palm"}, models={"both": "palm"})
    assert site.lookup_llm("palm", recorded=True) == Recording(tmp_path / "palm")
    with open_engine(site, LLMConfig(name="palm"), torch.device("cpu"), recorded=True) as engine:
        assert isinstance(engine, RecordedEngine)
        assert engine.name == "palm"
    for name, code in (("gone", "E111"), ("both", "E131"), ("other", "E131")):
        with pytest.raises(ExtensionError, match=code):
            site.lookup_llm(name, recorded=True)
    with pytest.raises(ExtensionError, match="E410"):
        open_engine(site, LLMConfig(name="palm", adapter="a"), torch.device("cpu"), recorded=True)


def test_a_recording_is_used_where_one_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    recording(tmp_path / "palm", guest_1=["a"])
    site = Site(
        root=str(tmp_path),
        recordings={"palm": "palm"},
        models={"mine": "palm"},
        endpoints={"far": Endpoint(url="http://127.0.0.1:1/v1")},
    )
    with pytest.raises(ExtensionError, match=r"E769 .*'palm' is a recording, the job asks for .* reads its prompts"):
        open_engine(site, LLMConfig(name="palm"), torch.device("cpu"))
    for name in ("mine", "far"):
        with pytest.raises(ExtensionError, match=rf"E769 .*'{name}' is an LLM that .*, the job asks for a recording"):
            open_engine(site, LLMConfig(name=name), torch.device("cpu"), recorded=True)
