"""A client of the MCP face: one call in, one dict out, and our own errors when it fails.

Above: the CLI and graph nodes, each with a token of its own for this audience. Below: the `mcp` library over one pool
of connections. The library sends the W3C trace context in `_meta`; here it goes into the HTTP headers too, for proxies.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import httpx2
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    REQUEST_TIMEOUT,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    TextContent,
    Tool,
    ToolAnnotations,
)
from mcp_types.version import LATEST_MODERN_VERSION

from rag.errors import (
    BulkheadError,
    Conflict,
    DocumentRefused,
    EmbedderUnavailable,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from rag.telemetry import carrier

__all__ = ["McpClient", "mcp_client"]

CALL_TIMEOUT_S = 90.0
"""Longer than the slowest tool's own limit."""
TIMEOUT = httpx2.Timeout(connect=10.0, read=CALL_TIMEOUT_S, write=30.0, pool=30.0)
LIMITS = httpx2.Limits(max_connections=16, max_keepalive_connections=8)
_RESULTS: Mapping[str, type[BulkheadError]] = {
    kind.code: kind for kind in (InvalidInput, DocumentRefused, NotFound, Conflict, Unavailable, EmbedderUnavailable)
}
# the server's own codes (mcp_server/errors.py), which this side of the wire does not import
_REFUSALS: Mapping[int, type[BulkheadError]] = {
    40100: Unauthenticated,
    40300: Forbidden,
    40900: Conflict,
    41300: InvalidInput,
    42200: DocumentRefused,
    50300: Unavailable,
    INVALID_PARAMS: InvalidInput,
    CONNECTION_CLOSED: Unavailable,
    REQUEST_TIMEOUT: Unavailable,
}
_RATE_LIMITED = 42900
_ERROR_META = "bulkhead/code"
T = TypeVar("T")


class McpClient:
    """Calls tools with one caller's token. Made by `mcp_client`; several calls may run at a time."""

    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        """`http` carries the token and stays the caller's to close."""
        self._url = url
        self._http = http

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a tool and return its structured result.

        Raises:
            InvalidInput, DocumentRefused, NotFound, Conflict: The tool refused.
            Unauthenticated, Forbidden, RateLimited: The server refused the caller.
            Unavailable: The server, or a part of it, cannot be reached.
            BulkheadError: The server failed.
        """
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=dict(arguments)))
        # not `call_tool`, which would list all tools first, to check the server's answer against its own schema
        result = await self._in_session(lambda session: session.send_request(request, CallToolResult))
        if result.is_error:
            raise _of_result(result)
        return cast("dict[str, Any]", result.structured_content)

    async def tools(self) -> list[str]:
        """Return the names of the tools that this token may use.

        Raises:
            BulkheadError: As `call`.
        """
        listed = await self._in_session(lambda session: session.list_tools())
        return [tool.name for tool in listed.tools]

    async def declared(self) -> list[dict[str, Any]]:
        """Return {"name", "description", "input_schema", "read_only", "destructive"} of each tool the token covers.

        What is said of itself to be neither read-only nor harmless counts as destructive (MCP, ToolAnnotations).

        Raises:
            BulkheadError: As `call`.
        """
        listed = await self._in_session(lambda session: session.list_tools())
        return [_declared(tool) for tool in listed.tools]

    async def _in_session(self, ask: Callable[[ClientSession], Any]) -> Any:
        # A session for each call costs nothing, since the server keeps none, and contains what breaks: the library runs
        # requests in a task group of the session, where a lost connection would cancel whoever holds it open.
        with _translated(), anyio.fail_after(CALL_TIMEOUT_S):
            transport = streamable_http_client(self._url, http_client=self._http)
            async with Client(transport, mode=LATEST_MODERN_VERSION, cache=None) as client:
                return await ask(client.session)


@asynccontextmanager
async def mcp_client(url: str, token: str, *, ca: Path | None = None) -> AsyncGenerator[McpClient]:
    """Open a pool of connections to the MCP endpoint; nothing is sent before the first call.

    Args:
        url: The endpoint, such as https://mcp.example.com/mcp.
        token: A bearer token for the MCP audience.
        ca: PEM bundle to trust besides the system's.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(cafile=str(ca))

    async def add_trace(request: httpx2.Request) -> None:
        request.headers.update(carrier())

    async with httpx2.AsyncClient(
        headers={"authorization": f"Bearer {token}"},
        verify=context,
        timeout=TIMEOUT,
        limits=LIMITS,
        event_hooks={"request": [add_trace]},
    ) as http:
        yield McpClient(url, http)


def _declared(tool: Tool) -> dict[str, Any]:
    hints = tool.annotations or ToolAnnotations()
    read_only = hints.read_only_hint is True
    return {
        "name": tool.name,
        "description": tool.description or "",
        "input_schema": tool.input_schema,
        "read_only": read_only,
        "destructive": not read_only and hints.destructive_hint is not False,
    }


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except MCPError as exc:
        raise _of_refusal(exc) from exc
    except TimeoutError as exc:
        raise Unavailable("the MCP server took too long") from exc
    except (httpx2.TransportError, OSError) as exc:
        raise Unavailable("the MCP server cannot be reached") from exc
    except BaseExceptionGroup as exc:
        raise _of_group(exc) from exc


def _of_group(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a task group of the library wrapped, when every part of it is known; else the group itself."""
    known, unknown = group.split((MCPError, httpx2.TransportError, OSError))
    if known is None or unknown is not None:
        return group
    refusals, _ = known.split(MCPError)
    if refusals is not None:
        first: BaseException = refusals
        while isinstance(first, BaseExceptionGroup):
            first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
        return _of_refusal(cast("MCPError", first))
    return Unavailable("the MCP server cannot be reached")


def _of_refusal(error: MCPError) -> BulkheadError:
    if error.code == _RATE_LIMITED:
        data = cast("dict[str, Any]", error.data) if isinstance(error.data, dict) else {}
        wait_ms = data.get("retryAfterMs")
        return RateLimited(error.message, retry_after_s=wait_ms / 1000 if isinstance(wait_ms, int | float) else 1.0)
    kind = _REFUSALS.get(error.code)
    return kind(error.message) if kind else BulkheadError("the MCP server failed")


def _of_result(result: CallToolResult) -> BulkheadError:
    code = (result.meta or {}).get(_ERROR_META)
    text = next((block.text for block in result.content if isinstance(block, TextContent)), None)
    return _RESULTS.get(str(code), InvalidInput)(text)
