"""What tasks have made: artifacts, folded from the log, and what a caller may choose from.

Above: the MCP resources and completions. Below: `store`, `fold` and sql/queries/tasks.sql. Visible is what
`store.get_task` shows: the tasks of the caller's tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from rag.db.pool import Database
from rag.errors import NotFound
from rag.identity.principal import Principal
from rag.tasks.fold import fold_artifacts
from rag.tasks.values import Artifact, EventKind, TaskEvent
from sql import load_queries

__all__ = ["Found", "artifact_names", "find_artifact", "latest_tasks", "tasks_between"]

_QUERIES = load_queries("tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An artifact as it stands, and when anything was last added to those of its task."""

    artifact: Artifact
    updated_at: datetime


async def find_artifact(database: Database, principal: Principal, task_id: UUID, name: str) -> Found:
    """Return the artifact of that name; of several, the one begun last.

    Raises:
        NotFound: This tenant has no such task, or the task no such artifact.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(_QUERIES["artifact_events"], task_id=task_id)
    events = [
        TaskEvent(seq=row["seq"], kind=EventKind(row["kind"]), payload=row["payload"], created_at=row["created_at"])
        for row in rows
    ]
    named = [artifact for artifact in fold_artifacts(events) if artifact.name == name]
    if not named:
        raise NotFound("there is no such artifact")
    return Found(artifact=named[-1], updated_at=events[-1].created_at)


async def artifact_names(database: Database, principal: Principal, task_id: UUID) -> list[str]:
    """Return the names of a task's artifacts in alphabetical order; none where there is no such task.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(_QUERIES["artifact_names"], task_id=task_id)
    return sorted(str(row["name"]) for row in rows)


async def latest_tasks(database: Database, principal: Principal, *, limit: int) -> list[UUID]:
    """Return the ids of up to `limit` tasks, latest change first.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        return [row["task_id"] for row in await session.fetch(_QUERIES["latest_tasks"], wanted=limit)]


async def tasks_between(database: Database, principal: Principal, first: UUID, last: UUID, *, limit: int) -> list[UUID]:
    """Return the ids of up to `limit` tasks that lie between two, both included, in their order.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(_QUERIES["tasks_between"], first=first, last=last, wanted=limit)
    return [row["task_id"] for row in rows]
