"""The gRPC binding (A2A 1.0, section 10), beside HTTP in the same process: the same handlers, behind a door of its own.

Above: `__main__`. Below: the SDK's servicers for 1.0 and 0.3, `guard`, `auth`. Whoever calls is verified before its
message is read; every message, connection and stream has a bound; a stream ends when the process is told to stop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import grpc
import grpc.aio
from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc
from a2a.compat.v0_3.grpc_handler import CompatGrpcHandler
from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.grpc_handler import GrpcHandler, GrpcServerCallContextBuilder
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2_grpc
from a2a.utils.errors import A2AError, InvalidParamsError
from a2a.utils.proto_utils import validation_errors_to_bad_request
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from a2a_server.auth import Desk, challenge, request_span
from a2a_server.errors import a2a_error, code_of, reason_of, status_of
from a2a_server.guard import call_context
from a2a_server.legacy import unread
from rag.errors import BulkheadError, Misconfigured
from rag.identity.principal import Principal
from rag.telemetry import log_fields

__all__ = ["GrpcPlace", "grpc_served"]

MAX_MESSAGE_BYTES = 2**20
"""As over HTTP."""
MAX_METADATA_BYTES = 16 * 1024
MAX_STREAMS_PER_CONNECTION = 1_024
MAX_CALLS = 4_096
"""Of the process, streams among them; one more is answered RESOURCE_EXHAUSTED."""
WRITE_TIMEOUT_S = 60.0
"""A reader that takes nothing for this long is let go; it may subscribe again."""
STOP_S = 3.0
"""Calls in flight may take this long to end once the server stops."""
KEEPALIVE_S = 60
KEEPALIVE_TIMEOUT_S = 20
MIN_PING_S = 20
"""A client that pings more often than this is told to go away (ENHANCE_YOUR_CALM)."""
IDLE_S = 900
"""A connection without a call is closed after this long."""
_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_S * 1000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", IDLE_S * 1000),
    # identity and nothing else: a message is unpacked before its size is looked at, and would be small only on the wire
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # two processes on one port would share its calls without anybody having said so
    ("grpc.so_reuseport", 0),
)
Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_DOMAIN = "a2a-protocol.org"
_CALLER: ContextVar[Principal] = ContextVar("bulkhead_grpc_caller")
"""Set by the door; gRPC hands one context from it to the handler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcPlace:
    """Where to listen."""

    host: str
    port: int
    """0: one that is free."""
    certificate: Path | None = None
    key: Path | None = None


@asynccontextmanager
async def grpc_served(
    place: GrpcPlace, handler: RequestHandler, legacy: RequestHandler, *, desk: Desk, stopping: anyio.Event
) -> AsyncGenerator[int]:
    """Serve until the block ends; yields the port. Streams end earlier, once `stopping` is set.

    Args:
        place: Where to listen.
        handler: Takes the calls of A2A 1.0.
        legacy: Takes those of 0.3, which are of another service.
        desk: Where callers show their token.
        stopping: Set when the process is told to end.

    Raises:
        Misconfigured: The place cannot be listened on, or the certificate cannot be read.
    """
    door = _Door(desk=desk)
    server = grpc.aio.server(interceptors=[door], options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    a2a_pb2_grpc.add_A2AServiceServicer_to_server(_Service(handler, _Context()), server)
    a2a_v0_3_pb2_grpc.add_A2AServiceServicer_to_server(_LegacyService(legacy, _Context()), server)
    port = await _bind(server, place)
    await server.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_streams, door, stopping)
            yield port
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop(STOP_S)


class _Context(GrpcServerCallContextBuilder):
    """Hands the verified caller and the call's metadata to the handler."""

    def build(self, context: Call) -> ServerCallContext:
        metadata = _headers(context.invocation_metadata())
        asked = get_requested_extensions([metadata.get(HTTP_EXTENSION_HEADER.lower(), "")])
        return call_context(_CALLER.get(), metadata, extensions=asked)


class _Service(GrpcHandler):
    """A2A 1.0."""

    async def abort_context(self, error: A2AError, context: Call) -> None:
        await _abort(context, error)


class _LegacyService(CompatGrpcHandler):
    """A2A 0.3, whose clients find an error's name before its text."""

    async def abort_context(self, error: A2AError, context: Call) -> None:
        await _abort(context, error, text=f"{type(error).__name__}: {error.message}")


@dataclass(slots=True, kw_only=True)
class _Door(grpc.aio.ServerInterceptor):
    """Lets a call through with the caller that its token proves."""

    desk: Desk
    _streams: set[anyio.CancelScope] = field(default_factory=set[anyio.CancelScope])

    def end_streams(self) -> None:
        """Have the readers of all open streams told to come back, to another replica."""
        for scope in list(self._streams):
            scope.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Method | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Method | None:
        """Verify, then pass on; gRPC reads the message only after this."""
        details: Any = handler_call_details
        known = await continuation(details)
        if known is None:
            return None
        headers = _headers(details.invocation_metadata)
        try:
            principal = await self.desk.enter(
                [str(value) for name, value in details.invocation_metadata if name.lower() == "authorization"]
            )
        except BulkheadError as exc:
            return _rebuilt(known, unary=_refusing(exc, headers), stream=_refusing(exc, headers))
        _CALLER.set(principal)
        return _rebuilt(
            known,
            unary=self._unary(known, details.method, headers, principal),
            stream=self._stream(known, details.method, headers, principal),
        )

    def _unary(
        self, known: Any, method: str, headers: Mapping[str, str], principal: Principal
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def serve(request: Any, context: Call) -> Any:
            with request_span(method, headers), log_fields(tenant=str(principal.tenant_id)):
                try:
                    return await known.unary_unary(request, context)
                except grpc.aio.AbortError:
                    raise
                except Exception as exc:  # noqa: BLE001  # gRPC would send the exception's text
                    await _abort(context, unread(exc))

        return serve

    def _stream(
        self, known: Any, method: str, headers: Mapping[str, str], principal: Principal
    ) -> Callable[[Any, Any], Awaitable[None]]:
        async def serve(request: Any, context: Call) -> None:
            with request_span(method, headers), log_fields(tenant=str(principal.tenant_id)):
                scope = anyio.CancelScope()
                self._streams.add(scope)
                try:
                    with scope:
                        async with aclosing(known.unary_stream(request, context)) as answers:
                            async for answer in answers:
                                with anyio.fail_after(WRITE_TIMEOUT_S):
                                    await context.write(answer)
                except grpc.aio.AbortError:
                    raise
                except TimeoutError:
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing was read for too long")
                except Exception as exc:  # noqa: BLE001  # as above
                    await _abort(context, unread(exc))
                finally:
                    self._streams.discard(scope)
                if scope.cancelled_caught:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops; subscribe again")

        return serve


async def _end_streams(door: _Door, stopping: anyio.Event) -> None:
    await stopping.wait()
    door.end_streams()


async def _bind(server: grpc.aio.Server, place: GrpcPlace) -> int:
    host = f"[{place.host}]" if ":" in place.host else place.host
    address = f"{host}:{place.port}"
    try:
        if place.certificate is None or place.key is None:
            return server.add_insecure_port(address)
        pair = (await anyio.Path(place.key).read_bytes(), await anyio.Path(place.certificate).read_bytes())
        return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as exc:
        raise Misconfigured(f"cannot listen on {address} for gRPC; set BULKHEAD_A2A_GRPC_PORT to another") from exc


def _rebuilt(known: Any, *, unary: Callable[..., Any], stream: Callable[..., Any]) -> Method:
    made = grpc.unary_stream_rpc_method_handler if known.response_streaming else grpc.unary_unary_rpc_method_handler
    return made(
        stream if known.response_streaming else unary,
        request_deserializer=known.request_deserializer,
        response_serializer=known.response_serializer,
    )


def _refusing(exc: BulkheadError, headers: Mapping[str, str]) -> Callable[[Any, Any], Awaitable[None]]:
    told = {name.lower(): value for name, value in challenge(exc, sent="authorization" in headers).items()}

    async def refuse(request: Any, context: Call) -> None:
        del request
        await _abort(context, a2a_error(exc), metadata=told)

    return refuse


async def _abort(
    context: Call,
    error: A2AError,
    *,
    text: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """End the call with the error's status, and with google.rpc.ErrorInfo in its details (section 10.6)."""
    code = grpc.StatusCode[status_of(error).grpc]
    status = status_pb2.Status(code=code.value[0], message=text or error.message)
    ours = code_of(error)
    info = error_details_pb2.ErrorInfo(
        reason=reason_of(error),
        domain=_DOMAIN,
        metadata={"code": ours} if ours else {},
    )
    violations = (error.data or {}).get("errors") if isinstance(error, InvalidParamsError) else None
    for detail in (info, validation_errors_to_bad_request(violations) if violations else None):
        if detail is not None:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
    trailing = [*(metadata or {}).items(), ("grpc-status-details-bin", status.SerializeToString())]
    await context.abort(code, status.message, trailing_metadata=tuple(trailing))


def _headers(metadata: Any) -> dict[str, str]:
    """Return the call's metadata by lower-case name, as HTTP's headers; binary values are nobody's here."""
    return {str(name).lower(): value for name, value in metadata or () if isinstance(value, str)}
