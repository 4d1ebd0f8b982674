"""The edges of answering: no rows, empty prompts, answers longer than the limit."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fate_llm_ext.algo.answering import Answerer
from fate_llm_ext.config import EvaluationConfig, TaskConfig
from fate_llm_ext.data.templates import Example
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer


@cache
def parts(kind: str) -> Any:
    tokenizer = train_tokenizer(["the cat sees a dog"], 340, kind)
    torch.manual_seed(0)
    return build_model(TinyConfig(arch="gpt2", steps=1, hidden=32, layers=1, context=64), tokenizer), tokenizer


def answerer(max_length: int = 32, kind: str = "byte_bpe") -> Answerer:
    model, tokenizer = parts(kind)
    return Answerer(model, tokenizer, TaskConfig(template="text", max_length=max_length), EvaluationConfig())


def test_no_rows() -> None:
    asked = answerer()
    assert asked.choice_log_probs([], "answering").shape == (0, 0)
    assert asked.choice_log_probs([[], []], "answering").shape == (2, 0)
    assert asked.write([], 4, "writing") == []


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_an_empty_prompt_is_continued(kind: str) -> None:
    texts = answerer(kind=kind).write([Example("", None, None), Example("the cat", None, None)], 4, "writing")
    assert len(texts) == 2


def test_an_answer_that_is_cut_keeps_its_last_token() -> None:
    asked = answerer(max_length=8)
    eos = asked.tokenizer.eos_token_id
    choices = (" " + "xyz" * 8, " dog")
    ((long, short),) = asked.encode_choices([Example("the cat", choices[1], choices)])
    assert len(long[0]) == 8
    assert long[1][-1] == 7, "its last token is one of the answer's"
    assert eos not in long[0].tolist()
    assert eos not in short[0].tolist()
    assert short[1][-1] == len(short[0]) - 1
    assert np.isfinite(asked.choice_log_probs([[long, short]], "answering")).all()
