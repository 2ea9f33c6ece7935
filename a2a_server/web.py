"""What the two bindings over HTTP share: strict reading of requests, who calls, and streams of server-sent events.

Above: `dispatcher`, `rest`, `legacy`. Below: Starlette, `guard`. An event of a task's log has its seq as its SSE id,
whichever binding carries it: a client that lost its connection sends it back as `Last-Event-ID`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar, cast

import orjson
from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.types.a2a_pb2 import AgentCard, Task
from a2a.utils.constants import VERSION_HEADER
from a2a.utils.errors import A2AError, InternalError
from a2a.utils.proto_utils import to_stream_response
from google.protobuf.json_format import MessageToDict
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from a2a_server.auth import PRINCIPAL
from a2a_server.guard import call_context
from a2a_server.once import Once
from a2a_server.protocol.outgoing import RESUME_EXTENSION

__all__ = [
    "PrincipalContext",
    "StrictRequest",
    "TaskStreams",
    "activate",
    "begun",
    "event_stream",
    "media_type_of",
    "without_text",
]

_log = logging.getLogger(__name__)
T = TypeVar("T")
PING_S = 15.0
"""Shorter than the idle timeout of common load balancers (60 s)."""
SEND_TIMEOUT_S = 60.0
"""A reader that takes nothing for this long is let go; it may come back with its last event id."""


class PrincipalContext(ServerCallContextBuilder):
    """Hands the verified caller and the request's headers to the handler."""

    def build(self, request: Request) -> ServerCallContext:
        """Return the call's context; the version may also come as a query parameter (3.6.1)."""
        headers = dict(request.headers)
        name = VERSION_HEADER.lower()
        headers[name] = headers.get(name) or request.query_params.get(VERSION_HEADER, "")
        asked = get_requested_extensions(request.headers.getlist(HTTP_EXTENSION_HEADER))
        return call_context(request.scope[PRINCIPAL], headers, extensions=asked)


class StrictRequest(Request):
    """Reads its JSON by one strict parser, so that what was checked is what the SDK acts on.

    Stricter than the SDK's own: one encoding, no NaN, no lone surrogate, bounded depth, no integer that an answer could
    not repeat (larger ones come as floats, which are no id and no number of a field).
    """

    async def json(self) -> Any:
        """Return the body; raises json.JSONDecodeError."""
        return orjson.loads(await self.body())


def media_type_of(request: Request) -> str:
    """Return the type of the body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def activate(response: Response, card: AgentCard, context: ServerCallContext) -> Response:
    """Name, in the answer, the extensions that were asked for and that we have."""
    activated = {extension.uri for extension in card.capabilities.extensions} & context.requested_extensions
    if activated:
        response.headers[HTTP_EXTENSION_HEADER] = ", ".join(sorted(activated))
    return response


def without_text(error: Exception) -> A2AError:
    """Return `error` if it is made for callers, else an error without a text; a defect is logged."""
    if isinstance(error, A2AError):
        return error
    _log.error("a request failed", exc_info=error)
    return InternalError()


def event_stream(
    messages: AsyncGenerator[Mapping[str, Any]], *, refused: Callable[[A2AError], Mapping[str, Any]]
) -> EventSourceResponse:
    """Return the response that carries `messages` as they come.

    Args:
        messages: JSON objects, each one an answer as its binding writes it.
        refused: Makes the last message of a stream that breaks; it has begun, so there is no status to tell by.
    """

    def framed(message: Mapping[str, Any]) -> bytes:
        return _frame(orjson.dumps(message), seq=_seq(message), error="error" in message)

    return _response(messages, framed, refused)


class TaskStreams:
    """Streams of the handler's messages, each of which is written once for all who are sent it."""

    def __init__(self) -> None:
        """One for all bindings of a process."""
        self._written = Once(_written)

    def response(
        self,
        messages: AsyncGenerator[Any],
        *,
        around: tuple[bytes, bytes] = (b"", b""),
        refused: Callable[[A2AError], Mapping[str, Any]],
    ) -> EventSourceResponse:
        """Return the response that carries `messages` as they come.

        Args:
            messages: What a streaming method of the handler yields.
            around: What the binding writes before and after each StreamResponse.
            refused: As for `event_stream`.
        """
        before, after = around

        def framed(message: Any) -> bytes:
            # a snapshot is of one reader
            seq, text = _written(message) if isinstance(message, Task) else self._written(message)
            return _frame(before + text + after, seq=seq)

        return _response(messages, framed, refused)


async def begun(messages: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Return `messages` once the first of them is there: what is refused is refused before a response begins."""
    first = await anext(messages, None)

    async def whole() -> AsyncGenerator[T]:
        async with aclosing(messages):
            if first is not None:
                yield first
            async for message in messages:
                yield message

    return whole()


def _response(
    messages: AsyncGenerator[T], framed: Callable[[T], bytes], refused: Callable[[A2AError], Mapping[str, Any]]
) -> EventSourceResponse:
    return EventSourceResponse(_frames(messages, framed, refused), ping=PING_S, send_timeout=SEND_TIMEOUT_S)


async def _frames(
    messages: AsyncGenerator[T], framed: Callable[[T], bytes], refused: Callable[[A2AError], Mapping[str, Any]]
) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(messages):
            async for message in messages:
                yield framed(message)
    except Exception as exc:  # noqa: BLE001  # whatever broke: it can only be told inside of the stream
        yield _frame(orjson.dumps(refused(without_text(exc))), error=True)


def _frame(text: bytes, *, seq: int | None = None, error: bool = False) -> bytes:
    """Return one server-sent event; JSON has no line ends in it."""
    identified = b"" if seq is None else b"id: %d\r\n" % seq
    return identified + (b"event: error\r\n" if error else b"") + b"data: " + text + b"\r\n\r\n"


def _written(message: Any) -> tuple[int | None, bytes]:
    """Return a message's seq and its StreamResponse in JSON."""
    fields = MessageToDict(to_stream_response(message))
    return _seq(fields), orjson.dumps(fields)


def _seq(value: object, depth: int = 3) -> int | None:
    """Return the seq that the message about a task inside `value` carries: each binding wraps it in its own way."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and RESUME_EXTENSION in metadata:
        return int(metadata[RESUME_EXTENSION]["seq"])
    return next((seq for child in fields.values() if depth and (seq := _seq(child, depth - 1)) is not None), None)
