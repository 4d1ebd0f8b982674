"""The frame of every federated task: the channel, what happens when something fails, and what the others hear of it."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Callable, Dict, Iterator, Sequence

from fate_llm_ext import worker
from fate_llm_ext.config import NetworkConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.channel import Channel
from fate_llm_ext.progress import emit

logger = logging.getLogger(__name__)

UNTOLD_CAUSE = "it could not prepare its data (see its own log)."
_UNTOLD = "_fate_llm_ext_untold"


@contextlib.contextmanager
def federated_task(
    ctx: Any,
    network: NetworkConfig,
    later: Sequence[Callable[[], None]] = (),
    own: Sequence[Callable[[], None]] = (),
) -> Iterator[Channel]:
    """Open the channel; on failure record the error and tell the others, so that nobody waits in vain.

    Args:
        ctx: FATE's context.
        network: limits of the channel.
        later: this party's own affairs, done once the task has ended well for everybody. May be filled in meanwhile.
            Their failures are ``warning`` events here and nothing elsewhere: nobody else can tell how they went.
        own: what this party's task is for and concerns nobody else any more; done before ``later``, filled in likewise.
            A failure fails this party's task, and no message tells the others.
    """
    channel = Channel(ctx, network)
    try:
        yield channel
        channel.close()
    except BaseException as error:
        emit("error", **_facts(error))
        worker.report(_facts(error)["message"])
        channel.abort(wire_cause(error, channel.doing))
        channel.linger()
        raise
    try:
        for affair in own:
            affair()
    except BaseException as error:
        emit("error", **_facts(error))
        raise
    for affair in later:
        try:
            affair()
        except Exception as error:
            logger.warning("what this party does for itself failed", exc_info=True)
            emit("warning", **_facts(error))
    emit("done")


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """For reading and rendering private rows: of a failure in here the others hear that there was one, not which.

    Which error it is, or at which step, may depend on a single row, and the templates that decide it come from the
    job.
    """
    try:
        yield
    except BaseException as error:
        setattr(error, _UNTOLD, True)
        raise


def _facts(error: BaseException) -> Dict[str, str]:
    code, text = error.code if isinstance(error, ExtensionError) else "", str(error)
    # Alone, the text of many exceptions says little: that of a KeyError is the key.
    message = text if code else ": ".join(part for part in (type(error).__name__, text) if part)
    return {"code": code, "message": message}


def wire_cause(error: BaseException, doing: str) -> str:
    """Why this party stops, as the others may know it: no path, no table's name, no row of it."""
    if isinstance(error, ExtensionError) and error.code == "E303":
        # Who was told about a failure passes on its cause, not the telling.
        return f"{error.facts['party']} stopped: {error.facts['reason']}"
    if getattr(error, _UNTOLD, False):
        return UNTOLD_CAUSE
    if isinstance(error, ExtensionError) and error.shared:
        return str(error)
    kind = error.code if isinstance(error, ExtensionError) else type(error).__name__
    return f"{kind} while {doing} (see its own log)."
