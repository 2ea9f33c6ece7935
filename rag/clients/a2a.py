"""A client of the A2A face for our own command line: one question in, plain values out, through dropped connections.

Above: the CLI. Below: the a2a-sdk client over one pool of connections. A stream that breaks off before the task has
ended is taken up again with the id of the last event, so that nothing is missed and nothing comes twice.
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
from google.protobuf.json_format import MessageToDict

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

__all__ = ["A2aClient", "Accepted", "Ended", "Event", "Progress", "Result", "Text", "a2a_client"]

RESUME_EXTENSION = "urn:bulkhead:a2a:resume:v1"
"""Part of the wire, like a method's name: a2a_server/protocol/outgoing.py is above this package."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer, whole and checked, in place of its pieces."""

    text: str
    data: Mapping[str, Any]
    """{"answerer", "model", "citations": [...], "dropped"}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing follows."""

    state: str
    """`completed`, `failed`, `canceled` or `rejected`."""
    reason: str | None


Event: TypeAlias = Accepted | Progress | Text | Result | Ended


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
        self, question: str, *, context_id: str | None = None, skill: str | None = None
    ) -> AsyncGenerator[Event]:
        """Start a task and yield what it says, to the end, each event once.

        Raises:
            InvalidInput, Conflict: The server refused the question.
            Unauthenticated, Forbidden, RateLimited: The server refused the caller.
            Unavailable: The server cannot be reached, at first or again after a break.
            BulkheadError: The server failed.
        """
        position = _Position()
        with _translated():
            async for event in self._read(self.client.send_message(_request(question, context_id, skill)), position):
                yield event
                if isinstance(event, Ended):
                    return
        while True:
            await self._pause(position)
            context = ClientCallContext(service_parameters={"Last-Event-ID": str(position.seq)})
            stream = self.client.subscribe(pb.SubscribeToTaskRequest(id=position.task_id), context=context)
            try:
                with _translated():
                    async for event in self._read(stream, position):
                        yield event
                        if isinstance(event, Ended):
                            return
            except Unavailable:
                continue

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
        """Yield the events of one connection; returns without Ended when it breaks off after the task was accepted."""
        try:
            async with aclosing(stream):
                async for response in stream:
                    position.failures = 0
                    for event in _events(response, position):
                        yield event
        except (A2AClientError, httpx.TransportError) as exc:
            if not position.task_id or _http_status(exc) not in {None, 429, 502, 503, 504}:
                raise
        except InternalError as exc:
            # told inside the stream, whose HTTP status has long been sent
            if not position.task_id or (exc.data or {}).get("code") != Unavailable.code:
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


def _request(question: str, context_id: str | None, skill: str | None) -> pb.SendMessageRequest:
    message = pb.Message(
        message_id=str(uuid4()),
        role=pb.Role.ROLE_USER,
        parts=[pb.Part(text=question)],
        context_id=context_id or "",
    )
    if skill is not None:
        message.metadata.update({"skillId": skill})
    return pb.SendMessageRequest(message=message)


def _events(response: pb.StreamResponse, position: _Position) -> Generator[Event]:
    match response.WhichOneof("payload"):
        case "task":
            task = response.task
            first = not position.task_id
            position.task_id, position.seq = task.id, _seq(task.metadata)
            if first:
                yield Accepted(task_id=task.id, context_id=task.context_id)
        case "status_update":
            update = response.status_update
            position.seq = _seq(update.metadata)
            text = "".join(part.text for part in update.status.message.parts) or None
            state = pb.TaskState.Name(update.status.state).removeprefix("TASK_STATE_").lower().replace("_", "-")
            if state in {"completed", "failed", "canceled", "rejected"}:
                yield Ended(state=state, reason=text)
            elif text is not None:
                metadata = MessageToDict(update.metadata)
                metadata.pop(RESUME_EXTENSION, None)
                yield Progress(text=text, metadata=metadata)
        case "artifact_update":
            chunk = response.artifact_update
            position.seq = _seq(chunk.metadata)
            text = "".join(part.text for part in chunk.artifact.parts)
            data = [MessageToDict(part.data) for part in chunk.artifact.parts if part.HasField("data")]
            if chunk.last_chunk and data:
                yield Result(text=text, data=data[0])
            else:
                yield Text(text=text, restart=not chunk.append)
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
