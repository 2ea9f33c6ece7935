"""Tasks and their logs in PostgreSQL, for one tenant at a time. The log is the truth: all replicas read the same rows.

Above: both faces and the worker. Below: `rag.db` and sql/queries/tasks.sql. Sessions are passed in, so that a caller
decides what shares a transaction. Whose tasks a session sees is row-level security's (docs/adr/0011-task-readers.md).
Beside it: `conversations`, what tasks ask and are told; `calls`, what their runs do to the outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from rag.db.pool import Database, Row, Session
from rag.errors import Conflict, NotFound
from rag.identity.principal import Principal
from rag.identity.scopes import parse_scopes
from rag.tasks.values import (
    Claim,
    Created,
    EventKind,
    Grant,
    NewTask,
    Task,
    TaskCount,
    TaskEvent,
    TaskFilter,
    TaskState,
    TaskSummary,
)
from sql import load_queries

__all__ = [
    "append",
    "append_alone",
    "cancel",
    "complete",
    "count_own_tasks",
    "count_tasks",
    "create_task",
    "create_task_alone",
    "events_after",
    "events_after_alone",
    "events_of",
    "get_task",
    "list_tasks",
    "read_claimed",
    "read_task",
    "status_payload",
    "summarize_task",
]

_QUERIES = load_queries("tasks")


async def create_task(session: Session, principal: Principal, new: NewTask) -> Created:
    """Accept a task: its row, its first event (seq 1) and its place in the queue, all or nothing.

    Where the caller has a task under the same idempotency key, that one stands and nothing is written.

    Raises:
        InvalidInput: The context id or the key has a bad length, or a text holds a NUL character.
        Conflict: What was asked for under that key is something else.
    """
    row = await session.fetch_one(_QUERIES["create_task"], **_new(principal, new))
    assert row is not None
    return _created(row, new)


async def create_task_alone(database: Database, principal: Principal, new: NewTask) -> Created:
    """As `create_task`, in a transaction of its own that is one round trip.

    Raises:
        InvalidInput, Conflict: As there.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    (row,) = await database.fetch_sealed(_QUERIES["create_task_alone"], principal, **_new(principal, new))
    return _created(row, new)


def _new(principal: Principal, new: NewTask) -> dict[str, Any]:
    grant = Grant.of(principal)
    return {
        "task_id": new.task_id,
        "context_id": new.context_id,
        "workflow": new.workflow,
        "input": dict(new.input),
        "message": dict(new.message),
        "scopes": sorted(scope.value for scope in grant.scopes),
        "groups": list(grant.groups),
        "team": grant.team,
        "token_ids": list(grant.token_ids),
        "token_issued_at": grant.issued_at,
        "traceparent": new.traceparent,
        "key": new.idempotency_key,
        "hash": new.request_hash,
    }


def _created(row: Row, new: NewTask) -> Created:
    if not row["created"] and not _asks_the_same(row, new):
        raise Conflict("this idempotency key stands for another task of yours; choose another key")
    return Created(task_id=row["task_id"], context_id=row["context_id"], created=row["created"])


async def get_task(session: Session, task_id: UUID) -> Task:
    """Return the task.

    Raises:
        NotFound: There is none of that id that the session's caller sees.
    """
    row = await session.fetch_one(_QUERIES["get_task"], task_id=task_id)
    if row is None:
        raise NotFound("there is no such task")
    return _task(row)


async def read_task(
    database: Database, principal: Principal, task_id: UUID, *, after: int | None = 0
) -> tuple[Task, list[TaskEvent]]:
    """Return the task with the events of its log after a position (None: without any), in one round trip.

    Raises:
        NotFound: There is none of that id that the principal sees.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    query = _QUERIES["read_task_alone"]
    return _with_log(await database.fetch_sealed(query, principal, task_id=task_id, after=after))


async def read_claimed(database: Database, claim: Claim) -> Task:
    """Return the task that a worker has claimed.

    Raises:
        NotFound: It was deleted meanwhile.
        SealRefused, Revoked, Unavailable: As `Database.sealed`.
    """
    query = _QUERIES["read_task_alone"]
    task, _ = _with_log(await database.fetch_under(query, claim.seal, task_id=claim.task_id, after=None))
    return task


async def summarize_task(session: Session, task_id: UUID) -> TaskSummary:
    """Return the task with its latest status and the names of its artifacts.

    Raises:
        NotFound: There is none of that id that the session's caller sees.
    """
    row = await session.fetch_one(_QUERIES["summarize_task"], task_id=task_id)
    if row is None:
        raise NotFound("there is no such task")
    return TaskSummary(task=_task(row), message=row["message"], artifacts=tuple(row["artifacts"]))


async def count_own_tasks(session: Session, principal: Principal) -> dict[TaskState, TaskCount]:
    """Return how many tasks the caller itself has started, by the state that they are in; states without any are left
    out.
    """
    rows = await session.fetch(_QUERIES["count_own"], subject=principal.subject)
    return {TaskState(row["state"]): TaskCount(tasks=row["tasks"], this_month=row["this_month"]) for row in rows}


async def list_tasks(
    session: Session, wanted: TaskFilter, *, page_size: int, before: tuple[datetime, UUID] | None = None
) -> list[Task]:
    """Return up to `page_size` tasks, latest change first, that come after the position `before`."""
    rows = await session.fetch(
        _QUERIES["list_tasks"],
        **_filters(wanted),
        before_time=before[0] if before else None,
        before_id=before[1] if before else None,
        page_size=page_size,
    )
    return [_task(row) for row in rows]


async def count_tasks(session: Session, wanted: TaskFilter) -> int:
    """Return how many of the tasks that the session's caller sees the filter matches."""
    return int(await session.fetch_value(_QUERIES["count_tasks"], **_filters(wanted)))


async def events_after(session: Session, task_id: UUID, after: int) -> list[TaskEvent]:
    """Return the events of the log with a seq greater than `after`, in order."""
    return [_event(row) for row in await session.fetch(_QUERIES["events_after"], task_id=task_id, after=after)]


async def events_after_alone(database: Database, principal: Principal, task_id: UUID, after: int) -> list[TaskEvent]:
    """As `events_after`, in a transaction of its own that is one round trip.

    Raises:
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    query = _QUERIES["events_after_alone"]
    return [_event(row) for row in await database.fetch_sealed(query, principal, task_id=task_id, after=after)]


async def events_of(session: Session, task_ids: Sequence[UUID], *, artifacts: bool) -> dict[UUID, list[TaskEvent]]:
    """Return the logs of several tasks; without artifact events unless asked for."""
    logs: dict[UUID, list[TaskEvent]] = {task_id: [] for task_id in task_ids}
    for row in await session.fetch(_QUERIES["events_of"], task_ids=list(task_ids), artifacts=artifacts):
        logs[row["task_id"]].append(_event(row))
    return logs


async def append(
    session: Session,
    task_id: UUID,
    kind: EventKind,
    payload: Mapping[str, Any],
    *,
    fence: int | None,
    key: str | None = None,
    state: TaskState | None = None,
) -> int:
    """Append one event, moving the task to `state` if given, and return its seq.

    With a `key` that the log already holds nothing is appended and the seq that it has there is returned.

    Raises:
        FenceLost: `fence` is outdated: another worker owns the run, or it has ended.
        TaskNotCancelable: The task has ended, or may not become `state`.
    """
    return int(
        await session.fetch_value(
            _QUERIES["append_event"],
            task_id=task_id,
            fence=fence,
            kind=kind.value,
            payload=dict(payload),
            key=key,
            state=state.value if state else None,
            read=None,
        )
    )


async def append_alone(
    database: Database,
    principal: Principal,
    task_id: UUID,
    kind: EventKind,
    payload: Mapping[str, Any],
    *,
    fence: int | None,
    key: str | None,
    state: TaskState | None,
) -> int:
    """As `append`, in a transaction of its own that is one round trip.

    Raises:
        FenceLost, TaskNotCancelable: As there.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    (row,) = await database.fetch_sealed(
        _QUERIES["append_event_alone"],
        principal,
        task_id=task_id,
        fence=fence,
        kind=kind.value,
        payload=dict(payload),
        key=key,
        state=state.value if state else None,
        read=None,
    )
    return int(row["seq"])


async def complete(
    database: Database,
    principal: Principal,
    task_id: UUID,
    payload: Mapping[str, Any],
    *,
    fence: int,
    key: str,
    read: int,
) -> bool:
    """End the task as completed; or return False, having written nothing, while it has a message later than `read`.

    Raises:
        FenceLost, TaskNotCancelable: As `append`.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    (row,) = await database.fetch_sealed(
        _QUERIES["append_event_alone"],
        principal,
        task_id=task_id,
        fence=fence,
        kind=EventKind.STATUS.value,
        payload=dict(payload),
        key=key,
        state=TaskState.COMPLETED.value,
        read=read,
    )
    return row["seq"] is not None


async def cancel(database: Database, principal: Principal, task_id: UUID) -> None:
    """End the task as canceled; its worker loses the run in the same moment.

    Raises:
        NotFound: There is none of that id that the principal sees.
        TaskNotCancelable: It has already ended.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    await read_task(database, principal, task_id, after=None)
    payload = status_payload(TaskState.CANCELED, "canceled on request")
    await append_alone(
        database, principal, task_id, EventKind.STATUS, payload, fence=None, key=None, state=TaskState.CANCELED
    )


def status_payload(state: TaskState, message: str | None, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the payload of a status event."""
    return {"state": state.value, "message": message, "metadata": dict(metadata or {})}


def _asks_the_same(row: Row, new: NewTask) -> bool:
    if row["request_hash"] != new.request_hash:
        return False
    return new.request_hash is not None or (row["workflow"], row["input"]) == (new.workflow, dict(new.input))


def _filters(wanted: TaskFilter) -> dict[str, object]:
    return {
        "context_id": wanted.context_id,
        "state": wanted.state.value if wanted.state else None,
        "since": wanted.since,
    }


def _with_log(rows: Sequence[Row]) -> tuple[Task, list[TaskEvent]]:
    if not rows:
        raise NotFound("there is no such task")
    (row,) = rows
    if row["seqs"] is None:
        return _task(row), []
    columns = zip(row["seqs"], row["kinds"], row["payloads"], row["times"], strict=True)
    log = [TaskEvent(seq=seq, kind=EventKind(kind), payload=said, created_at=at) for seq, kind, said, at in columns]
    return _task(row), log


def _task(row: Row) -> Task:
    return Task(
        tenant_id=row["tenant_id"],
        task_id=row["task_id"],
        context_id=row["context_id"],
        workflow=row["workflow"],
        state=TaskState(row["state"]),
        version=row["version"],
        input=row["input"],
        grant=Grant(
            subject=row["subject"],
            scopes=parse_scopes(" ".join(row["scopes"])),
            groups=tuple(row["groups"]),
            team=row["team"],
            token_ids=tuple(row["token_ids"]),
            issued_at=row["token_issued_at"],
        ),
        traceparent=row["traceparent"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        asked=row["asked"],
        answer_by=row["answer_by"],
        compacted_to=row["compacted_to"],
    )


def _event(row: Row) -> TaskEvent:
    return TaskEvent(seq=row["seq"], kind=EventKind(row["kind"]), payload=row["payload"], created_at=row["created_at"])
