"""Unpacking what a server sends: plain files and folders, each below the target, nothing else."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Tuple

from fate_llm_ext.errors import ExtensionError


def unpack(file: IO[bytes], folder: Path, what: str) -> None:
    """Unpack a tar archive, compressed or not, into a new folder.

    Nothing is written if one of its names leads out of the folder, or is a link or a device.

    Args:
        what: whose archive it is, for the error.

    Raises:
        ExtensionError: E815 for an archive that is none, or is not safe.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:*") as archive:
            members = archive.getmembers()
            for member in members:
                _check(member, what)
            folder.mkdir(parents=True)
            for member in members:
                target = folder.joinpath(*_parts(member))
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None
                with source, target.open("xb") as output:
                    shutil.copyfileobj(source, output)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ExtensionError("E815", what=what, reason=f"it cannot be read ({error})") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise ExtensionError("E815", what=what, reason="two of its names are in each other's way") from error


def _parts(member: tarfile.TarInfo) -> Tuple[str, ...]:
    return tuple(part for part in PurePosixPath(member.name).parts if part != ".")


def _check(member: tarfile.TarInfo, what: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise ExtensionError("E815", what=what, reason=f"{member.name!r} lies outside")
    if not (member.isreg() or member.isdir()):
        raise ExtensionError("E815", what=what, reason=f"{member.name!r} is neither a file nor a folder")
