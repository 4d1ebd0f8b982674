"""How far a site's clock is from the arbiter's, from messages that go there and back (as NTP does, RFC 5905)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence


@dataclass(frozen=True)
class Stamps:
    """The four readings of one round trip, seconds since the epoch.

    Attributes:
        sent: the arbiter's clock before it sends.
        received: the client's clock when it has the message.
        answered: the client's clock before it answers.
        returned: the arbiter's clock when it has the answer.
    """

    sent: float
    received: float
    answered: float
    returned: float


@dataclass(frozen=True)
class Offset:
    """The client's clock minus the arbiter's.

    Attributes:
        seconds: middle of what is possible.
        uncertainty: the true offset is at most this far from it, however unequal the two ways are.
        steady: whether one offset explains all round trips; if not, a clock was set or runs wrong, and
            ``seconds ± uncertainty`` covers every offset there may have been.
    """

    seconds: float
    uncertainty: float
    steady: bool


def clock_offset(trips: Sequence[Stamps]) -> Offset:
    """The offset that round trips allow.

    No message arrives before it is sent: with offset θ the way there took ``received - θ - sent >= 0`` and the way
    back ``returned + θ - answered >= 0``. So each trip gives ``answered - returned <= θ <= received - sent``, and all
    trips together the intersection; nothing is assumed about the ways being alike.

    Args:
        trips: at least one.
    """
    lower = [trip.answered - trip.returned for trip in trips]
    upper = [trip.received - trip.sent for trip in trips]
    steady = max(lower) <= min(upper)
    low, high = (max(lower), min(upper)) if steady else (min(lower), max(upper))
    return Offset((low + high) / 2, abs(high - low) / 2, steady)
