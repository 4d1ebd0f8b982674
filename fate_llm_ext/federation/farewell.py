"""Aborts a channel in the place of a party that was killed: ``python -m fate_llm_ext.federation.farewell``.

On stdin a JSON object: ``config`` (FATE's configuration of the task), ``name`` (the variable that the party sends
under), ``frames`` (rank and number of each frame), ``reason``. See :mod:`fate_llm_ext.last_words`.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fate_llm_ext.federation.channel import abort_frame, context_of


def main() -> None:
    """Connect as the party did, and send."""
    from fate.arch.federation.api._serdes import _FederationBytesCoder

    task = json.load(sys.stdin)
    ctx = context_of(_context(Path(task["config"])))
    # As FATE packs bytes. Its own way of it imports torch first, and there are seconds until all parties are killed.
    packed = _FederationBytesCoder.encode_base(pickle.dumps(abort_frame(task["reason"])))
    for frame in task["frames"]:
        place = ctx.indexed_ctx(frame["number"])
        party = place.parties[frame["rank"]].party
        ctx.federation.push_bytes(packed, task["name"], place.namespace.federation_tag, [party])


def _context(config: Path) -> Any:
    """As FATE makes it for a component."""
    import yaml
    from fate.arch import CipherKit, Context
    from fate.components.core import load_computing, load_device, load_federation
    from fate.components.core.spec.task import TaskConfigSpec

    _make_nothing()
    spec = TaskConfigSpec.parse_obj(yaml.safe_load(config.read_text(encoding="utf-8")))
    device = load_device(spec.conf.device)
    computing = load_computing(spec.conf.computing, spec.conf.logger.config)
    federation = load_federation(spec.conf.federation, computing)
    return Context(device=device, computing=computing, federation=federation, cipher=CipherKit(device=device))


def _make_nothing() -> None:
    """Virtual host, user and queues are there; where they are not, the task has been cleaned up, and they stay away."""
    with suppress(ImportError):  # no RabbitMQ at this site
        manager = importlib.import_module("fate.arch.federation.backends.rabbitmq._rabbit_manager").RabbitManager
        for name in [name for name in vars(manager) if not name.startswith("__")]:
            setattr(manager, name, lambda *_, **__: True)


if __name__ == "__main__":
    main()
