"""The `site_check` component: versions, clocks and round trips between all sites of a federation."""

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.config import NetworkConfig


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate_llm_ext", version=__version__)
def site_check(
    ctx,
    role: Role,
    round_trips: cpn.parameter(
        type=params.conint(ge=1, le=1000), default=5, desc="small messages there and back, to each site"
    ),
    message_bytes: cpn.parameter(
        type=params.conint(ge=0, le=1 << 28), default=1_000_000, desc="size of one large message; 0: none"
    ),
    clock_limit: cpn.parameter(
        type=params.confloat(gt=0.0), default=1.0, desc="seconds between two clocks that are no matter"
    ),
    network: cpn.parameter(type=NetworkConfig, default=None, desc="waiting for the other parties"),
):
    """Do the sites reach each other and run the same versions, and how far are their clocks apart?"""
    given = {
        "round_trips": round_trips,
        "message_bytes": message_bytes,
        "clock_limit": clock_limit,
        "network": network,
    }
    from fate_llm_ext import worker

    worker.enter(site_check.parameters.mapping)
    from fate_llm_ext.algo.site_check.entry import run

    run(ctx, role, {name: value for name, value in given.items() if value is not None})
