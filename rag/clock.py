"""Time as a value that is passed in, so that expiry is tested by moving a clock and not by waiting.

Ground floor: imports nothing of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "system_clock"]

Clock = Callable[[], float]
"""Returns seconds since the Unix epoch."""


def system_clock() -> float:
    """Return the machine's wall clock in seconds since the Unix epoch."""
    return time.time()
