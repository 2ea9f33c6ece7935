"""A refusal takes its time: whoever asks again at once is held to a few questions a second by its own connections.

Above: `limiter`. Below: anyio. Refusing costs a fraction of answering, but a tenant that hammers on at its limit could
keep a process busy with nothing else, at its neighbours' expense (measured: docs/limits.md). Nobody loses by it: while
a refusal is held back the rate goes on earning, and what a client was kept waiting is taken off its wait.
"""

from __future__ import annotations

import anyio

__all__ = ["PAUSE_S", "Pauses"]

PAUSE_S = 0.25
MAX_PAUSED = 4096
"""Refusals that are held back at a time; more are told at once, since each holds its request's memory."""


class Pauses:
    """The refusals of one process that are being held back."""

    def __init__(self, *, pause_s: float = PAUSE_S, max_paused: int = MAX_PAUSED) -> None:
        """Hold back none yet."""
        self._pause_s = pause_s
        self._max_paused = max_paused
        self._paused = 0

    async def before_refusing(self) -> float:
        """Hold back a refusal; return for how many seconds it was."""
        if self._paused >= self._max_paused:
            return 0.0
        self._paused += 1
        try:
            await anyio.sleep(self._pause_s)
        finally:
            self._paused -= 1
        return self._pause_s
