"""Engines that let an LLM write: a local model, an OpenAI-compatible HTTP server or a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch

from fate_llm_ext.config import LLMConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines.base import Completion, Engine
from fate_llm_ext.models.engines.http import HTTPEngine, open_http
from fate_llm_ext.models.engines.local import LocalEngine, open_local
from fate_llm_ext.models.engines.recorded import RecordedEngine
from fate_llm_ext.site import Recording, Site

__all__ = ["Completion", "Engine", "HTTPEngine", "LocalEngine", "RecordedEngine", "open_engine"]


def open_engine(
    site: Site,
    config: LLMConfig,
    device: torch.device,
    *,
    recorded: bool = False,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Engine:
    """The engine of the LLM that the job names and the site knows.

    Args:
        recorded: the job is made for a recording, which needs to be told what each prompt is about.
        heartbeat: gives a sign of life; an HTTP engine calls it from :meth:`Engine.generate` while it waits.

    Raises:
        ExtensionError: E131, E111 the site does not know it; E402, E403, E405 a local model cannot be loaded; E410 an
            adapter is named for an endpoint or a recording; E411, E412 an endpoint's files are wrong; E413 to E417 it
            does not answer rightly; E418 a recording holds no answers; E769 it is a recording and the job is not made
            for one, or the other way round.
    """
    found = site.lookup_llm(config.name, recorded)
    if isinstance(found, Path):
        adapter = None if config.adapter is None else site.lookup("models", config.adapter)
        heartbeat("loading the LLM")
        return open_local(found, adapter, config, device)
    if config.adapter is not None:
        raise ExtensionError("E410", adapter=config.adapter, name=config.name)
    if isinstance(found, Recording):
        return RecordedEngine(found.folder, config.name)
    return open_http(site, found, config.name, heartbeat)
