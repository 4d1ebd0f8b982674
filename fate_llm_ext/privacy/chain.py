"""Append-only files of JSON lines in which a later change shows.

Each line carries the SHA-256 of the line before and its own. The last one of each file stands also in
``heads.json``, so that lines cut off the end are missed, and so is a whole file. A folder lost as a whole and an
older copy of it are consistent in themselves and do not show. Nothing here is secret: whoever may write the folder
can forge all of it. It shows accidents and careless edits, and it survives crashes at any moment:

- A line is written by one ``write`` and fsync, under an exclusive lock, and ``heads.json`` replaced after it.
- A crash in between leaves ``heads.json`` one line behind, which the next writer puts right.
- A crash within the write leaves a torn end. Its writer never got an answer, so nothing depends on it. The next
  writer ends it with a marker that holds its hash; torn bytes without a marker are damage.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from fate_llm_ext.errors import ExtensionError, Problem

HEADS = "heads.json"
LOCK = "lock"
START = "0" * 64  # what the first entry follows


@dataclass
class Chain:
    """One file as read.

    Attributes:
        name: the file's name without suffix.
        lines: its entries, markers of torn ends among them.
        problems: what is wrong; empty if whole.
        torn: bytes at the end that are no entry and have no marker yet.
        open_end: whether the last entry lacks its line break.
        behind: whether ``heads.json`` does not know the last entry yet.
    """

    name: str
    lines: List[Dict[str, Any]] = field(default_factory=list)
    problems: List[Problem] = field(default_factory=list)
    torn: bytes = b""
    open_end: bool = False
    behind: bool = False

    @property
    def last(self) -> str:
        """Hash of the last entry."""
        return str(self.lines[-1]["hash"]) if self.lines else START

    @property
    def entries(self) -> List[Dict[str, Any]]:
        """The entries without markers."""
        return [line for line in self.lines if "torn" not in line]

    def report(self, code: str, **facts: Any) -> None:
        """Add a problem of this file."""
        where = self.name if self.name == HEADS else f"{self.name}.jsonl"
        self.problems.append(Problem(where, ExtensionError(code, **facts)))


def digest(line: Mapping[str, Any]) -> str:
    """SHA-256 of an entry's content, all fields but ``hash``."""
    content = {key: value for key, value in line.items() if key != "hash"}
    return hashlib.sha256(_encode(content)).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, exclusive: bool = True) -> Iterator[None]:
    """Hold the folder's lock; the system takes it from a process that dies.

    Raises:
        ExtensionError: E618 if the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ExtensionError("E618", path=folder, reason=error.strerror) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        if exclusive and not (folder / HEADS).exists():
            _sync_parents(folder)
        yield
    finally:
        os.close(handle)


# Reading --------------------------------------------------------------------------------------------------


def read_all(folder: Path) -> List[Chain]:
    """All chains of the folder, checked against ``heads.json``; call under the lock."""
    chains = [_read(path) for path in sorted(folder.glob("*.jsonl"))]
    try:
        heads = _read_heads(folder)
    except FileNotFoundError:
        for chain in chains:
            chain.report("E614", reason=f"{HEADS} is missing")
        return chains
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        for chain in chains or [Chain(HEADS)]:
            chain.report("E614", reason=f"{HEADS} cannot be read ({error})")
        return chains or [Chain(HEADS)]
    names = {chain.name for chain in chains}
    chains += [Chain(name) for name in sorted(set(heads) - names)]
    for chain in chains:
        _compare(chain, *heads.get(chain.name, (0, START)))
    return chains


def _read(path: Path) -> Chain:
    chain = Chain(path.stem)
    unreadable = b""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, raw in enumerate(lines, start=1):
        line = _decode(raw)
        whole = raw.endswith(b"\n")
        if line is None or (not whole and not _follows(chain, line)):
            unreadable += raw
            continue
        if "torn" in line:
            if line["torn"] != _description(unreadable):
                chain.report("E613", line=number, reason="marks a torn end that is not there")
        elif unreadable:
            chain.report("E613", line=number - 1, reason="cannot be read")
        unreadable = b""
        if line.get("hash") != digest(line):
            chain.report("E613", line=number, reason="was changed: its content does not fit its hash")
        elif not _follows(chain, line):
            chain.report("E613", line=number, reason="does not follow the one before: one was removed, added or moved")
        chain.open_end = not whole
        chain.lines.append(line)
    chain.torn = unreadable
    return chain


def _compare(chain: Chain, count: int, last: str) -> None:
    """Check a chain against its head: ``count`` entries, hash of the last one."""
    got = len(chain.lines)
    known = str(chain.lines[count - 1]["hash"]) if 0 < count <= got else START
    if got < count:
        chain.report("E614", reason=f"it holds {got} entries where {HEADS} has {count}")
    elif known != last:
        chain.report("E614", reason=f"its entry {count} is another one than {HEADS} has")
    elif got > count + 1:
        chain.report("E614", reason=f"it holds {got} entries where {HEADS} has {count}")
    chain.behind = got == count + 1


def _follows(chain: Chain, line: Mapping[str, Any]) -> bool:
    right_place = line.get("sequence") == len(chain.lines) and line.get("previous") == chain.last
    return right_place and line.get("hash") == digest(line)


def _decode(raw: bytes) -> Optional[Dict[str, Any]]:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "hash" in line else None


def _read_heads(folder: Path) -> Dict[str, Tuple[int, str]]:
    heads = json.loads((folder / HEADS).read_bytes())
    return {str(name): (int(head["entries"]), str(head["last"])) for name, head in heads.items()}


# Writing --------------------------------------------------------------------------------------------------


def append(folder: Path, chain: Chain, content: Mapping[str, Any]) -> Dict[str, Any]:
    """Write one entry for good; call under the exclusive lock, all chains read under it and free of problems.

    Returns:
        The entry with ``sequence``, ``previous`` and ``hash``; it is on disk.

    Raises:
        ExtensionError: E618 if the disk refuses.
    """
    try:
        if chain.behind or not (folder / HEADS).exists():
            _write_head(folder, chain)
        if chain.open_end:
            _write(folder / f"{chain.name}.jsonl", b"\n")
        if chain.torn:
            line_break = b"" if chain.torn.endswith(b"\n") else b"\n"
            _append(folder, chain, {"torn": _description(chain.torn + line_break)}, line_break)
        return _append(folder, chain, content)
    except OSError as error:
        raise ExtensionError("E618", path=folder, reason=error.strerror or error) from error


def _append(folder: Path, chain: Chain, content: Mapping[str, Any], before: bytes = b"") -> Dict[str, Any]:
    line: Dict[str, Any] = {"sequence": len(chain.lines), **content, "previous": chain.last}
    line["hash"] = digest(line)
    _write(folder / f"{chain.name}.jsonl", before + _encode(line) + b"\n")
    chain.lines.append(line)
    _write_head(folder, chain)
    return line


def _write(path: Path, data: bytes) -> None:
    """Append bytes; on return they are on disk."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(handle, data)
        if written < len(data):
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def _write_head(folder: Path, chain: Chain) -> None:
    path = folder / HEADS
    heads = _read_heads(folder) if path.exists() else {}
    if chain.lines:
        heads[chain.name] = (len(chain.lines), chain.last)
    fresh = folder / f"{HEADS}.new"
    with fresh.open("wb") as file:
        file.write(_encode({name: {"entries": count, "last": last} for name, (count, last) in heads.items()}) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync_folder(folder)


def _sync_parents(folder: Path) -> None:
    """Make a folder durable that may be new, here or in a process that was faster: up to the root of its disk."""
    try:
        for parent in folder.resolve().parents:
            if parent.stat().st_dev != folder.stat().st_dev:
                break
            with contextlib.suppress(PermissionError):  # what nobody here may read, nobody here has made
                _sync_folder(parent)
    except OSError as error:
        raise ExtensionError("E618", path=folder, reason=error.strerror or error) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _description(torn: bytes) -> Dict[str, Any]:
    return {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
