"""Rows from files: JSONL, JSON, CSV, TSV, Parquet and plain text, each optionally gzipped.

A data set is one file (its only split is ``train``) or a folder with ``train.*``, ``validation.*``
and ``test.*``. Files are read line by line; only JSON arrays are loaded whole. A CSV or TSV file
without a header has the columns ``"0"``, ``"1"``, ...; its values stay strings.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, List, Mapping, Optional, Union, cast

from fate_llm_ext.data.formats import FORMATS, READERS, Row, file_format
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.hints import near

PathLike = Union[str, "os.PathLike[str]"]

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def read_rows(path: PathLike, split: str = "train", columns: Optional[Mapping[str, str]] = None) -> List[Row]:
    """All rows of a data set; ``columns`` maps template name -> column of the file. Errors: as :func:`iter_rows`."""
    return list(iter_rows(path, split, columns))


def iter_rows(path: PathLike, split: str = "train", columns: Optional[Mapping[str, str]] = None) -> Iterator[Row]:
    """Stream the rows of a data set; same arguments as :func:`read_rows`.

    Raises:
        ExtensionError: E201 no such path, E202 unknown format, E203 no rows, E204 broken line,
            E205 a mapped column that no row has, E206/E207 split absent or ambiguous.
    """
    file = split_file(path, split)
    empty = True
    for row in named(READERS[file_format(file)](file), columns or {}, file):
        empty = False
        yield row
    if empty:
        raise ExtensionError("E203", path=file)


def named(rows: Iterable[Row], columns: Mapping[str, str], path: PathLike) -> Iterator[Row]:
    """Rows under the names that a template knows.

    Args:
        rows: as :func:`read_rows` gives them without ``columns``.
        columns: template name -> column of the file.
        path: where they come from, for the error.

    Raises:
        ExtensionError: E205 a mapped column that no row has.
    """
    seen: Dict[str, None] = {}
    row: Optional[Row] = None
    for row in rows:
        seen.update(dict.fromkeys(row))
        yield _rename(row, columns) if columns else row
    for name, column in columns.items():
        if row is not None and column not in seen:
            raise ExtensionError(
                "E205", path=path, column=column, name=name, columns=", ".join(seen), hint=near(column, seen)
            )


def split_file(path: PathLike, split: str = "train") -> Path:
    """The file that holds ``split``. ``dev``, ``val`` and ``valid`` files count as ``validation``."""
    root = Path(path)
    if not root.exists():
        beside = [item.name for item in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ExtensionError("E201", path=root, hint=near(root.name, beside))
    found = _split_files(root)
    files = found.get(_split_name(split), [])
    if not files:
        raise ExtensionError("E206", path=root, split=split, found=", ".join(found) or "none")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ExtensionError("E207", path=root, split=split, count=len(files), files=names)
    if not file_format(files[0]):
        raise ExtensionError("E202", path=files[0], suffix=files[0].suffix, known=", ".join(FORMATS))
    return files[0]


def has_split(path: PathLike, split: str) -> bool:
    """Whether the data set has this split; a single file has ``train`` only. E201 if the path is absent."""
    return _split_name(split) in list_splits(path)


def list_splits(path: PathLike) -> List[str]:
    """The splits of a data set, in the order train, validation, test. E201 if the path is absent."""
    if not Path(path).exists():
        raise ExtensionError("E201", path=path, hint="")
    return list(_split_files(Path(path)))


def write_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSONL (gzipped if the name ends in .gz) and return their number; all or nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("wb") as raw, contextlib.ExitStack() as stack:
            # no name and no time in the gzip header: equal rows give equal bytes
            zipped = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if target.suffix == ".gz" else None
            out = cast("IO[bytes]", stack.enter_context(zipped) if zipped else raw)
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8") + b"\n")
                count += 1
            stack.close()
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _split_name(split: str) -> str:
    return next((name for name, aliases in _SPLITS.items() if split in aliases), split)


def _split_files(root: Path) -> Dict[str, List[Path]]:
    if not root.is_dir():
        return {"train": [root]}
    files = sorted(item for item in root.iterdir() if item.is_file() and file_format(item))
    found = {name: [f for f in files if f.name.split(".")[0] in aliases] for name, aliases in _SPLITS.items()}
    return {name: matches for name, matches in found.items() if matches}


def _rename(row: Row, mapping: Mapping[str, str]) -> Row:
    moved = {name: row[column] for name, column in mapping.items() if column in row}
    kept = {key: value for key, value in row.items() if key not in mapping.values() and key not in moved}
    return {**kept, **moved}
