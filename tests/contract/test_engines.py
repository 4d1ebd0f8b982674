"""What every engine promises, held against transformers' own generation, one prompt at a time; a recording replays it.

The HTTP engine is tried against a real server: `transformers serve`, in an environment of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import requests
import torch
from transformers import AutoModelForCausalLM

from fate_llm_ext.config import GenerationConfig, LLMConfig, LoraConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models import generation
from fate_llm_ext.models.engines import Completion, Engine, HTTPEngine, LocalEngine, RecordedEngine, open_engine
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tiny import TinyConfig, build_model, train_lm
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.models.tokenizers import load_tokenizer
from fate_llm_ext.site import Endpoint, Site

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-serve/bin/transformers"
CONTEXT = 48
DOCUMENTS = ["one two three four five.", "red green blue, red.", "día mañana: 日本."] * 60
PROMPTS = ["one two", "red", "one", "día", "red green", "one two", "日本", "two three"]
GREEDY = GenerationConfig(top_k=1, max_new_tokens=24, batch_size=3)
SAMPLED = GenerationConfig(top_k=0, top_p=1.0, temperature=3.0, max_new_tokens=16, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt three lines by heart."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(DOCUMENTS, 280)
    config = TinyConfig(arch="llama", hidden=32, context=CONTEXT, steps=100, batch_tokens=256, candidates=0)
    model = build_model(config, tokenizer)
    train_lm(model, tokenizer, DOCUMENTS, config)
    model.generation_config.do_sample = True  # else `transformers serve` is greedy, whatever a request says
    save_model(model, tokenizer, path, "three lines")
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return path


def by_transformers(model: Any, folder: Path, prompts: list[str], new: int) -> list[Completion]:
    """Greedy texts, one prompt at a time."""
    tokenizer, results = load_tokenizer(folder), []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            out = model.generate(ids, do_sample=False, max_new_tokens=new, attention_mask=torch.ones_like(ids))
        written = out[0, ids.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in written
        results.append(Completion(tokenizer.decode(written, skip_special_tokens=True), ended))
    return results


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder)).eval()


KEYS = [f"guest 9999/{row}" for row in range(len(PROMPTS))]


class EngineContract:
    """Tests that every engine passes; a subclass gives the fixture ``engine``."""

    def test_each_key_goes_with_its_prompt(self, engine: Engine) -> None:
        got = engine.generate(PROMPTS, GREEDY, seed=0, keys=KEYS)
        assert engine.generate(PROMPTS[::-1], GREEDY, seed=0, keys=KEYS[::-1]) == got[::-1]

    def test_an_answer_ends_before_the_first_stop_string(self, engine: Engine) -> None:
        (whole,) = engine.generate(PROMPTS[:1], GREEDY, seed=0, keys=KEYS[:1])
        (short,) = engine.generate(PROMPTS[:1], GREEDY, seed=0, keys=KEYS[:1], stop=["five", "", "four", "Q"])
        assert whole == Completion(" three four five.", True)
        assert short == Completion(" three ", True)

    def test_steps_count_the_prompts_that_are_done(self, engine: Engine) -> None:
        steps: list[tuple[int, int]] = []
        engine.generate(PROMPTS, GREEDY, seed=0, keys=KEYS, step=lambda *at: steps.append(at))
        assert steps[-1] == (len(PROMPTS), len(PROMPTS))
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})

    def test_nothing_to_do(self, engine: Engine) -> None:
        assert engine.generate([], GREEDY, seed=0, step=lambda done, total: pytest.fail("a step"), keys=[]) == []
        assert engine.fits([], GREEDY).shape == (0,)

    def test_these_prompts_fit(self, engine: Engine) -> None:
        fits = engine.fits(PROMPTS, GREEDY)
        assert fits.dtype == bool
        assert fits.tolist() == [True] * len(PROMPTS)

    def test_it_has_the_name_that_the_site_gave_it(self, engine: Engine) -> None:
        assert engine.name == "llm"


class WriterContract(EngineContract):
    """Further tests that every engine passes which reads its prompts."""

    @pytest.fixture
    def expected(self, model: Any, folder: Path) -> list[Completion]:
        return by_transformers(model, folder, PROMPTS, GREEDY.max_new_tokens)

    def test_each_prompt_has_its_text_in_its_place(self, engine: Engine, expected: list[Completion]) -> None:
        assert expected[0] == Completion(" three four five.", True)
        assert engine.generate(PROMPTS, GREEDY, seed=0) == expected
        assert engine.generate(PROMPTS[::-1], GREEDY, seed=1) == expected[::-1]

    def test_a_text_that_is_cut_is_not_finished(self, engine: Engine, model: Any, folder: Path) -> None:
        config = GREEDY.copy(update={"max_new_tokens": 3})
        got = engine.generate(PROMPTS, config, seed=0)
        assert got == by_transformers(model, folder, PROMPTS, 3)
        assert got[0].finished is False
        assert " three four five.".startswith(got[0].text)

    def test_a_text_ends_before_the_first_stop_string(self, engine: Engine, expected: list[Completion]) -> None:
        got = engine.generate(PROMPTS[:4], GREEDY, seed=0, stop=["four", "ree", "Q", "", "five"])
        whole = [one.text for one in expected[:4]]
        for word in ("four", "ree", "five"):
            whole = [text.split(word)[0] for text in whole]
        assert got == [Completion(text, True) for text in whole]
        assert got[0].text == " th"

    def test_a_stop_string_ends_a_text_even_where_it_would_be_cut(self, engine: Engine) -> None:
        config = GREEDY.copy(update={"max_new_tokens": 3})
        (whole,) = engine.generate(["one two"], config, seed=0)
        (short,) = engine.generate(["one two"], config, seed=0, stop=[whole.text[1]])
        assert (whole.finished, short) == (False, Completion(" ", True))

    def test_prompts_at_a_high_temperature_are_sampled_apart(self, engine: Engine) -> None:
        got = engine.generate(["one"] * 12, SAMPLED, seed=0)
        assert len({one.text for one in got}) > 8

    def test_any_text_can_be_a_prompt(self, engine: Engine) -> None:
        prompts = ["日本 \U0001f980 ünï", "\n\n", 'quotes " and \\ and {{ braces }}', "<|endoftext|>", "\u2028"]
        got = engine.generate(prompts, GREEDY.copy(update={"max_new_tokens": 2}), seed=0)
        assert len(got) == len(prompts)
        assert all(isinstance(one.text, str) for one in got)

    def test_keys_change_nothing(self, engine: Engine) -> None:
        config = GREEDY.copy(update={"max_new_tokens": 4})
        assert engine.generate(PROMPTS, config, seed=0, keys=KEYS) == engine.generate(PROMPTS, config, seed=0)


class TestRecorded(EngineContract):
    @pytest.fixture(scope="class")
    def engine(self, folder: Path, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
        """What the model writes, on record."""
        path = tmp_path_factory.mktemp("recordings")
        texts = by_transformers(model, folder, PROMPTS, GREEDY.max_new_tokens)
        lines = [json.dumps({"answer": one.text, "finished": one.finished}) for one in texts]
        (path / "guest_9999.jsonl").write_text("\n".join(lines))
        with open_engine(
            Site(recordings={"llm": str(path)}), LLMConfig(name="llm"), torch.device("cpu"), recorded=True
        ) as engine:
            assert isinstance(engine, RecordedEngine)
            yield engine


class TestLocal(WriterContract):
    @pytest.fixture(scope="class")
    def engine(self, folder: Path) -> Iterator[Engine]:
        site = Site(root=str(folder.parent), models={"llm": folder.name})
        with open_engine(site, LLMConfig(name="llm"), torch.device("cpu")) as engine:
            assert isinstance(engine, LocalEngine)
            yield engine
        engine.close()

    def test_the_seed_decides_whatever_the_batch_size(self, engine: Engine) -> None:
        whole = engine.generate(PROMPTS, SAMPLED, seed=3)
        for size in (1, 3, 64):
            assert engine.generate(PROMPTS, SAMPLED.copy(update={"batch_size": size}), seed=3) == whole
        assert engine.generate(PROMPTS, SAMPLED, seed=4) != whole

    def test_a_stop_string_saves_what_would_be_written_behind_it(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And changes nothing of what is before it, nor any other text."""
        assert isinstance(engine, LocalEngine)
        config = SAMPLED.copy(update={"max_new_tokens": 40, "batch_size": 8})
        rows, forward = [], generation._Writer._forward

        def spy(writer: Any, ids: Any, *rest: Any) -> Any:
            rows.append(len(ids))
            return forward(writer, ids, *rest)

        monkeypatch.setattr(generation._Writer, "_forward", spy)
        whole = engine.generate(PROMPTS, config, seed=1, stop=[""])
        for_all = sum(rows)
        rows.clear()
        starts = [one.text[:15] for one in whole]
        common = max(set("".join(starts)), key=lambda letter: sum(letter in start for start in starts))
        got = engine.generate(PROMPTS, config, seed=1, stop=["", common])
        parts = [one.text.partition(common) for one in whole]
        assert got == [Completion(before, bool(at) or one.finished) for (before, at, _), one in zip(parts, whole)]
        assert sum(rows) < 0.8 * for_all

    def test_a_prompt_that_does_not_fit(self, engine: Engine) -> None:
        assert isinstance(engine, LocalEngine)
        config = GREEDY.copy(update={"max_new_tokens": 20})
        words = ["one two " * times for times in range(1, 30)]
        lengths = np.array([len(engine.tokenizer(prompt)["input_ids"]) for prompt in words])
        fits = engine.fits(words, config)
        assert fits.tolist() == (lengths + 20 - 1 <= CONTEXT).tolist()
        assert 0 < fits.sum() < len(words)
        longest = [prompt for prompt, fit in zip(words, fits) if fit][-1]
        assert len(engine.generate([longest], config, seed=0)) == 1
        with pytest.raises(ExtensionError, match="E665"):
            engine.generate([words[int(fits.sum())]], config, seed=0)

    def test_an_adapter_is_applied_and_not_merged(self, folder: Path, model: Any, tmp_path: Path) -> None:
        adapted = add_lora(AutoModelForCausalLM.from_pretrained(str(folder)), LoraConfig(r=4, dropout=0.5), seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter.normal_(std=0.2)
        adapted.save_pretrained(str(tmp_path / "adapter"))
        site = Site(root="/", models={"llm": str(folder), "mine": str(tmp_path / "adapter")})
        engine = open_engine(site, LLMConfig(name="llm", adapter="mine"), torch.device("cpu"))
        assert isinstance(engine, LocalEngine)
        got = engine.generate(PROMPTS, GREEDY, seed=0)
        assert got == by_transformers(adapted.eval(), folder, PROMPTS, GREEDY.max_new_tokens)
        assert got != by_transformers(model, folder, PROMPTS, GREEDY.max_new_tokens)
        assert any("lora_" in name for name, _ in engine.model.named_parameters())

    def test_a_prompt_begins_as_the_tokenizer_begins_a_text(self) -> None:
        """OPT's reads an end token first."""
        from tokenizers import processors

        tokenizer = train_tokenizer(DOCUMENTS, 280)
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
        )
        model = build_model(TinyConfig(arch="opt", hidden=32, context=CONTEXT, steps=1), tokenizer)
        engine = LocalEngine(model, tokenizer, "llm")
        assert engine.encode(["one two"])[0].tolist() == tokenizer("one two")["input_ids"]
        assert engine.encode([""])[0].tolist() == [tokenizer.eos_token_id]


# --- behind a real server --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `transformers serve` on the model; it ends with the module, with all that it has started."""
    if not SERVER.exists():
        pytest.skip("no .venv-serve here: make venv-serve")
    scratch = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf"), "OMP_NUM_THREADS": "1"}
    command = [str(SERVER), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **offline}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health", scratch / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(server: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    with requests.Session() as session:
        session.trust_env = False
        while time.monotonic() < until:
            if server.poll() is not None:
                break
            try:
                if session.get(address, timeout=2).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.2)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")


@pytest.mark.serve
class HTTPContract(WriterContract):
    api: ClassVar[str]

    def opened(self, url: str, folder: Path, **changes: Any) -> Engine:
        settings = {"model": str(folder), "api": self.api, "top_k": False, "concurrency": 4, "retries": 0, **changes}
        site = Site(endpoints={"llm": Endpoint(url=url, **settings)})
        return open_engine(site, LLMConfig(name="llm"), torch.device("cpu"))

    @pytest.fixture(scope="class")
    def engine(self, url: str, folder: Path) -> Iterator[Engine]:
        with self.opened(url, folder) as engine:
            assert isinstance(engine, HTTPEngine)
            yield engine
        engine.close()

    def test_the_seed_decides_where_the_server_takes_one_request_at_a_time(self, url: str, folder: Path) -> None:
        with self.opened(url, folder, concurrency=1) as engine:
            first = engine.generate(PROMPTS, SAMPLED, seed=3)
            assert engine.generate(PROMPTS, SAMPLED, seed=3) == first
            assert engine.generate(PROMPTS, SAMPLED, seed=4) != first

    def test_what_the_server_does_not_take_shows_when_the_engine_is_opened(self, url: str, folder: Path) -> None:
        with pytest.raises(ExtensionError, match=r"E413 .*refused a trial request with status 422\. .*`top_k: false`"):
            self.opened(url, folder, top_k=True)
        with pytest.raises(ExtensionError, match=r"E413 .*refused a trial request with status 400\."):
            self.opened(url, folder, model="another")


class TestCompletions(HTTPContract):
    api = "completions"


class TestChat(HTTPContract):
    api = "chat"
