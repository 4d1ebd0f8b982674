"""A first job between the sites: the component `site_check`, submitted, followed to its end and never left running."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.failure import explain
from fate_llm_ext.flow.follow import OnEvent, follow
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.flow.submission import own_parties, prepared, problems_at
from fate_llm_ext.pipelines.check import check
from fate_llm_ext.pipelines.dag import parse_dag
from fate_llm_ext.pipelines.job import Dag, Party
from fate_llm_ext.pipelines.process import Event

TASK = "site_check_0"
DEADLINE_SECONDS = 180.0
_ROLES = ("guest", "host", "arbiter")


@dataclass
class Handshake:
    """What the job told.

    Attributes:
        sites: the ``site`` events, the arbiter's first; empty if the sites did not come that far.
        warnings: texts of the ``warning`` events, each once.
        error: why it failed, None for success.
    """

    job: str = ""
    seconds: float = 0.0
    sites: List[Event] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    error: Optional[ExtensionError] = None


def read_parties(text: str) -> List[Party]:
    """``guest:9999,host:10000,arbiter:10001`` as parties.

    Raises:
        ExtensionError: E849.
    """
    parties: List[Party] = []
    for one in text.split(","):
        role, _, id = (part.strip() for part in one.partition(":"))
        if role not in _ROLES or not id or Party(role, id) in parties:
            raise ExtensionError("E849", text=text, part=one.strip(), roles=", ".join(_ROLES))
        parties.append(Party(role, id))
    return parties


def job_between(parties: Sequence[Party], deadline: float = DEADLINE_SECONDS) -> Dag:
    """The job between these parties; no wait in it is longer than ``deadline`` seconds."""
    roles = {role: [party.id for party in parties if party.role == role] for role in _ROLES}
    network = {"silence_seconds": min(30.0, deadline), "startup_seconds": deadline, "heartbeat_seconds": 5.0}
    return parse_dag(
        {
            "dag": {
                "parties": [{"role": role, "party_id": ids} for role, ids in roles.items() if ids],
                "conf": {"task": {"timeout": int(deadline) + 60}},
                "stage": "default",
                "tasks": {TASK: {"component_ref": "site_check", "parameters": {"network": network}}},
            },
            "schema_version": "2.2.0",
            "kind": "fate",
        }
    )


def shake_hands(
    server: FlowServer, parties: Sequence[Party], on_event: OnEvent, deadline: float = DEADLINE_SECONDS
) -> Handshake:
    """Run the job between the parties.

    Args:
        on_event: as that of :func:`~fate_llm_ext.flow.follow.follow`.
        deadline: seconds until the job is stopped.

    Raises:
        ExtensionError: E846 this server's site takes no part, what `check` says of the parties, what keeps the server
            from taking the job.
    """
    dag = job_between(parties, deadline)
    own = own_parties(server, dag)
    if not own:
        known = ", ".join(map(str, dag.parties))
        raise ExtensionError("E846", address=server.address, party=server.party_id(), parties=known)
    for problem in [*check(dag), *problems_at(server, dag, own)]:
        raise problem.error
    told = _Told(on_event)
    found = Handshake(server.submit(prepared(dag)), sites=told.sites, warnings=told.warnings)
    ended = False
    try:
        state = follow(server, found.job, told, deadline)
        ended, found.seconds = True, state.seconds
        found.error = explain(server, state)
    except ExtensionError as error:
        found.error = error
        if error.code == "E813":
            found.error = ExtensionError("E848", job=found.job, seconds=f"{deadline:g}", awaited=told.awaited)
    finally:
        if not ended:  # also after Ctrl-C
            with suppress(ExtensionError):
                server.stop(found.job)
    return found


class _Told:
    """What the events of this site's parties say; every party of a site says the same of all sites."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._seen: Dict[str, Any] = {}
        self.sites: List[Event] = []
        self.warnings: List[str] = []
        self.awaited = "no party of this site has said anything"

    def __call__(self, task: str, party: Optional[Party], event: Event) -> None:
        kind = event.get("type")
        if kind == "started" and party is not None:
            self.awaited = f"{party} has started"
        elif kind == "site" and event.get("party") not in self._seen:
            self._seen[str(event.get("party"))] = event
            self.sites.append(event)
        elif kind == "warning" and str(event.get("message")) not in self.warnings:
            self.warnings.append(str(event.get("message")))
        elif kind == "waiting":
            self.awaited = f"{party} waits for {event.get('peer')} ({event.get('doing')})"
        self._on_event(task, party, event)
