"""Ends calls that nobody ended: a background loop that gives back what is held for nobody, and estimates the others.

Above: the processes that run it (the worker; several at once take turns). Below: `rag.db` and queue.sweep_charges_v1. A
hold that nothing was sent under is released; a call that was started had sent something, and pays its bound.
"""

from __future__ import annotations

import logging

import anyio

from rag.budgets.metrics import METRICS
from rag.db.pool import Database
from rag.errors import BulkheadError
from sql import load_queries

__all__ = ["run_sweeper", "sweep_due"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("budgets")
_REASON = "the queue of calls that are under way belongs to no tenant; a function ends those whose time is over"
WANTED = 100
"""Of a step: some tens of milliseconds, in which the budgets of the calls' tenants are locked."""
IDLE_S = 15.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


async def run_sweeper(database: Database, *, idle_s: float = IDLE_S) -> None:
    """End what comes due, until cancelled. Failures are logged, and slow the loop down. The login is the worker's."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            swept = await sweep_due(database)
        except BulkheadError as exc:
            _log.warning("the sweep of calls that nobody ended pauses for %.0f s: %s", pause_s, exc.code)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            continue
        pause_s = FIRST_PAUSE_S
        if swept:
            METRICS.swept(swept)
            _log.warning("ended %d calls that nobody had ended", swept)
        if swept < WANTED:
            await anyio.sleep(idle_s)


async def sweep_due(database: Database, *, wanted: int = WANTED) -> int:
    """End up to `wanted` calls of any tenant whose time is over, the longest overdue first, and return how many. One
    that is being settled at the moment is left alone.

    Raises:
        Unavailable: The database failed, and nothing was done.
    """
    (row,) = await database.unsafe_unscoped_call(_QUERIES["sweep_charges"], reason=_REASON, wanted=wanted)
    return int(row["swept"])
