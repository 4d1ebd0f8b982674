"""Providers: what is installed, where it comes from, and what an operator is told when something is missing.

A real build takes minutes and is part of the tests over FATE Flow; here its parts run alone, with real processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import pytest
from packaging.requirements import Requirement

import fate_llm_ext
from fate_llm_ext._compat import expected_versions, installed_set, normalized
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow import environment, provider
from fate_llm_ext.flow.environment import Steps

PACKAGE = Path(fate_llm_ext.__file__).parent


def fake_python(path: Path, script: str) -> str:
    """An executable that answers as a Python would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def fake_server(folder: Path, version: str = "2.2.0", packages: tuple[str, ...] = ("fate_flow", "ofx")) -> str:
    """The Python of an environment that holds a FATE Flow of that version."""
    site = folder / "site-packages"
    for name in packages:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    info = site / f"fate_flow-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fate_flow\nVersion: {version}\n", encoding="utf-8")
    return fake_python(folder / "bin/python", f'PYTHONPATH={site} exec {sys.executable} "$@"')


def steps(folder: Path, wheelhouse: Path | None = None) -> Steps:
    return Steps(folder / "log", lambda line: None, wheelhouse)


# --- what is installed ----------------------------------------------------------------------------


def closure(distribution: str, extra: str, seen: set[tuple[str, str]]) -> set[str]:
    """Everything that the installed distribution asks for, and what that asks for."""
    if (normalized(distribution), extra) not in seen:
        seen.add((normalized(distribution), extra))
        for requirement in map(Requirement, metadata.requires(distribution) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                for wanted in ("", *requirement.extras):
                    closure(requirement.name, wanted, seen)
    return {name for name, _ in seen}


@pytest.mark.skipif(installed_set() != "modern", reason="the provider holds the modern set")
def test_a_provider_holds_all_that_this_package_asks_for() -> None:
    seen: set[tuple[str, str]] = set()
    for extra in ("", "fate", "privacy"):
        closure("fate-llm-ext", extra, seen)
    needed = {name for name, _ in seen} - {"fate-llm-ext"}
    installed = {normalized(line.split("==")[0]) for line in environment.pins("modern", "flow")} | {"torch"}
    # torch is installed by pip with all it asks for, which is another set on machines with a GPU.
    assert needed - installed - set(environment.FIRST) == set()


def test_tools_of_developers_are_in_no_provider() -> None:
    installed = {normalized(line.split("==")[0]) for line in environment.pins("modern", "flow")}
    assert installed & {"pytest", "mypy", "ruff", "hypothesis", "pluggy", "torch", "uv"} == set()
    assert {"pyfate", "peft", "pika", "webargs"} <= installed


def test_the_workers_packages_have_the_servers_versions() -> None:
    modern, flow, server = (expected_versions(name) for name in ("modern", "flow", "server"))
    assert flow.items() <= server.items()
    assert not flow.keys() & modern.keys(), "pinned twice"


def test_a_requirement_pinned_twice_is_as_the_first_file_says() -> None:
    both = {normalized(line.split("==")[0]): line for line in environment.pins("modern", "server")}
    assert both["filelock"] == f"filelock=={expected_versions('modern')['filelock']}"


# --- where it comes from --------------------------------------------------------------------------


def test_a_checkout_is_its_own_source() -> None:
    assert environment.own_source() == str(PACKAGE.parent)


def test_a_package_without_checkout_comes_from_the_file_pip_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "fate llm.whl"
    wheel.touch()
    texts = {"direct_url.json": json.dumps({"url": wheel.as_uri()})}
    monkeypatch.setattr(fate_llm_ext, "__file__", str(tmp_path / "site-packages/fate_llm_ext/__init__.py"))
    monkeypatch.setattr(environment.metadata, "distribution", lambda name: SimpleNamespace(read_text=texts.get))
    assert environment.own_source() == str(wheel)
    wheel.unlink()
    assert environment.own_source() == f"fate-llm-ext=={fate_llm_ext.__version__}"
    texts.clear()
    assert environment.own_source() == f"fate-llm-ext=={fate_llm_ext.__version__}"


def test_a_changed_checkout_is_installed_anew(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    (source / "fate_llm_ext").mkdir(parents=True)
    module = source / "fate_llm_ext/module.py"
    module.write_text("A = 1\n", encoding="utf-8")
    before = environment.digest(str(source))
    (source / "notes.txt").touch()
    (source / "fate_llm_ext/__pycache__").mkdir()
    (source / "fate_llm_ext/__pycache__/module.pyc").touch()
    assert environment.digest(str(source)) == before, "neither notes nor caches are installed"
    module.write_text("A = 2\n", encoding="utf-8")
    assert environment.digest(str(source)) != before


def test_a_checkout_becomes_a_wheel_and_stays_clean(tmp_path: Path) -> None:
    before = {path for path in PACKAGE.parent.iterdir() if path.name != ".pytest_cache"}
    (tmp_path / "scratch").mkdir()
    wheel = environment.package_file(
        str(PACKAGE.parent), tmp_path / "scratch", tmp_path / "kept", pip_python(), steps(tmp_path)
    )
    assert Path(wheel).name == f"fate_llm_ext-{fate_llm_ext.__version__}-py3-none-any.whl"
    assert Path(wheel).parent == tmp_path / "kept"
    assert {path for path in PACKAGE.parent.iterdir() if path.name != ".pytest_cache"} == before
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    for name in ("constraints/flow.txt", "flow/provider_check.py", "components/fedmkt.py"):
        assert f"fate_llm_ext/{name}" in listing


def pip_python() -> str:
    if not find_spec("pip"):
        pytest.skip("this environment has no pip to build wheels with")
    return sys.executable


@pytest.mark.parametrize("name", ["nothing", "other-1.0.tar.gz", "other-1.0-py3-none-any.whl", "folder"])
def test_what_is_no_source_of_this_package_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name != "nothing":
        path.touch()
    with pytest.raises(ExtensionError, match="E825"):
        environment.package_file(str(path), tmp_path, tmp_path, sys.executable, steps(tmp_path))


# --- what an operator is told ---------------------------------------------------------------------

SAID = {
    "E823": "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)'",
    "E832": "fatal error: Python.h: No such file or directory",
    "E508": "OSError: [Errno 28] No space left on device",
    "E824": "Traceback\nValueError: something else",
}


@pytest.mark.parametrize("code", SAID)
def test_a_failed_step_is_diagnosed_from_what_it_printed(tmp_path: Path, code: str) -> None:
    tool = fake_python(tmp_path / "tool", f"cat <<'END' >&2\n{SAID[code]}\nEND\nexit 3")
    (tmp_path / "log").write_text("No space left on device in an earlier step\nPython.h: No such file\n")
    with pytest.raises(ExtensionError) as caught:
        steps(tmp_path).run("torch", tool)
    assert caught.value.code == code
    if code == "E824":
        assert caught.value.facts["reason"] == "ValueError: something else"


@pytest.mark.parametrize(
    "words",
    [
        "ERROR: No matching distribution found for peft==0.21.2",
        "  Because peft was not found in the provided package locations and you require peft==0.21.2",
    ],
)
def test_a_wheelhouse_names_what_it_lacks(tmp_path: Path, words: str) -> None:
    tool = fake_python(tmp_path / "tool", f"echo '{words}'; exit 1")
    with pytest.raises(ExtensionError, match="E833") as caught:
        steps(tmp_path, tmp_path).run("torch", tool)
    assert caught.value.facts["package"].startswith("peft")


def test_a_python_without_flow_is_no_server(tmp_path: Path) -> None:
    cases: list[tuple[str, str]] = [
        (str(tmp_path / "absent"), "No such file"),
        (fake_python(tmp_path / "broken", "echo 'it is broken' >&2; exit 1"), "it is broken"),
        (fake_server(tmp_path / "half", packages=("fate_flow",)), "ofx"),
    ]
    for python, reason in cases:
        with pytest.raises(ExtensionError, match="E820") as caught:
            provider.build(tmp_path / "made", python, lambda line: None)
        assert reason in caught.value.facts["reason"]
    assert not (tmp_path / "made").exists(), "nothing is made before the server is known"


def test_another_release_of_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E821 .* has FATE Flow 2\.1\.0; providers are made for 2\.2\.0"):
        provider.build(tmp_path / "made", fake_server(tmp_path, "2.1.0"), lambda line: None)


def test_only_python_3_11_with_venv_will_do(tmp_path: Path) -> None:
    old = fake_python(tmp_path / "old", "echo 3.9.2")
    bare = fake_python(tmp_path / "bare", "echo 3.11.2; echo 'No module named ensurepip' >&2; exit 1")
    for named, found in [(old, "is Python 3.9.2"), (bare, "3.11.2 without venv"), (str(tmp_path / "no"), "No such")]:
        with pytest.raises(ExtensionError, match="E822") as caught:
            environment.find_python(named)
        assert found in caught.value.facts["found"]
    good = fake_python(tmp_path / "good", "echo 3.11.9")
    assert environment.find_python(good) == good


def test_another_pythons_packages_do_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    variables = environment.clean_environment()
    assert "PYTHONPATH" not in variables
    assert variables["PIP_FIND_LINKS"] == "/wheels"


def test_too_little_room_is_said_before_anything_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider.shutil, "disk_usage", lambda path: SimpleNamespace(free=2.0e9))
    with pytest.raises(ExtensionError, match=r"E508 2\.0 GB are free at .*, at least 4 GB"):
        provider.build(tmp_path / "made", fake_server(tmp_path), lambda line: None, python=sys.executable)
    assert not (tmp_path / "made/venv").exists()


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Callable[[str], Path]:
    """An environment whose check gives the chosen answer."""

    def make(answer: str) -> Path:
        fake_python(tmp_path / "shared/venv/bin/python", f"cat <<'END'\nsome noise\n{answer}\nEND")
        return tmp_path / "shared"

    return make


def found(problems: list[str] | None = None, version: str = fate_llm_ext.__version__) -> str:
    versions = {"fate-llm-ext": version, "torch": "2.13.0"}
    return json.dumps(
        {"problems": problems or [], "components": ["fedmkt", "reader"], "versions": versions, "conf": ""}
    )


def test_a_provider_shares_an_environment_and_links_two_packages(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    server = fake_server(tmp_path / "server")
    lines: list[str] = []
    for _ in range(2):
        made = provider.build(tmp_path / "made", server, lines.append, environment=shared(found()))
    assert sorted(path.name for path in (tmp_path / "made/path").iterdir()) == ["fate_flow", "ofx"]
    assert (tmp_path / "made/path/ofx").resolve() == tmp_path / "server/site-packages/ofx"
    assert made.python.resolve() == tmp_path / "shared/venv/bin/python"
    assert lines[-1].startswith(f"ready: {provider.PROVIDER} with 2 components")
    assert made.spec() == {
        "name": "fate",
        "device": "local",
        "version": f"llm_ext_{fate_llm_ext.__version__}",
        "metadata": {"path": str(tmp_path / "made/path"), "venv": str(tmp_path / "made/venv/bin/python")},
        "components_description": {"fedmkt": {}, "reader": {}},
    }


def test_links_follow_a_server_that_moved(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    for name in ("one", "two"):
        server = fake_server(tmp_path / name)
        provider.build(tmp_path / "made", server, lambda line: None, environment=shared(found()))
    assert (tmp_path / "made/path/fate_flow").resolve() == tmp_path / "two/site-packages/fate_flow"
    assert sorted(path.name for path in (tmp_path / "made/path").iterdir()) == ["fate_flow", "ofx"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (found(["import pika: ModuleNotFoundError: No module named 'pika'"]), "No module named 'pika'"),
        (found(version="0.0.9"), f"fate-llm-ext 0.0.9, not {fate_llm_ext.__version__}"),
        ("no answer", "exit code 0"),
    ],
)
def test_an_environment_that_workers_cannot_use_is_refused(
    tmp_path: Path, shared: Callable[[str], Path], answer: str, reason: str
) -> None:
    with pytest.raises(ExtensionError, match="E827") as caught:
        provider.build(
            tmp_path / "made", fake_server(tmp_path / "server"), lambda line: None, environment=shared(answer)
        )
    assert reason in caught.value.facts["reason"]


def test_a_folder_without_environment_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match="E826"):
        provider.build(tmp_path / "made", fake_server(tmp_path / "server"), lambda line: None, environment=tmp_path)


def test_an_unfinished_provider_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"E828 .*: venv/bin/python is missing"):
        provider.register(tmp_path, "127.0.0.1:9", lambda line: None)
    assert not (tmp_path / "provider.json").exists()


def test_the_server_is_found_in_its_own_configuration(tmp_path: Path) -> None:
    made = provider.Provider(tmp_path, [], {}, str(tmp_path))
    assert provider._address(made) is None
    (tmp_path / "service_conf.yaml").write_text("fateflow: {host: 0.0.0.0, http_port: 9380}\n", encoding="utf-8")
    assert provider._address(made) == "127.0.0.1:9380"
    (tmp_path / "service_conf.yaml").write_text("fateflow: {host: 10.1.2.3, http_port: 9380}\n", encoding="utf-8")
    assert provider._address(made) == "10.1.2.3:9380"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the provider's Python is 3.11")
def test_the_check_names_every_import_that_fails_and_all_components() -> None:
    script = PACKAGE / "flow/provider_check.py"
    answer = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, check=True, cwd="/")
    checked = json.loads(answer.stdout.splitlines()[-1])
    assert "fedmkt" in checked["components"]
    missing = {problem.split(":")[0] for problem in checked["problems"]}
    # This environment has everything but FATE Flow.
    assert missing == {f"import {name}" for name in modules_of_flow()}


def modules_of_flow() -> list[str]:
    from fate_llm_ext.flow.provider_check import MODULES

    return [name for name in MODULES if "fate_flow" in name or "rabbitmq" in name]
