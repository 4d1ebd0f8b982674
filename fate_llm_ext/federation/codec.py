"""Typed messages to bytes and back: a JSON header and raw array buffers, validated on receipt.

A message is a frozen dataclass. Arrays are declared with :func:`array` (dtype, named dimensions),
everything else is a plain ``str``, ``int``, ``float``, ``bool`` or a list or dict of them::

    @dataclass(frozen=True)
    class Scores(WireMessage):
        nll: np.ndarray = array("f4", "N")

The wire form never needs pickle for its content, so a peer's bytes can only become the declared plain
arrays, or an error.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import Any, ClassVar, Dict, List, Tuple, Type, TypeVar, cast

import numpy as np

from fate_llm_ext.errors import ExtensionError

_MAGIC = b"FLX1"
_PREFIX = struct.Struct("<4sI")
_MAX_HEADER_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = 8 << 30
# What parsing hostile bytes can raise: RecursionError is a header of 100,000 brackets.
_INVALID = (ValueError, KeyError, TypeError, OverflowError, AttributeError, struct.error, RecursionError)

M = TypeVar("M", bound="WireMessage")


def array(dtype: str, *dims: str, finite: bool = True) -> Any:
    """Declare an array field.

    Args:
        dtype: numpy dtype such as ``f4``, ``f2``, ``i4``, ``u1``; ``u2|u4`` takes the first that holds
            the values.
        dims: one name per dimension; equal names within a message must have equal sizes.
        finite: refuse NaN and infinity on receipt (float dtypes).
    """
    return dataclasses.field(metadata={"dtype": dtype, "dims": dims, "finite": finite})


class WireMessage:
    """Base of all messages; ``name`` is what the message is called on the wire and in reports."""

    name: ClassVar[str]

    def validate(self) -> None:
        """Check what dtypes and shapes cannot say. Raise ValueError with both numbers."""


def encode(message: WireMessage) -> bytes:
    """Serialise a message. Array fields are cast to their declared dtype."""
    plain: Dict[str, Any] = {}
    arrays: Dict[str, Tuple[str, Tuple[int, ...]]] = {}
    buffers = []
    for field in dataclasses.fields(message):  # type: ignore[arg-type]
        value = getattr(message, field.name)
        if "dtype" in field.metadata:
            dtype = _smallest(np.asarray(value), field.metadata["dtype"].split("|"))
            data = np.ascontiguousarray(value, dtype=dtype)
            arrays[field.name] = (dtype, data.shape)
            buffers.append(data.tobytes())
        else:
            plain[field.name] = value
    header = json.dumps({"name": message.name, "plain": plain, "arrays": arrays}, allow_nan=False).encode()
    return b"".join([_PREFIX.pack(_MAGIC, len(header)), header, *buffers])


def _smallest(value: np.ndarray, dtypes: List[str]) -> str:
    for dtype in dtypes[:-1]:
        limits = np.iinfo(dtype)
        if value.size == 0 or (value.min() >= limits.min and value.max() <= limits.max):
            return dtype
    return dtypes[-1]


def decode(blob: bytes, expected: Type[M], sender: str) -> M:
    """Parse and validate a message.

    Args:
        blob: what :func:`encode` gave at the sender.
        expected: the message type that the protocol prescribes here.
        sender: party name for the error, e.g. ``host 10000``.

    Raises:
        ExtensionError: E301 if the bytes are not a valid ``expected`` message.
    """
    try:
        message = _parse(blob, expected)
        message.validate()
        return message
    except _INVALID as error:
        # The text quotes the peer, who may have sent a megabyte.
        reason = str(error)[:300]
        raise ExtensionError("E301", sender=sender, message=expected.name, reason=reason) from error


def _parse(blob: bytes, expected: Type[M]) -> M:
    if len(blob) > _MAX_MESSAGE_BYTES:
        raise ValueError(f"{len(blob)} bytes, the limit is {_MAX_MESSAGE_BYTES}")
    magic, header_bytes = _PREFIX.unpack_from(blob)
    if magic != _MAGIC or header_bytes > _MAX_HEADER_BYTES:
        raise ValueError("not a message of this version of the protocol")
    header = json.loads(blob[_PREFIX.size : _PREFIX.size + header_bytes].decode())
    if header["name"] != expected.name:
        raise ValueError(f"got a message named {header['name']!r}")
    values: Dict[str, Any] = {}
    sizes: Dict[str, int] = {}
    position = _PREFIX.size + header_bytes
    for field in dataclasses.fields(expected):  # type: ignore[arg-type]
        if "dtype" not in field.metadata:
            values[field.name] = _plain(field.name, header["plain"][field.name], str(field.type))
            continue
        data, position = _read_array(blob, position, header["arrays"][field.name], field, sizes)
        values[field.name] = data
    if position != len(blob):
        raise ValueError(f"{len(blob)} bytes received, {position} declared")
    extra = set(header["plain"]) | set(header["arrays"])
    if extra != set(values):
        raise ValueError(f"unknown fields {sorted(extra - set(values))}")
    return expected(**values)


def _read_array(
    blob: bytes, position: int, declared: Any, field: dataclasses.Field[Any], sizes: Dict[str, int]
) -> Tuple[np.ndarray, int]:
    name, shape = declared
    if name not in field.metadata["dtype"].split("|"):
        raise ValueError(f"{field.name} has dtype {name!r}, expected {field.metadata['dtype']}")
    dims = field.metadata["dims"]
    if len(shape) != len(dims) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"{field.name} has shape {shape}, expected dimensions {list(dims)}")
    for dim, size in zip(dims, shape):
        if sizes.setdefault(dim, size) != size:
            raise ValueError(f"{field.name}: dimension {dim} is {size}, another array has {sizes[dim]}")
    dtype = np.dtype(name)
    count = int(np.prod(shape, dtype=object)) if shape else 1
    end = position + count * dtype.itemsize
    if end > len(blob):
        raise ValueError(f"{field.name} needs {end - position} bytes, {len(blob) - position} are left")
    data = np.frombuffer(blob, dtype=dtype, count=count, offset=position).reshape(shape)
    if dtype.kind == "f" and field.metadata["finite"]:
        bad = int(data.size - np.isfinite(data).sum())
        if bad:
            raise ValueError(f"{field.name} holds {bad} NaN or infinite values of {data.size}")
    return data, end


_PLAIN_TYPES: Dict[str, Tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def _plain(name: str, value: Any, annotation: str) -> Any:
    if annotation.startswith(("List[str]", "list[str]")):
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise ValueError(f"{name} must be a list of strings")
        return value
    if annotation.startswith(("Dict[str, str]", "dict[str, str]")):
        if not isinstance(value, dict) or not all(map(_is_text, [*value, *value.values()])):
            raise ValueError(f"{name} must map strings to strings")
        return value
    allowed = _PLAIN_TYPES[annotation]
    if not isinstance(value, allowed) or (isinstance(value, bool) and annotation != "bool"):
        raise ValueError(f"{name} must be {annotation}, got {type(value).__name__}")
    if (annotation == "str" and not _is_text(value)) or (
        annotation == "float" and not math.isfinite(cast(float, value))
    ):
        raise ValueError(f"{name} holds no valid {annotation}")
    return value


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written as UTF-8: JSON lets half of a surrogate pair through."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
