"""What is shown while a job runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import click

from fate_llm_ext.pipelines.job import Party
from fate_llm_ext.pipelines.process import Event

LINE_SECONDS = 15.0
_WAITING_FADES_SECONDS = 40.0


@dataclass
class Row:
    """Where a party stands."""

    state: str = "starting"
    arm: str = ""
    round: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    waiting: str = ""
    waited_at: float = 0.0

    def update(self, event: Event) -> bool:
        """Take in an event; True if it is worth a line."""
        kind = event.get("type")
        if kind == "phase":
            self.state, self.waiting, self.done, self.total = "running", "", 0, 0
            self.arm, self.phase = str(event.get("arm") or ""), str(event.get("phase") or "")
            self.round = "" if event.get("round") is None else str(event["round"])
        elif kind == "progress":
            self.waiting = ""
            self.done, self.total = int(event.get("done") or 0), int(event.get("total") or 0)
        elif kind == "waiting":
            self.waiting = f"waits for {event.get('peer')} ({float(event.get('seconds') or 0):.0f} s)"
            self.waited_at = time.monotonic()
        elif kind == "ended":
            code = int(event.get("exit_code") or 0)
            self.state, self.waiting = ("done" if code == 0 else f"failed (exit code {code})"), ""
        elif kind == "error":
            self.state = f"error {event.get('code', '')}"
        return kind in ("phase", "ended", "error", "warning", "waiting", "result")

    def text(self) -> str:
        """One line, without the party's name."""
        words = [self.arm, f"round {self.round}" if self.round else "", self.phase] if self.state == "running" else []
        share = f"{self.done}/{self.total}" if self.total and self.state == "running" else ""
        waiting = self.waiting if time.monotonic() - self.waited_at < _WAITING_FADES_SECONDS else ""
        return ", ".join(word for word in [*words, share, waiting] if word) or self.state


class PlainBoard:
    """A line per phase change per party, and one at least every 15 seconds."""

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._rows: Dict[str, Row] = {}
        self._began = self._last = time.monotonic()

    def __enter__(self) -> PlainBoard:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, task: str, party: Optional[Party], event: Event) -> None:
        """Take in an event of the engine."""
        if party is None:
            if event["type"] == "notice":
                self._line(str(event["message"]))
            elif time.monotonic() - self._last >= LINE_SECONDS:
                self._line("; ".join(f"{name}: {row.text()}" for name, row in self._rows.items()))
            return
        if event["type"] == "started":
            self._rows[str(party)] = Row()
            self._line(f"{task} {party}: started")
            return
        row = self._rows.setdefault(str(party), Row())
        if not row.update(event):
            return
        text = row.text()
        if event["type"] == "result":
            text = f"{event.get('arm')}: {event.get('metric')} {float(event.get('value') or 0.0):.4f}"
        elif event["type"] in ("error", "warning"):
            text = f"{event['type']} {event.get('message', event.get('code', ''))}"
        self._line(f"{task} {party}: {text}")

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        seconds = int(self._last - self._began)
        click.echo(f"[{self._label}{seconds // 60:02d}:{seconds % 60:02d}] {text}")


class LiveBoard:
    """A table that is redrawn in place."""

    def __init__(self, label: str = "") -> None:
        from rich.live import Live

        self._label = label
        self._rows: Dict[str, Row] = {}
        self._task = ""
        self._notice = ""
        self._noticed_at = 0.0
        self._began = time.monotonic()
        self._live = Live(get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveBoard:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, task: str, party: Optional[Party], event: Event) -> None:
        """Take in an event of the engine."""
        if event["type"] == "notice":
            self._notice, self._noticed_at = str(event["message"]), time.monotonic()
        if task and task != self._task:
            self._task, self._rows = task, {}
        if party is not None:
            self._rows.setdefault(str(party), Row()).update(event)

    def _render(self) -> Any:
        from rich import box
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        seconds = int(time.monotonic() - self._began)
        title = f"{self._label}{self._task or 'starting'}  {seconds // 60:02d}:{seconds % 60:02d}"
        table = Table("party", "arm", "round", "phase", "", "", box=box.SIMPLE_HEAD, title=title, title_justify="left")
        if time.monotonic() - self._noticed_at < _WAITING_FADES_SECONDS:
            table.caption, table.caption_justify = self._notice or None, "left"
        for name, row in list(self._rows.items()):
            bar: Any = ProgressBar(total=row.total, completed=row.done, width=24) if row.total else ""
            fresh = time.monotonic() - row.waited_at < _WAITING_FADES_SECONDS
            state = row.phase if row.state == "running" else row.state
            table.add_row(name, row.arm, row.round, state, bar, row.waiting if fresh else "")
        return table


class QuietBoard:
    """Nothing."""

    def __enter__(self) -> QuietBoard:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, task: str, party: Optional[Party], event: Event) -> None:
        """Ignore an event."""


def make_board(quiet: bool, label: str = "") -> Any:
    """The board that fits: nothing, a live table on a terminal, else lines."""
    if quiet:
        return QuietBoard()
    return LiveBoard(label) if sys.stdout.isatty() else PlainBoard(label)


def result_lines(tables: List[Any]) -> List[str]:
    """Result tables as aligned text: rows are parties, columns are arms."""
    lines: List[str] = []
    for table in tables:
        rows = [["", *table.titles]]
        for party, cells in table.rows.items():
            name = party if " " in party else party.replace("_", " ", 1)
            rows.append([name, *(table.text(cells.get(arm)) for arm in table.arms)])
        lines += table_lines(f"{table.task}: {table.title}", rows, table.note)
    return lines


def table_lines(title: str, rows: Sequence[Sequence[str]], note: str) -> List[str]:
    """Aligned text of a table; the first row is its head, the first column to the left."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["", title]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines + textwrap.wrap(note, 110)
