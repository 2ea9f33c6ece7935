"""The fast lane: an ordinary request goes straight to the SDK's kernel, past the machinery that streams need.

    POST, one complete request, a method of LANE_METHODS, no progress or log asked for, both media types accepted

Above: `auth.Scopes`. Below: the SDK's `serve_one`, the same kernel that its transport ends in: handlers, validation of
both revisions and span are the same. What is not ordinary, in any way, is passed on untouched to the transport, which
answers it or says what is wrong with it. Why: mcp.md 3 (a quarter of the CPU on the 2025 wire). A fuzz test holds the
two ways equal. A client that goes away has its operation cancelled, down to the statement.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import anyio
import orjson
from anyio.abc import TaskGroup
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_one
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundModernRoute,
    classify_inbound_request,
)
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    DEFAULT_NEGOTIATED_VERSION,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    LOG_LEVEL_META_KEY,
    ErrorData,
    jsonrpc_message_adapter,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_server.body import message_of, refused
from mcp_server.tools import find_tool
from mcp_server.tools.tool import Tool

__all__ = ["LANE_METHODS", "Lane"]

_log = logging.getLogger(__name__)
LANE_METHODS: Final = frozenset(
    {
        "tools/call",
        "tools/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "prompts/list",
        "prompts/get",
        "completion/complete",
    }
)
PATIENCE_S: Final = 0.05
"""Work that is younger is not stopped when its client goes away: watching each request costs more than that saves."""
LONGEST_S: Final = 60.0
"""Calls that may take longer need signs of life: proxies close a connection after a minute of silence (nginx)."""
_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params"})
_MAX_ID: Final = 2**63 - 1
"""Of what orjson writes."""
_PARAM_HEADER: Final = b"mcp-param-"
_ROUTING_HEADERS: Final = {
    name.encode(): name for name in (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
}
_MODERN: Final = frozenset(MODERN_PROTOCOL_VERSIONS)
_LEGACY: Final = frozenset(HANDSHAKE_PROTOCOL_VERSIONS)


@dataclass(slots=True)
class _Exchange:
    """What the kernel asks of one request: there is no way back to the client but the answer.

    Satisfies the SDK's DispatchContext.
    """

    transport: TransportContext
    request_id: str | int
    message_metadata: ServerMessageMetadata
    can_send_request: bool = False
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        del params, opts
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Nothing was asked for."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Nothing was asked for."""


@dataclass(frozen=True, slots=True)
class _Ordinary:
    """A request that the lane serves."""

    id: str | int
    method: str
    params: dict[str, Any]
    connection: Connection
    tool: Tool[Any] | None

    @property
    def modern(self) -> bool:
        """Whether the 2026 revision rules."""
        return self.connection.protocol_version in _MODERN

    @property
    def outlives_its_client(self) -> bool:
        """Whether a lost connection stops nothing.

        Before 2026 it is not a wish to cancel. Nobody can fetch the answer any more, so what only reads is stopped
        all the same; a write goes on.
        """
        return not self.modern and self.tool is not None and not self.tool.read_only


class Lane:
    """Serves ordinary requests itself and passes on all others."""

    def __init__(self, app: ASGIApp, *, server: Server[dict[str, Any]], security: TransportSecuritySettings) -> None:
        """`app` is the SDK's transport over the same `server`."""
        self._app = app
        self._server = server
        self._security = TransportSecurityMiddleware(security)
        self._watchers: TaskGroup | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Watch the clients of what takes long, while the block runs.

        One group for all requests: to open one for each costs a tenth of a small request.
        """
        async with anyio.create_task_group() as watchers:
            self._watchers = watchers
            yield
            watchers.cancel_scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or pass on."""
        request = Request(scope, receive)
        headers = dict(scope["headers"])
        # a header given twice is rare, and for the transport to judge
        ordinary = await self._ordinary(request, headers) if len(headers) == len(scope["headers"]) else None
        if ordinary is None:
            refusal = _malformed(headers, message_of(scope))
            await (refusal or self._app)(scope, receive, send)
            return
        work = self._answered(request, ordinary)
        answered = await work if ordinary.outlives_its_client else await self._while_connected(receive, work)
        if answered is None:
            return
        status, body = answered
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                    (b"cache-control", b"no-store"),
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _while_connected(self, receive: Receive, work: Awaitable[tuple[int, bytes]]) -> tuple[int, bytes] | None:
        """Return what `work` returns, or None when the client went away first."""
        answered: tuple[int, bytes] | None = None
        working = anyio.CancelScope()
        watching: anyio.CancelScope | None = None

        def begin_watching() -> None:
            nonlocal watching
            assert self._watchers is not None
            watching = anyio.CancelScope()
            self._watchers.start_soon(_watch, receive, working, watching)

        # most work is done before looking whether anybody waits for it would have paid
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, begin_watching)
        try:
            with working:
                answered = await work
        finally:
            timer.cancel()
            if watching is not None:
                watching.cancel()
        return answered

    async def _ordinary(self, request: Request, headers: Mapping[bytes, bytes]) -> _Ordinary | None:
        match message_of(request.scope):
            case {"jsonrpc": "2.0", "id": str() | int() as request_id, "method": str() as method} as message:
                pass
            case _:
                return None
        params: Any = message.get("params", {})
        if (
            method not in LANE_METHODS
            or isinstance(request_id, bool)
            or (isinstance(request_id, int) and abs(request_id) > _MAX_ID)
            or not message.keys() <= _MEMBERS
            or not isinstance(params, dict)
            or _asks_for_stream(cast("dict[str, Any]", params))
            or not _accepts_both(headers.get(b"accept", b""))
            or await self._security.validate_request(request, is_post=True) is not None
        ):
            return None
        tool = find_tool(str(params.get("name"))) if method == "tools/call" else None
        # what is no tool of ours, or lasts, is the transport's: it keeps a connection alive with pings
        if method == "tools/call" and (tool is None or tool.timeout_s > LONGEST_S):
            return None
        connection = _connection(headers, message)
        if connection is None:
            return None
        return _Ordinary(request_id, method, cast("dict[str, Any]", params), connection, tool)

    async def _answered(self, request: Request, ordinary: _Ordinary) -> tuple[int, bytes]:
        exchange = _Exchange(
            transport=TransportContext(kind="streamable-http", can_send_request=False, headers=request.headers),
            request_id=ordinary.id,
            message_metadata=ServerMessageMetadata(request_context=request),
        )
        try:
            result = await serve_one(
                self._server,
                exchange,
                ordinary.method,
                ordinary.params,
                connection=ordinary.connection,
                lifespan_state={},
            )
            return 200, orjson.dumps({"jsonrpc": "2.0", "id": ordinary.id, "result": result})
        except MCPError as exc:
            error = exc.error
        except ValidationError:
            error = ErrorData(code=INVALID_PARAMS, message="Invalid request parameters", data="")
        except Exception:  # noqa: BLE001  # whatever a handler let through is not the caller's to read
            _log.exception("a request failed")
            error = ErrorData(code=INTERNAL_ERROR, message="internal error")
        # before 2026 every JSON-RPC error is an HTTP success
        status = ERROR_CODE_HTTP_STATUS.get(error.code, 200) if ordinary.modern else 200
        shown = error.model_dump(mode="json", by_alias=True, exclude_none=True)
        return status, orjson.dumps({"jsonrpc": "2.0", "id": ordinary.id, "error": shown})


def _asks_for_stream(params: dict[str, Any]) -> bool:
    meta: Any = params.get("_meta", {})
    return isinstance(meta, dict) and ("progressToken" in meta or LOG_LEVEL_META_KEY in meta)


def _accepts_both(accept: bytes) -> bool:
    # the two that every client sends; a rarer way to say it is the transport's to understand
    return b"*/*" in accept or (b"application/json" in accept and b"text/event-stream" in accept)


def _connection(headers: Mapping[bytes, bytes], message: dict[str, Any]) -> Connection | None:
    given = headers.get(b"mcp-protocol-version")
    version = None if given is None else given.decode("latin-1")
    if version is None or version in _LEGACY:
        return Connection.from_envelope(version or DEFAULT_NEGOTIATED_VERSION, None, None)
    if version not in _MODERN or any(name.startswith(_PARAM_HEADER) for name in headers):
        return None
    routing = {name: headers[raw].decode("latin-1") for raw, name in _ROUTING_HEADERS.items() if raw in headers}
    verdict = classify_inbound_request(message, headers=routing)
    if not isinstance(verdict, InboundModernRoute):
        return None
    return Connection.from_envelope(verdict.protocol_version, verdict.client_info, verdict.client_capabilities)


def _malformed(headers: Mapping[bytes, bytes], message: dict[str, Any]) -> Response | None:
    """Refuse what is no JSON-RPC message, where the transport would quote its validator: before 2026.

    Or would take a request whose id is none, such as null, for a notification and never answer it.
    """
    version = headers.get(b"mcp-protocol-version")
    if version is not None and version.decode("latin-1") not in _LEGACY:
        return None
    try:
        jsonrpc_message_adapter.validate_python(message, by_name=False)
        sound = "method" not in message or type(message.get("id", 0)) in (str, int)
    except ValidationError:
        sound = False
    return None if sound else refused(400, INVALID_REQUEST, "the body is not a JSON-RPC 2.0 message")


async def _watch(receive: Receive, work: anyio.CancelScope, own: anyio.CancelScope) -> None:
    with own:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:  # noqa: BLE001  # one connection's fault must not end the group, and with it everybody's watch
            _log.exception("a connection cannot be watched any more")
        work.cancel()
