"""`fate-llm-ext doctor`: what is installed, what is wrong with it, and the command that repairs it.

Versions come from package metadata, so the check is quick; torch is imported with ``--devices`` only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

import click
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from fate_llm_ext._compat import expected_versions, installed_set, installed_version, normalized
from fate_llm_ext.errors import ExtensionError, Problem

if TYPE_CHECKING:
    from fate_llm_ext.cli.doctor_flow import FlowReport

DISTRIBUTION = "fate-llm-ext"
ENTRY_POINT_GROUP = "fate.ext.component_desc"
SUPPORTED_PYTHON = ((3, 9), (3, 11))
FREE_GB_NEEDED = 2.0

# distribution -> (the bound, what breaks beyond it). Each one was met and measured.
TRAPS: dict[str, tuple[str, str]] = {
    "setuptools": ("<82", "pkg_resources is gone and with it every component that is not FATE's own"),
    "numpy": ("<2", "FATE messages that carry data frames cannot be read"),
    "pandas": ("<3", "FATE messages that carry data frames cannot be read"),
    "pyarrow": ("<26", "it needs numpy 2"),
    "pydantic": ("<2", "fate.components does not import"),
    "ruamel.yaml": ("<0.18", "fate.arch does not import"),
}


@dataclass(frozen=True)
class Package:
    """One line of the table. ``tested`` is the version of the running set, if it has one."""

    name: str
    required: str
    installed: str | None
    tested: str | None


@dataclass
class Report:
    """All that doctor found. ``problems`` make the exit code 1, ``notes`` do not."""

    python: str = platform.python_version()
    version_set: str = "unknown"
    packages: list[Package] = field(default_factory=list)
    components: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    free_gb: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    flow: Optional[FlowReport] = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "ok": not self.problems,
            "python": self.python,
            "set": self.version_set,
            "packages": [vars(package) for package in self.packages],
            "components": self.components,
            "devices": self.devices,
            "free_gb": round(self.free_gb, 1),
            "problems": [_finding(problem) for problem in self.problems],
            "notes": [_finding(note) for note in self.notes],
            **({"flow": self.flow.as_dict()} if self.flow else {}),
        }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--devices", is_flag=True, help="Also import torch and list the CUDA devices (takes seconds).")
@click.option("--flow", is_flag=True, help="Also examine this site's FATE Flow: provider, brokers, site file, tables.")
@click.option("--server", metavar="HOST:PORT", help="Of FATE Flow; default: FATE_LLM_EXT_SERVER, then `flow init`.")
@click.option(
    "--sites",
    type=click.Path(path_type=Path),
    help="This site's file  [default: FATE_LLM_EXT_SITE, then ~/.fate_llm_ext/site.yaml]",
)
@click.option(
    "--parties", metavar="ROLE:ID,...", help="Also run a job with these sites, e.g. guest:9999,host:10000,arbiter:10001"
)
@click.option("--dag", type=click.Path(path_type=Path), help="Also run a job with the sites of this job file.")
@click.option("--deadline", type=float, default=180.0, show_default=True, help="Seconds for that job.")
@click.pass_context
def doctor(
    ctx: click.Context,
    as_json: bool,
    devices: bool,
    flow: bool,
    server: Optional[str],
    sites: Optional[Path],
    parties: Optional[str],
    dag: Optional[Path],
    deadline: float,
) -> None:
    """Say what is installed, what is wrong with it and how to repair it. Exit code 1 if anything is wrong.

    With --flow it also looks at this site's FATE Flow; with --parties or --dag it then runs a handshake between the
    sites: versions, clocks, round trips. No data and no model takes part in it.
    """
    asked = None
    if flow or server or sites or parties or dag:
        from fate_llm_ext.cli import doctor_flow

        asked = doctor_flow.Asked(server, sites, parties, dag, deadline)
    report = examine(devices)
    if asked is not None:
        report.flow = doctor_flow.run(asked, quiet=as_json)
        report.problems += report.flow.site.problems
        report.notes += report.flow.site.notes
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    ctx.exit(1 if report.problems else 0)


def examine(devices: bool = False) -> Report:
    """Run every check.

    Args:
        devices: import torch and look at the CUDA devices.
    """
    report = Report(version_set=installed_set())
    report.packages = list(_packages(report.version_set))
    report.problems += _check_python(sys.version_info[:2])
    report.problems += [p for package in report.packages for p in check_package(package)]
    report.notes += _check_set(report.version_set, report.packages)
    report.notes += _check_torch_build()
    components, problems = _load_components()
    report.components = components
    report.problems += problems
    report.problems += _check_site()
    report.free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    report.problems += check_disk(report.free_gb)
    if devices:
        report.devices, problems = _devices()
        report.problems += problems
    return report


def check_package(package: Package) -> list[Problem]:
    """Missing, caught in a known trap, or outside what this package requires: at most one problem each."""
    where = f"packages.{package.name}"
    if package.installed is None:
        repair = _install(
            f"{package.name}=={package.tested}" if package.tested else f"{package.name}{package.required}"
        )
        return [Problem(where, ExtensionError("E501", package=package.name, repair=repair))]
    bound, effect = TRAPS.get(package.name, ("", ""))
    for limit, code in ((bound, "E503"), (package.required, "E502")):
        if limit and not _satisfies(package.installed, limit):
            facts = {"package": package.name, "installed": package.installed, "limit": limit}
            repair = _install(f"{package.name}=={package.tested}" if package.tested else f"{package.name}{limit}")
            if code == "E503":
                return [Problem(where, ExtensionError("E503", **facts, effect=effect, repair=repair))]
            return [Problem(where, ExtensionError("E502", **facts, repair=repair))]
    return []


def check_disk(free_gb: float) -> list[Problem]:
    """Room for a small run: checkpoints, signals of the public set, logs."""
    if free_gb >= FREE_GB_NEEDED:
        return []
    facts = {"free": f"{free_gb:.1f}", "needed": f"{FREE_GB_NEEDED:.0f}", "path": Path.cwd()}
    return [Problem("disk", ExtensionError("E508", **facts))]


def _packages(version_set: str) -> Iterator[Package]:
    """What this package requires, then the packages with known traps that only others require."""
    tested = expected_versions(version_set)
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = []
    needed = (r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": "fate"}))
    required = {r.name: str(r.specifier) for r in needed}
    for name, specifier in required.items():
        yield Package(name, specifier, installed_version(name), tested.get(normalized(name)))
    for name in TRAPS:
        installed = installed_version(name)
        if name not in required and installed:
            yield Package(name, "", installed, tested.get(normalized(name)))


def _check_python(running: tuple[int, int]) -> list[Problem]:
    oldest, newest = SUPPORTED_PYTHON
    if oldest <= running <= newest:
        return []
    return [Problem("python", ExtensionError("E500", running=platform.python_version(), executable=sys.executable))]


def _check_set(version_set: str, packages: list[Package]) -> list[Problem]:
    """Versions that work on paper but were not tested together."""
    if version_set == "unknown":
        found = installed_version("transformers") or "none"
        return [Problem("set", ExtensionError("E504", transformers=found))]
    notes = []
    for package in packages:
        if package.installed and package.tested and not _satisfies(package.installed, f"=={package.tested}"):
            repair = _install(f"{package.name}=={package.tested}")
            facts = {"package": package.name, "installed": package.installed, "tested": package.tested}
            error = ExtensionError("E505", **facts, set=version_set, repair=repair)
            notes.append(Problem(f"packages.{package.name}", error))
    return notes


def _check_torch_build() -> list[Problem]:
    """A CUDA build where there is no GPU costs gigabytes; a CPU build where there is one leaves it idle."""
    build = _torch_cuda()
    if build is None:
        return []
    has_gpu = _has_gpu()
    if bool(build) == has_gpu:
        return []
    version = (installed_version("torch") or "").split("+")[0]
    # On Linux PyPI carries the CUDA build of torch, PyTorch's own index the one for CPUs.
    index = "https://download.pytorch.org/whl/cpu" if build else "https://pypi.org/simple"
    options = "--no-deps " if build else ""
    repair = f"{_python()} -m pip install --force-reinstall {options}torch=={version} --index-url {index}"
    facts = {"build": f"CUDA {build}" if build else "CPU", "machine": "has an" if has_gpu else "has no"}
    return [Problem("packages.torch", ExtensionError("E506", **facts, repair=repair))]


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _torch_cuda() -> str | None:
    """CUDA version torch was built for, "" for a CPU build, None without torch; read from its file, not imported."""
    try:
        path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        text = path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda[^=\n]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _load_components() -> tuple[dict[str, str], list[Problem]]:
    """Import every third-party component as FATE does. FATE swallows the reason of a failure; here it is shown.

    pkg_resources refuses a component before importing it if any requirement of its package, or of the packages
    behind that, is not met to the letter.
    """
    found: dict[str, str] = {}
    problems = []
    for entry in _entry_points():
        value = str(entry).split(" = ", 1)[-1]
        try:
            entry.load()
            found[entry.name] = value
        except Exception as error:  # noqa: BLE001 - somebody else's module: anything can come out of it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            repair = _component_repair(error) or f'{_python()} -c "import {entry.module_name}"'
            facts = {"name": entry.name, "value": value, "reason": reason, "repair": repair}
            problems.append(Problem(f"components.{entry.name}", ExtensionError("E507", **facts)))
    if not any(value.startswith("fate_llm_ext.") for value in found.values()) and not problems:
        repair = f"{_python()} -m pip install --no-deps --force-reinstall {DISTRIBUTION} (in a checkout: make venv)"
        problems.append(Problem("components", ExtensionError("E509", group=ENTRY_POINT_GROUP, repair=repair)))
    return found, problems


def _entry_points() -> list[Any]:
    """What FATE looks at, in FATE's way; empty without pkg_resources (E503 has said so)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated, and FATE 2.2 needs it
        try:
            import pkg_resources
        except ImportError:
            return []
        return list(pkg_resources.iter_entry_points(ENTRY_POINT_GROUP))


def _component_repair(error: Exception) -> str:
    """The command against a requirement that pkg_resources found unmet, "" for other errors."""
    requirement = getattr(error, "req", None)
    return _install(str(requirement)) if requirement is not None else ""


def _check_site() -> list[Problem]:
    """The site file, if the environment names one."""
    from fate_llm_ext.site import SITE_FILE_VARIABLE, load_sites

    path = os.environ.get(SITE_FILE_VARIABLE)
    if not path:
        return []
    try:
        load_sites(Path(path).expanduser())
    except ExtensionError as error:
        return [Problem("site", error)]
    return []


def _devices() -> tuple[list[str], list[Problem]]:
    """CUDA devices as torch sees them."""
    try:
        import torch
    except (ImportError, OSError) as error:
        repair = _install(f"torch=={expected_versions('modern')['torch']}")
        return [], [
            Problem("devices", ExtensionError("E510", reason=" ".join(str(error).split())[:200], repair=repair))
        ]
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"cuda:{i} {p.name}, {p.total_memory / 1e9:.0f} GB" for i, p in enumerate(properties)], []


def _satisfies(version: str, specifier: str) -> bool:
    try:
        return Requirement(f"x{specifier}").specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _python() -> str:
    """The running interpreter as the user would type it."""
    executable = Path(sys.executable)
    return str(executable.relative_to(Path.cwd())) if executable.is_relative_to(Path.cwd()) else str(executable)


def _install(requirement: str) -> str:
    # --no-deps: pip would otherwise drag transformers back to the version FATE pins.
    options = "" if requirement.startswith("torch") else "--no-deps "
    return f"{_python()} -m pip install {options}'{requirement}'"


def _finding(problem: Problem) -> dict[str, str]:
    error = problem.error
    return {"where": problem.where, "code": error.code, "problem": error.problem, "next": error.next_step}


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    faulty = {problem.where for problem in report.problems}
    noted = {note.where for note in report.notes}
    title = f"Python {report.python}, set {report.version_set}, {report.free_gb:.0f} GB free"
    table = Table(title=title, title_justify="left")
    for heading in ("package", "installed", "tested", "required", ""):
        table.add_column(heading)
    for package in report.packages:
        where = f"packages.{package.name}"
        verdict = "wrong" if where in faulty else "note" if where in noted else "ok"
        table.add_row(package.name, package.installed or "-", package.tested or "-", package.required, verdict)
    console.print(table)
    for name, value in report.components.items():
        console.print(f"component {name}: {escape(value)}")
    for device in report.devices:
        console.print(f"device {escape(device)}")
    if report.flow is not None:
        from fate_llm_ext.cli.doctor_flow import show

        show(report.flow, console)
    for kind, findings in (("note", report.notes), ("wrong", report.problems)):
        for finding in findings:
            console.print(f"{kind}  {escape(str(finding))}", highlight=False)
    console.print("All is well." if not report.problems else f"{len(report.problems)} problem(s).", highlight=False)
