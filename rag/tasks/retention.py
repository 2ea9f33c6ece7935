"""What becomes of a task's data: a background loop that compacts what has ended and takes away what is past its time.

Above: the processes that run it (the worker). Below: `rag.db` and the SQL functions of migration 0020. Each step is a
short transaction under a seal that opens one task; everything may be broken off anywhere and is taken up again.

SETTLE_S after its end a task has no use for its checkpoints, nor for the pieces of an artifact that was then set whole:
whoever followed the stream has long read them. Its numbers keep their places, and `Task.compacted_to` says up to where
some are missing, so that a reader who comes back from there is given the snapshot. When the tenant's time is over
(`bulkhead tenant set --task-retention`) nothing of the task stays, its idempotency key neither.
"""

from __future__ import annotations

import logging
from uuid import UUID

import anyio

from rag.db.pool import Database
from rag.errors import BulkheadError
from sql import load_queries

__all__ = ["retire_due", "run_retention"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("retention")
_REASON = "the queue of tasks that have ended belongs to no tenant; it hands out leases and seals"
CLAIM = 50
SETTLE_S = 600.0
"""From a task's end to its compaction: a stream's reader that fell behind by so much comes back to a snapshot."""
LEASE_S = 120.0
BUDGET_EVENTS = 2_000
"""Deleted by a step: some hundredths of a second, for as long as which the task's row is locked."""
IDLE_S = 20.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


async def run_retention(database: Database) -> None:
    """Compact and take away what comes due, until cancelled. Failures are logged, and slow the loop down."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            done = await retire_due(database)
        except BulkheadError as exc:
            _log.warning("retention of tasks pauses for %.0f s: %s", pause_s, exc.code)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            continue
        pause_s = FIRST_PAUSE_S
        if done < CLAIM:
            await anyio.sleep(IDLE_S)


async def retire_due(
    database: Database,
    *,
    claim: int = CLAIM,
    settle_s: float = SETTLE_S,
    budget: int = BUDGET_EVENTS,
) -> int:
    """Compact up to `claim` tasks and take away as many that are past their time; return how many. The login is the
    worker's. One that fails waits until its lease has run out, and keeps no other waiting.

    Raises:
        Unavailable: There was nothing to be claimed from: the database failed.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        claimed = await session.fetch(_QUERIES["claim_ended"], wanted=claim, lease_s=LEASE_S, settle_s=settle_s)
    for row in claimed:
        try:
            await _retire(database, row["seal"], row["task_id"], expired=row["expired"], budget=budget)
        except BulkheadError as exc:
            _log.warning("a task's data waits for its next turn (attempt %d): %s", row["attempts"], exc.code)
    return len(claimed)


async def _retire(database: Database, seal: str, task_id: UUID, *, expired: bool, budget: int) -> None:
    step = _QUERIES["delete_task" if expired else "compact_task"]
    more = True
    while more:
        async with database.sealed(seal) as session:
            more = bool(await session.fetch_value(step, task_id=task_id, budget=budget))
            if not more:
                await session.fetch_value(_QUERIES["finish_ended"], task_id=task_id, gone=expired)
