"""From what is known of each site to what is wrong, and what the users see of it."""

from __future__ import annotations

import platform
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from fate_llm_ext import __version__
from fate_llm_ext._compat import installed_version
from fate_llm_ext.algo.site_check.clock import Offset
from fate_llm_ext.algo.site_check.protocol import Findings, Hello
from fate_llm_ext.algo.site_check.trips import Link
from fate_llm_ext.errors import ExtensionError

MUST_AGREE = ("fate-llm-ext", "pyfate")
PACKAGES = (*MUST_AGREE, "python", "torch", "transformers", "peft")
_HERE = Link(Offset(0.0, 0.0, True), 0.0, 0.0, 0.0)
_MEASURED = ("offset", "uncertainty", "round_trip_min", "round_trip_median", "bytes_per_second")


def own_versions() -> Dict[str, str]:
    """Package -> version at this site, "" for one that is not installed; from metadata, nothing is imported."""
    found = {name: installed_version(name) or "" for name in PACKAGES}
    # The program's own word for itself: an editable installation keeps the version it was installed with.
    return {**found, "fate-llm-ext": __version__, "python": platform.python_version()}


def collect(parties: Sequence[str], hellos: Sequence[Hello], links: Sequence[Link]) -> Findings:
    """All that the arbiter knows.

    Args:
        parties: names, the arbiter first.
        hellos: of all parties, the arbiter's own first.
        links: to the clients.
    """
    ways = [_HERE, *links]
    return Findings(
        parties=list(parties),
        packages=list(PACKAGES),
        versions=[hello.versions.get(name, "") for hello in hellos for name in PACKAGES],
        site_files=[hello.site_file for hello in hellos],
        offset=np.array([way.offset.seconds for way in ways]),
        uncertainty=np.array([way.offset.uncertainty for way in ways]),
        steady=np.array([way.offset.steady for way in ways]),
        round_trip_min=np.array([way.round_trip_min for way in ways]),
        round_trip_median=np.array([way.round_trip_median for way in ways]),
        bytes_per_second=np.array([way.bytes_per_second for way in ways]),
    )


def versions_of(findings: Findings, party: int) -> Dict[str, str]:
    """Package -> version of one party."""
    count = len(findings.packages)
    return dict(zip(findings.packages, findings.versions[party * count : (party + 1) * count]))


def facts(findings: Findings) -> Iterator[Dict[str, Any]]:
    """The fields of a ``site`` event for each party."""
    for number, party in enumerate(findings.parties):
        measured = {name: float(getattr(findings, name)[number]) for name in _MEASURED}
        yield {
            "party": party,
            "versions": versions_of(findings, number),
            "site_file": findings.site_files[number],
            "steady": bool(findings.steady[number]),
            **measured,
        }


def problems(findings: Findings) -> List[ExtensionError]:
    """Why no job would run between these sites: E835, with all reasons, or nothing."""
    found = list(_differences(findings, MUST_AGREE))
    found += [
        f"{party} cannot use its site file ({code}, see its own log)"
        for party, code in zip(findings.parties, findings.site_files)
        if code
    ]
    return [ExtensionError("E835", count=len(found), problems="; ".join(found))] if found else []


def warnings(findings: Findings, limit: float) -> List[ExtensionError]:
    """What a job does not need, and its people should know: E836 to E838.

    Args:
        limit: seconds between two clocks that are no matter.
    """
    found = []
    others = [name for name in findings.packages if name not in MUST_AGREE]
    if differences := list(_differences(findings, others)):
        found.append(ExtensionError("E836", differences="; ".join(differences)))
    for party, offset, uncertainty, steady in zip(
        findings.parties, findings.offset.tolist(), findings.uncertainty.tolist(), findings.steady.tolist()
    ):
        if not steady:
            found.append(ExtensionError("E838", party=party, seconds=f"{2 * uncertainty:.3f}"))
        elif abs(offset) - uncertainty > limit:
            found.append(ExtensionError("E837", party=party, offset=spell(offset, uncertainty), limit=f"{limit:g}"))
    return found


def results(findings: Findings, local: str) -> Iterator[Tuple[str, Dict[str, float]]]:
    """(the other party, numbers) of each way that this party is an end of."""
    for number, party in enumerate(findings.parties):
        if number == 0 or local not in (party, findings.parties[0]):
            continue
        sign = 1.0 if local == findings.parties[0] else -1.0
        other = party if sign > 0 else findings.parties[0]
        values = {
            "round_trip_seconds": float(findings.round_trip_median[number]),
            "shortest_round_trip_seconds": float(findings.round_trip_min[number]),
            "clock_offset_seconds": sign * float(findings.offset[number]),
            "clock_uncertainty_seconds": float(findings.uncertainty[number]),
        }
        if findings.bytes_per_second[number] > 0:
            values["bytes_per_second"] = float(findings.bytes_per_second[number])
        yield other, values


def spell(offset: float, uncertainty: float) -> str:
    """An offset for people, e.g. ``+3.210 s ± 0.004 s``."""
    return f"{offset:+.3f} s ± {uncertainty:.3f} s"


def _differences(findings: Findings, packages: Sequence[str]) -> Iterator[str]:
    """A text for each package that is not the same everywhere, e.g. ``peft 0.13.2 (host 10000), 0.21.0 (others)``."""
    known: List[Mapping[str, str]] = [versions_of(findings, number) for number in range(len(findings.parties))]
    for package in packages:
        where: Dict[str, List[str]] = {}
        for party, versions in zip(findings.parties, known):
            where.setdefault(versions.get(package) or "not installed", []).append(party)
        if len(where) > 1:
            each = (f"{version} ({', '.join(parties)})" for version, parties in sorted(where.items()))
            yield f"{package}: {', '.join(each)}"
