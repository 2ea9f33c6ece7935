"""A2A's eleven methods on the task log. Everything durable is in PostgreSQL: any replica answers anything.

Above: the SDK's dispatcher. Below: `protocol` (pure), `workflows.accept`, `rag.tasks`. The tenant comes from the token
alone; the `tenant` field of a request is compared with it and never used.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import (
    A2AError,
    ExtendedAgentCardNotConfiguredError,
    InternalError,
    PushNotificationNotSupportedError,
    UnsupportedOperationError,
)
from a2a.utils.proto_utils import validate_proto_required_fields

from a2a_server.errors import a2a_error
from a2a_server.protocol import incoming, outgoing
from a2a_server.protocol.incoming import Sent
from rag.db.listener import Wakeups
from rag.db.pool import Database, Session
from rag.errors import BulkheadError, InvalidInput, TaskBusy
from rag.identity import cursors
from rag.identity.principal import Principal
from rag.tasks import store
from rag.tasks.feed import follow
from rag.tasks.values import TERMINAL, Task, TaskEvent
from workflows.accept import Asked, accept

__all__ = ["TaskHandler"]

_log = logging.getLogger(__name__)
LONGEST_BLOCK_S = 600.0
"""SendMessage answers with the task as it stands after this long, and when the server stops."""
_CURSOR = "tasks"


class TaskHandler(RequestHandler):
    """Satisfies the SDK's RequestHandler; nothing but A2AError leaves it."""

    def __init__(self, *, database: Database, wakeups: Wakeups, cursor_key: bytes, stopping: anyio.Event) -> None:
        """What is passed in stays its owner's to close, and to set."""
        self._database = database
        self._wakeups = wakeups
        self._cursor_key = cursor_key
        self._stopping = stopping

    async def on_message_send(self, params: pb.SendMessageRequest, context: ServerCallContext) -> pb.Task:
        """SendMessage (3.1.1): accept, and unless told otherwise wait for the end."""
        with _answering():
            principal = _caller(params, context)
            sent = incoming.sent_message(params)
            task_id = await self._accept(principal, sent)
            if sent.wait:
                with anyio.move_on_after(LONGEST_BLOCK_S):
                    async with aclosing(self._follow(principal, task_id, after=1, until=self._stopping)) as events:
                        async for _ in events:
                            pass
            return await self._snapshot(principal, task_id, history_length=sent.history_length)

    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[outgoing.StreamEvent]:
        """SendStreamingMessage (3.1.2): the task, then its events to the end."""
        with _answering():
            principal = _caller(params, context)
            sent = incoming.sent_message(params)
            task_id = await self._accept(principal, sent)
            async with self._database.tenant(principal) as session:
                task, events = await _read(session, task_id)
            yield outgoing.task_message(task, events, history_length=sent.history_length)
            async with aclosing(self._messages(principal, task, after=task.version)) as messages:
                async for message in messages:
                    yield message

    async def on_subscribe_to_task(
        self, params: pb.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[outgoing.StreamEvent]:
        """SubscribeToTask (3.1.6): the task, then its events to the end; after `Last-Event-ID` only what follows it.

        A task that has ended is refused, unless a reconnecting client still lacks the last of its events.
        """
        with _answering():
            principal = _caller(params, context)
            async with self._database.tenant(principal) as session:
                task, events = await _read(session, incoming.task_id_of(params.id))
            position = incoming.last_event_id_of(context.state["headers"].get("last-event-id"), version=task.version)
            missed = position is not None and position < task.version
            if task.state in TERMINAL and not missed:
                raise UnsupportedOperationError("the task has ended; read it with GetTask")
            if position is None:
                position = task.version
                yield outgoing.task_message(task, events)
            async with aclosing(self._messages(principal, task, after=position)) as messages:
                async for message in messages:
                    yield message

    async def on_get_task(self, params: pb.GetTaskRequest, context: ServerCallContext) -> pb.Task:
        """GetTask (3.1.3)."""
        with _answering():
            principal = _caller(params, context)
            history_length = incoming.history_length_of(params)
            return await self._snapshot(principal, incoming.task_id_of(params.id), history_length=history_length)

    async def on_list_tasks(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """ListTasks (3.1.4): latest change first, paged by a signed cursor."""
        with _answering():
            principal = _caller(params, context)
            wanted, size = incoming.list_filter_of(params), incoming.page_size_of(params)
            history_length = incoming.history_length_of(params)
            before = self._position(principal, params.page_token) if params.page_token else None
            async with self._database.tenant(principal) as session:
                tasks = await store.list_tasks(session, wanted, page_size=size + 1, before=before)
                total = await store.count_tasks(session, wanted)
                page = tasks[:size]
                ids = [task.task_id for task in page]
                logs = await store.events_of(session, ids, artifacts=params.include_artifacts)
            response = pb.ListTasksResponse(page_size=size, total_size=total)
            response.tasks.extend(
                outgoing.task_message(
                    task, logs[task.task_id], history_length=history_length, artifacts=params.include_artifacts
                )
                for task in page
            )
            if len(tasks) > size:
                last = [page[-1].updated_at.isoformat(), str(page[-1].task_id)]
                response.next_page_token = cursors.mint(self._cursor_key, _CURSOR, principal.tenant_id, last)
            return response

    async def on_cancel_task(self, params: pb.CancelTaskRequest, context: ServerCallContext) -> pb.Task:
        """CancelTask (3.1.5): durable when it returns; the worker stops within milliseconds."""
        with _answering():
            principal = _caller(params, context)
            task_id = incoming.task_id_of(params.id)
            async with self._database.tenant(principal) as session:
                await store.cancel(session, task_id)
            return await self._snapshot(principal, task_id)

    async def on_create_task_push_notification_config(self, params: Any, context: ServerCallContext) -> Any:
        """Not supported: the card says so."""
        del params, context
        raise PushNotificationNotSupportedError

    async def on_get_task_push_notification_config(self, params: Any, context: ServerCallContext) -> Any:
        """Not supported: the card says so."""
        del params, context
        raise PushNotificationNotSupportedError

    async def on_list_task_push_notification_configs(self, params: Any, context: ServerCallContext) -> Any:
        """Not supported: the card says so."""
        del params, context
        raise PushNotificationNotSupportedError

    async def on_delete_task_push_notification_config(self, params: Any, context: ServerCallContext) -> None:
        """Not supported: the card says so."""
        del params, context
        raise PushNotificationNotSupportedError

    async def on_get_extended_agent_card(self, params: Any, context: ServerCallContext) -> pb.AgentCard:
        """Not configured: the public card is the whole card."""
        del params, context
        raise ExtendedAgentCardNotConfiguredError

    async def _accept(self, principal: Principal, sent: Sent) -> UUID:
        """Accept a new task for the message, or say why it cannot be taken.

        Raises:
            NotFound, InvalidInput, Forbidden, TaskBusy, UnsupportedOperationError: Nothing was stored.
        """
        if sent.task_id is not None:
            await self._refuse_follow_up(principal, sent, sent.task_id)
        asked = Asked(text=sent.text, workflow=sent.skill, context_id=sent.context_id, message=sent.message)
        return (await accept(self._database, principal, asked)).task_id

    async def _refuse_follow_up(self, principal: Principal, sent: Sent, task_id: UUID) -> None:
        """No workflow asks back yet, so every message to an existing task is refused, each with its own reason."""
        async with self._database.tenant(principal) as session:
            task = await store.get_task(session, task_id)
        if sent.context_id is not None and sent.context_id != task.context_id:
            raise InvalidInput("contextId is not the context of this task")
        if task.state in TERMINAL:
            raise UnsupportedOperationError("the task has ended; start a new one in the same context")
        raise TaskBusy("the task is working and takes no message now; wait for its end or cancel it")

    async def _snapshot(self, principal: Principal, task_id: UUID, *, history_length: int | None = None) -> pb.Task:
        async with self._database.tenant(principal) as session:
            task, events = await _read(session, task_id)
        return outgoing.task_message(task, events, history_length=history_length)

    def _follow(
        self, principal: Principal, task_id: UUID, *, after: int, until: anyio.Event | None = None
    ) -> AsyncGenerator[TaskEvent]:
        return follow(self._database, self._wakeups, principal, task_id, after=after, until=until)

    async def _messages(self, principal: Principal, task: Task, *, after: int) -> AsyncGenerator[outgoing.StreamEvent]:
        async with aclosing(self._follow(principal, task.task_id, after=after)) as events:
            async for event in events:
                yield outgoing.event_message(task, event)

    def _position(self, principal: Principal, token: str) -> tuple[datetime, UUID]:
        time, task_id = cursors.read(self._cursor_key, _CURSOR, principal.tenant_id, token)
        return datetime.fromisoformat(time), UUID(task_id)


async def _read(session: Session, task_id: UUID) -> tuple[Task, list[TaskEvent]]:
    task = await store.get_task(session, task_id)
    return task, await store.events_after(session, task_id, 0)


def _caller(params: Any, context: ServerCallContext) -> Principal:
    """Return who calls, once the request's own claim of a tenant agrees with the token's.

    Raises:
        InvalidInput: The `tenant` field names another tenant.
        InvalidParamsError: A required field is missing.
    """
    principal: Principal = context.state["principal"]
    if params.tenant not in {"", str(principal.tenant_id)}:
        raise InvalidInput("tenant is not the tenant of the token")
    validate_proto_required_fields(params)
    return principal


@contextmanager
def _answering() -> Generator[None]:
    """Let only A2A errors out, with nothing in them that is not the caller's.

    NOTE: `from None`: the SDK records what is raised here, chain and all, in spans; a driver's text may quote rows.
    """
    try:
        yield
    except A2AError:
        raise
    except BulkheadError as exc:
        raise a2a_error(exc) from None
    except Exception:  # noqa: BLE001  # what is not ours to tell becomes an error without a text
        _log.exception("a request failed")
        raise InternalError from None
