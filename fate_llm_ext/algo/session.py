"""The frame of every federated task: the channel, and what happens when something fails."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Iterator

from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.progress import emit

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def federated_task(ctx: Any, network: NetworkConfig) -> Iterator[Channel]:
    """Open the channel; on failure record the error and tell the others, so that nobody waits in vain."""
    channel = Channel(ctx, network)
    try:
        yield channel
        channel.close()
    except BaseException as error:
        code = error.code if isinstance(error, ExtensionError) else ""
        text = str(error)
        # Alone, the text of many exceptions says little: that of a KeyError is the key.
        message = text if code else ": ".join(part for part in (type(error).__name__, text) if part)
        emit("error", code=code, message=message)
        channel.abort(wire_cause(error, channel.doing))
        raise
    emit("done")


def wire_cause(error: BaseException, doing: str) -> str:
    """Why this party stops, as the others may know it: no path, no table's name, no row of it."""
    if isinstance(error, ExtensionError) and error.code == "E303":
        # Who was told about a failure passes on its cause, not the telling.
        return f"{error.facts['party']} stopped: {error.facts['reason']}"
    if isinstance(error, ExtensionError) and error.shared:
        return str(error)
    kind = error.code if isinstance(error, ExtensionError) else type(error).__name__
    return f"{kind} while {doing} (see its own log)."
