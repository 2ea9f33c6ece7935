"""A2A's eleven methods on the task log. Everything durable is in PostgreSQL: any replica answers anything.

Above: `guard`, which has checked who calls and turns what is raised here into A2A errors. Below: `protocol` (pure),
`workflows.accept`, `rag.tasks`. The tenant is the caller's; the `tenant` field of a request is never used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from datetime import datetime
from uuid import UUID

import anyio
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import PushNotificationNotSupportedError, UnsupportedOperationError

from a2a_server.card import Cards
from a2a_server.once import Once
from a2a_server.protocol import incoming, outgoing
from a2a_server.protocol.idempotency import IdempotencyKey, idempotency_key
from a2a_server.protocol.incoming import Sent
from a2a_server.push import PushConfigs
from rag.db.listener import Wakeups
from rag.db.pool import Database, Session
from rag.errors import InvalidInput, Unauthenticated, Unavailable
from rag.identity import cursors
from rag.identity.principal import Principal
from rag.tasks import store
from rag.tasks.feed import Feeds, brings
from rag.tasks.values import INTERRUPTED, TERMINAL, Task, TaskEvent, TaskState
from workflows.accept import Also, Asked, accept, tell
from workflows.registry import WORKFLOWS
from workflows.workflow import Workflow

__all__ = ["TaskHandler"]

LONGEST_BLOCK_S = 600.0
"""SendMessage answers with the task as it stands after this long, and when the server stops."""
MAX_PAGE_BYTES = 3 * 2**20
"""A page of tasks ends early where it would be larger: clients of gRPC take 4 MiB unless told otherwise."""
READ_AT_ONCE = 10
"""Logs for a page are read so many at a time: a log may hold mebibytes."""
_CURSOR = "tasks"
_RESTING = TERMINAL | INTERRUPTED
"""Nothing happens in these until the caller does something: whoever waits on a message is answered (3.2.2, 11.7)."""


class TaskHandler(RequestHandler):
    """Satisfies the SDK's RequestHandler, but for its errors: ours leave it as they are."""

    workflows: Sequence[Workflow] = WORKFLOWS
    """What callers may ask for."""

    def __init__(
        self,
        *,
        database: Database,
        wakeups: Wakeups,
        cursor_key: bytes,
        stopping: anyio.Event,
        cards: Cards,
        push: PushConfigs | None,
    ) -> None:
        """What is passed in stays its owner's to close, and to set. Without `push` there are no webhooks."""
        self._database = database
        self._feeds = Feeds(database=database, wakeups=wakeups)
        self._cursor_key = cursor_key
        self._stopping = stopping
        self._cards = cards
        self._push = push
        self._told = Once(_told)

    async def on_message_send(self, params: pb.SendMessageRequest, context: ServerCallContext) -> pb.Task | pb.Message:
        """SendMessage (3.1.1): take the message, and unless told otherwise wait until the task ends or asks."""
        principal = _caller(context)
        sent = self.sent(params)
        key = idempotency_key(context.state["headers"], params)
        task_id, position = await self._take(principal, sent, key)
        if sent.wait:
            with anyio.move_on_after(LONGEST_BLOCK_S):
                await self._rest(principal, task_id, after=position)
        return await self._snapshot(principal, task_id, history_length=sent.history_length)

    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[outgoing.StreamEvent | pb.Message]:
        """SendStreamingMessage (3.1.2): the task, then its events until it ends or asks."""
        principal = _caller(context)
        sent = self.sent(params)
        key = idempotency_key(context.state["headers"], params)
        task_id, _ = await self._take(principal, sent, key)
        task, events = await store.read_task(self._database, principal, task_id)
        yield outgoing.task_message(task, events, history_length=sent.history_length)
        if task.state not in _RESTING:
            messages = self._messages(principal, task, after=task.version, stops=_RESTING)
            async with aclosing(messages) as following:
                async for message in following:
                    yield message

    async def on_subscribe_to_task(
        self, params: pb.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[outgoing.StreamEvent]:
        """SubscribeToTask (3.1.6): the task, then its events to the end; after `Last-Event-ID` only what follows it.

        A task that has ended is refused, unless a reconnecting client still lacks the last of its events.
        """
        principal = _caller(context)
        last_event_id = context.state["headers"].get("last-event-id")
        task_id = incoming.task_id_of(params.id)
        # whoever comes back has all but the last events
        whole = None if last_event_id else 0
        task, events = await store.read_task(self._database, principal, task_id, after=whole)
        position = incoming.last_event_id_of(last_event_id, version=task.version)
        if task.state in TERMINAL and (position is None or position == task.version):
            raise UnsupportedOperationError("the task has ended; read it with GetTask")
        if position is not None and position < task.compacted_to:
            # of a log that was compacted since, the snapshot tells what the missing events came to
            position = None
        if position is None:
            if whole is None:
                task, events = await store.read_task(self._database, principal, task_id)
            position = task.version
            yield outgoing.task_message(task, events)
            if task.state in TERMINAL:
                return
        async with aclosing(self._messages(principal, task, after=position)) as messages:
            async for message in messages:
                yield message

    async def on_get_task(self, params: pb.GetTaskRequest, context: ServerCallContext) -> pb.Task:
        """GetTask (3.1.3)."""
        principal = _caller(context)
        history_length = incoming.history_length_of(params)
        return await self._snapshot(principal, incoming.task_id_of(params.id), history_length=history_length)

    async def on_list_tasks(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """ListTasks (3.1.4): latest change first, paged by a signed cursor."""
        principal = _caller(context)
        wanted, size = incoming.list_filter_of(params), incoming.page_size_of(params)
        history_length = incoming.history_length_of(params)
        before = self._position(principal, params.page_token) if params.page_token else None
        async with self._database.tenant(principal) as session:
            tasks = await store.list_tasks(session, wanted, page_size=size + 1, before=before)
            total = await store.count_tasks(session, wanted)
            response = pb.ListTasksResponse(page_size=size, total_size=total)
            messages = _listed(session, tasks[:size], history_length, artifacts=params.include_artifacts)
            async with aclosing(messages) as listed:
                async for message in listed:
                    response.tasks.append(message)
        if len(tasks) > len(response.tasks):
            end = tasks[len(response.tasks) - 1]
            last = [end.updated_at.isoformat(), str(end.task_id)]
            response.next_page_token = cursors.mint(self._cursor_key, _CURSOR, principal.tenant_id, last)
        return response

    async def on_cancel_task(self, params: pb.CancelTaskRequest, context: ServerCallContext) -> pb.Task:
        """CancelTask (3.1.5): durable when it returns; the worker stops within milliseconds."""
        principal = _caller(context)
        task_id = incoming.task_id_of(params.id)
        await store.cancel(self._database, principal, task_id)
        return await self._snapshot(principal, task_id)

    async def on_create_task_push_notification_config(
        self, params: pb.TaskPushNotificationConfig, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """CreateTaskPushNotificationConfig (3.1.7); see `PushConfigs`, as for the next three."""
        return await self._webhooks().create(_caller(context), params)

    async def on_get_task_push_notification_config(
        self, params: pb.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """GetTaskPushNotificationConfig (3.1.8)."""
        return await self._webhooks().get(_caller(context), params)

    async def on_list_task_push_notification_configs(
        self, params: pb.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        """ListTaskPushNotificationConfigs (3.1.9)."""
        return await self._webhooks().list(_caller(context), params)

    async def on_delete_task_push_notification_config(
        self, params: pb.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """DeleteTaskPushNotificationConfig (3.1.10)."""
        await self._webhooks().delete(_caller(context), params)

    async def on_get_extended_agent_card(
        self, params: pb.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> pb.AgentCard:
        """GetExtendedAgentCard (3.1.11): what this caller may ask for, and every way to ask."""
        del params
        return self._cards.extended(_caller(context))

    def _webhooks(self) -> PushConfigs:
        if self._push is None:
            raise PushNotificationNotSupportedError
        return self._push

    def _also(self, principal: Principal, sent: Sent) -> Also | None:
        """Return what is to be stored together with the message: the webhook that it brings along."""
        config = sent.push
        if config is None:
            return None
        push = self._webhooks()
        push.check(config)

        async def add(session: Session, task_id: UUID) -> None:
            await push.from_send(session, principal, task_id, config, new=sent.task_id is None)

        return add

    def sent(self, params: pb.SendMessageRequest) -> Sent:
        """Return the message that a request carries; see `incoming.sent_message`."""
        return incoming.sent_message(params)

    async def _take(self, principal: Principal, sent: Sent, key: IdempotencyKey | None) -> tuple[UUID, int | None]:
        """Take the message: make a task of it, or give it to the one that it is sent to. Returns the task and the
        message's place in its log; no place if it was sent before under this key.

        Raises:
            NotFound, InvalidInput, Forbidden, TaskBusy, Conflict: Nothing was stored.
        """
        also = self._also(principal, sent)
        if sent.task_id is None:
            asked = Asked(
                text=sent.text,
                options=sent.options,
                workflow=sent.skill,
                among=self.workflows,
                context_id=sent.context_id,
                message=sent.message,
                idempotency_key=key.key if key else None,
                request_hash=key.body_hash if key else None,
            )
            made = await accept(self._database, principal, asked, also=also)
            return made.task_id, 1 if made.created else None
        if sent.context_id is not None:
            task, _ = await store.read_task(self._database, principal, sent.task_id, after=None)
            if sent.context_id != task.context_id:
                raise InvalidInput("contextId is not the context of this task")
        name = key.key if key else None
        position = await tell(self._database, principal, sent.task_id, sent.message, idempotency_key=name, also=also)
        return sent.task_id, position

    async def _rest(self, principal: Principal, task_id: UUID, *, after: int | None) -> None:
        """Wait until the task ends or asks, after a position; None: unless it has by now."""
        if after is None:
            task, _ = await store.read_task(self._database, principal, task_id, after=None)
            if task.state in _RESTING:
                return
            after = task.version
        following = self._follow(principal, task_id, after=after, stops=_RESTING, until=self._stopping)
        async with aclosing(following) as events:
            async for _ in events:
                pass

    async def _snapshot(self, principal: Principal, task_id: UUID, *, history_length: int | None = None) -> pb.Task:
        task, events = await store.read_task(self._database, principal, task_id)
        return outgoing.task_message(task, events, history_length=history_length)

    def _follow(
        self,
        principal: Principal,
        task_id: UUID,
        *,
        after: int,
        stops: Collection[TaskState] = TERMINAL,
        until: anyio.Event | None = None,
    ) -> AsyncGenerator[TaskEvent]:
        return self._feeds.follow(principal, task_id, after=after, stops=stops, until=until)

    async def _messages(
        self, principal: Principal, task: Task, *, after: int, stops: Collection[TaskState] = TERMINAL
    ) -> AsyncGenerator[outgoing.StreamEvent]:
        following = self._follow(principal, task.task_id, after=after, stops=stops, until=self._stopping)
        async with aclosing(following) as events:
            async for event in events:
                if event.seq != after + 1:
                    raise Unavailable("the log was compacted meanwhile; come back with your last event id")
                after = event.seq
                yield self._told(event, task)
                if brings(event, stops):
                    return
        # said in the stream, which is then closed in order: a stream that is cut off has every proxy log an error
        if self._stopping.is_set():
            raise Unavailable("the server stops; come back, with your last event id, to another")
        raise Unauthenticated("the token has expired; come back with a new one, and with your last event id")

    def _position(self, principal: Principal, token: str) -> tuple[datetime, UUID]:
        time, task_id = cursors.read(self._cursor_key, _CURSOR, principal.tenant_id, token)
        return datetime.fromisoformat(time), UUID(task_id)


async def _listed(
    session: Session, tasks: Sequence[Task], history_length: int | None, *, artifacts: bool
) -> AsyncGenerator[pb.Task]:
    """Yield tasks as a page shows them, the first one and as many more as MAX_PAGE_BYTES hold."""
    size = 0
    for start in range(0, len(tasks), READ_AT_ONCE):
        some = tasks[start : start + READ_AT_ONCE]
        logs = await store.events_of(session, [task.task_id for task in some], artifacts=artifacts)
        for task in some:
            log = logs.pop(task.task_id)
            message = outgoing.task_message(task, log, history_length=history_length, artifacts=artifacts)
            first, size = size == 0, size + message.ByteSize()
            if size > MAX_PAGE_BYTES and not first:
                return
            yield message


def _told(event: TaskEvent, task: Task) -> outgoing.StreamEvent:
    return outgoing.event_message(task, event)


def _caller(context: ServerCallContext) -> Principal:
    return context.state["principal"]
