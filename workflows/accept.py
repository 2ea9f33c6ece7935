"""Accepting a task: which workflow is asked for, whether the caller may have it run, and the row that makes it durable.

Above: both faces, whose protocols call it SendMessage and delegate_task. Below: `registry`, `rag.tasks.store`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from rag.db.pool import Database, Session
from rag.errors import Conflict, TaskBusy, TaskNotCancelable
from rag.identity.principal import Principal, require
from rag.tasks import conversations, store
from rag.tasks.values import TERMINAL, Created, NewTask
from rag.telemetry import carrier, log_fields
from workflows.forms import read_form, read_reply
from workflows.registry import EVERY, WORKFLOWS, find_workflow
from workflows.workflow import Workflow

__all__ = ["Also", "Asked", "accept", "new_task", "tell"]

_log = logging.getLogger(__name__)
MAX_RECEIVED_BYTES = 16 * 2**20
"""A working task that was told this much is told no more: whoever reads the task reads all of it."""
Also = Callable[[Session, UUID], Awaitable[None]]
"""What is to be done for the task in the transaction that takes a message; if it fails, nothing is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller wants done."""

    text: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the workflow takes besides the text."""
    workflow: str | None = None
    """None: the first of the registry."""
    among: Sequence[Workflow] = WORKFLOWS
    """What may be asked for."""
    context_id: str | None = None
    """Groups tasks of one conversation; None: one of its own."""
    message: Mapping[str, Any]
    """The caller's message as the log keeps it; see `rag.tasks.values.NewTask`."""
    idempotency_key: str | None = None
    """See `rag.tasks.values.NewTask`."""
    request_hash: bytes | None = None
    """See `rag.tasks.values.NewTask`."""


def new_task(principal: Principal, asked: Asked) -> NewTask:
    """Return the task that `principal` would have by this; nothing is stored.

    Raises:
        InvalidInput: There is no such workflow, or it cannot make anything of the text.
        Forbidden: The caller lacks a scope that the workflow needs.
    """
    workflow = find_workflow(asked.workflow, asked.among)
    for scope in sorted(workflow.scopes):
        require(principal, scope)
    return NewTask(
        task_id=uuid4(),
        context_id=asked.context_id or str(uuid4()),
        workflow=workflow.name,
        input=workflow.parse(asked.text, asked.options),
        message=asked.message,
        traceparent=carrier().get("traceparent"),
        idempotency_key=asked.idempotency_key,
        request_hash=asked.request_hash,
    )


async def accept(database: Database, principal: Principal, asked: Asked, *, also: Also | None = None) -> Created:
    """Store a new task for what is asked, which then runs to its end whatever becomes of the caller; or store nothing.

    `also` is done for a new task, and not again for one that stood under the caller's key.

    Raises:
        InvalidInput, Forbidden: As `new_task`.
        Conflict: The caller's key stands for another task.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    new = new_task(principal, asked)
    if also is None:
        made = await store.create_task_alone(database, principal, new)
    else:
        async with database.tenant(principal) as session:
            made = await store.create_task(session, principal, new)
            if made.created:
                await also(session, made.task_id)
    with log_fields(task=str(made.task_id)):
        _log.info("accepted a task for %s%s", new.workflow, "" if made.created else ", again")
    return made


async def tell(
    database: Database,
    principal: Principal,
    task_id: UUID,
    message: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    also: Also | None = None,
) -> int:
    """Take a message to a task that there is: the answer to what it asks, or something more for it to look at.

    It is handed to the task's run, or refused; nothing in between. Returns its place in the task's log.

    Raises:
        NotFound: The caller sees no such task.
        InvalidInput: It does not answer what the task asks.
        Forbidden: The task is another subject's.
        TaskBusy: The task works, and its workflow looks at no messages meanwhile, or has been sent enough.
        Conflict: The task has ended, or the key stands for another message.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    async with database.tenant(principal) as session:
        task = await store.get_task(session, task_id)
        again = idempotency_key is not None and await conversations.has_message(session, task_id, idempotency_key)
        if task.asked is not None and not again:
            (exchange, *_), _ = await conversations.read_conversation(session, task_id, after=task.asked - 1)
            read_reply(read_form(exchange.form), message)
        works = task.asked is None and task.state not in TERMINAL
        if works and not again and await conversations.received_bytes(session, task_id) > MAX_RECEIVED_BYTES:
            raise TaskBusy("the task has been sent as much as it takes; wait for its end")
        try:
            position = await conversations.receive(
                session,
                task_id,
                message,
                answers=task.asked,
                takes=find_workflow(task.workflow, EVERY).takes_messages,
                idempotency_key=idempotency_key,
            )
        except TaskNotCancelable:
            raise Conflict("the task has ended; start a new one in the same context") from None
        if also is not None and not again:
            await also(session, task_id)
        return position
