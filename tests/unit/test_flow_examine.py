"""`doctor --flow`: each thing that is wrong at a site has its code, against a server that answers as FATE Flow does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from click.testing import CliRunner

from fate_llm_ext import __version__
from fate_llm_ext.cli.doctor import doctor
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.examine import SiteReport, examine
from fate_llm_ext.flow.handshake import job_between, read_parties, shake_hands
from fate_llm_ext.flow.provider import PROVIDER, VERSION
from fate_llm_ext.flow.refusals import refusals
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.job import Party

PASSWORD = "swordfish-7"
Answer = Callable[[dict[str, str]], Any]


class Stub:
    """An HTTP server; ``routes``: path -> function of the query or body that gives ``data`` (an int: an error code)."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.routes: dict[str, Answer] = {}
        self.calls: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, query: dict[str, str]) -> None:
                path = urlsplit(self.path).path
                stub.calls.append(path)
                found = stub.routes[path](query) if path in stub.routes else 404
                status = found if isinstance(found, int) and (path.startswith("/api") or found == 404) else 200
                answer = {"code": found, "message": "no"} if isinstance(found, int) else found
                blob = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(blob)))
                self.end_headers()
                self.wfile.write(blob)

            def do_GET(self) -> None:
                self._answer({name: one[0] for name, one in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.host, self.port = host, int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def data(content: Any) -> dict[str, Any]:
    return {"code": 0, "message": "success", "data": content}


@pytest.fixture
def stubs() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def make(host: str = "127.0.0.1") -> Stub:
        made.append(Stub(host))
        return made[-1]

    yield make
    for stub in made:
        stub.close()


class World:
    """A site that is well: server, provider environment, configuration, broker, site file, bound table."""

    def __init__(self, folder: Path, flow: Stub, broker: Stub) -> None:
        self.folder, self.flow, self.broker = folder, flow, broker
        (folder / "path").mkdir()
        (folder / "data").mkdir()
        self.python = folder / "venv/bin/python"
        self.python.parent.mkdir(parents=True)
        self.environment()
        self.settings: dict[str, Any] = {
            "default_provider": {"name": "fate", "version": VERSION, "device": "local"},
            "default_engines": {"federation": "rabbitmq"},
            "federation": {
                "rabbitmq": {
                    "host": broker.host,
                    "port": broker.port,
                    "mng_port": broker.port,
                    "user": "fate",
                    "password": PASSWORD,
                    "mode": "replication",
                }
            },
        }
        self.route_table: dict[str, Any] = {"10000": {"host": broker.host, "port": broker.port}, "9999": {}}
        self.providers = [
            {"version": "2.2.0", "metadata": {"path": "", "venv": "x"}},
            {"version": VERSION, "metadata": {"path": str(folder / "path"), "venv": str(self.python)}},
        ]
        self.tables: dict[str, str] = {"llm/news": f"file://{folder / 'data'}"}
        self.site: dict[str, Any] = {
            "root": str(folder),
            "guest_9999": {"tables": {"llm/news": "data"}},
            "host_10000": {"tables": {"llm/other": "nowhere"}},
        }
        flow.routes = {
            "/v2/server/fateflow": lambda _: data({"flow": {"version": "2.2.0"}}),
            "/v2/site/info/query": lambda _: data({"party_id": "9999"}),
            "/v2/provider/query": lambda query: data(
                [one for one in self.providers if query.get("version", one["version"]) == one["version"]]
            ),
            "/v2/table/query": self._table,
        }
        broker.routes = {"/api/overview": lambda _: {}}

    def _table(self, query: dict[str, str]) -> Any:
        path = self.tables.get(f"{query['namespace']}/{query['name']}")
        return data({"path": path}) if path else 7001

    def environment(self, **changes: Any) -> None:
        """What the provider's Python finds."""
        answer = {
            "problems": [],
            "components": ["fedmkt", "reader", "site_check"],
            "versions": {"fate-llm-ext": __version__, "torch": "2.13.0"},
            "conf": str(self.folder / "conf"),
            **changes,
        }
        self.python.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
        self.python.chmod(0o755)

    def examine(self) -> SiteReport:
        (self.folder / "conf").mkdir(exist_ok=True)
        (self.folder / "conf/service_conf.yaml").write_text(yaml.safe_dump(self.settings))
        (self.folder / "conf/rabbitmq_route_table.yaml").write_text(yaml.safe_dump(self.route_table))
        (self.folder / "site.yaml").write_text(yaml.safe_dump(self.site))
        report = examine(self.flow.address, self.folder / "site.yaml")
        everything = [*report.found.values(), *map(str, [*report.problems, *report.notes])]
        assert not any(PASSWORD in text for text in everything)
        return report


@pytest.fixture
def world(tmp_path: Path, stubs: Callable[..., Stub]) -> World:
    return World(tmp_path, stubs(), stubs())


def codes(report: SiteReport) -> tuple[list[str], list[str]]:
    return [one.error.code for one in report.problems], [one.error.code for one in report.notes]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_site_that_is_well(world: World) -> None:
    report = world.examine()
    assert codes(report) == ([], [])
    assert report.party == "9999"
    assert report.found["components"] == "fedmkt, site_check"
    assert report.found["default provider"] == PROVIDER
    assert report.found["brokers of partners"] == "party 10000: take connections"
    assert report.found["table llm/news"] == str(world.folder / "data")


def test_without_an_answer_there_is_one_problem() -> None:
    report = examine(f"127.0.0.1:{closed_port()}")
    assert codes(report) == (["E801"], [])
    assert codes(examine("no address")) == (["E802"], [])


def test_a_provider_that_is_not_registered(world: World) -> None:
    world.providers = [{"version": "2.2.0"}, {"version": "llm_ext_0.0.1"}]
    report = world.examine()
    assert codes(report) == (["E808"], [])
    assert "llm_ext_0.0.1" in report.found["provider"]


def test_a_provider_that_is_gone(world: World) -> None:
    world.python.unlink()
    world.folder.joinpath("path").rmdir()
    report = world.examine()
    assert codes(report) == (["E840", "E840"], [])
    assert "table llm/news" in report.found  # the rest was looked at


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problems": ["component fedmkt: ImportError: no peft"]}, "no peft"),
        ({"versions": {"fate-llm-ext": "0.0.1"}}, "0.0.1"),
    ],
)
def test_a_provider_that_workers_cannot_use(world: World, change: dict[str, Any], words: str) -> None:
    world.environment(**change)
    report = world.examine()
    assert codes(report) == (["E827"], [])
    assert words in report.problems[0].error.problem


def test_files_of_another_machine_are_not_looked_at(tmp_path: Path, stubs: Callable[..., Stub]) -> None:
    world = World(tmp_path, stubs("127.0.0.2"), stubs())
    world.python.unlink()
    world.site["guest_9999"]["tables"]["llm/news"] = "/srv/there"
    world.tables["llm/news"] = "file:///srv/there"
    report = world.examine()
    assert codes(report) == ([], [])
    assert "not examined" in report.found["provider"]


def test_another_default_provider_is_a_note(world: World) -> None:
    world.settings["default_provider"] = {"name": "fate", "version": None, "device": "local"}
    assert codes(world.examine()) == ([], ["E841"])


def test_a_shared_broker_is_a_note(world: World) -> None:
    world.settings["federation"]["rabbitmq"]["mode"] = "client"
    assert codes(world.examine()) == ([], ["E843"])


def test_brokers_that_do_not_answer(world: World) -> None:
    world.settings["federation"]["rabbitmq"]["port"] = closed_port()
    world.route_table["10001"] = {"host": "127.0.0.1", "port": closed_port()}
    report = world.examine()
    assert codes(report) == (["E842", "E842"], [])
    first, second = (one.error.problem for one in report.problems)
    assert "of this site at" in first
    assert "of party 10001 at" in second


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the user 'fate'"), (500, "HTTP status 500")])
def test_a_broker_that_refuses(world: World, status: int, words: str) -> None:
    world.broker.routes["/api/overview"] = lambda _: status
    report = world.examine()
    assert codes(report) == (["E842"], [])
    assert words in report.problems[0].error.problem


def test_other_engines_have_no_such_broker(world: World) -> None:
    world.settings["default_engines"]["federation"] = "osx"
    world.settings["federation"] = {}
    report = world.examine()
    assert codes(report) == ([], [])
    assert report.found["messages"] == "osx"


def test_a_configuration_that_cannot_be_read_is_a_note(world: World) -> None:
    world.environment(conf=str(world.folder / "elsewhere"))
    assert codes(world.examine()) == ([], ["E847"])


def test_tables(world: World) -> None:
    world.tables["llm/moved"] = "file:///srv/old"
    world.tables["llm/empty"] = f"file://{world.folder / 'never'}"
    world.site["guest_9999"]["tables"].update({"llm/none": "data", "llm/moved": "data", "llm/empty": "never"})
    report = world.examine()
    found = {one.where: one.error for one in report.problems}
    assert {where: error.code for where, error in found.items()} == {
        "flow.tables.llm/none": "E807",
        "flow.tables.llm/moved": "E844",
        "flow.tables.llm/empty": "E111",
    }
    assert f"--path {world.folder / 'data'}" in found["flow.tables.llm/moved"].next_step
    assert "/srv/old" in found["flow.tables.llm/moved"].problem


def test_a_link_to_the_folder_is_the_folder(world: World) -> None:
    (world.folder / "link").symlink_to(world.folder / "data")
    world.tables["llm/news"] = f"file://{world.folder / 'link'}"
    assert codes(world.examine()) == ([], [])


def test_a_site_file_of_one_site(world: World) -> None:
    world.site = {"tables": {"llm/missing": str(world.folder / "data")}}
    assert codes(world.examine()) == (["E807"], [])


def test_a_faulty_site_file(world: World) -> None:
    world.site["guest_9999"]["tabels"] = {}
    assert codes(world.examine()) == (["E113"], [])


def test_no_site_file_is_a_note_only_where_none_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.examine()
    monkeypatch.delenv("FATE_LLM_EXT_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert codes(examine(world.flow.address)) == ([], ["E845"])
    monkeypatch.setenv("FATE_LLM_EXT_SITE", str(tmp_path / "none.yaml"))
    assert codes(examine(world.flow.address)) == (["E112"], [])


# --- handshake ------------------------------------------------------------------------------------------

THREE = "guest:9999,host:10000,arbiter:10001"


def test_parties_of_the_command_line() -> None:
    assert read_parties(" guest:9999, host:10000,host:10002 ,arbiter:10001") == [
        Party("guest", "9999"), Party("host", "10000"), Party("host", "10002"), Party("arbiter", "10001"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "guest", "guest:", "gest:9999", "guest:1,guest:1", "guest:9999,,arbiter:1"])
def test_what_is_no_party(text: str) -> None:
    with pytest.raises(ExtensionError, match="E849"):
        read_parties(text)


def test_the_job_is_a_valid_one() -> None:
    assert check(job_between(read_parties(THREE + ",host:10002"))) == []
    assert [one.error.code for one in check(job_between(read_parties("guest:9999,host:10000")))] == ["E118"]


def shake(world: World, parties: str = THREE, deadline: float = 1.0) -> Any:
    return shake_hands(FlowServer(world.flow.address), read_parties(parties), lambda *_: None, deadline)


def test_a_server_that_takes_no_part(world: World) -> None:
    with pytest.raises(ExtensionError, match=r"E846 .*party 9999.*guest 1, arbiter 2"):
        shake(world, "guest:1,arbiter:2")
    assert "/v2/job/submit" not in world.flow.calls


def test_parties_that_make_no_job(world: World) -> None:
    with pytest.raises(ExtensionError, match="E118"):
        shake(world, "guest:9999")
    assert "/v2/job/submit" not in world.flow.calls


LOG = "[INFO][2026-11-21 00:24:09,356][27882][progress.emit][line:43]: event "  # as FATE Flow writes it


def running_job(world: World, status: str, events: list[dict[str, Any]]) -> None:
    """The server takes the job; its task has this status and has logged these events."""
    parties = [{"role": "guest", "party_id": ["9999"]}, {"role": "host", "party_id": ["10000"]}]
    row = {"job_id": "j1", "status": status, "role": "guest", "party_id": "9999", "parties": parties, "start_time": 1}
    task = {"task_name": "site_check_0", "role": "guest", "party_id": "9999", "task_version": 0}
    lines = [{"content": LOG + json.dumps(event)} for event in events]
    world.flow.routes.update(
        {
            "/v2/job/submit": lambda body: {"code": 0, "job_id": "j1", "message": "", "data": {}},
            "/v2/job/query": lambda _: data([row]),
            "/v2/job/task/query": lambda _: data([{**task, "status": status, "party_status": status}]),
            "/v2/log/query": lambda query: data([*lines, {"content": ""}][int(query["begin"]) - 1 :]),
            "/v2/log/count": lambda _: data(len(lines)),
            "/v2/job/stop": lambda _: data(None),
        }
    )


def test_a_job_that_does_not_end_is_stopped(world: World) -> None:
    waiting = {"type": "waiting", "peer": "arbiter 10001", "message": "ping", "seconds": 9, "doing": "nothing yet"}
    running_job(world, "running", [{"type": "started", "version": 0}, waiting])
    done = shake(world)
    assert done.error.code == "E848"
    assert "guest 9999 waits for arbiter 10001" in done.error.problem
    assert world.flow.calls.count("/v2/job/stop") == 1


def test_what_the_job_tells(world: World) -> None:
    sites = [{"type": "site", "party": party, "offset": 0.0} for party in ("arbiter 10001", "guest 9999")]
    warning = {"type": "warning", "code": "E836", "message": "E836 torch"}
    running_job(world, "success", [{"type": "started", "version": 0}, *sites, *sites, warning, warning])
    done = shake(world)
    assert done.error is None
    assert [site["party"] for site in done.sites] == ["arbiter 10001", "guest 9999"]
    assert done.warnings == ["E836 torch"]
    assert "/v2/job/stop" not in world.flow.calls


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_says_it_too(world: World) -> None:
    world.tables.clear()
    world.examine()
    site = ["--server", world.flow.address, "--sites", str(world.folder / "site.yaml")]
    result = CliRunner().invoke(doctor, ["--flow", "--json", "--parties", THREE, *site])
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert [one["code"] for one in report["problems"]] == ["E807"]
    assert "handshake" not in report["flow"]  # what is wrong here comes first
    assert "/v2/job/submit" not in world.flow.calls
    result = CliRunner().invoke(doctor, ["--flow", *site])
    assert "flow.tables.llm/news: E807" in result.output
    assert "server: FATE Flow 2.2.0" in result.output


def test_a_handshake_is_shown(world: World) -> None:
    numbers = {"offset": 0.25, "uncertainty": 0.004, "round_trip_min": 0.012, "round_trip_median": 0.02}
    site = {"type": "site", "versions": {"torch": "2.13.0"}, "site_file": "", "steady": True, **numbers}
    sites = [{**site, "party": party, "bytes_per_second": 1e7} for party in ("arbiter 10001", "guest 9999")]
    running_job(world, "success", [{"type": "started", "version": 0}, *sites])
    world.examine()
    options = ["--server", world.flow.address, "--sites", str(world.folder / "site.yaml"), "--parties", THREE]
    result = CliRunner().invoke(doctor, options)
    assert result.exit_code == 0, result.output
    for words in ("job j1, success", "+0.250 s ± 0.004 s", "12 ms", "20 ms", "10.00", "2.13.0", "All is well."):
        assert words in result.output


# --- sites that do not take a job -----------------------------------------------------------------------

REFUSED = """Traceback (most recent call last):
  File "/srv/fate_flow/scheduler/scheduler.py", line 389, in create_all_job
    raise Exception("create job failed", response)
Exception: ('create job failed', {'guest': {'9999': {'code': 0, 'message': 'success'}}, 'host': {'10000': {'code': \
1002, 'message': 'Create job failed: detail[Not found provider[fate:llm_ext_0.1.0@local]]'}, '10002': {'code': 0, \
'message': 'success'}}, 'arbiter': {'10001': {'code': 104, 'message': \
"Federated schedule error, it's a 502 Server Error: Bad Gateway for url: http://127.0.0.1:19621/v2/partner/job/create"}}})
"""  # as FATE Flow 2.2 answers


def test_sites_that_do_not_take_a_job_are_named() -> None:
    found = dict(refusals(REFUSED))
    assert found["host 10000"] == "Not found provider[fate:llm_ext_0.1.0@local]"
    assert found["arbiter 10001"].startswith("its FATE Flow cannot be reached (Federated schedule error, it's a 502")
    assert len(found) == 2
    assert refusals("success") == []


def test_a_refused_job_is_one_error(world: World) -> None:
    answer = {"code": 1002, "message": REFUSED, "data": {"model_id": "m"}}
    running_job(world, "waiting", [])
    world.flow.routes["/v2/job/submit"] = lambda _: answer
    with pytest.raises(ExtensionError, match=r"E839 .* 2 site\(s\) did not take it: host 10000: Not found provider"):
        shake(world)
    world.flow.routes["/v2/job/submit"] = lambda _: {"code": 1002, "message": "no disk"}
    with pytest.raises(ExtensionError, match=r"E806 .*no disk"):
        shake(world)
