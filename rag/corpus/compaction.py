"""The lexical index is kept in shape here: a background loop that compacts the tenants that have been written to.

Above: the processes that run it (the worker). Below: `rag.db` and the SQL function `rag.compact_v1`, which does the
work in steps, each a short transaction. Everything may be broken off anywhere: a step is whole or has not been, and a
lease that nobody finishes runs out.

A put leaves a few hundred small blocks, one for each of its terms; taking them in rewrites the last block of as many
lists. So a tenant waits SETTLE_S after the first write, for others to share that work: with ten writes in that time it
is done once, not ten times, and searches meanwhile read little more. A load does not wait: BACKLOG writes are enough.
"""

from __future__ import annotations

import logging
import time
from uuid import UUID

import anyio

from rag.db.pool import Database
from rag.errors import BulkheadError, FenceLost
from sql import load_queries

__all__ = ["compact_due", "run_compactor"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("upkeep")
_REASON = "the queue of tenants to compact belongs to no tenant; it hands out leases and seals"
CLAIM = 1
SETTLE_S = 10.0
BACKLOG = 500
IDLE_S = 2.0
"""The queue is looked at this often. A write sends no wake-up: the tenant is not due before SETTLE_S anyway."""
LEASE_S = 60.0
"""Extended by each step, which is over in 15 s (the statement timeout) or rolled back."""
SLICE_S = 20.0
"""Then another tenant has its turn, and this one goes on later: one that loads does not keep the others waiting."""
BUDGET_POSTINGS = 20_000
"""Taken in by a step: some tenths of a second."""
SWEEP_POSTINGS = 100_000
"""Looked through for dead postings by a step."""
SWEEP_SHARE = 0.1
"""Of a tenant's chunks: so many dead ones are worth a sweep over all of its blocks."""
SWEEP_AFTER_S = 86_400.0
"""What was deleted is gone from the index after this at the latest, however little it is."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


async def run_compactor(database: Database) -> None:
    """Compact what comes due, until cancelled. Failures are logged, and slow the loop down; they never end it."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            done = await compact_due(database)
        except BulkheadError as exc:
            _log.warning("compaction pauses for %.0f s: %s", pause_s, exc.code)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            continue
        pause_s = FIRST_PAUSE_S
        if done == 0:
            await anyio.sleep(IDLE_S)


async def compact_due(
    database: Database,
    *,
    claim: int = CLAIM,
    settle_s: float = SETTLE_S,
    backlog: int = BACKLOG,
    budget: int = BUDGET_POSTINGS,
    sweep_budget: int = SWEEP_POSTINGS,
    sweep_share: float = SWEEP_SHARE,
    sweep_after_s: float = SWEEP_AFTER_S,
) -> int:
    """Compact up to `claim` tenants that are due, and return how many were. The login is the worker's.

    Raises:
        Unavailable: The database failed; what was claimed comes back when its lease has run out.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        claimed = await session.fetch(
            _QUERIES["claim_upkeep"], wanted=claim, lease_s=LEASE_S, settle_s=settle_s, backlog=backlog
        )
    for row in claimed:
        try:
            await _compact(
                database,
                row["seal"],
                row["lease"],
                budget=budget,
                sweep_budget=sweep_budget,
                sweep_share=sweep_share,
                sweep_after_s=sweep_after_s,
            )
        except FenceLost:
            _log.info("another worker took a compaction over")
    return len(claimed)


async def _compact(database: Database, seal: str, lease: UUID, **bounds: float) -> None:
    until = time.monotonic() + SLICE_S
    while True:
        async with database.sealed(seal) as session:
            step = await session.fetch_one(_QUERIES["compact"], lease=lease, lease_s=LEASE_S, **bounds)
            assert step is not None
            if step["more"] and time.monotonic() < until:
                continue
            await session.fetch(_QUERIES["finish_upkeep"], lease=lease, next_at=step["next_at"])
            return
