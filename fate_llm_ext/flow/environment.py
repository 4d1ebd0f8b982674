"""The environment of FATE Flow's workers, and a folder of wheels for sites without network.

Everything is pinned: torch comes by pip, which honours ``PIP_FIND_LINKS`` and ``PIP_EXTRA_INDEX_URL`` (where CPU
builds are found), the rest without asking what packages ask for: FATE pins old releases that the modern set goes past.
Standard library only, so that a bare checkout can make its first environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union
from urllib.parse import unquote, urlparse

import fate_llm_ext
from fate_llm_ext._compat import CONSTRAINTS, normalized
from fate_llm_ext.errors import ExtensionError

DISTRIBUTION = "fate-llm-ext"
TESTED_PYTHON = (3, 11)
FREE_GB_NEEDED = 4.0
FIRST = ("torch", "uv", "setuptools", "wheel")  # by pip, with what they ask for
_SOURCE_FILES = ("fate_llm_ext", "setup.py", "pyproject.toml", "README.md", "LICENSE")
_DEVELOPERS = "# Tools of developers"  # where these begin in modern.txt
_STAMP = "provider-stamp.json"
_NETWORK = re.compile(
    r"name resolution|NewConnectionError|Connection (refused|timed out|reset)|Network is unreachable|dns error|"
    r"error sending request|tcp connect error|ProxyError|Read timed out|client error \(Connect\)",
    re.IGNORECASE,
)
_COMPILER = re.compile(
    r"Python\.h: No such file|cc1plus|unable to execute|command .*(gcc|g\+\+).* failed|compiler not found",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"No matching distribution found for (\S+)|(?:Because|and) (\S+) was not found in the provided")


class Steps:
    """Runs commands one after the other: a line for the operator, all they print into one log, one error at the end.

    Args:
        log: file that the commands' output is appended to.
        say: receives one line at each step.
        wheelhouse: folder of wheels that takes the place of every index.
    """

    def __init__(self, log: Path, say: Callable[[str], None], wheelhouse: Optional[Path] = None) -> None:
        self.log = log
        self.say = say
        self.wheelhouse = wheelhouse

    def run(self, what: str, *command: Union[str, Path]) -> None:
        """Say ``what`` and run the command.

        Raises:
            ExtensionError: E508, E823, E824, E832, E833.
        """
        self.say(what)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            log.flush()
            start = log.tell()
            code = subprocess.run(
                [str(part) for part in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=clean_environment(),
                cwd=self.log.parent,
                check=False,
            ).returncode
        if code:
            with self.log.open("rb") as log_bytes:
                log_bytes.seek(start)
                raise self._diagnosed(what, log_bytes.read().decode("utf-8", "replace"))

    def index_options(self) -> List[str]:
        """What pip and uv are told about where packages come from."""
        return ["--no-index", "--find-links", str(self.wheelhouse)] if self.wheelhouse else []

    def _diagnosed(self, what: str, text: str) -> ExtensionError:
        if re.search(r"no space left on device|disk quota exceeded", text, re.IGNORECASE):
            free = min(shutil.disk_usage(path).free for path in (self.log.parent, tempfile.gettempdir())) / 1e9
            return ExtensionError("E508", free=f"{free:.1f}", needed=f"{FREE_GB_NEEDED:.0f}", path=self.log.parent)
        absent = _ABSENT.search(text)
        if absent and self.wheelhouse:
            return ExtensionError("E833", wheelhouse=self.wheelhouse, package=absent[1] or absent[2])
        if _COMPILER.search(text):
            return ExtensionError("E832", log=self.log)
        if _NETWORK.search(text) or (absent and normalized(absent[1] or absent[2]).startswith(FIRST)):
            return ExtensionError("E823", log=self.log)
        last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
        return ExtensionError("E824", step=what, reason=last[0] if last else "no output", log=self.log)


def pins(*names: str) -> List[str]:
    """The pinned requirements of these constraint files, without what only developers use and without torch and uv.

    A package in several of them is as the first says.
    """
    chosen: Dict[str, str] = {}
    for name in names:
        text = (CONSTRAINTS / f"{name}.txt").read_text(encoding="utf-8").split(_DEVELOPERS)[0]
        for line in (line.split("#")[0].strip() for line in text.splitlines()):
            if "==" in line:
                chosen.setdefault(normalized(line.split("==")[0]), line)
    return [line for name, line in sorted(chosen.items()) if name not in FIRST]


def clean_environment(**extra: str) -> Dict[str, str]:
    """This process's variables without those that would lead another Python to this one's packages."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "CONDA_PREFIX")
    return {**{key: value for key, value in os.environ.items() if key not in foreign}, **extra}


def ask(python: Union[str, Path], code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with another Python, away from this folder and these packages."""
    command = [str(python), "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(**variables), cwd="/", check=False
    )


def find_python(named: Optional[str]) -> str:
    """A Python 3.11 with venv: the named one, else this one, else python3.11.

    Raises:
        ExtensionError: E822.
    """
    found = "none was found"
    for python in [named] if named else [sys.executable, "python3.11", "python3"]:
        try:
            answer = ask(python, "import sys; print('%d.%d.%d' % sys.version_info[:3]); import venv, ensurepip")
        except OSError as error:
            found = f"{python}: {error.strerror}"
            continue
        version = answer.stdout.strip()
        if answer.returncode == 0 and version.startswith("{}.{}.".format(*TESTED_PYTHON)):
            return python
        found = f"{python} is Python {version}" if version else f"{python} does not run"
        if version and answer.returncode:
            found += " without venv"
    raise ExtensionError("E822", found=found)


def own_source() -> str:
    """Where this package was installed from: its checkout, or the file pip was given, or name and version."""
    checkout = Path(fate_llm_ext.__file__).resolve().parents[1]
    if is_checkout(checkout):
        return str(checkout)
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    address = urlparse(origin.get("url", ""))
    path = Path(unquote(address.path))
    if address.scheme == "file" and path.exists():
        return str(path)
    return f"{DISTRIBUTION}=={fate_llm_ext.__version__}"


def is_checkout(folder: Path) -> bool:
    """Whether the folder holds this package's sources."""
    return all((folder / name).exists() for name in ("setup.py", "pyproject.toml", "fate_llm_ext/__init__.py"))


def digest(source: str) -> str:
    """What a later build compares: the content of a file or checkout, or the requirement itself."""
    path = Path(source)
    files = [path] if path.is_file() else []
    if path.is_dir():
        inside = (entry for name in _SOURCE_FILES for entry in [path / name, *(path / name).rglob("*")])
        files = sorted(entry for entry in inside if entry.is_file() and "__pycache__" not in entry.parts)
    total = hashlib.sha256(source.encode())
    for file in files:
        total.update(str(file).encode() + file.read_bytes())
    return total.hexdigest()


def make_environment(folder: Path, python: str, source: str, steps: Steps) -> None:
    """Make or complete the virtual environment ``folder``; what an earlier call has done is not done again.

    Args:
        folder: the environment.
        python: a Python 3.11.
        source: checkout, wheel, sdist or requirement of this package.
        steps: how commands are run.

    Raises:
        ExtensionError: E508, E823, E824, E825, E832, E833.
    """
    stamp = _read_stamp(folder)
    wanted = {"pins": _pins_key(python, folder), "package": digest(source)}
    if stamp == wanted:
        return
    own = folder / "bin/python"
    if stamp.get("pins") != wanted["pins"]:
        _write_stamp(folder, {})
        made_for = ask(own, "import pip, sys; print(sys.prefix)").stdout.strip() if own.exists() else ""
        if made_for != str(folder):  # not there, not whole, or moved here with scripts that point elsewhere
            steps.run(f"virtual environment {folder}", python, "-m", "venv", "--clear", folder)
        pip = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", *steps.index_options())
        steps.run("torch", own, *pip, "-c", CONSTRAINTS / "modern.txt", *FIRST)
        requirements = folder / "requirements.txt"
        requirements.write_text("\n".join(pins("modern", "flow")) + "\n", encoding="utf-8")
        steps.run("FATE 2.2, the modern set, what FATE Flow's workers import", *_uv(folder, steps), "-r", requirements)
        _write_stamp(folder, {"pins": wanted["pins"]})
    with tempfile.TemporaryDirectory(prefix="fate-llm-ext-") as scratch:
        package = package_file(source, Path(scratch), folder / "package", own, steps)
        reinstall = ("--reinstall-package", DISTRIBUTION)
        steps.run(f"fate-llm-ext {fate_llm_ext.__version__}", *_uv(folder, steps), *reinstall, package)
    _write_stamp(folder, wanted)


def package_file(source: str, scratch: Path, target: Path, python: Union[str, Path], steps: Steps) -> str:
    """What pip is given to install this package: of a checkout or sdist, a wheel that is built in ``target`` first.

    A checkout is built in a copy, so that nothing is written into it and nothing of an earlier build gets in.

    Raises:
        ExtensionError: E825 if there is no such file or it is no source of this package, E824 and the like.
    """
    path = Path(source)
    if source.startswith(f"{DISTRIBUTION}=="):
        return source
    if path.suffix == ".whl" and path.is_file() and path.name.startswith("fate_llm_ext-"):
        return str(path.resolve())
    if path.is_dir() and is_checkout(path):
        copy = scratch / "source"
        copy.mkdir()
        for name in _SOURCE_FILES:
            if (path / name).is_dir():
                shutil.copytree(path / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(path / name, copy / name)
        path = copy
    elif not (path.is_file() and re.fullmatch(r"fate[-_]llm[-_]ext-.*\.(tar\.gz|zip)", path.name)):
        raise ExtensionError("E825", path=source)
    command = (python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-index")
    steps.run("wheel of fate-llm-ext", *command, "-w", scratch, path.resolve())
    wheel = next(scratch.glob("fate_llm_ext-*.whl"))
    target.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy2(wheel, target / wheel.name))


def wheelhouse(folder: Path, python: str, source: str, say: Callable[[str], None]) -> List[str]:
    """Fill ``folder`` with wheels of all that a site needs: FATE Flow's server, the provider, this package.

    What has no wheel is built, so that the site needs no compiler. ``SHA256SUMS`` lists what came.

    Returns:
        The names of the files.

    Raises:
        ExtensionError: E508, E823, E824, E825, E832.
    """
    steps = Steps(folder / "wheelhouse.log", say)
    with tempfile.TemporaryDirectory(prefix="fate-llm-ext-") as scratch:
        own = Path(scratch) / "venv/bin/python"
        steps.run("virtual environment to download with", python, "-m", "venv", own.parents[1])
        first = [line for line in _all_pins("modern") if normalized(line.split("==")[0]) in FIRST]
        pip = (own, "-m", "pip")
        steps.run("setuptools", *pip, "install", *(line for line in first if line.startswith(("setuptools", "wheel"))))
        download = (*pip, "wheel", "--no-input", "--disable-pip-version-check", "-w", folder, "--find-links", folder)
        steps.run("torch", *download, "-c", CONSTRAINTS / "modern.txt", *first)
        for what, names in (("the provider", ("modern", "flow")), ("FATE Flow", ("server",))):
            requirements = Path(scratch) / f"{names[0]}.txt"
            requirements.write_text("\n".join(pins(*names)) + "\n", encoding="utf-8")
            steps.run(what, *download, "--no-deps", "-r", requirements)
        package = package_file(source, Path(scratch), folder, own, steps)
        if not Path(package).is_file():
            steps.run(f"fate-llm-ext {fate_llm_ext.__version__}", *download, "--no-deps", package)
        elif Path(package).parent != folder.resolve():
            shutil.copy2(package, folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip"))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return [path.name for path in files]


def _all_pins(name: str) -> List[str]:
    lines = (CONSTRAINTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if "==" in line and not line.startswith("#")]


def _uv(folder: Path, steps: Steps) -> Sequence[Union[str, Path]]:
    command = (
        folder / "bin/uv",
        "pip",
        "install",
        "--python",
        folder / "bin/python",
        "--compile-bytecode",
        "--no-deps",
    )
    return (*command, *steps.index_options())


def _pins_key(python: str, folder: Path) -> str:
    version = ask(python, "import sys; print(sys.version)").stdout
    return hashlib.sha256("\n".join([version, str(folder), *pins("modern", "flow")]).encode()).hexdigest()


def _read_stamp(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((folder / _STAMP).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_stamp(folder: Path, stamp: Mapping[str, str]) -> None:
    if stamp:
        (folder / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    else:
        (folder / _STAMP).unlink(missing_ok=True)
