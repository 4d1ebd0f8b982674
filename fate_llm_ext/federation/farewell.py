"""Aborts a channel in the place of a party that was killed: ``python -m fate_llm_ext.federation.farewell``.

On stdin a JSON object: ``config`` (FATE's configuration of the task), ``name`` (the variable that the party sends
under), ``frames`` (rank and number of each frame), ``reason``. See :mod:`fate_llm_ext.last_words`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fate_llm_ext.federation.channel import abort_frame, context_of


def main() -> None:
    """Connect as the party did, and send."""
    task = json.load(sys.stdin)
    ctx = context_of(_context(Path(task["config"])))
    for frame in task["frames"]:
        party = ctx.indexed_ctx(frame["number"]).parties[frame["rank"]]
        party.put(task["name"], abort_frame(task["reason"]))


def _context(config: Path) -> Any:
    """As FATE makes it for a component."""
    import yaml
    from fate.arch import CipherKit, Context
    from fate.components.core import load_computing, load_device, load_federation
    from fate.components.core.spec.task import TaskConfigSpec

    spec = TaskConfigSpec.parse_obj(yaml.safe_load(config.read_text(encoding="utf-8")))
    device = load_device(spec.conf.device)
    computing = load_computing(spec.conf.computing, spec.conf.logger.config)
    federation = load_federation(spec.conf.federation, computing)
    return Context(device=device, computing=computing, federation=federation, cipher=CipherKit(device=device))


if __name__ == "__main__":
    main()
