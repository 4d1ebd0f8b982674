"""Site files: where things lie, and what is said when they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.site import ROOT_VARIABLE, SITE_FILE_VARIABLE, Budget, Site, current_site, load_sites


def write(folder: Path, content: Any, name: str = "sites.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def error_of(code: str, call: Any) -> str:
    with pytest.raises(ExtensionError) as caught:
        call()
    assert caught.value.code == code
    return str(caught.value)


def test_one_section_per_party(tmp_path: Path) -> None:
    content = {
        "root": "work",
        "guest_9999": {"models": {"slm": "m"}},
        "arbiter_9998": {"device": "cpu", "threads": 2, "root": "/srv"},
    }
    sites = load_sites(write(tmp_path, content))
    assert sorted(sites) == ["arbiter_9998", "guest_9999"]
    assert sites["guest_9999"].path("m") == tmp_path / "work" / "m"
    assert sites["arbiter_9998"].path("m") == Path("/srv/m")
    assert (sites["arbiter_9998"].device, sites["arbiter_9998"].threads) == ("cpu", 2)
    assert sites["guest_9999"].path("/elsewhere/m") == Path("/elsewhere/m")


def test_one_site_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"models": {"slm": "m"}, "device": "cpu"})
    assert sorted(load_sites(path)) == [""]
    monkeypatch.setenv(SITE_FILE_VARIABLE, str(path))
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert current_site("host", "10000").path("m") == tmp_path / "m"


def test_where_relative_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root of the file is relative to the file, one of the command line to where the user stands."""
    (tmp_path / "conf").mkdir()
    path = write(tmp_path / "conf", {"root": "../data", "models": {"slm": "m"}})
    assert load_sites(path)[""].path("m") == tmp_path / "data" / "m"
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load_sites(path, "runs")[""].path("m") == here / "runs" / "m"
    assert load_sites(path, "/srv/runs")[""].path("m") == Path("/srv/runs/m")


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert Site(root="/srv").path("~/m") == Path("/home/ada/m")
    assert Site(root="~/srv").path("m") == Path("/home/ada/srv/m")


def test_lookup(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    site = Site(root=str(tmp_path), models={"slm": "m", "llm": "gone"}, tables={"llm/news": "m"})
    assert site.lookup("models", "slm") == site.lookup("tables", "llm/news") == tmp_path / "m"
    text = error_of("E110", lambda: site.lookup("models", "slim"))
    assert "'slim'" in text
    assert "llm, slm" in text
    assert "nothing" in error_of("E110", lambda: site.lookup("public", "news"))
    assert str(tmp_path / "gone") in error_of("E111", lambda: site.lookup("models", "llm"))


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text", "3"])
def test_a_file_that_holds_no_mapping(tmp_path: Path, content: str) -> None:
    assert "no mapping" in error_of("E112", lambda: load_sites(write(tmp_path, content)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    error_of("E112", lambda: load_sites(tmp_path / "gone.yaml"))
    error_of("E112", lambda: load_sites(tmp_path))
    error_of("E112", lambda: load_sites(write(tmp_path, "a: [1,")))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    error_of("E112", lambda: load_sites(tmp_path / "binary.yaml"))


def test_all_problems_at_once(tmp_path: Path) -> None:
    content = {
        "guest_9999": {"model": {"slm": "m"}, "threads": 0},
        "host_10000": {"models": ["m"]},
        "arbiter_9998": {"device": "cpu"},
    }
    text = error_of("E113", lambda: load_sites(write(tmp_path, content)))
    assert "3 problem(s)" in text
    for where in ("guest_9999.model:", "guest_9999.threads:", "host_10000.models:"):
        assert where in text


def test_a_party_without_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITE_FILE_VARIABLE, str(write(tmp_path, {"guest_9999": {"device": "cpu"}})))
    monkeypatch.setenv(ROOT_VARIABLE, "/srv")
    assert current_site("guest", "9999").path("m") == Path("/srv/m")
    text = error_of("E114", lambda: current_site("host", "10000"))
    assert "host_10000" in text
    assert "guest_9999" in text


def test_budgets(tmp_path: Path) -> None:
    budgets = {"llm/news": {"epsilon": 8, "delta": 1.0e-6}, "llm/open": {"epsilon": float("inf"), "delta": 1e-5}}
    site = load_sites(write(tmp_path, {"budgets": budgets, "state": "kept"}))[""]
    assert site.budget("llm/news") == site.budget_if_any("llm/news") == Budget(epsilon=8.0, delta=1e-6)
    assert site.budget("llm/open").epsilon == float("inf")
    assert site.ledger() == tmp_path / "kept" / "ledger"
    assert site.all_budgets() == {"llm/news": Budget(8.0, 1e-6), "llm/open": Budget(float("inf"), 1e-5)}
    assert site.budget_if_any("llm/mail") is None
    text = error_of("E616", lambda: site.budget("llm/mail"))
    assert "llm/mail" in text
    assert "llm/news, llm/open" in text
    assert "`budgets: {llm/mail: {epsilon: <ε>, delta: <δ>}}`" in text
    assert "nothing" in error_of("E616", lambda: Site().budget("llm/mail"))


def test_one_party_has_one_ledger_and_one_set_of_budgets(tmp_path: Path) -> None:
    """A job chooses the role in which a party runs: another role is no other ledger and no way around a budget."""
    news, mail = {"epsilon": 8, "delta": 1.0e-6}, {"epsilon": 2, "delta": 1.0e-6}
    content: dict[str, Any] = {
        "guest_9999": {"budgets": {"llm/news": news}},
        "host_9999": {"budgets": {"llm/mail": mail}},
        "host_10000": {},
    }
    sites = load_sites(write(tmp_path, content))
    guest, host, other = (sites[party] for party in content)
    assert guest.ledger() == host.ledger() == tmp_path / "state" / "9999" / "ledger"
    assert other.ledger() == tmp_path / "state" / "10000" / "ledger"
    assert guest.all_budgets() == host.all_budgets()
    assert sorted(guest.all_budgets()) == ["llm/mail", "llm/news"]
    assert other.all_budgets() == {}
    content["host_9999"]["budgets"]["llm/news"] = news
    assert len(load_sites(write(tmp_path, content))["host_9999"].budgets) == 2
    content["host_9999"]["budgets"]["llm/news"] = {"epsilon": 80, "delta": 1.0e-6}
    assert "host_9999.budgets.llm/news: another section" in error_of(
        "E113", lambda: load_sites(write(tmp_path, content))
    )
    content["host_9999"]["state"] = "elsewhere"
    assert load_sites(write(tmp_path, content))["host_9999"].budget("llm/news").epsilon == 80


def test_all_problems_of_budgets_at_once(tmp_path: Path) -> None:
    budgets = {
        "a/1": {"epsilon": 0, "delta": 1e-6},
        "a/2": {"epsilon": 8},
        "a/3": {"epsilon": float("nan"), "delta": 1.0},
        "a/4": {"epsilon": "much", "delta": 0, "accountant": "rdp"},
        "a/5": 8,
    }
    text = error_of("E113", lambda: load_sites(write(tmp_path, {"guest_9999": {"budgets": budgets}})))
    places = [
        "a/1.epsilon",
        "a/2.delta",
        "a/3.epsilon",
        "a/3.delta",
        "a/4.epsilon",
        "a/4.delta",
        "a/4.accountant",
        "a/5",
    ]
    assert f"{len(places)} problem(s)" in text
    for place in places:
        assert f"guest_9999.budgets.{place}: " in text
