"""What tasks have made: artifacts, folded from the log, and what a caller may choose from.

Above: the MCP resources and completions. Below: `store`, `fold` and sql/queries/tasks.sql. Visible is what
`store.get_task` shows: the caller's own tasks, and those of whose groups it is in every one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from rag.db.pool import Database
from rag.errors import NotFound
from rag.identity.principal import Principal
from rag.tasks.fold import fold_artifacts
from rag.tasks.values import Artifact, EventKind, TaskEvent
from sql import load_queries

__all__ = ["Found", "artifact_names", "cited_documents", "find_artifact", "latest_tasks", "tasks_between"]

_QUERIES = load_queries("tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An artifact as it stands, and when anything was last added to those of its task."""

    artifact: Artifact
    updated_at: datetime


async def find_artifact(database: Database, principal: Principal, task_id: UUID, name: str) -> Found:
    """Return the artifact of that name; of several, the one begun last.

    Raises:
        NotFound: The caller sees no such task, or the task has no such artifact.
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


def cited_documents(parts: Iterable[object]) -> tuple[str, ...]:
    """Return the ids of the documents that the data parts of artifacts name as their sources.

    They stand as every workflow of ours writes them: {"citations": [{"document_id": ...}]}. Other parts name none.
    """
    cited: dict[str, None] = {}
    for part in parts:
        citations = cast("dict[str, object]", part).get("citations") if isinstance(part, dict) else None
        for citation in cast("list[object]", citations) if isinstance(citations, list) else []:
            named = cast("dict[str, object]", citation).get("document_id") if isinstance(citation, dict) else None
            if isinstance(named, str):
                cited[named] = None
    return tuple(cited)


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
