"""A task as it runs, in a terminal or in a pipe: its steps, what it found, its text as it is written, what it costs.

Above: `ask`, the demo. Below: rich. In a terminal the last line lives: how long, what now, how much. A pipe gets lines.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text as Line

from rag.cli.common import printable
from rag.clients.a2a import Accepted, Event, Progress, Text

__all__ = ["View", "cost_line", "viewing"]


@dataclass(slots=True, kw_only=True)
class View:
    """Shows one task's events as they come. Made by `viewing`."""

    console: Console
    live: Live | None
    started: float = field(default_factory=time.monotonic)
    now: str = "waiting for the server"
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unfinished: str = ""
    """The last line of the text, as far as it came: it is printed when it is whole."""

    def show(self, event: Event) -> None:
        """Take the next event."""
        if not isinstance(event, Text):
            self.close_text()
        match event:
            case Accepted():
                self._print(Line(f"task {event.task_id}", style="dim"))
            case Progress():
                self.now = printable(event.text)
                self.usage = event.metadata.get("usage") or self.usage
                self._print(Line(f"· {self.now}", style="dim"))
            case Text():
                self._write(event)
            case _:
                pass

    def close_text(self) -> None:
        """End the line that is being written."""
        if self.unfinished:
            self._print(_styled(self.unfinished))
            self.unfinished = ""

    def status(self) -> RenderableType:
        """Return the line that lives."""
        cost = cost_line(self.usage)
        told = " · ".join(
            part
            for part in (f"{time.monotonic() - self.started:.0f} s", self.now[:100], cost, self.unfinished[-60:])
            if part
        )
        return Spinner("dots", Line(told, style="cyan", no_wrap=True, overflow="ellipsis"))

    def _write(self, event: Text) -> None:
        if event.restart:
            self.close_text()
        whole = self.unfinished + printable(event.text)
        *lines, self.unfinished = whole.split("\n")
        for line in lines:
            self._print(_styled(line))

    def _print(self, line: Line) -> None:
        self.console.print(line, soft_wrap=self.live is None)


@contextmanager
def viewing(console: Console) -> Generator[View]:
    """Open a view; in a terminal its last line is kept alive until the block ends."""
    if not console.is_terminal:
        view = View(console=console, live=None)
        try:
            yield view
        finally:
            view.close_text()
        return
    with Live(console=console, refresh_per_second=8, transient=True, redirect_stdout=False) as live:
        view = View(console=console, live=live)
        live.update(_Living(view))
        try:
            yield view
        finally:
            view.close_text()


@dataclass(frozen=True, slots=True)
class _Living:
    view: View

    def __rich__(self) -> RenderableType:
        return self.view.status()


def cost_line(usage: Mapping[str, Any]) -> str:
    """Return what a task has used, in words: calls, and tokens where there were any."""
    calls = int(usage.get("calls", 0))
    tokens = int(usage.get("promptTokens", 0)) + int(usage.get("completionTokens", 0))
    return ", ".join(
        part for part in (f"{calls} calls" if calls else "", f"{tokens:,} tokens" if tokens else "") if part
    )


def _styled(line: str) -> Line:
    return Line(line, style="bold" if line.startswith("#") else "")
