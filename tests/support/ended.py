"""Tasks that ended long ago, without waiting for it; questions and artifacts as a run makes them.

Above: tests of retention and of repeated requests. Below: the store, and the queue of ended tasks as its owner sees it.
"""

from __future__ import annotations

from uuid import UUID

import asyncpg

from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.tasks import conversations, store
from rag.tasks.values import EventKind, TaskState
from tests.support.world import World
from workflows.forms import AskUser, Question

__all__ = ["age", "artifact", "ask"]


async def age(world: World, task_id: UUID, *, seconds: float) -> None:
    """Have the task's end lie so much further back."""
    connection = await asyncpg.connect(world.superuser_url)
    try:
        done = await connection.execute(
            "update queue.ended set ended_at = ended_at - make_interval(secs => $2) where task_id = $1",
            task_id,
            seconds,
        )
    finally:
        await connection.close()
    assert done == "UPDATE 1", "the task has not ended"


async def artifact(
    database: Database,
    principal: Principal,
    task_id: UUID,
    text: str,
    *,
    append: bool,
    name: str = "answer",
    fence: int | None = None,
) -> int:
    """Append one event of an artifact and return its seq."""
    payload = {
        "artifact_id": name,
        "name": name,
        "parts": [{"text": text}],
        "append": append,
        "last_chunk": False,
    }
    async with database.tenant(principal) as session:
        return await store.append(session, task_id, EventKind.ARTIFACT, payload, fence=fence)


async def ask(database: Database, principal: Principal, task_id: UUID, *, fence: int) -> None:
    """Have the run ask which year, and wait."""
    form = AskUser(id="year", questions=(Question(question="which year?"),))
    payload = store.status_payload(TaskState.INPUT_REQUIRED, "which year?")
    payload |= {"form": form.to_wire(), "ask": "year"}
    async with database.tenant(principal) as session:
        await conversations.ask(session, task_id, TaskState.INPUT_REQUIRED, payload, fence=fence, wait_s=600.0)
