"""Callbacks of transformers' Trainer: a sign of life to the other parties and progress for the user."""

from __future__ import annotations

from typing import Any, Callable

from transformers import TrainerCallback

from fate_llm_ext.progress import Progress


class PhaseCallback(TrainerCallback):
    """After each optimizer step: progress event and heartbeat."""

    def __init__(self, phase: str, steps: int, heartbeat: Callable[[str], None]) -> None:
        self._progress = Progress(phase, steps)
        self._heartbeat = heartbeat

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        self._progress.update(state.global_step)
        self._heartbeat(f"{self._progress.phase}, step {state.global_step} of {self._progress.total}")
