"""What stands between this site's FATE Flow and a job: server, provider, brokers, site file and tables.

Each check adds what it found, or a catalogued error. What cannot be seen from here (files of a server on another
machine, another user's configuration) is left out and said so.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from fate_llm_ext.errors import ExtensionError, Problem
from fate_llm_ext.flow.provider import PROVIDER, VERSION
from fate_llm_ext.flow.provider import examine as examine_provider
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.site import DEFAULT_SITE_FILE, ROOT_VARIABLE, SITE_FILE_VARIABLE, Site, load_sites

BROKER_SECONDS = 5.0


@dataclass
class SiteReport:
    """What is known of this site. ``problems`` keep jobs from running, ``notes`` may.

    Attributes:
        party: id of the site; empty if the server plays all parties or gave no answer.
        found: what was looked at -> what it is, in the order of the checks.
    """

    address: str = ""
    party: str = ""
    found: Dict[str, str] = field(default_factory=dict)
    problems: List[Problem] = field(default_factory=list)
    notes: List[Problem] = field(default_factory=list)

    def wrong(self, where: str, error: ExtensionError) -> None:
        """Add a problem."""
        self.problems.append(Problem(f"flow.{where}", error))

    def note(self, where: str, error: ExtensionError) -> None:
        """Add a note."""
        self.notes.append(Problem(f"flow.{where}", error))


def examine(address: Optional[str] = None, sites: Optional[Path] = None) -> SiteReport:
    """Run every check; without an answer of the server there is but one problem.

    Args:
        address: of the server, see :func:`~fate_llm_ext.flow.connection.find_account`.
        sites: the site file; by default the one that this process would use.
    """
    report = SiteReport()
    try:
        server = FlowServer(address)
        report.address = server.address
        _server(report, server)
        conf = _provider(report, server, server.providers())
    except ExtensionError as error:
        report.wrong("server", error)
        return report
    if conf:
        _configuration(report, Path(conf))
    site_file = sites or Path(os.environ.get(SITE_FILE_VARIABLE) or DEFAULT_SITE_FILE).expanduser()
    if not site_file.exists() and not sites and SITE_FILE_VARIABLE not in os.environ:
        report.note("site", ExtensionError("E845", path=site_file))
        return report
    try:
        for name, site in _own_sites(load_sites(site_file, os.environ.get(ROOT_VARIABLE)), report.party):
            report.found["site"] = str(site_file)
            _tables(report, server, name, site)
    except ExtensionError as error:
        report.wrong("site", error)
    return report


# -- server and provider -----------------------------------------------------------------------------------


def _server(report: SiteReport, server: FlowServer) -> None:
    version = server.version()
    report.party = server.party_id() or ""
    plays = f"party {report.party}" if report.party else "all parties by itself"
    report.found["server"] = f"FATE Flow {version or '(no version)'} at {server.address}, {plays}"


def _provider(report: SiteReport, server: FlowServer, known: List[Dict[str, Any]]) -> str:
    """Look at the provider; the folder of the server's configuration, if it is known and on this machine."""
    own = next((one for one in known if one.get("version") == VERSION), None)
    if own is None:
        versions = ", ".join(str(one.get("version")) for one in known) or "none"
        report.found["provider"] = f"not registered (versions of `fate`: {versions})"
        report.wrong("provider", ExtensionError("E808", address=server.address, provider=PROVIDER))
        return ""
    metadata: Mapping[str, Any] = own.get("metadata") or {}
    path, python = str(metadata.get("path", "")), str(metadata.get("venv", ""))
    report.found["provider"] = f"{PROVIDER}: {python}, {path}"
    if not server.is_local:
        report.found["provider"] += " (another machine: not examined)"
        return ""
    missing = [one for one in (path, python) if not Path(one).exists()]
    for one in missing:
        report.wrong("provider", ExtensionError("E840", provider=PROVIDER, address=server.address, path=one))
    if missing:
        return ""
    try:
        answer = examine_provider(Path(python), Path(path))
    except ExtensionError as error:
        report.wrong("provider", error)
        return ""
    report.found["environment"] = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    report.found["components"] = ", ".join(sorted(set(answer["components"]) & _own_components()))
    return str(answer["conf"])


def _own_components() -> set[str]:
    from fate_llm_ext.pipelines.components import CLASSES

    return set(CLASSES.values())


# -- the server's own configuration ------------------------------------------------------------------------


def _configuration(report: SiteReport, conf: Path) -> None:
    """The default provider and the brokers, as the server was told; passwords are used and not shown."""
    try:
        settings = _read(conf / "service_conf.yaml")
        routes = _read(conf / "rabbitmq_route_table.yaml")
    except ExtensionError as error:
        report.note("configuration", error)
        return
    default = settings.get("default_provider") or {}
    name = f"{default.get('name')}:{default.get('version') or '(the server its own)'}@{default.get('device')}"
    report.found["default provider"] = name
    if name != PROVIDER:
        report.note("provider", ExtensionError("E841", got=name, expected=PROVIDER))
    engine = str((settings.get("default_engines") or {}).get("federation"))
    report.found["messages"] = engine
    if engine == "rabbitmq":
        _rabbitmq(report, (settings.get("federation") or {}).get("rabbitmq") or {}, routes)


def _rabbitmq(report: SiteReport, broker: Mapping[str, Any], routes: Mapping[str, Any]) -> None:
    mode = str(broker.get("mode"))
    report.found["messages"] = f"rabbitmq at {broker.get('host')}:{broker.get('port')}, mode {mode}"
    if mode != "replication":
        report.note("broker", ExtensionError("E843", mode=mode))
    answers = list(_brokers(report.party, broker, routes))
    for what, where, reason in answers:
        if reason:
            report.wrong("broker", ExtensionError("E842", what=what, address=where, reason=reason))
    partners = [what for what, _, reason in answers if what.startswith("party") and not reason]
    if partners:
        report.found["brokers of partners"] = f"{', '.join(partners)}: take connections"


def _brokers(
    party: str, broker: Mapping[str, Any], routes: Mapping[str, Any]
) -> Iterator[Tuple[str, str, Optional[str]]]:
    """(what, address, what is wrong or None) of the own broker and of each partner's."""
    host = str(broker.get("host"))
    yield "this site", f"{host}:{broker.get('port')}", _no_connection(host, broker.get("port"))
    user, password = str(broker.get("user")), str(broker.get("password"))
    management = f"{host}:{broker.get('mng_port')}"
    yield "this site (management)", management, _refused(management, user, password)
    for name, route in routes.items():
        if str(name) != party and isinstance(route, dict):
            address = f"{route.get('host')}:{route.get('port')}"
            yield f"party {name}", address, _no_connection(str(route.get("host")), route.get("port"))


def _no_connection(host: str, port: Any) -> Optional[str]:
    try:
        socket.create_connection((host, int(port)), timeout=BROKER_SECONDS).close()
    except (OSError, TypeError, ValueError, OverflowError) as error:
        return f"it takes no connection ({error})"
    return None


def _refused(address: str, user: str, password: str) -> Optional[str]:
    import requests

    session = requests.Session()
    session.trust_env = False
    try:
        status = session.get(
            f"http://{address}/api/overview", auth=(user, password), timeout=BROKER_SECONDS
        ).status_code
    except requests.RequestException as error:
        return f"it gives no answer ({type(error).__name__})"
    if status in (401, 403):
        return f"it refuses the user {user!r} with the password of service_conf.yaml (HTTP {status})"
    return None if status == 200 else f"it answers with HTTP status {status}"


def _read(path: Path) -> Dict[str, Any]:
    """A mapping from a YAML file of the server.

    Raises:
        ExtensionError: E847.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExtensionError("E847", path=path, reason=error.strerror) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExtensionError("E847", path=path, reason="it is no YAML") from error
    return content if isinstance(content, dict) else {}


# -- site file and tables ----------------------------------------------------------------------------------


def _own_sites(sites: Mapping[str, Site], party: str) -> Iterator[Tuple[str, Site]]:
    """The sections for the party of this server, in whatever role; all of them if it plays all parties."""
    for name, site in sites.items():
        if not name or not party or name.rpartition("_")[2] == party:
            yield name.replace("_", " ", 1) or "this site", site


def _tables(report: SiteReport, server: FlowServer, name: str, site: Site) -> None:
    """Every table of the site file is bound, and to the same folder."""
    for table, value in site.tables.items():
        namespace, _, short = table.partition("/")
        expected = site.path(value)
        bound = server.query_table(namespace, short)
        where = f"tables.{table}"
        if bound is None:
            facts = {"table": table, "party": name, "namespace": namespace, "name": short}
            report.wrong(where, ExtensionError("E807", address=server.address, **facts))
            continue
        got = Path(str(bound.get("path", "")).replace("file://", "", 1))
        if server.is_local:
            got, expected = got.resolve(), expected.resolve()
        if got != expected:
            report.wrong(
                where,
                ExtensionError(
                    "E844", table=table, address=server.address, got=got, expected=expected, party=name,
                    namespace=namespace, name=short,
                ),
            )  # fmt: skip
        elif server.is_local and not expected.exists():
            report.wrong(where, ExtensionError("E111", kind="tables", name=table, path=expected))
        else:
            report.found[f"table {table}"] = str(expected)
