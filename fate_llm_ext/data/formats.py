"""Readers of the file formats: each streams the rows of one file as dictionaries.

A CSV or TSV file without a header has the columns ``"0"``, ``"1"``, ...; its values stay strings.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence, Tuple, cast

from fate_llm_ext.errors import ExtensionError

Row = Dict[str, Any]

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_COLUMN_NAME = re.compile(r"[^\W\d][\w.\-/()]{0,39}( [\w.\-/()]{1,39}){0,3}")
_PEEK = 200  # records looked at to tell a header from data
_LONGEST_RECORD = 1000  # lines of one quoted TSV record


def file_format(file: Path) -> str:
    """The suffix that says the format, without .gz; "" if it is none of ours."""
    suffix = (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()
    return suffix if suffix in FORMATS else ""


def _broken(path: Path, line: int, reason: object) -> NoReturn:
    raise ExtensionError("E204", path=path, line=line, reason=str(reason).rstrip("."))


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def read_lines(path: Path) -> Iterator[Tuple[int, str]]:
    """(line number, line with its end); decoded per line, so that an error names the right one."""
    number = 0
    try:
        with _open(path) as handle:
            for number, raw in enumerate(handle, 1):
                yield number, raw[3:].decode() if number == 1 and raw[:3] == b"\xef\xbb\xbf" else raw.decode()
    except UnicodeDecodeError as error:
        _broken(path, number, f"not UTF-8 ({error.reason} at byte {error.start} of the line)")
    except (OSError, EOFError, zlib.error) as error:
        _broken(path, number + 1, f"cannot be read ({error})")


def _text(path: Path) -> Iterator[Row]:
    return ({"text": line.strip()} for _, line in read_lines(path) if line.strip())


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        if line.strip():
            yield _json_object(path, number, line)


def _json_object(path: Path, number: int, line: str) -> Row:
    try:
        value = json.loads(line)
        if "\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _broken(path, number, f"not JSON ({error.msg} at column {error.colno})")
    except UnicodeEncodeError:
        _broken(path, number, "half of a surrogate pair")
    if not isinstance(value, dict):
        _broken(path, number, f"a JSON object was expected, not {type(value).__name__}")
    return cast(Row, value)


def _json(path: Path) -> Iterator[Row]:
    """A JSON array of objects; many files called .json are JSONL, told by their first character."""
    first = next((line.lstrip()[0] for _, line in read_lines(path) if line.strip()), "[")
    if first != "[":
        yield from _jsonl(path)
        return
    content = "".join(line for _, line in read_lines(path))
    try:
        items = json.loads(content or "[]")
    except json.JSONDecodeError as error:
        _broken(path, error.lineno, f"not JSON ({error.msg} at column {error.colno})")
    for number, item in enumerate(items, 1):
        yield item if isinstance(item, dict) else _broken(path, number, f"element {number} of the list is no object")


def _csv_records(path: Path) -> Iterator[Tuple[int, List[str]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _broken(path, start, f"the record that starts here is not CSV ({error})")
        if record:
            yield start, record


def _tsv_records(path: Path) -> Iterator[Tuple[int, List[str]]]:
    """TSV records. A quoted cell may hold tabs and line ends; a quote that never closes is plain text (GLUE)."""
    csv.field_size_limit(2**31 - 1)
    lines = read_lines(path)
    following = next(lines, None)
    tabs = following[1].count("\t") if following else 0
    while following:
        (number, text), following = following, next(lines, None)
        joined = 1
        while (cells := _tsv_cells(text, tabs, following[1] if following else None)) is None:
            if following is None or joined > _LONGEST_RECORD:
                _broken(path, number, "a quoted cell starts here and does not end")
            text, following, joined = text + following[1], next(lines, None), joined + 1
        if text.strip():
            yield number, cells


def _tsv_cells(text: str, tabs: int, following: Optional[str]) -> Optional[List[str]]:
    """The cells of a record, or None if it goes on in the following line."""
    literal = text.rstrip("\r\n").split("\t")
    try:
        quoted = next(csv.reader([text], delimiter="\t", strict=True), literal)
    except csv.Error as error:
        goes_on = "unexpected end" in str(error)
        whole = len(literal) == tabs + 1 and (following is None or following.count("\t") == tabs)
        return literal if whole or not goes_on else None
    return quoted if len(quoted) == tabs + 1 else literal


def _table(path: Path, records: Iterator[Tuple[int, List[str]]]) -> Iterator[Row]:
    head = list(itertools.islice(records, _PEEK))
    names = _header([cells for _, cells in head])
    if names is None:
        names = [str(position) for position in range(len(head[0][1]) if head else 0)]
    else:
        head = head[1:]
    for number, cells in itertools.chain(head, records):
        if len(cells) != len(names):
            _broken(path, number, f"{len(cells)} cells, the first line has {len(names)}")
        yield dict(zip(names, cells))


def _header(head: Sequence[Sequence[str]]) -> Optional[List[str]]:
    """Column names if the first record looks like a header: short distinct names that do not recur below."""
    if not head:
        return None
    names = [name.strip() for name in head[0]]
    names[0] = names[0] or "index"  # pandas leaves the name of its index empty
    regular = len(set(names)) == len(names) and all(_COLUMN_NAME.fullmatch(name) for name in names)
    recurs = any(cell == name for cells in head[1:] for cell, name in zip(cells, head[0]) if cell)
    return names if regular and not recurs else None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.suffix == ".gz":  # Parquet is read from its end: unpack to disk, not to memory
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(_open(path)), source)
        try:
            for batch in pyarrow.parquet.ParquetFile(source).iter_batches(1024):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            _broken(path, 1, f"not Parquet ({error})")


READERS: Dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": lambda path: _table(path, _csv_records(path)),
    ".tsv": lambda path: _table(path, _tsv_records(path)),
    ".parquet": _parquet,
    ".txt": _text,
}
