"""`fate-llm-ext doctor` finds what is wrong and names the command that repairs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pkg_resources
import pytest
from click.testing import CliRunner

from fate_llm_ext import _compat
from fate_llm_ext.cli import doctor as module
from fate_llm_ext.cli.doctor import Package, check_disk, check_package, doctor, examine


def codes(problems: list) -> list[str]:
    return [problem.error.code for problem in problems]


def entry_point(text: str, *requires: str) -> pkg_resources.EntryPoint:
    """An entry point as FATE sees it, of a package with these requirements."""
    package = pkg_resources.Distribution(project_name="plug-in", version="1")
    package.requires = lambda extras=(): [pkg_resources.Requirement.parse(text) for text in requires]
    return pkg_resources.EntryPoint.parse(text, dist=package)


def test_this_environment_is_well() -> None:
    report = examine()
    assert not report.problems, [str(problem) for problem in report.problems]
    assert {"fedmkt", "text_evaluation"} <= set(report.components)
    assert {"torch", "pyfate", "transformers"} <= {package.name for package in report.packages}


def test_json_is_one_object_with_the_same_findings() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    report = json.loads(result.output)
    assert report["ok"] is (result.exit_code == 0)
    assert set(report) == {
        "ok", "python", "set", "packages", "components", "devices", "free_gb", "problems", "notes",
    }  # fmt: skip


def test_torch_is_not_imported() -> None:
    code = "import sys; from fate_llm_ext.cli.doctor import examine; examine(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("name", "installed", "required", "code"),
    [
        ("peft", None, ">=0.10", "E501"),
        ("peft", "0.9", ">=0.10", "E502"),
        ("peft", "not-a-version", ">=0.10", "E502"),
        ("setuptools", "82.0.0", "<82", "E503"),
        ("pandas", "3.0.1", "<3", "E503"),
        ("numpy", "2.1.0", "<2", "E503"),
        ("pyarrow", "26.0.0", "", "E503"),
        ("pydantic", "2.9.0", "<2,>=1.10.12", "E503"),
        ("ruamel.yaml", "0.18.6", "", "E503"),
        ("pydantic", "1.9.0", "<2,>=1.10.12", "E502"),
    ],
)
def test_faulty_package(name: str, installed: str | None, required: str, code: str) -> None:
    problems = check_package(Package(name, required, installed, tested="7.7"))
    assert codes(problems) == [code]
    assert problems[0].error.next_step.endswith(f"-m pip install --no-deps '{name}==7.7'")


def test_missing_torch_is_installed_with_what_it_needs() -> None:
    (problem,) = check_package(Package("torch", ">=2.1", None, tested="2.13.0"))
    assert problem.error.next_step.endswith("-m pip install 'torch==2.13.0'")


@pytest.mark.parametrize("version", ["1.26.4", "1.26.4+local", "1.26.4.post1"])
def test_good_package(version: str) -> None:
    assert check_package(Package("numpy", "<2", version, tested=None)) == []


def test_component_that_does_not_import_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [entry_point("broken = fate_llm_ext.components.no_such_module:x")]
    monkeypatch.setattr(module, "_entry_points", lambda: points)
    problems = examine().problems
    assert codes(problems) == ["E507"]
    assert "no_such_module" in problems[0].error.problem


def test_component_that_pkg_resources_refuses_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would import, but FATE asks pkg_resources, which looks at every requirement first."""
    point = entry_point("fedmkt = fate_llm_ext.components.fedmkt:fedmkt", "numpy==1.0")
    monkeypatch.setattr(module, "_entry_points", lambda: [point])
    (problem,) = examine().problems
    assert problem.error.code == "E507"
    assert "numpy==1.0" in problem.error.problem
    assert problem.error.next_step.endswith("-m pip install --no-deps 'numpy==1.0'")


def test_no_component_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_entry_points", list)
    assert codes(examine().problems) == ["E509"]


@pytest.mark.parametrize(
    ("text", "gpu", "build"),
    [("cuda: Optional[str] = None\n", True, "CPU"), ("cuda: Optional[str] = '13.0'\n", False, "CUDA 13.0")],
)
def test_torch_build_that_does_not_fit_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, gpu: bool, build: str
) -> None:
    (tmp_path / "version.py").write_text(text)

    class Distribution:
        version = "2.13.0"

        def locate_file(self, path: str) -> Path:
            return tmp_path / Path(path).name

    monkeypatch.setattr(module.metadata, "distribution", lambda name: Distribution())
    monkeypatch.setattr(module, "_has_gpu", lambda: gpu)
    (note,) = module._check_torch_build()
    assert note.error.code == "E506"
    assert build in note.error.problem


def test_site_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    monkeypatch.setenv("FATE_LLM_EXT_SITE", str(site))
    assert codes(examine().problems) == ["E112"]
    site.write_text("device: cpu\n")
    assert not examine().problems
    site.write_text("devise: cpu\n")
    assert codes(examine().problems) == ["E113"]


def test_disk() -> None:
    assert check_disk(free_gb=50.0) == []
    assert codes(check_disk(free_gb=0.5)) == ["E508"]


@pytest.mark.parametrize(
    ("running", "expected"), [((3, 8), ["E500"]), ((3, 9), []), ((3, 11), []), ((3, 12), ["E500"])]
)
def test_python(running: tuple[int, int], expected: list[str]) -> None:
    assert codes(module._check_python(running)) == expected


def test_exit_code_is_one_if_anything_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_GB_NEEDED", 1e9)
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "E508" in result.output


def test_version_of_no_set_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_set", lambda: "unknown")
    assert "E504" in codes(examine().notes)


def test_untested_version_is_a_note() -> None:
    assert codes(module._check_set("modern", [Package("peft", ">=0.10", "0.20.0", "0.21.2")])) == ["E505"]


@pytest.mark.parametrize(
    ("transformers", "expected"), [("5.23.0", "modern"), ("4.37.2", "compat"), ("4.57.1", "unknown"), (None, "unknown")]
)
def test_installed_set(monkeypatch: pytest.MonkeyPatch, transformers: str | None, expected: str) -> None:
    monkeypatch.setattr(_compat, "installed_version", lambda name: transformers)
    assert _compat.installed_set() == expected


def test_sets_are_pinned_exactly_and_within_the_known_bounds() -> None:
    for path in _compat.CONSTRAINTS.glob("*.txt"):
        if path.name.endswith("-overrides.txt"):
            continue
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in lines), path
        pins = _compat.expected_versions(path.stem)
        for name in module.TRAPS if path.stem != "serve" else ():  # no FATE in there
            version = pins.get(_compat.normalized(name))
            assert version is None or not check_package(Package(name, "", version, version)), (path, name)
