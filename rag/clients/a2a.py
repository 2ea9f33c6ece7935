"""A client of the A2A face for our own command line: one question in, plain values out, through dropped connections.

Above: the CLI. Below: the a2a-sdk client over one pool of connections. A stream that breaks off before the task has
ended or asks something is taken up again with the id of the last event: nothing is missed and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

import anyio
import httpx
from a2a.client import A2AClientError, Client, ClientCallContext, ClientConfig, create_client
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from rag.errors import (
    BulkheadError,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    TaskNotCancelable,
    Unauthenticated,
    Unavailable,
)
from rag.telemetry import carrier

__all__ = [
    "HITL_EXTENSION",
    "A2aClient",
    "Accepted",
    "Ended",
    "Event",
    "Needs",
    "Progress",
    "Result",
    "Text",
    "a2a_client",
]

RESUME_EXTENSION = "urn:bulkhead:a2a:resume:v1"
"""Part of the wire, like a method's name: a2a_server/protocol/outgoing.py is above this package."""
HITL_EXTENSION = "https://kagent.dev/extensions/hitl/v1"
"""Under it a status that asks has its form, and the message that answers has the response (workflows/forms.py)."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
TIMEOUT = httpx.Timeout(connect=10.0, read=60.0, write=30.0, pool=30.0)
"""A quiet stream is pinged every 15 s; one that is silent for a minute is dead."""
MAX_RESUMES = 8
"""In a row, without an event between them."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
_STATUS: Mapping[int, type[BulkheadError]] = {401: Unauthenticated, 403: Forbidden, 429: RateLimited, 503: Unavailable}
_ERRORS: Mapping[type[A2AError], type[BulkheadError]] = {
    TaskNotFoundError: NotFound,
    InvalidParamsError: InvalidInput,
    UnsupportedOperationError: Conflict,
    TaskNotCancelableError: TaskNotCancelable,
}
_WAITING = frozenset({pb.TaskState.TASK_STATE_INPUT_REQUIRED, pb.TaskState.TASK_STATE_AUTH_REQUIRED})
_RESTING = _WAITING | {
    pb.TaskState.TASK_STATE_COMPLETED,
    pb.TaskState.TASK_STATE_FAILED,
    pb.TaskState.TASK_STATE_CANCELED,
    pb.TaskState.TASK_STATE_REJECTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The task is durable: it goes on whatever becomes of this client."""

    task_id: str
    context_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the task is doing."""

    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece of the answer as it is written; with `restart` what came before is void."""

    text: str
    restart: bool
    artifact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An artifact, whole and checked, in place of its pieces."""

    text: str
    data: Mapping[str, Any]
    """As the workflow defines it; of an answer {"answerer", "model", "citations": [...], "dropped", ...}."""
    artifact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The task waits for an answer. Nothing follows until it has one; `A2aClient.reply` gives it."""

    text: str
    form: Mapping[str, Any] | None
    """ask_user_request or tool_approval_request of HITL_EXTENSION; None: plain words will do."""
    auth: bool
    """Whether what is missing is an authorization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing follows."""

    state: str
    """`completed`, `failed`, `canceled` or `rejected`."""
    reason: str | None


Event: TypeAlias = Accepted | Progress | Text | Result | Needs | Ended


@dataclass(slots=True, kw_only=True)
class _Position:
    """How far the stream of one task has been read."""

    task_id: str = ""
    seq: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class A2aClient:
    """Asks one server, as one caller. Made by `a2a_client`."""

    client: Client

    async def ask(
        self,
        question: str,
        *,
        context_id: str | None = None,
        skill: str | None = None,
        options: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[Event]:
        """Start a task and yield what it says, until it ends or needs an answer, each event once.

        Args:
            question: The text.
            context_id: Of the conversation that it belongs to.
            skill: The workflow; None: the server's first.
            options: What the workflow takes besides the text.
            key: The caller's own name for what it wants done: asked again, the same task is followed.

        Raises:
            InvalidInput, Conflict: The server refused the question.
            Unauthenticated, Forbidden, RateLimited: The server refused the caller.
            Unavailable: The server cannot be reached, at first or again after a break.
            BulkheadError: The server failed.
        """
        message = _message(question, context_id=context_id or "")
        if skill is not None:
            message.metadata.update({"skillId": skill})
        if options:
            message.parts.append(pb.Part(data=ParseDict(dict(options), Value()), media_type="application/json"))
        context = ClientCallContext(service_parameters={IDEMPOTENCY_HEADER: key}) if key is not None else None
        async with aclosing(self._send(message, _Position(), context)) as events:
            async for event in events:
                yield event

    async def reply(
        self, task_id: str, text: str, *, response: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Event]:
        """Answer what a task needs, and yield what it says from there.

        Args:
            task_id: Of the task.
            text: The answer in words; shown to whoever reads the conversation.
            response: Of HITL_EXTENSION; without it the words are the answer.

        Raises:
            InvalidInput: It is no answer to what is asked; the message says what is.
            NotFound, Conflict: There is no such task, or it has ended.
            BulkheadError: As `ask`.
        """
        message = _message(text, task_id=task_id)
        if response is not None:
            message.metadata.update({HITL_EXTENSION: dict(response)})
            message.extensions.append(HITL_EXTENSION)
        async with aclosing(self._send(message, _Position(task_id=task_id), None)) as events:
            async for event in events:
                yield event

    async def follow(self, task_id: str) -> AsyncGenerator[Event]:
        """Yield what a task has said so far and what it says from now on, until it ends or needs an answer.

        Raises:
            NotFound: There is no such task.
            BulkheadError: As `ask`.
        """
        with _translated():
            task = await self.client.get_task(pb.GetTaskRequest(id=task_id))
        yield Accepted(task_id=task.id, context_id=task.context_id)
        if task.status.state in _RESTING:
            for event in _resting(task):
                yield event
            return
        async with aclosing(self._resume(_Position(task_id=task.id))) as events:
            async for event in events:
                yield event

    async def _send(
        self, message: pb.Message, position: _Position, context: ClientCallContext | None
    ) -> AsyncGenerator[Event]:
        """Send, and yield what follows; where the stream breaks off, go on where it was."""
        with _translated():
            stream = self.client.send_message(pb.SendMessageRequest(message=message), context=context)
            async with aclosing(self._read(stream, position)) as events:
                async for event in events:
                    yield event
                    if isinstance(event, Ended | Needs):
                        return
        await self._pause(position)
        async with aclosing(self._resume(position)) as events:
            async for event in events:
                yield event

    async def _resume(self, position: _Position) -> AsyncGenerator[Event]:
        while True:
            context = ClientCallContext(service_parameters={"Last-Event-ID": str(position.seq)})
            stream = self.client.subscribe(pb.SubscribeToTaskRequest(id=position.task_id), context=context)
            try:
                with _translated():
                    async with aclosing(self._read(stream, position)) as events:
                        async for event in events:
                            if isinstance(event, Needs) and not await self._still_needed(position):
                                continue  # it was answered since: this is its history
                            yield event
                            if isinstance(event, Ended | Needs):
                                return
            except Unavailable:
                pass
            await self._pause(position)

    async def _still_needed(self, position: _Position) -> bool:
        task = await self.client.get_task(pb.GetTaskRequest(id=position.task_id))
        return task.status.state in _WAITING and _seq(task.metadata) == position.seq

    async def cancel(self, task_id: str) -> None:
        """Cancel a task.

        Raises:
            NotFound: There is no such task.
            TaskNotCancelable: It has ended.
            BulkheadError: As `ask`.
        """
        with _translated():
            await self.client.cancel_task(pb.CancelTaskRequest(id=task_id))

    async def _read(self, stream: Any, position: _Position) -> AsyncGenerator[Event]:
        """Yield the events of one connection; returns without Ended when it breaks off after its first event."""
        try:
            async with aclosing(stream):
                async for response in stream:
                    position.failures = 0
                    for event in _events(response, position):
                        yield event
        except (A2AClientError, httpx.TransportError) as exc:
            if not position.seq or _http_status(exc) not in {None, 429, 502, 503, 504}:
                raise
        except InternalError as exc:
            # told inside the stream, whose HTTP status has long been sent
            if not position.seq or (exc.data or {}).get("code") != Unavailable.code:
                raise

    async def _pause(self, position: _Position) -> None:
        if not position.task_id or position.failures == MAX_RESUMES:
            raise Unavailable("the A2A server broke off; the task goes on there")
        await anyio.sleep(min(FIRST_PAUSE_S * 2**position.failures, LONGEST_PAUSE_S))
        position.failures += 1


@asynccontextmanager
async def a2a_client(url: str, token: str, *, http: httpx.AsyncClient) -> AsyncGenerator[A2aClient]:
    """Read the agent card below `url` and open a client for the caller whom `token` proves.

    Args:
        url: The server's base URL.
        token: A bearer token for the A2A audience.
        http: Stays the caller's to close; carries what TLS needs.

    Raises:
        Unavailable: The card cannot be read.
    """

    async def add_trace(request: httpx.Request) -> None:
        request.headers.update(carrier())

    http.headers["authorization"] = f"Bearer {token}"
    http.timeout = TIMEOUT
    http.event_hooks = {"request": [add_trace]}
    with _translated():
        client = await create_client(url, ClientConfig(httpx_client=http))
    async with client:
        yield A2aClient(client=client)


def _message(text: str, *, context_id: str = "", task_id: str = "") -> pb.Message:
    return pb.Message(
        message_id=str(uuid4()),
        role=pb.Role.ROLE_USER,
        parts=[pb.Part(text=text)],
        context_id=context_id,
        task_id=task_id,
    )


def _resting(task: pb.Task) -> Generator[Event]:
    """Yield what a task that rests has come to: its artifacts, and how it stands."""
    for artifact in task.artifacts:
        yield _result(artifact)
    yield from _standing(task.status)


def _standing(status: pb.TaskStatus) -> Generator[Event]:
    text = "".join(part.text for part in status.message.parts) or None
    state = pb.TaskState.Name(status.state).removeprefix("TASK_STATE_").lower().replace("_", "-")
    if status.state in _WAITING:
        form = MessageToDict(status.message.metadata).get(HITL_EXTENSION)
        yield Needs(text=text or "", form=form, auth=status.state == pb.TaskState.TASK_STATE_AUTH_REQUIRED)
    elif status.state in _RESTING:
        yield Ended(state=state, reason=text)


def _result(artifact: pb.Artifact) -> Result:
    data = [MessageToDict(part.data) for part in artifact.parts if part.HasField("data")]
    text = "".join(part.text for part in artifact.parts)
    return Result(text=text, data=data[0] if data else {}, artifact=artifact.artifact_id)


def _events(response: pb.StreamResponse, position: _Position) -> Generator[Event]:
    match response.WhichOneof("payload"):
        case "task":
            task = response.task
            first = not position.task_id
            position.task_id, position.seq = task.id, _seq(task.metadata)
            if first:
                yield Accepted(task_id=task.id, context_id=task.context_id)
            if task.status.state in _RESTING:
                yield from _resting(task)
        case "status_update":
            update = response.status_update
            position.seq = _seq(update.metadata)
            if update.status.state in _RESTING:
                yield from _standing(update.status)
            elif text := "".join(part.text for part in update.status.message.parts):
                metadata = MessageToDict(update.metadata)
                metadata.pop(RESUME_EXTENSION, None)
                yield Progress(text=text, metadata=metadata)
        case "artifact_update":
            chunk = response.artifact_update
            position.seq = _seq(chunk.metadata)
            if chunk.last_chunk and not chunk.append:
                yield _result(chunk.artifact)
            else:
                text = "".join(part.text for part in chunk.artifact.parts)
                yield Text(text=text, restart=not chunk.append, artifact=chunk.artifact.artifact_id)
        case _:
            pass


def _seq(metadata: Any) -> int:
    position = MessageToDict(metadata).get(RESUME_EXTENSION)
    if position is None:
        raise Unavailable("the A2A server does not number its events")
    return int(position["seq"])


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except A2AClientError as exc:
        kind = _STATUS.get(_http_status(exc) or 0, Unavailable)
        raise kind(None if kind is not Unavailable else "the A2A server cannot be reached") from exc
    except A2AError as exc:
        kind = _ERRORS.get(type(exc), BulkheadError)
        raise kind(exc.message) from exc
    except httpx.TransportError as exc:
        raise Unavailable("the A2A server cannot be reached") from exc


def _http_status(exc: BaseException) -> int | None:
    cause = exc.__cause__
    return cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None
