"""`fate-llm-ext doctor --flow`: this site's FATE Flow, and a handshake with the others."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from rich.console import Console
from rich.markup import escape

from fate_llm_ext.cli.board import table_lines
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.examine import SiteReport, examine
from fate_llm_ext.flow.handshake import Handshake, read_parties, shake_hands
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.pipelines.dag import load_dag
from fate_llm_ext.pipelines.job import Party
from fate_llm_ext.pipelines.process import Event

PACKAGES = ("fate-llm-ext", "pyfate", "python", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        server: address, None for the default.
        sites: site file, None for the default.
        parties: as ``guest:9999,...``, None for no handshake.
        dag: job file whose parties shake hands instead.
        deadline: seconds for the handshake.
    """

    server: Optional[str]
    sites: Optional[Path]
    parties: Optional[str]
    dag: Optional[Path]
    deadline: float


@dataclass
class FlowReport:
    """The site, and the handshake if there was one."""

    site: SiteReport
    handshake: Optional[Handshake] = None

    def as_dict(self) -> Dict[str, Any]:
        """As JSON types; problems and notes are among those of the whole report."""
        shown: Dict[str, Any] = {"address": self.site.address, "party": self.site.party, "found": self.site.found}
        if self.handshake is not None:
            shown["handshake"] = {
                "job": self.handshake.job,
                "ok": self.handshake.error is None,
                "seconds": round(self.handshake.seconds, 1),
                "sites": self.handshake.sites,
                "warnings": self.handshake.warnings,
            }
        return shown


def run(asked: Asked, quiet: bool) -> FlowReport:
    """Examine the site; shake hands unless something is wrong here, which the other sites need not see.

    Args:
        quiet: say nothing while the job runs.
    """
    wanted: Optional[List[Party]] = None
    if asked.parties is not None:  # what is wrong on the command line is said before anything takes time
        wanted = read_parties(asked.parties)
    elif asked.dag is not None:
        wanted = list(load_dag(asked.dag).parties)
    report = FlowReport(examine(asked.server, asked.sites))
    if wanted is None or report.site.problems:
        return report
    try:
        say = _silent if quiet else _say
        report.handshake = shake_hands(FlowServer(asked.server), wanted, say, asked.deadline)
        if report.handshake.error is not None:
            report.site.wrong("handshake", report.handshake.error)
    except ExtensionError as error:
        report.site.wrong("handshake", error)
    return report


def show(report: FlowReport, console: Console) -> None:
    """What was found, for people; the caller prints problems and notes."""
    for what, found in report.site.found.items():
        console.print(f"{what}: {escape(found)}", highlight=False)
    done = report.handshake
    if done is None:
        return
    outcome = "failed" if done.error else f"success after {done.seconds:.0f} s"
    lines = table_lines(f"handshake: job {done.job}, {outcome}", _rows(done.sites), "") if done.sites else []
    for line in [*(lines or [f"handshake: job {done.job}, {outcome}"]), *(f"note  {one}" for one in done.warnings)]:
        console.print(escape(line), highlight=False)


def _rows(sites: List[Event]) -> List[List[str]]:
    """A column for each site: versions, site file, clock, way to the arbiter."""
    measured = {
        "clock": lambda site: f"{site['offset']:+.3f} s ± {site['uncertainty']:.3f} s",
        "clock moved": lambda site: "" if site["steady"] else "yes",
        "round trip, shortest": lambda site: f"{1000 * site['round_trip_min']:.0f} ms",
        "round trip, median": lambda site: f"{1000 * site['round_trip_median']:.0f} ms",
        "MB/s": lambda site: f"{site['bytes_per_second'] / 1e6:.2f}",
    }
    rows = [["", *(str(site["party"]) for site in sites)]]
    rows += [[name, *(str(site["versions"].get(name) or "-") for site in sites)] for name in PACKAGES]
    rows.append(["site file", *(str(site["site_file"] or "yes") for site in sites)])
    # Ways start at the arbiter, the first.
    rows += [[name, "", *map(text, sites[1:])] for name, text in measured.items()]
    return [row for row in rows if any(row[1:])]


def _say(task: str, party: Optional[Party], event: Event) -> None:
    """A line for each step of the handshake, to the standard error stream: results go to the other one."""
    kind = event.get("type")
    text = {
        "started": f"{party} started",
        "phase": f"{party}: {event.get('phase')}",
        "waiting": f"{party} waits for {event.get('peer')} ({event.get('seconds')} s)",
        "notice": str(event.get("message")),
    }.get(str(kind))
    if text:
        with suppress(BrokenPipeError):
            sys.stderr.write(f"handshake: {text}\n")


def _silent(task: str, party: Optional[Party], event: Event) -> None:
    """Nothing."""
