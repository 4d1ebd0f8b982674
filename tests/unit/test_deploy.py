"""deploy/: scripts parse, refuse settings that make no sense, fill templates, keep secrets, end what is theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
PARTNERS = "9999 127.0.0.1 9390 5672\n# a comment\n\n10000 10.0.0.2 9390 5673\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a site with the settings of site.env.example."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.env").write_text((DEPLOY / "site.env.example").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "partners").write_text(PARTNERS, encoding="utf-8")
    return folder


def bash(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after lib.sh."""
    call = ["bash", "-c", f". {DEPLOY}/lib.sh\n{code}", "test.sh", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, **variables}, check=False)


def setting(site: Path, text: str) -> None:
    with (site / "site.env").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


# --- scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if script.name != "lib.sh":
        assert os.access(script, os.X_OK)


@pytest.mark.parametrize("name", ["site", "broker", "proxy", "server", "database"])
def test_an_unknown_command_and_a_folder_without_settings_are_told(site: Path, name: str) -> None:
    script = DEPLOY / f"{name}.sh"
    for arguments, problem in [(("fly", site), "there is no command fly."), (("stop", site.parent), "no site.env.")]:
        done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert problem in done.stderr
        assert " Next: " in done.stderr


def test_what_does_not_run_is_stopped_without_a_word(site: Path) -> None:
    done = subprocess.run([DEPLOY / "site.sh", "stop", site], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- settings -------------------------------------------------------------------------------------


def test_the_example_makes_sense(site: Path) -> None:
    done = bash('load_site "$1"; echo "$PARTY_ID $DATABASE $PROVIDER_VERSION"', site)
    assert done.returncode == 0, done.stderr
    from fate_llm_ext import __version__

    assert done.stdout.split() == ["9999", "sqlite", f"llm_ext_{__version__}"]


def test_every_setting_that_scripts_read_is_in_the_example() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    names = set(re.findall(r"\b((?:FLOW|PROXY|BROKER|MYSQL)_[A-Z_]+|LISTEN[A-Z_]*|PARTY_ID|DATABASE)\b", text))
    example = (DEPLOY / "site.env.example").read_text(encoding="utf-8")
    assert {name for name in names - {"LISTENERS"} if not re.search(rf"^#?{name}=", example, re.MULTILINE)} == set()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("PARTY_ID=guest", "PARTY_ID of .* is guest"),
        ("PARTY_ID=", "does not set PARTY_ID"),
        ("PROXY_PORT=9380", "is 9380, which another setting has too"),
        ("BROKER_EPMD_PORT=70000", "is 70000, no port"),
        ("FLOW_HTTP_PORT=http", "is http, no port"),
        ("LISTEN=0.0.0.0", "LISTEN of .* is 0.0.0.0"),
        ("DATABASE=oracle", "DATABASE of .* is oracle"),
        ("DATABASE=mysql", "does not set MYSQL_PORT"),
        ("DATABASE=mysql MYSQL_PORT=9380", "is 9380, which another setting has too"),
    ],
)
def test_settings_that_make_no_sense_are_refused(site: Path, text: str, problem: str) -> None:
    setting(site, text)
    done = bash('load_site "$1"', site)
    assert done.returncode == 1
    assert re.search(problem, done.stderr), done.stderr


@pytest.mark.parametrize("line", ["10000 10.0.0.2 9390", "host 10.0.0.2 1 2", "10000 10.0.0.2 9390 5672 5673"])
def test_a_partner_is_four_words(site: Path, line: str) -> None:
    (site / "partners").write_text(f"{PARTNERS}{line}\n", encoding="utf-8")
    done = bash('load_site "$1"', site)
    assert done.returncode == 1
    assert f"has the line '{line}" in done.stderr


def test_a_folder_with_a_space_is_refused(tmp_path: Path, site: Path) -> None:
    moved = site.rename(tmp_path / "my site")
    assert "has a space" in bash('load_site "$1"', moved).stderr


def test_ports_of_a_federation_are_distinct(tmp_path: Path) -> None:
    """`up` writes the settings first; here it ends for want of a Python."""
    call = [DEPLOY / "federation.sh", "up", tmp_path / "federation"]
    env = {
        **os.environ,
        "PYTHON": "/no/python",
        "BASE_PORT": "23000",
        "PARTIES": "9999 10000 10001",
        "DATABASE": "mysql",
    }
    done = subprocess.run(call, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "/no/python is no Python 3.11 with venv" in done.stderr
    files = sorted((tmp_path / "federation").glob("site_*/site.env"))
    ports = [int(port) for file in files for port in re.findall(r"_PORT=(\d+)", file.read_text(encoding="utf-8"))]
    assert len(files) == 3
    assert len(ports) == len(set(ports)) == 24
    assert all(23000 < port < 23080 for port in ports)
    partners = {file.with_name("partners").read_text(encoding="utf-8") for file in files}
    assert len(partners) == 1
    for file in files:
        values = dict(line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines())
        own = f"{values['PARTY_ID']} 127.0.0.1 {values['PROXY_PORT']} {values['BROKER_PORT']}\n"
        assert own in file.with_name("partners").read_text(encoding="utf-8")
        assert bash('load_site "$1"', file.parent).returncode == 0


# --- what is written ------------------------------------------------------------------------------


def test_secrets_are_for_their_owner_alone(site: Path) -> None:
    first, again, other = (bash(f'load_site "$1"; secret {name}', site).stdout for name in ("a", "a", "b"))
    assert first == again != other
    assert len(first.strip()) == 24
    assert (site / "secrets").stat().st_mode & 0o777 == 0o700
    assert (site / "secrets/a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("partners", "listeners"),
    [
        ("", ["127.0.0.1"]),
        ("LISTEN_PARTNERS=10.0.0.1", ["127.0.0.1", "10.0.0.1"]),
        ("LISTEN_PARTNERS=0.0.0.0", ["0.0.0.0"]),
    ],
)
def test_templates_are_filled(site: Path, partners: str, listeners: list[str]) -> None:
    setting(site, partners)
    code = """
    load_site "$1"
    eval "$(sed -n '/^configure()/,/^}/p' "$DEPLOY/proxy.sh")"
    home=$SITE/proxy && configure
    home=$SITE/broker
    eval "$(sed -n '/^    listeners=/p; /^    fill /p' "$DEPLOY/broker.sh")"
    """
    done = bash(code, site)
    assert done.returncode == 0, done.stderr
    nginx = (site / "proxy/nginx.conf").read_text(encoding="utf-8")
    rabbit = (site / "broker/rabbitmq.conf").read_text(encoding="utf-8")
    assert re.findall(r"listen (\S+);", nginx) == [f"{address}:9390" for address in listeners]
    assert re.findall(r"tcp\.\d+ = (\S+)", rabbit) == [f"{address}:5672" for address in listeners]
    assert "9999 127.0.0.1:9380;" in nginx, "the own party is at FATE Flow itself"
    assert "10000 10.0.0.2:9390;" in nginx
    assert "management.tcp.ip = 127.0.0.1" in rabbit, "whoever partners are, the management is for this host"
    assert not re.search(r"@\w+@", nginx + rabbit)
    for path in ("proxy/nginx.conf", "broker/rabbitmq.conf"):
        assert (site / path).stat().st_mode & 0o777 == 0o600


def test_a_template_that_asks_for_more_is_an_error(site: Path) -> None:
    done = bash('load_site "$1"; fill rabbitmq.conf "$SITE/out" LISTEN=here', site)
    assert done.returncode == 1
    assert "asks for @" in done.stderr
    assert not (site / "out").exists()


def test_only_partners_paths_pass_the_gateway() -> None:
    pattern = re.search(r'\$request_uri !~ "([^"]+)"', (DEPLOY / "templates/nginx.conf").read_text(encoding="utf-8"))
    assert pattern
    for path in ("/v2/partner/job/create", "/v2/scheduler/task/report", "/v2/server/fateflow", "/v2/partner/a_b?x=%20"):
        assert re.search(pattern[1], path), path
    others = ("/v2/job/submit", "/v2/output/model/download", "/v2/provider/register", "/x/v2/partner/job", "/")
    disguised = (
        "/v2/partner/../job/submit",
        "/v2/partner/%2e%2e/job",
        "/v2/partner/x%20HTTP/1.1%0d%0aPOST",
        "/v2/partner",
    )
    for path in (*others, *disguised):
        assert not re.search(pattern[1], path), path


CONFIGURE = """
load_site "$1"
export SECRET_BROKER=first SECRET_MYSQL=
mkdir -p "$SITE/conf"
conf=$SITE/conf/service_conf.yaml
[ -e "$conf" ] || echo '{"party_id": "1", "federation": {"osx": {}}}' >"$conf"
echo '{}' >"$SITE/conf/job_default_config.yaml"
"$2" "$DEPLOY/service_conf.py" "$SITE/conf" "$SITE/partners"
"""


def test_what_an_operator_has_set_outlives_a_new_partner(site: Path) -> None:
    def configured() -> dict[str, Any]:
        done = bash(CONFIGURE, site, sys.executable)
        assert done.returncode == 0, done.stderr
        return dict(yaml.safe_load((site / "conf/service_conf.yaml").read_text(encoding="utf-8")))

    first = configured()
    assert first["federation"]["rabbitmq"]["mode"] == "replication"
    assert first["federation"]["nginx"] == {"host": "127.0.0.1", "http_port": 9390, "protocol": "http"}
    first["federation"]["nginx"]["protocol"] = "https"
    first["default_provider"]["version"] = "llm_ext_9.9.9"
    (site / "conf/service_conf.yaml").write_text(yaml.safe_dump(first), encoding="utf-8")
    setting(site, "PROXY_PORT=9391")
    with (site / "partners").open("a", encoding="utf-8") as file:
        file.write("10001 10.0.0.3 9390 5674\n")
    second = configured()
    assert second["federation"]["nginx"] == {"host": "127.0.0.1", "http_port": 9391, "protocol": "https"}
    assert second["default_provider"]["version"] == "llm_ext_9.9.9"
    routes = yaml.safe_load((site / "conf/rabbitmq_route_table.yaml").read_text(encoding="utf-8"))
    assert {int(party): route["port"] for party, route in routes.items()} == {9999: 5672, 10000: 5673, 10001: 5674}
    assert (site / "conf/service_conf.yaml").stat().st_mode & 0o777 == 0o600


# --- processes ------------------------------------------------------------------------------------


def test_a_pid_file_that_names_somebody_else_is_no_reason_to_kill(site: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    stranger = subprocess.Popen(sleep)
    own = subprocess.Popen(sleep, env={**os.environ, "FATE_SITE_FOLDER": str(site)})
    neighbour = subprocess.Popen(sleep, env={**os.environ, "FATE_SITE_FOLDER": f"{site}2"})
    try:
        for process, ends in ((stranger, False), (neighbour, False), (own, True)):
            (site / "pid").write_text(str(process.pid), encoding="utf-8")
            assert bash('load_site "$1"; stop_pid "$SITE/pid" 5', site).returncode == 0
            assert not (site / "pid").exists()
            if ends:
                process.wait(10)
            else:
                assert process.poll() is None
    finally:
        for process in (stranger, own, neighbour):
            process.kill()
            process.wait()


def test_stop_ends_what_bears_the_mark_and_scripts_that_start_still(site: Path) -> None:
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, "FATE_SITE_FOLDER": str(site)})
    neighbour = subprocess.Popen(["sleep", "60"], env={**os.environ, "FATE_SITE_FOLDER": f"{site}2"})
    starter = site.parent / "site.sh"
    starter.write_text("#!/bin/bash\nsleep 60\n", encoding="utf-8")
    starter.chmod(0o755)
    starting = subprocess.Popen([starter, "start", site])
    elsewhere = subprocess.Popen([starter, "start", "/somewhere/site"])
    try:
        done = subprocess.run([DEPLOY / "site.sh", "stop", site], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        marked.wait(10)
        starting.wait(10)
        assert neighbour.poll() is None
        assert elsewhere.poll() is None
    finally:
        for process in (marked, neighbour, starting, elsewhere):
            process.kill()
            process.wait()


def test_a_service_that_ends_at_once_is_not_waited_for(site: Path) -> None:
    (site / "log").write_text("started\nbind: address in use\n\n", encoding="utf-8")
    done = bash('load_site "$1"; true & wait_for "the broker" 60 "$SITE/log" $! false', site)
    assert done.returncode == 1
    assert "the broker has ended at once: bind: address in use" in done.stderr
