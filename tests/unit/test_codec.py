"""Messages as bytes: what is sent arrives, and nothing else is ever accepted."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_llm_ext.algo.fedmkt import protocol
from fate_llm_ext.algo.fedmkt.protocol import Hello, Request, Scores, Signals, Welcome
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import WireMessage, array, decode, encode

PREFIX = struct.Struct("<4sI")


def defaults(kind: type[WireMessage], rows: int) -> dict[str, Any]:
    """Plausible values of every field, with ``rows`` entries in each dimension (0: all empty)."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if "dtype" in field.metadata:
            dtype = np.dtype(field.metadata["dtype"].split("|")[-1])
            shape = (rows,) * len(field.metadata["dims"])
            values[field.name] = np.zeros(shape, dtype)
        elif str(field.type).startswith("Dict"):
            values[field.name] = {"seed": "0", "naïve": "1"} if rows else {}
        elif str(field.type).startswith("List"):
            values[field.name] = [" World", " Büro"] if rows else []
        else:
            values[field.name] = {"str": "0.1", "int": 3, "bool": True, "float": 0.5}[str(field.type)]
    return values


def signals(**changes: Any) -> Signals:
    values: dict[str, Any] = dict(
        defaults(Signals, 0),
        answers=[" yes", " nö"],
        rows=np.array([1, 70_000]),
        answer=np.array([-1, 1]),
        tokens=np.array([2, 1]),
        starts=np.array([-1, 3, 0]),
        ids=np.array([[5, 6], [7, 8], [9, 100_000]]),
        log_probs=np.array([[-0.5, -1.0], [-0.25, -4.0], [-0.125, -60_000.0]]),
    )
    return Signals(**{**values, **changes})


MESSAGES: list[WireMessage] = [
    *(kind(**defaults(kind, rows)) for kind in (Hello, Welcome, Scores, Request) for rows in (0, 1, 3)),
    Signals(**defaults(Signals, 0)),
    signals(),
    signals(answers=[], answer=np.array([-1, -1]), ids=np.zeros((3, 0)), log_probs=np.zeros((3, 0))),
]


def test_every_message_of_the_protocol_is_covered() -> None:
    declared = {
        value for value in vars(protocol).values() if isinstance(value, type) and issubclass(value, WireMessage)
    }
    assert {type(message) for message in MESSAGES} == declared - {WireMessage}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.name)
def test_round_trip(message: WireMessage) -> None:
    got = decode(encode(message), type(message), "host 10000")
    for field in fields(message):  # type: ignore[arg-type]
        sent, received = getattr(message, field.name), getattr(got, field.name)
        if "dtype" in field.metadata:
            assert received.dtype.str[1:] in field.metadata["dtype"]
            assert received.shape == sent.shape
            np.testing.assert_array_equal(received, sent)
        else:
            assert (type(received), received) == (type(sent), sent)
    assert encode(got) == encode(message)


@pytest.mark.parametrize(("largest", "dtype"), [(0, "u2"), (65_535, "u2"), (65_536, "u4"), (2**32 - 1, "u4")])
def test_the_smallest_type_that_holds_the_values(largest: int, dtype: str) -> None:
    rows = np.array([0, largest])
    assert decode(encode(Request(rows=rows)), Request, "arbiter").rows.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(decode(encode(Request(rows=rows)), Request, "arbiter").rows, rows)


def test_negative_starts() -> None:
    for starts, dtype in (([-32_768, 0, 1], "i2"), ([-32_769, 0, 1], "i4"), ([-1, 0, 40_000], "i4")):
        got = decode(encode(signals(starts=np.array(starts))), Signals, "x")
        assert got.starts.dtype == np.dtype(dtype)
        assert got.starts.tolist() == starts


def test_the_content_is_json_and_buffers_never_pickle() -> None:
    blob = encode(signals())
    assert blob[:4] == b"FLX1"
    header = json.loads(blob[8 : 8 + PREFIX.unpack_from(blob)[1]])
    assert header["name"] == "signals"
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(blob)
    with pytest.raises(ExtensionError, match="E301"):
        decode(pickle.dumps(signals()), Signals, "host 10000")


# --- refusal -----------------------------------------------------------------------------------------


def refused(blob: bytes, kind: type[WireMessage] = Signals) -> ExtensionError:
    with pytest.raises(ExtensionError) as caught:
        decode(blob, kind, "host 10000")
    assert caught.value.code == "E301"
    assert str(caught.value).startswith(f"E301 host 10000 sent an invalid {kind.name!r} message")
    return caught.value


def edited(edit: Callable[[dict[str, Any]], Any], message: WireMessage | None = None) -> bytes:
    """A message whose header was changed."""
    blob = encode(message or signals())
    size = PREFIX.unpack_from(blob)[1]
    header = json.loads(blob[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    return PREFIX.pack(b"FLX1", len(text)) + text + blob[8 + size :]


def test_the_unedited_message_is_accepted() -> None:
    assert isinstance(decode(edited(lambda header: None), Signals, "x"), Signals)


def test_another_message_than_the_expected_one() -> None:
    error = refused(encode(Request(rows=np.arange(3))))
    assert "request" in str(error)


def test_truncated_at_every_length() -> None:
    blob = encode(signals())
    for length in range(len(blob)):
        refused(blob[:length])


def test_trailing_bytes() -> None:
    blob = encode(signals())
    assert f"{len(blob) + 1} bytes received, {len(blob)} declared" in str(refused(blob + b"\0"))


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", ">f2", "O", "V8", "U4", "M8[s]", "", None, 3, ["f2"], {}])
def test_wrong_dtype(dtype: Any) -> None:
    refused(edited(lambda header: header["arrays"]["log_probs"].__setitem__(0, dtype)))


@pytest.mark.parametrize(
    "shape",
    [
        [], [6], [3, 2, 1], [2, 3], [3, 1], [3, 3], [-3, -2], [3, -2], [3.0, 2], ["3", "2"], [None, 2], "32", None,
        6, {}, [3, 2**62], [0, 2**62], [0, 10**30], [10**30, 10**30], [3, [2]],
    ],
)  # fmt: skip
def test_wrong_shape(shape: Any) -> None:
    refused(edited(lambda header: header["arrays"]["log_probs"].__setitem__(1, shape)))


@pytest.mark.parametrize("shape", [[2**62], [2**64], [10**30], [-1], [True], [-0.0]])
def test_huge_shapes_of_nothing(shape: Any) -> None:
    """Products that are zero or overflow: refused, whatever the one array of the message claims."""
    request = Request(rows=np.arange(3))
    refused(edited(lambda header: header["arrays"]["rows"].__setitem__(1, shape), request), Request)


def test_named_dimensions_must_agree() -> None:
    error = refused(encode(signals(rows=np.array([1, 2, 3]))))
    assert "dimension R is" in str(error)
    scores = Scores(**{**defaults(Scores, 3), "calibration_predicted": np.zeros(2)})
    assert "dimension C is 2, another array has 3" in str(refused(encode(scores), Scores))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(value: float) -> None:
    nll = np.array([0.5, value, 1.0])
    assert "1 NaN or infinite values of 3" in str(
        refused(encode(Scores(**{**defaults(Scores, 3), "nll": nll})), Scores)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": np.array([2, 2])}, "token counts sum to 4, 3 positions"),
        ({"answer": np.array([-1, 2])}, "answer index 2, 2 answers"),
        ({"log_probs": np.array([[0.5, -1.0], [-1.0, -1.0], [-1.0, -1.0]])}, "above 0"),
    ],
)
def test_what_shapes_cannot_say(changes: dict[str, Any], words: str) -> None:
    assert words in str(refused(encode(signals(**changes))))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1), ("version", None), ("version", "\ud800"), ("public_rows", "3"), ("public_rows", 3.0),
        ("public_rows", True), ("public_rows", None), ("parameters", []), ("parameters", {"seed": 0}),
        ("parameters", {"seed": None}), ("parameters", "x"), ("eos_id", [1]), ("parameters", {"seed": "\udfff"}),
    ],
)  # fmt: skip
def test_wrong_plain_values(field: str, value: Any) -> None:
    hello = Hello(**defaults(Hello, 3))
    refused(edited(lambda header: header["plain"].__setitem__(field, value), hello), Hello)


@pytest.mark.parametrize("answers", [None, "ab", [1], [None], {}, ["\ud800"]])
def test_wrong_lists(answers: Any) -> None:
    refused(edited(lambda header: header["plain"].__setitem__("answers", answers)))


def test_missing_and_unknown_fields() -> None:
    for part in ("plain", "arrays"):
        for name in json.loads(encode(signals())[8 : 8 + PREFIX.unpack_from(encode(signals()))[1]])[part]:
            refused(edited(lambda header: header[part].pop(name)))  # noqa: B023
        refused(edited(lambda header: header[part].update(other=["u1", [0]])))  # noqa: B023
        refused(edited(lambda header: header.pop(part)))  # noqa: B023
        refused(edited(lambda header: header.update({part: None})))  # noqa: B023


@pytest.mark.parametrize(
    "header",
    [b"", b"null", b"[]", b"3", b'"signals"', b"{", b"\xff\xfe", b'{"name": "signals"}', b"[" * 200_000, b"1" * 9_000,
     b'{"a":' * 100_000, b'{"name": "signals", "plain": {"answers": []}, "arrays": []}'],
    ids=lambda header: header[:20],
)  # fmt: skip
def test_headers_that_are_none(header: bytes) -> None:
    refused(PREFIX.pack(b"FLX1", len(header)) + header)


def test_a_huge_header_and_other_magic() -> None:
    refused(PREFIX.pack(b"FLX1", 2**32 - 1) + b"{}")
    refused(PREFIX.pack(b"FLX1", (1 << 20) + 1) + b" " * ((1 << 20) + 1))
    assert "not a message of this version" in str(refused(b"FLX2" + encode(signals())[4:]))
    refused(b"\x80\x04" + encode(signals())[2:])


def test_a_float_must_be_a_number() -> None:
    @dataclass(frozen=True)
    class Weight(WireMessage):
        name: ClassVar[str] = "weight"
        value: float
        data: np.ndarray = array("f4", "N", finite=False)

    message = Weight(0.5, np.array([np.nan, 1.0]))
    assert np.isnan(decode(encode(message), Weight, "x").data[0]), "an array may be declared to hold NaN"
    for value in (float("nan"), float("inf"), None, "0.5", True):
        refused(edited(lambda header: header["plain"].__setitem__("value", value), message), Weight)  # noqa: B023
    with pytest.raises(ValueError, match="JSON"):
        encode(replace(message, value=float("nan")))


# --- fuzz --------------------------------------------------------------------------------------------


def survives(blob: bytes) -> None:
    """A message or E301; any other exception fails the test."""
    for kind in (Signals, Hello, Request):
        try:
            assert isinstance(decode(blob, kind, "host 10000"), kind)
        except ExtensionError as error:
            assert error.code == "E301"  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_random_bytes(header: bytes, rest: bytes) -> None:
    survives(header + rest)
    survives(PREFIX.pack(b"FLX1", len(header)) + header + rest)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    blob = bytearray(encode(data.draw(st.sampled_from([signals(), Hello(**defaults(Hello, 2))]))))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(blob))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["u2", "f2", "signals", "", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "plain", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_headers(data: st.DataObject) -> None:
    value = data.draw(JSON)

    def edit(header: dict[str, Any]) -> None:
        part: Any = header
        while isinstance(part, (dict, list)) and len(part):
            key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else list(range(len(part)))))
            if data.draw(st.booleans()) or not isinstance(part[key], (dict, list)) or not len(part[key]):
                part[key] = value
                return
            part = part[key]

    survives(edited(edit))
