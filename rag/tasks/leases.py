"""Who may run a task, and for how long: leases on the queue of runs, held by workers of any tenant's tasks.

Above: the worker. Below: `rag.db` and the queue functions (sql/migrations/0003), which hand out ids and a seal per run.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from rag.db.pool import Database
from rag.tasks.values import Claim
from sql import load_queries

__all__ = ["Lease", "claim_runs", "heartbeat_runs", "release_runs"]

_QUERIES = load_queries("tasks")
Lease = tuple[UUID, int]
"""Task and fence."""
_REASON = "the queue of runs holds ids only and belongs to no tenant"


async def claim_runs(database: Database, *, worker: str, wanted: int, lease_s: float) -> list[Claim]:
    """Lease up to `wanted` runs, longest waiting first."""
    query = _QUERIES["claim_runs"]
    rows = await database.unsafe_unscoped_call(query, reason=_REASON, worker=worker, wanted=wanted, lease_s=lease_s)
    return [Claim(task_id=row["task_id"], fence=row["fence"], attempt=row["attempt"], seal=row["seal"]) for row in rows]


async def heartbeat_runs(database: Database, *, worker: str, held: Sequence[Claim], lease_s: float) -> set[Lease]:
    """Extend the leases of `held` and return those that are still held."""
    rows = await database.unsafe_unscoped_call(
        _QUERIES["heartbeat_runs"],
        reason=_REASON,
        worker=worker,
        task_ids=[claim.task_id for claim in held],
        fences=[claim.fence for claim in held],
        lease_s=lease_s,
    )
    return {(row["task_id"], row["fence"]) for row in rows}


async def release_runs(database: Database, *, worker: str, held: Sequence[Claim]) -> int:
    """Hand runs back at once, uncounted, and return how many were still held."""
    (row,) = await database.unsafe_unscoped_call(
        _QUERIES["release_runs"],
        reason=_REASON,
        worker=worker,
        task_ids=[claim.task_id for claim in held],
        fences=[claim.fence for claim in held],
    )
    return int(row["released"])
