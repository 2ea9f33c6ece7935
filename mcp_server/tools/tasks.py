"""How a task looks to a client, and how one waits for it; shared by the tools about tasks.

Below: `rag.tasks`, the same rows that the A2A server shows. Waiting reads the log and is woken by PostgreSQL; whoever
stops waiting, or is cut off, leaves the task as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal
from uuid import UUID

import anyio
import orjson
from pydantic import Field

from mcp_server.call import Call
from mcp_server.resources.artifacts import ARTIFACT
from mcp_server.tools.tool import Output
from rag.tasks import store
from rag.tasks.feed import Feeds
from rag.tasks.fold import fold_artifacts
from rag.tasks.results import cited_documents
from rag.tasks.values import TERMINAL, Artifact, EventKind, TaskSummary

__all__ = [
    "MAX_TEXT_CHARS",
    "MAX_WAIT_S",
    "WAIT_TIMEOUT_S",
    "ArtifactOutput",
    "TaskOutput",
    "documents_of",
    "read_artifacts",
    "shown",
    "summary",
    "watch",
]

MAX_WAIT_S = 120
"""Longest that a call waits: below the time that proxies and clients usually give an answer to begin or to go on."""
WAIT_TIMEOUT_S = MAX_WAIT_S + 15.0
"""Of a tool that waits: what it does besides takes as long as others may."""
MAX_TEXT_CHARS = 20_000
"""Of all artifacts in one answer. With its JSON copy and the data it stays below the 1 MiB that clients take."""
MAX_DATA_BYTES = 96 * 1024
State = Literal[
    "submitted", "working", "input-required", "auth-required", "completed", "failed", "canceled", "rejected"
]


class TaskOutput(Output):
    """Where a task stands."""

    task_id: Annotated[str, Field(description="For task_status, task_result and cancel_task.")]
    context_id: Annotated[str, Field(description="Pass it to delegate_task to put another task beside this one.")]
    workflow: str
    state: Annotated[State, Field(description="completed, failed, canceled and rejected are final.")]
    finished: Annotated[bool, Field(description="Whether the state is final.")]
    message: Annotated[str | None, Field(description="What it does or did last; of a failed task, why.")]
    version: Annotated[int, Field(description="Grows with every event; for task_status' after_version.")]
    artifacts: Annotated[list[str], Field(description="Names of what it makes or made; task_result reads them.")]
    created_at: Annotated[str, Field(description="RFC 3339, UTC.")]
    updated_at: Annotated[str, Field(description="RFC 3339, UTC.")]


class ArtifactOutput(Output):
    """A part of what a task made."""

    name: str
    uri: Annotated[str, Field(description="The same as a resource.")]
    text: Annotated[str, Field(description="Characters from start on, of those that it has.")]
    start: int
    characters: int
    next_start: Annotated[int | None, Field(description="Where to go on reading; null: this is the end.")]
    data: Annotated[
        list[dict[str, Any]], Field(description="Its structured parts, such as checked citations; with start 0 only.")
    ]
    data_omitted: Annotated[bool, Field(description="Its data is too large for an answer; read it at uri.")]


async def summary(call: Call, task_id: UUID) -> TaskSummary:
    """Return where the task stands now.

    Raises:
        NotFound: The caller's tenant has none of that id.
    """
    async with call.runtime.database.tenant(call.principal) as session:
        return await store.summarize_task(session, task_id)


def shown(found: TaskSummary) -> dict[str, Any]:
    """Return the fields of a TaskOutput."""
    task = found.task
    return {
        "task_id": str(task.task_id),
        "context_id": task.context_id,
        "workflow": task.workflow,
        "state": task.state.value,
        "finished": task.state in TERMINAL,
        "message": found.message,
        "version": task.version,
        "artifacts": list(found.artifacts),
        "created_at": task.created_at.isoformat(),
        "updated_at": task.updated_at.isoformat(),
    }


async def watch(call: Call, task_id: UUID, *, after: int, wait_s: float, first_news: bool) -> None:
    """Wait for the task's end, at most so long, and tell the caller each status that comes after position `after`.

    With `first_news` any such status ends the wait, and so does the end of this process. The positions are the
    progress: they only grow. While more than half of the caller's places are taken nobody waits: the tasks themselves
    need some, since their runs call this server as the same user.

    Raises:
        Revoked: The caller's token was revoked while it waited.
        Unavailable: The database is not reachable.
    """
    runtime = call.runtime
    standing = await runtime.limiter.status(call.principal)
    if any(2 * one.running > one.concurrency for one in (standing.tenant, standing.user)):
        return
    with anyio.move_on_after(wait_s):
        feeds = Feeds(database=runtime.database, wakeups=runtime.wakeups)
        events = feeds.follow(call.principal, task_id, after=after, until=runtime.stopping)
        async with aclosing(events):
            async for event in events:
                if event.kind is not EventKind.STATUS:
                    continue
                await call.progress(event.seq, None, event.payload["message"] or event.payload["state"])
                if first_news:
                    return


async def read_artifacts(call: Call, task_id: UUID, *, name: str | None = None, start: int = 0) -> list[ArtifactOutput]:
    """Return what the task made, as much of it as an answer holds; of one artifact alone, from a position on."""
    async with call.runtime.database.tenant(call.principal) as session:
        events = await store.events_after(session, task_id, 0)
    made = [artifact for artifact in fold_artifacts(events) if name is None or artifact.name == name]
    return list(_bounded(task_id, made, start=start))


def documents_of(artifacts: list[ArtifactOutput]) -> tuple[str, ...]:
    """Return the ids of the documents that the artifacts cite."""
    return cited_documents(data for artifact in artifacts for data in artifact.data)


def _bounded(task_id: UUID, made: list[Artifact], *, start: int) -> Iterator[ArtifactOutput]:
    characters_left, bytes_left = MAX_TEXT_CHARS, MAX_DATA_BYTES
    for artifact in made:
        text = "\n\n".join(str(part["text"]) for part in artifact.parts if "text" in part)
        data = [dict(part["data"]) for part in artifact.parts if "data" in part] if start == 0 else []
        size = len(orjson.dumps(data))
        omitted = size > bytes_left
        bytes_left -= 0 if omitted else size
        piece = text[start : start + characters_left]
        characters_left -= len(piece)
        end = min(start, len(text)) + len(piece)
        yield ArtifactOutput(
            name=artifact.name,
            uri=ARTIFACT.uri_of(id=str(task_id), name=artifact.name),
            text=piece,
            start=min(start, len(text)),
            characters=len(text),
            next_start=end if end < len(text) else None,
            data=[] if omitted else data,
            data_omitted=omitted,
        )
