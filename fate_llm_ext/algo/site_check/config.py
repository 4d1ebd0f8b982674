"""Parameters of the site check."""

from __future__ import annotations

from pydantic import Field

from fate_llm_ext.config import Group, NetworkConfig


class SiteCheckConfig(Group):
    """All parameters of the `site_check` component. Of the first two the arbiter's hold."""

    round_trips: int = Field(5, ge=1, le=1000, description="Small messages there and back, to each site.")
    message_bytes: int = Field(
        1_000_000, ge=0, le=1 << 28, description="Size of the one large message there and back; 0: none."
    )
    clock_limit: float = Field(1.0, gt=0.0, description="Seconds between two sites' clocks that are no matter.")
    network: NetworkConfig = NetworkConfig()
