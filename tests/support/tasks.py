"""Tasks made and looked at the way the two processes do it: through the store, as a caller or under a fence."""

from __future__ import annotations

from uuid import UUID, uuid4

from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.tasks import leases, store
from rag.tasks.values import Claim, EventKind, NewTask, Task, TaskEvent, TaskState

__all__ = ["accept", "claim", "events", "progress", "read", "status"]


async def accept(database: Database, principal: Principal, *, question: str = "what is insider trading?") -> UUID:
    """Accept one task as `principal`."""
    task_id = uuid4()
    new = NewTask(
        task_id=task_id,
        context_id=f"context-{task_id}",
        workflow="rag",
        input={"question": question},
        message={"message_id": "m1", "parts": [{"text": question}]},
    )
    async with database.tenant(principal) as session:
        await store.create_task(session, principal, new)
    return task_id


async def claim(database: Database, *, worker: str = "worker-a", lease_s: float = 60.0) -> Claim:
    """Claim the one run that waits."""
    (claimed,) = await leases.claim_runs(database, worker=worker, wanted=4, lease_s=lease_s)
    return claimed


async def progress(
    database: Database, principal: Principal, task_id: UUID, text: str, *, fence: int | None, key: str | None = None
) -> int:
    """Append one working status."""
    return await status(database, principal, task_id, TaskState.WORKING, text, fence=fence, key=key)


async def status(
    database: Database,
    principal: Principal,
    task_id: UUID,
    state: TaskState,
    text: str,
    *,
    fence: int | None,
    key: str | None = None,
) -> int:
    """Append one status event and return its seq."""
    async with database.tenant(principal) as session:
        payload = store.status_payload(state, text)
        return await store.append(session, task_id, EventKind.STATUS, payload, fence=fence, key=key, state=state)


async def read(database: Database, principal: Principal, task_id: UUID) -> Task:
    """Return the task as `principal` sees it."""
    async with database.tenant(principal) as session:
        return await store.get_task(session, task_id)


async def events(database: Database, principal: Principal, task_id: UUID, *, after: int = 0) -> list[TaskEvent]:
    """Return the task's log as `principal` sees it."""
    async with database.tenant(principal) as session:
        return await store.events_after(session, task_id, after)
