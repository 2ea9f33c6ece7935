"""A task's events as they happen: read from the log, woken by NOTIFY, the same on every replica.

Above: both faces. Below: `store`, `rag.db.listener`. A slow reader falls behind and loses nothing; a lost
wake-up costs LONGEST_WAIT_S at most.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID

import anyio

from rag.db.listener import Wakeups
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.tasks import store
from rag.tasks.values import TERMINAL, EventKind, TaskEvent, TaskState

__all__ = ["TASK_CHANNEL", "follow"]

TASK_CHANNEL = "bulkhead_task"


async def follow(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    task_id: UUID,
    *,
    after: int,
    until: anyio.Event | None = None,
) -> AsyncGenerator[TaskEvent]:
    """Yield the events after position `after`, each once and in order, and stop after the one that ends the task.

    Stops earlier at a wake-up once `until` is set.

    Raises:
        Revoked: The caller's token was revoked while it listened.
        Unavailable: The database is not reachable.
    """
    with wakeups.subscribe(TASK_CHANNEL, key=str(task_id)) as woken:
        while until is None or not until.is_set():
            async with database.tenant(principal) as session:
                events = await store.events_after(session, task_id, after)
            for event in events:
                after = event.seq
                yield event
                if event.kind is EventKind.STATUS and TaskState(event.payload["state"]) in TERMINAL:
                    return
            await woken.wait()
