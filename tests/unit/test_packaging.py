"""What is declared is what is needed, and starting up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fate_llm_ext
from fate_llm_ext._compat import normalized

PACKAGE = Path(fate_llm_ext.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "pandas", "sklearn", "scipy")

# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "pkg_resources": "setuptools",
    "fate": "pyfate",
    "fate_client": "fate-client",
    "fate_llm": "fate-llm",
}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running ``code``."""
    tail = "\nimport sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    return set(subprocess.check_output([sys.executable, "-c", code + tail], text=True).split("\n")[-2].split())


def third_party_imports() -> dict[str, str]:
    """Top-level module that the package imports anywhere -> one file that does."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name != PACKAGE.name:
                    found[name] = str(path.relative_to(ROOT))
    return found


def test_every_import_is_declared() -> None:
    declared = {normalized(Requirement(line).name) for line in metadata.requires("fate-llm-ext") or []}
    missing = {
        name: path
        for name, path in third_party_imports().items()
        if normalized(DISTRIBUTIONS.get(name, name)) not in declared
    }
    assert not missing, "declare these in setup.py"


def test_entry_points_load_as_fate_loads_them() -> None:
    """Pkg_resources checks the requirements of requirements, too: hence pyfate is an extra."""
    import pkg_resources

    points = list(pkg_resources.iter_entry_points("fate.ext.component_desc"))
    assert {point.name for point in points} >= {"fedmkt", "text_evaluation"}
    for point in points:
        assert point.load().name == point.name


def test_fate_is_an_extra() -> None:
    required = [Requirement(line) for line in metadata.requires("fate-llm-ext") or []]
    (fate,) = [requirement for requirement in required if requirement.name == "pyfate"]
    assert str(fate.marker) == 'extra == "fate"'


@pytest.mark.parametrize("component", ["fedmkt", "site_check", "text_evaluation"])
def test_component_module_is_light(component: str) -> None:
    """FATE imports every plug-in module in each of its processes: what they cost, all jobs pay."""
    loaded = modules_after(f"import fate_llm_ext.components.{component}")
    assert not loaded.intersection(HEAVY)


def test_help_imports_nothing_but_click() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nfrom fate_llm_ext.cli.main import main\nmain(standalone_mode=False)"
    loaded = modules_after(code)
    assert not loaded.intersection((*HEAVY, "fate", "numpy", "rich", "pydantic", "jinja2", "yaml"))


def test_every_command_has_help() -> None:
    from click.testing import CliRunner

    from fate_llm_ext.cli.main import _COMMANDS, main

    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in _COMMANDS:
        assert name in result.output
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0, name


def test_version_is_the_same_everywhere() -> None:
    assert metadata.version("fate-llm-ext") == fate_llm_ext.__version__


def test_constraint_files_are_shipped() -> None:
    names = {path.name for path in (PACKAGE / "constraints").glob("*.txt")}
    assert {"modern.txt", "modern-overrides.txt", "compat.txt", "client.txt", "peer.txt", "peer-overrides.txt"} <= names


@pytest.mark.skipif(not (ROOT / "docs/errors.md").exists(), reason="not a checkout")
def test_error_page_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from error_docs import page
    finally:
        sys.path.remove(str(ROOT / "tools"))
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == page(), "run `make docs`"
