"""Records of DP-KD: from a table's rows to token ids, counts of codes, duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from fate_llm_ext.algo.control import Records, encode_prompts, encode_records, items, read_records, to_records
from fate_llm_ext.algo.synthesis import code_counts, select, synthesise
from fate_llm_ext.config import ControlConfig, GenerationConfig
from fate_llm_ext.data.corpus import generate_tickets
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.tiny import TinyConfig, build_model
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

KINDS = ["byte_bpe", "sentencepiece_bpe"]
CODES = ["World", "Sports news", "Sci / Tech"]
TEXT = "Shares fell 3 % in Zürich.\n\nNobody knows why: 猫."


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return train_tokenizer([row["text"] for row in generate_tickets(300, seed=1)], 400, request.param)


def control(**changes: Any) -> ControlConfig:
    return ControlConfig(**{"code": "{{ label }}", "values": CODES, "max_length": 128, **changes})


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- rows ---------------------------------------------------------------------------------------------


def test_rows_become_records_in_their_order(tmp_path: Path) -> None:
    rows = [{"label": "Sports news ", "text": " a\r\nb\n"}, {"label": "World", "text": "e\u0301"}]
    records = read_records(table(tmp_path, rows), "train", control())
    assert records.codes.tolist() == [1, 0]
    assert records.codes.dtype == np.int32
    assert records.texts == ["a\nb", "\u00e9"]


def test_columns_are_mapped_and_codes_put_together(tmp_path: Path) -> None:
    rows = [{"kind": "Sci", "sub": "Tech", "body": "x", "n": 3}]
    settings = control(code="{{ label }} / {{ sub }}", text="{{ body }} ({{ n }})", columns={"label": "kind"})
    records = read_records(table(tmp_path, rows), "train", settings)
    assert (records.codes.tolist(), records.texts) == ([2], ["x (3)"])


def test_rows_that_were_read_once_are_enough(tmp_path: Path) -> None:
    """What is trained on are the rows that the ledger has seen, whatever becomes of the file."""
    rows = [{"kind": "World", "text": "a"}, {"kind": "Sci / Tech", "text": "b"}]
    settings = control(columns={"label": "kind"})
    whole = read_records(table(tmp_path, rows), "train", settings)
    once = to_records(rows, settings, tmp_path / "gone")
    assert (once.codes.tolist(), once.texts) == (whole.codes.tolist(), whole.texts) == ([0, 2], ["a", "b"])
    assert rows[0] == {"kind": "World", "text": "a"}, "they are left as they are"
    with pytest.raises(ExtensionError, match="E205"):
        to_records(rows, control(columns={"label": "sort"}), tmp_path)


SECRET = "patient Miller"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"label": SECRET, "text": "x"}, "E660 .*: 2 of 4 rows have a control code .* the 3 of .*row 2 first"),
        ({"label": "World", "text": " \n"}, "E661 .*: 2 of 4 rows have no text .row 2 first; columns: label, text"),
        ({"label": "World", "text": None}, "E661 .*: 2 of 4 rows have no text"),
        ({"label": "World"}, "E661 .*: 2 of 4 rows have no text"),
        ({"label": " ", "text": SECRET}, "E210 .*row 2.*'label' is undefined"),
        ({"text": SECRET}, "E210 .*row 2.*'label' is undefined"),
    ],
)
def test_bad_rows_are_counted_and_not_shown(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    good = {"label": "World", "text": SECRET}
    with pytest.raises(ExtensionError, match=message) as caught:
        read_records(table(tmp_path, [good, bad, good, bad]), "train", control())
    assert SECRET not in str(caught.value)


def test_a_code_that_comes_out_empty(tmp_path: Path) -> None:
    path = table(tmp_path, [{"label": "World", "text": "x"}, {"text": SECRET}])
    with pytest.raises(ExtensionError, match=r"E661 .*: 1 of 2 rows have no code .row 2 first; columns: label, text"):
        read_records(path, "train", control(code="{{ label | default('') }}"))


@pytest.mark.parametrize("again", ["b", " b", "b\n"])
def test_codes_that_differ_in_spaces_only(again: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="4 control codes, 3 different ones"):
        control(values=["a", "b", "c", again])


def test_codes_that_differ_in_their_unicode_form_only(tmp_path: Path) -> None:
    values = ["a", "caf\u00e9", "c", "cafe\u0301"]
    with pytest.raises(
        ExtensionError, match="E663 The control codes 1 and 3 of 4 differ in spaces or Unicode form only"
    ):
        read_records(table(tmp_path, [{"label": "a", "text": "b"}]), "train", control(values=values))


# --- tokens -------------------------------------------------------------------------------------------


def test_a_sequence_is_the_prompt_that_is_sampled_from_then_text_and_end(tokenizer: Any) -> None:
    records = Records(np.array([1, 0, 2], dtype=np.int32), [TEXT, "a", "\n b"])
    prompts = encode_prompts(tokenizer, control())
    for encoded, code, text in zip(encode_records(tokenizer, records, control()), records.codes, records.texts):
        head, tail = encoded.ids[: encoded.places[0]], encoded.ids[encoded.places[0] :]
        assert head.tolist() == prompts[code].tolist()
        assert encoded.places.tolist() == list(range(len(head), len(encoded.ids)))
        assert tail[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in tail[:-1]
        assert tokenizer.decode(head, skip_special_tokens=True).strip() == CODES[code]
        whole = tokenizer.decode(encoded.ids, skip_special_tokens=True)
        assert whole.strip() == f"{CODES[code]}\n\n{text}"
        assert (encoded.starts[0], encoded.starts[-1]) == (0, len(text.encode()))
        assert encoded.answer_bytes == len(text.encode())
        assert (np.diff(encoded.starts) >= 0).all()


def test_texts_are_cut_alike_whatever_their_code(tokenizer: Any) -> None:
    records = Records(np.array([0, 1, 2], dtype=np.int32), [TEXT * 9] * 3)
    encoded = encode_records(tokenizer, records, control(max_length=40))
    longest = max(map(len, encode_prompts(tokenizer, control())))
    for one in encoded:
        assert len(one.places) == 40 - longest
        assert tokenizer.eos_token_id not in one.ids[one.places]
    assert max(len(one.ids) for one in encoded) == 40
    assert [len(item.answer) for item in items(encoded)] == [40 - longest] * 3


def test_a_prompt_must_leave_room(tokenizer: Any) -> None:
    settings = control(values=["a", "b " * 40], max_length=30)
    with pytest.raises(ExtensionError, match=r"E662 .*control code 1 takes \d\d+ tokens; with at least 1 .* 30\."):
        encode_records(tokenizer, Records(np.zeros(1, np.int32), ["x"]), settings)
    settings = control(max_length=40)
    tokens = max(map(len, encode_prompts(tokenizer, settings)))
    encode_prompts(tokenizer, settings, 40 - tokens)
    with pytest.raises(ExtensionError, match=rf"E662 .* takes {tokens} tokens; with at least {41 - tokens} of text"):
        encode_prompts(tokenizer, settings, 41 - tokens)


# --- counts and duplicates ----------------------------------------------------------------------------


def test_counts_by_largest_remainder() -> None:
    assert code_counts(10, None, 4).tolist() == [3, 3, 2, 2]
    assert code_counts(10, np.array([1.0, 2.0, 3.0]), 3).tolist() == [2, 3, 5]  # 1.67, 3.33, 5
    assert code_counts(7, np.array([-5.0, 1.0, 1.0]), 3).tolist() == [0, 4, 3]
    assert code_counts(5, np.array([-1.0, -2.0]), 2).tolist() == [3, 2]
    assert code_counts(2, np.full(5, 0.2), 5).tolist() == [1, 1, 0, 0, 0]
    with pytest.raises(ExtensionError, match="E325 shares of control codes"):
        code_counts(5, np.ones(2), 3)


def test_counts_are_whole_and_never_a_text_away_from_their_share() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        shares, samples = draw.normal(1.0, 1.0, size=draw.integers(1, 30)), int(draw.integers(1, 5000))
        counts = code_counts(samples, shares, len(shares))
        weights = np.maximum(shares, 0) if (shares > 0).any() else np.ones(len(shares))
        exact = samples * weights / weights.sum()
        assert counts.sum() == samples
        assert (np.abs(counts - exact) < 1.0).all()
        assert (counts[weights == 0] == 0).all()


def test_empty_texts_and_repetitions_are_left_out_by_reason() -> None:
    texts = ["Good  food", "", "good\nfood", "bad", "Good foods", "BAD", ""]
    kept, report = select(Records(np.array([0, 0, 1, 1, 1, 0, 2], dtype=np.int32), texts), 3)
    assert kept.texts == ["Good  food", "bad", "Good foods"]
    assert kept.codes.tolist() == [0, 1, 1]
    assert (report.asked, report.kept, report.dropped) == (7, 3, {"empty": 2, "duplicate": 2})
    assert report.per_code.tolist() == [1, 2, 0]


def test_sampled_texts_carry_their_codes(tokenizer: Any) -> None:
    model = build_model(TinyConfig(hidden=16, layers=1, context=64, steps=1), tokenizer)
    config = GenerationConfig(max_new_tokens=12, batch_size=4)
    told: list[str] = []
    counts = np.array([4, 0, 9])
    settings = control(max_length=64)
    records, report = synthesise(model, tokenizer, settings, counts, config, seed=1, heartbeat=told.append)
    assert (report.asked, report.kept) == (13, len(records))
    assert sum(report.dropped.values()) == 13 - len(records)
    assert report.per_code.tolist() == np.bincount(records.codes, minlength=3).tolist()
    assert report.per_code[1] == 0 < report.per_code[0]
    assert told[-1] == "sampling texts, 13 of 13"
    again, _ = synthesise(model, tokenizer, settings, counts, config, seed=1)
    other, _ = synthesise(model, tokenizer, settings, counts, config, seed=2)
    assert again.texts == records.texts != other.texts
    with pytest.raises(ExtensionError, match=r"E662"):
        synthesise(model, tokenizer, control(max_length=16), counts, config, seed=1)
