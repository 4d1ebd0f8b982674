"""The messages of the site check.

Only the arbiter talks to the other sites ("clients": guest and hosts); what it finds out about all of them it tells
each of them.

round  sender -> receiver  name      derives from private data             privacy event
-----  ------------------  --------  ------------------------------------  -------------
start  client -> arbiter   hello     no (versions of packages, whether     none
                                     the site file can be used)
once   arbiter -> client   ping      no                                    none
once   client -> arbiter   pong      no (the client's clock)               none
once   arbiter -> client   load      no (random bytes)                     none
once   client -> arbiter   load      no (the same bytes)                   none
end    arbiter -> client   findings  no (the above, of all sites)          none

No message holds the name of a host, a path, or a name out of a site file.

Dimensions: N sites, the arbiter first; P packages; B bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.messages import MessageRow
from fate_llm_ext.federation.codec import WireMessage, array

_PACKAGE = re.compile(r"[a-z0-9_.-]{1,40}")
_VERSION = re.compile(r"[A-Za-z0-9_.+!-]{0,64}")
_CODE = re.compile(r"(E\d{3})?")
_PARTY = re.compile(r"(arbiter|guest|host) [A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Hello(WireMessage):
    """A client introduces itself.

    Attributes:
        versions: package -> version, "" for one that is not installed.
        site_file: code of the error that using its site file gives, "" for none.
    """

    name: ClassVar[str] = "hello"
    versions: Dict[str, str]
    site_file: str

    def validate(self) -> None:
        """Versions are versions, the code is a code: all other sites' people will read them."""
        _check(_PACKAGE, list(self.versions), "packages")
        _check(_VERSION, list(self.versions.values()), "versions")
        _check(_CODE, [self.site_file], "error codes")


@dataclass(frozen=True)
class Ping(WireMessage):
    """A small message.

    Attributes:
        left: how many follow.
        load: bytes of the load that comes after the last one, 0 for none.
    """

    name: ClassVar[str] = "ping"
    left: int
    load: int


@dataclass(frozen=True)
class Pong(WireMessage):
    """Its answer, with the client's clock (seconds since the epoch)."""

    name: ClassVar[str] = "pong"
    received: float
    answered: float


@dataclass(frozen=True)
class Load(WireMessage):
    """A large message."""

    name: ClassVar[str] = "load"
    blob: np.ndarray = array("u1", "B")


@dataclass(frozen=True)
class Findings(WireMessage):
    """What the arbiter knows about each site; of itself, the first one, times are 0.

    Attributes:
        parties: names, e.g. ``host 10000``.
        packages: names.
        versions: of each party each package's, P for the first party, then P for the second, ...
        site_files: as in :class:`Hello`.
        offset: the site's clock minus the arbiter's, seconds.
        uncertainty: of the offset.
        steady: 1 if one offset explains all round trips.
        round_trip_min: seconds.
        round_trip_median: seconds.
        bytes_per_second: of the load, there and back; 0 if none was sent.
    """

    name: ClassVar[str] = "findings"
    parties: List[str]
    packages: List[str]
    versions: List[str]
    site_files: List[str]
    offset: np.ndarray = array("f8", "N")
    uncertainty: np.ndarray = array("f8", "N")
    steady: np.ndarray = array("u1", "N")
    round_trip_min: np.ndarray = array("f8", "N")
    round_trip_median: np.ndarray = array("f8", "N")
    bytes_per_second: np.ndarray = array("f8", "N")

    def validate(self) -> None:
        """Every list has an entry for each site, and all are what they should be."""
        sites = len(self.offset)
        for name, got, expected in (
            ("parties", len(set(self.parties)), sites),
            ("parties", len(self.parties), sites),
            ("versions", len(self.versions), sites * len(self.packages)),
            ("site files", len(self.site_files), sites),
        ):
            if got != expected:
                raise ValueError(f"{got} {name}, {expected} were expected of {sites} sites")
        _check(_PARTY, self.parties, "parties")
        _check(_PACKAGE, self.packages, "packages")
        _check(_VERSION, self.versions, "versions")
        _check(_CODE, self.site_files, "error codes")


def _check(pattern: re.Pattern[str], values: List[str], what: str) -> None:
    """All values match.

    Raises:
        ValueError: some do not.
    """
    odd = sum(not pattern.fullmatch(value) for value in values)
    if odd:
        raise ValueError(f"{odd} of {len(values)} {what} are none")


MESSAGES: Tuple[MessageRow, ...] = (
    MessageRow("hello", "client", "arbiter", "", (), Hello),
    MessageRow("ping", "arbiter", "client", "", (), Ping),
    MessageRow("pong", "client", "arbiter", "", (), Pong),
    MessageRow("load", "arbiter", "client", "", (), Load),
    MessageRow("load", "client", "arbiter", "", (), Load),
    MessageRow("findings", "arbiter", "client", "", (), Findings),
)
