"""What the A2A benchmarks have an agent do, in words that both sides understand: a message's text, as JSON.

Above: the bench's agents, `a2a_ours` and `a2a_sdk_server`, and their clients. Below: the standard library, since the
SDK's side runs in a virtual environment of its own.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["ARTIFACT", "Work", "clocked", "note", "said_at"]

ARTIFACT = "result"
_CLOCKED = re.compile(rb'"text":\s?"\d+ (\d+\.\d+) ')


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One task."""

    kind: str
    """trivial: it ends at once. ticks: it says something `count` times, every `interval_s`. chunks: it writes an
    artifact of `count` pieces of `size` bytes. silent: it says nothing for `interval_s`. ask: it asks, and ends when it
    is answered."""
    count: int = 0
    interval_s: float = 0.0
    size: int = 0
    steps: bool = False
    """Whether each tick is a step of its own, after which a run can be taken over."""
    note: str | None = None
    """A file into which an agent writes when it began, and when it was stopped."""

    def text(self) -> str:
        """Return the message's text."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Work:
        """Read a message's text."""
        return cls(**json.loads(text))


def clocked(number: int) -> str:
    """Return the text of a tick, which says what time it is, and who says so."""
    return f"{number} {time.time():.6f} {os.getpid()}"


def said_at(event: bytes) -> float | None:
    """Return the time that the tick within a server-sent event says; None: it is none."""
    found = _CLOCKED.search(event)
    return float(found[1]) if found else None


def note(work: Work, what: str) -> None:
    """Write down that it happened, and when."""
    if work.note is not None:
        with Path(work.note).open("a", encoding="utf-8") as file:
            file.write(f"{what} {time.time():.6f}\n")
