"""What the `site_check` component runs: one party's whole task. It imports nothing heavy."""

from __future__ import annotations

import time
from typing import Any, Dict

from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.algo.session import federated_task
from fate_llm_ext.algo.site_check import findings as judge
from fate_llm_ext.algo.site_check.config import SiteCheckConfig
from fate_llm_ext.algo.site_check.protocol import Findings, Hello
from fate_llm_ext.algo.site_check.trips import answer, measure
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.progress import emit
from fate_llm_ext.site import current_site

ARM = "site_check"


def run(ctx: Any, role: Any, parameters: Dict[str, Any]) -> None:
    """The task of one party.

    Args:
        ctx: FATE's context.
        role: FATE's role.
        parameters: fields of :class:`SiteCheckConfig` that the job gives.

    Raises:
        ExtensionError: E835 the sites differ, or one of them cannot use its site file.
    """
    config = SiteCheckConfig(**parameters)
    with federated_task(ctx, config.network) as channel:
        hello = Hello(judge.own_versions(), _site_file(role.name, ctx.federation.local_party[1]))
        started = time.perf_counter()
        findings = _arbiter(channel, config, hello) if role.is_arbiter else _client(channel, hello)
        seconds = time.perf_counter() - started
        _publish(ctx, channel, findings, seconds)
        for warning in judge.warnings(findings, config.clock_limit):
            emit("warning", code=warning.code, message=str(warning))
        for problem in judge.problems(findings):
            raise problem


def _arbiter(channel: Channel, config: SiteCheckConfig, hello: Hello) -> Findings:
    """Hear all, measure the way to each, tell all."""
    _phase(channel, "handshake")
    hellos = channel.receive_all(Hello, 0)
    links = []
    for peer in channel.peers:
        _phase(channel, f"round trips with {peer.name}")
        links.append(measure(channel, peer, config.round_trips, config.message_bytes))
    parties = [channel.local, *(peer.name for peer in channel.peers)]
    findings = judge.collect(parties, [hello, *hellos], links)
    for peer in channel.peers:
        channel.send(peer, findings, 0)
    return findings


def _client(channel: Channel, hello: Hello) -> Findings:
    """Say hello, answer, hear the findings."""
    _phase(channel, "handshake")
    arbiter = channel.peers[0]
    channel.send(arbiter, hello, 0)
    answer(channel, arbiter)
    return channel.receive(arbiter, Findings, 0)


def _publish(ctx: Any, channel: Channel, findings: Findings, seconds: float) -> None:
    """Events for whoever watches, numbers for the report and FATE's board."""
    for site in judge.facts(findings):
        emit("site", **site)
    metrics = Metrics(ctx)
    # As each algorithm says it of its rounds.
    metrics.log(ARM, 0, "seconds", seconds)
    metrics.log(ARM, 0, "bytes_sent", channel.bytes_sent)
    metrics.log(ARM, 0, "bytes_received", channel.bytes_received)
    for other, values in judge.results(findings, channel.local):
        metrics.results(other, values)


def _site_file(role: str, party_id: str) -> str:
    """The code of what is wrong with this site's file, "" for nothing; what exactly stays here."""
    try:
        current_site(role, party_id)
    except ExtensionError as error:
        emit("warning", code=error.code, message=str(error))
        return error.code
    return ""


def _phase(channel: Channel, name: str) -> None:
    emit("phase", arm=ARM, round=0, phase=name)
    channel.heartbeat(name)
