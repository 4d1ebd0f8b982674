"""The provider: what FATE Flow starts this extension's tasks with.

A stock server keeps its own environment and pins. Beside it stands a folder that holds

    venv           the provider's environment (torch, FATE, the modern set, this package), or a link to one
    path           links to the server's packages `fate_flow` and `ofx` and to nothing else: the workers' PYTHONPATH.
                   With it come the server's settings, and none of its other packages.
    provider.json  what the server was told

A server knows it as ``fate:llm_ext_<version>@local``: FATE Flow runs no provider of another name than `fate`, and
overwrites its version 2.2.0 at each start.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from fate_llm_ext import __version__
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow import environment as env
from fate_llm_ext.flow.environment import Steps

VERSION = f"llm_ext_{__version__}"
PROVIDER = f"fate:{VERSION}@local"
FLOW_VERSION = "2.2.0"
_PACKAGES = ("fate_flow", "ofx")  # ofx: FATE Flow's generated gRPC classes, imported with it
_FIND_SERVER = """
import importlib.metadata as m, importlib.util as u, json, sys
def folder(name):
    spec = u.find_spec(name)
    return list(spec.submodule_search_locations)[0] if spec and spec.submodule_search_locations else None
try:
    version = m.version("fate_flow")
except m.PackageNotFoundError:
    version = None
print(json.dumps({"version": version, **{name: folder(name) for name in sys.argv[1:]}}))
"""
_SET_DEFAULT = """
import os, sys
from ruamel.yaml import YAML
path, version = sys.argv[1:]
yaml = YAML()
with open(path, encoding="utf-8") as file:
    settings = yaml.load(file)
settings["default_provider"] = {"name": "fate", "version": version, "device": "local"}
before, new = os.stat(path), path + ".new"
try:
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        yaml.dump(settings, file)
    os.chown(new, before.st_uid, before.st_gid)
    os.chmod(new, before.st_mode)
    os.replace(new, path)
finally:
    if os.path.exists(new):
        os.unlink(new)
"""


@dataclass(frozen=True)
class Provider:
    """A finished provider folder.

    Attributes:
        folder: where it stands.
        components: names of all components of its environment, FATE's own too.
        versions: distribution -> version, of what matters.
        conf: folder of the server's service_conf.yaml; empty before `fate_flow init`.
    """

    folder: Path
    components: List[str]
    versions: Mapping[str, str]
    conf: str

    @property
    def python(self) -> Path:
        """The environment's Python, as the server starts it."""
        return self.folder / "venv/bin/python"

    def spec(self) -> Dict[str, Any]:
        """What a server is told: the body of /v2/provider/register.

        FATE Flow needs the list of components, though it looks at the names only: without one it asks this package in
        its own process and stumbles over the answer.
        """
        return {
            "name": "fate",
            "device": "local",
            "version": VERSION,
            "metadata": {"path": str(self.folder / "path"), "venv": str(self.python)},
            "components_description": {name: {} for name in self.components},
        }


def build(
    folder: Path,
    server_python: str,
    say: Callable[[str], None],
    *,
    python: Optional[str] = None,
    environment: Optional[Path] = None,
    wheelhouse: Optional[Path] = None,
    source: Optional[str] = None,
) -> Provider:
    """Make the provider of one server, or complete and renew what an earlier call has left.

    Args:
        folder: where; made if missing.
        server_python: the Python of the server's environment.
        say: receives a line at each step.
        python: a Python 3.11 for the environment; by default this one or python3.11.
        environment: the environment of another provider of this machine, which this one then shares.
        wheelhouse: folder of wheels that takes the place of the package index.
        source: checkout, wheel or sdist of this package; by default where it is installed from.

    Raises:
        ExtensionError: E508, E820 to E828, E831 to E833.
    """
    packages = _server_packages(server_python)
    say(f"server: FATE Flow {FLOW_VERSION} in {packages['fate_flow']}")
    folder = _made(folder)
    venv = folder / "venv"
    if environment:
        _link(venv, _environment(environment))
        say(f"environment: {venv.resolve()}, shared")
    else:
        chosen = env.find_python(python)
        if venv.is_symlink():  # shared until now
            venv.unlink()
        _check_disk(folder, venv)
        steps = Steps(folder / "build.log", say, wheelhouse.resolve() if wheelhouse else None)
        env.make_environment(venv, chosen, source or env.own_source(), steps)
    (folder / "path").mkdir(exist_ok=True)
    for name in _PACKAGES:
        _link(folder / "path" / name, Path(packages[name]))
    say("check: what FATE Flow's workers import")
    provider = load(folder)
    versions = ", ".join(f"{name} {version}" for name, version in provider.versions.items())
    say(f"ready: {PROVIDER} with {len(provider.components)} components ({versions})")
    return provider


def load(folder: Path) -> Provider:
    """The provider in ``folder``, after its own Python has imported all that workers need.

    Raises:
        ExtensionError: E827 if something fails to import, or is another version of this package; E828 if nothing
            finished is there.
    """
    folder = folder.absolute()
    python = folder / "venv/bin/python"
    for part in (python, *(folder / "path" / name for name in _PACKAGES)):
        if not part.exists():
            raise ExtensionError("E828", path=folder, reason=f"{part.relative_to(folder)} is missing")
    found = examine(python, folder / "path")
    return Provider(folder, found["components"], found["versions"], found["conf"])


def examine(python: Path, path: Path) -> Dict[str, Any]:
    """Have a provider's own Python import all that workers need, with ``path`` as FATE Flow hands it over.

    Returns:
        ``components``, ``versions`` and ``conf`` as in :class:`Provider`.

    Raises:
        ExtensionError: E827 if something fails to import, or is another version of this package.
    """
    venv = python.parent.parent
    answer = subprocess.run(
        [str(python), "-P", str(Path(__file__).with_name("provider_check.py"))],
        capture_output=True,
        text=True,
        env=env.clean_environment(PYTHONPATH=str(path), HF_HUB_OFFLINE="1"),
        cwd=path,
        check=False,
    )
    try:
        found: Dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        words = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise ExtensionError("E827", environment=venv, reason=words) from None
    problems = found["problems"]
    if not problems and found["versions"]["fate-llm-ext"] != __version__:
        problems = [f"it holds fate-llm-ext {found['versions']['fate-llm-ext'] or '(none)'}, not {__version__}"]
    if problems:
        raise ExtensionError("E827", environment=venv, reason="; ".join(problems))
    return found


def register(
    folder: Path, address: Optional[str], say: Callable[[str], None], *, default: bool = False
) -> Dict[str, Any]:
    """Tell a server of the provider in ``folder``, and read back what it has understood.

    Args:
        folder: what :func:`build` has made.
        address: ``host:port`` of the server; by default what its own configuration says.
        say: receives a line at each step.
        default: also make it the provider of tasks that name none, in the server's service_conf.yaml; the server reads
            that at its next start.

    Returns:
        What was registered, as in provider.json.

    Raises:
        ExtensionError: E827 to E830; E800 and following if the server does not answer.
    """
    from fate_llm_ext.flow.server import FlowServer

    provider = load(folder)
    spec = provider.spec()
    _write_json(provider.folder / "provider.json", spec)
    server = FlowServer(address or _address(provider))
    known = server.query_provider("fate", VERSION)
    server.register_provider(spec)
    registered = server.query_provider("fate", VERSION)
    got = registered.get("metadata") if registered else "nothing"
    if got != spec["metadata"]:
        raise ExtensionError("E830", server=server.address, provider=PROVIDER, got=got, expected=spec["metadata"])
    before = known["metadata"].get("path") if known else None
    if before and before != spec["metadata"]["path"]:
        say(f"replaced: {PROVIDER} was {Path(before).parent}")
    say(f"registered: {PROVIDER} at {server.address}, {len(provider.components)} components")
    if default:
        path = _set_default(provider)
        say(f"default: {PROVIDER} in {path}, from the server's next start on")
    return spec


def _server_packages(python: str) -> Dict[str, str]:
    """Where the server's packages are: name -> folder."""
    try:
        answer = env.ask(python, _FIND_SERVER, *_PACKAGES)
        found = json.loads(answer.stdout.strip().splitlines()[-1])
    except OSError as error:
        raise ExtensionError("E820", python=python, reason=error.strerror) from error
    except (IndexError, ValueError):
        words = (answer.stderr.strip().splitlines() or ["it prints nothing"])[-1]
        raise ExtensionError("E820", python=python, reason=words) from None
    for name in _PACKAGES:
        if not found[name]:
            raise ExtensionError("E820", python=python, reason=f"it finds no package {name}")
    if found["version"] != FLOW_VERSION:
        raise ExtensionError("E821", python=python, got=found["version"], expected=FLOW_VERSION)
    return found


def _made(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.log").touch()
    except OSError as error:
        raise ExtensionError("E831", path=folder, reason=error.strerror) from error
    return folder


def _environment(path: Path) -> Path:
    """The environment that was meant: itself, or `venv` of a provider folder."""
    path = path.expanduser().absolute()
    for candidate in (path, path / "venv"):
        if (candidate / "bin/python").exists():
            return candidate.resolve()
    raise ExtensionError("E826", path=path)


def _check_disk(folder: Path, venv: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < env.FREE_GB_NEEDED and not (venv / "bin/uv").exists():
        raise ExtensionError("E508", free=f"{free:.1f}", needed=f"{env.FREE_GB_NEEDED:.0f}", path=folder)


def _link(link: Path, target: Path) -> None:
    """Make ``link`` lead to ``target`` at once, also where it led elsewhere before."""
    if link.exists() and not link.is_symlink():
        raise ExtensionError("E831", path=link, reason=f"it is in the place of a link to {target}")
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _address(provider: Provider) -> Optional[str]:
    """The address in the configuration of the server that the provider was built for."""
    import yaml

    try:
        text = (Path(provider.conf) / "service_conf.yaml").read_text(encoding="utf-8")
        settings = yaml.safe_load(text)["fateflow"]
        host = "127.0.0.1" if settings["host"] == "0.0.0.0" else settings["host"]
        return f"{host}:{settings['http_port']}"
    except (OSError, KeyError, TypeError):
        return None


def _set_default(provider: Provider) -> Path:
    path = Path(provider.conf) / "service_conf.yaml"
    answer = env.ask(provider.python, _SET_DEFAULT, str(path), VERSION)
    if answer.returncode:
        raise ExtensionError("E829", path=path, reason=(answer.stderr.strip().splitlines() or ["no output"])[-1])
    return path


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise ExtensionError("E831", path=path, reason=error.strerror) from error
