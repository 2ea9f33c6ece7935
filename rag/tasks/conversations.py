"""What tasks ask and are told (docs/adr/0012-conversations.md), in PostgreSQL, as events of their logs.

Above: `workflows.accept`, the worker. Below: `rag.db` and sql/queries/tasks.sql.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from rag.db.pool import Session
from rag.errors import Conflict
from rag.tasks.values import INTERRUPTED, Exchange, Received, TaskState
from sql import load_queries

__all__ = ["ask", "has_message", "read_conversation", "receive", "received_bytes"]

_QUERIES = load_queries("tasks")


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


async def read_conversation(
    session: Session, task_id: UUID, *, after: int = 0
) -> tuple[list[Exchange], list[Received]]:
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


def _message_key(idempotency_key: str | None) -> str | None:
    return None if idempotency_key is None else f"message:{idempotency_key}"


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without its id: whoever sends it again may have made it anew."""
    return {name: value for name, value in message.items() if name != "message_id"}
