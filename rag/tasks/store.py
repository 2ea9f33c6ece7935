"""Tasks and their logs in PostgreSQL, for one tenant at a time. The log is the truth: all replicas read the same rows.

Above: both faces and the worker. Below: `rag.db` and sql/queries/tasks.sql. Sessions are passed in, so that a caller
decides what shares a transaction. Whose tasks a session sees is row-level security's (docs/adr/0011-task-readers.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from rag.db.pool import Database, Row, Session
from rag.errors import Conflict, NotFound
from rag.identity.principal import Principal
from rag.identity.scopes import parse_scopes
from rag.tasks.values import (
    INTERRUPTED,
    Begun,
    CallKind,
    Created,
    EventKind,
    Exchange,
    Grant,
    NewTask,
    Received,
    Task,
    TaskCount,
    TaskEvent,
    TaskFilter,
    TaskState,
    TaskSummary,
    Usage,
)
from sql import load_queries

__all__ = [
    "append",
    "append_alone",
    "ask",
    "begin_call",
    "cancel",
    "complete",
    "conversation",
    "count_own_tasks",
    "count_tasks",
    "create_task",
    "create_task_alone",
    "events_after",
    "events_after_alone",
    "events_of",
    "finish_call",
    "get_task",
    "has_message",
    "list_tasks",
    "receive",
    "received_bytes",
    "status_payload",
    "summarize_task",
    "usage_of",
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
    fence: int,
    key: str,
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


async def ask(
    session: Session, task_id: UUID, state: TaskState, payload: Mapping[str, Any], *, fence: int, wait_s: float
) -> int:
    """Have the task ask (one of INTERRUPTED), park its run until it is answered, `wait_s` seconds at most, and return
    the question's seq. The fence is outdated afterwards.

    Raises:
        FenceLost, TaskNotCancelable: As `append`.
    """
    assert state in INTERRUPTED
    return int(
        await session.fetch_value(
            _QUERIES["ask"], task_id=task_id, fence=fence, state=state.value, payload=dict(payload), wait_s=wait_s
        )
    )


async def receive(
    session: Session,
    task_id: UUID,
    message: Mapping[str, Any],
    *,
    answers: int | None,
    takes: bool,
    idempotency_key: str | None = None,
) -> int:
    """Take a message of the task's own subject, and return its seq; sent again under the same key, it is the same one.

    Args:
        session: The sender's.
        task_id: Of a task that the sender sees.
        message: As `NewTask.message`.
        answers: Seq of the question that it answers: the run goes on. None: it is told to a run at work.
        takes: Whether a run at work looks at messages.
        idempotency_key: The sender's own name for the message.

    Raises:
        Forbidden: The task is another subject's.
        TaskNotCancelable: It has ended.
        TaskBusy: It waits for no such answer (any more), or takes no message while it works.
        Conflict: The key stands for another message.
    """
    seq = int(
        await session.fetch_value(
            _QUERIES["receive_message"],
            task_id=task_id,
            message=dict(message),
            key=_message_key(idempotency_key),
            answers=answers,
            takes=takes,
        )
    )
    if idempotency_key is not None:
        rows = await session.fetch(_QUERIES["conversation"], task_id=task_id, after=seq - 1)
        if _said(rows[0]["payload"]["received"]) != _said(message):
            raise Conflict("this idempotency key stands for another message of yours; choose another key")
    return seq


async def has_message(session: Session, task_id: UUID, idempotency_key: str) -> bool:
    """Return whether the task was sent a message under that key."""
    key = _message_key(idempotency_key)
    return await session.fetch_value(_QUERIES["find_message"], task_id=task_id, key=key) is not None


async def received_bytes(session: Session, task_id: UUID) -> int:
    """Return how much the task was sent since it was accepted, as JSON."""
    return int(await session.fetch_value(_QUERIES["received_bytes"], task_id=task_id))


async def conversation(session: Session, task_id: UUID, *, after: int = 0) -> tuple[list[Exchange], list[Received]]:
    """Return what the log holds after a position of questions with their answers, and of other messages."""
    asked: dict[int, Exchange] = {}
    told: list[Received] = []
    for row in await session.fetch(_QUERIES["conversation"], task_id=task_id, after=after):
        payload = row["payload"]
        if "form" in payload:
            asked[row["seq"]] = Exchange(seq=row["seq"], key=payload["ask"], form=payload["form"])
            continue
        received = Received(seq=row["seq"], message=payload["received"])
        if payload["answers"] is None:
            told.append(received)
        elif payload["answers"] in asked:
            asked[payload["answers"]] = replace(asked[payload["answers"]], answer=received)
    return list(asked.values()), told


async def begin_call(
    session: Session,
    task_id: UUID,
    key: str,
    *,
    fence: int,
    kind: CallKind,
    name: str,
    max_calls: int,
    max_tokens: int,
) -> Begun:
    """Begin a call to the outside, or learn what it came to when it was made before.

    Raises:
        FenceLost: `fence` is outdated.
    """
    row = await session.fetch_one(
        _QUERIES["begin_call"],
        task_id=task_id,
        fence=fence,
        key=key,
        kind=kind.value,
        name=name,
        max_calls=max_calls,
        max_tokens=max_tokens,
    )
    assert row is not None
    return Begun(refused=row["refused"], result=row["result"], attempt=row["attempts"], usage=_usage(row))


async def finish_call(
    session: Session,
    task_id: UUID,
    key: str,
    result: Mapping[str, Any],
    *,
    fence: int,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> None:
    """Record what a call came to. The first record stands.

    Raises:
        FenceLost: `fence` is outdated.
    """
    await session.fetch_value(
        _QUERIES["finish_call"],
        task_id=task_id,
        fence=fence,
        key=key,
        result=dict(result),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


async def usage_of(session: Session, task_id: UUID) -> Usage:
    """Return what the task's calls come to; only its own subject sees them."""
    row = await session.fetch_one(_QUERIES["usage"], task_id=task_id)
    assert row is not None
    return _usage(row)


async def cancel(session: Session, task_id: UUID) -> None:
    """End the task as canceled; its worker loses the run in the same moment.

    Raises:
        NotFound: There is none of that id that the session's caller sees.
        TaskNotCancelable: It has already ended.
    """
    await get_task(session, task_id)
    payload = status_payload(TaskState.CANCELED, "canceled on request")
    await append(session, task_id, EventKind.STATUS, payload, fence=None, state=TaskState.CANCELED)


def status_payload(state: TaskState, message: str | None, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the payload of a status event."""
    return {"state": state.value, "message": message, "metadata": dict(metadata or {})}


def _message_key(idempotency_key: str | None) -> str | None:
    return None if idempotency_key is None else f"message:{idempotency_key}"


def _asks_the_same(row: Row, new: NewTask) -> bool:
    if row["request_hash"] != new.request_hash:
        return False
    return new.request_hash is not None or (row["workflow"], row["input"]) == (new.workflow, dict(new.input))


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without its id: whoever sends it again may have made it anew."""
    return {name: value for name, value in message.items() if name != "message_id"}


def _filters(wanted: TaskFilter) -> dict[str, object]:
    return {
        "context_id": wanted.context_id,
        "state": wanted.state.value if wanted.state else None,
        "since": wanted.since,
    }


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


def _usage(row: Row) -> Usage:
    return Usage(
        calls=row["calls"],
        repeated=row["repeated"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
    )


def _event(row: Row) -> TaskEvent:
    return TaskEvent(seq=row["seq"], kind=EventKind(row["kind"]), payload=row["payload"], created_at=row["created_at"])
