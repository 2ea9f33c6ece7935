"""The client of a stranger's MCP server: what may be called is ours to say, what comes back is bounded and mistrusted.

Above: the workflow `hybrid`, the CLI's `test`. Below: the `mcp` library over a client that reaches public addresses
only (`rag.outbound`). Nothing of the caller goes along: neither a token, nor a cookie, nor a trace; of ours, the server
gets its own credential and the arguments of the call. Whatever it does is told as one of our errors, without its words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx2
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)

from rag.errors import BulkheadError, Forbidden, InvalidInput, Unavailable
from rag.external.quiet import quietly
from rag.external.text import MAX_DEPTH, clean, depth_of, result_of
from rag.external.values import ExternalResult, ExternalServer, ExternalTool
from rag.outbound import AddressRefused

__all__ = ["MAX_RESPONSE_BYTES", "ExternalClient", "OpenHttp"]

SESSION_BOUND_S = 30.0
"""Of one exchange, from the look-up of the name to the last byte, whatever the server does in between."""
MAX_RESPONSE_BYTES = 2 * 2**20
"""Of all responses of one exchange together, before anything is parsed."""
MAX_PAGES = 8
MAX_DESCRIPTION_CHARS = 1_000
MAX_SCHEMA_CHARS = 20_000
OpenHttp = Callable[[], httpx2.AsyncClient]
"""Makes a client for one exchange, such as `rag.outbound.pinned_client`."""
T = TypeVar("T")


@dataclass(slots=True)
class _Exchange:
    """What is seen of the responses of one exchange."""

    left: int = MAX_RESPONSE_BYTES
    refused: bool = False
    """The server answered 401 or 403."""

    async def bound(self, response: httpx2.Response) -> None:
        """Take note of the status, and let no more of the body through than is left."""
        self.refused = self.refused or response.status_code in {401, 403}
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            # a few bytes could unfold into gigabytes; none was asked for
            raise httpx2.DecodingError("the body is encoded", request=response.request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, exchange: _Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._exchange.left -= len(piece)
            if self._exchange.left < 0:
                raise httpx2.ReadError("the responses are too large")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalClient:
    """Asks one server. Holds nothing open between two exchanges."""

    server: ExternalServer
    open_http: OpenHttp = field(repr=False)

    async def tools(self) -> list[ExternalTool]:
        """Return those of the server's tools that are allowed, in the order of the allow-list.

        Raises:
            Forbidden: The server refuses our credential, has none to check, or stands where nothing may be sent.
            Unavailable: It cannot be reached, takes too long, says too much, or does not speak MCP.
        """
        offered = {tool.name: tool for tool in await self._exchange(_list_tools)}
        return [offered[name] for name in self.server.tools if name in offered]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> ExternalResult:
        """Call an allowed tool and return what it says.

        Raises:
            Forbidden: The tool is not on the allow-list, or as `tools`.
            InvalidInput: The server refuses the arguments, or the tool reports a failure.
            Unavailable: As `tools`.
        """
        if tool not in self.server.tools:
            raise Forbidden(f"the tool is not on the allow-list of the external server {self.server.name}")
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=dict(arguments)))
        # not `call_tool`, which goes on asking when the server asks back
        result = await self._exchange(lambda session: session.send_request(request, CallToolResult))
        if result.is_error:
            raise InvalidInput(f"the tool of the external server {self.server.name} reports a failure")
        try:
            return result_of(result)
        except ValueError as exc:
            raise Unavailable(f"the external server {self.server.name} answered in a form that is refused") from exc

    async def _exchange(self, ask: Callable[[ClientSession], Awaitable[T]]) -> T:
        if not self.server.enabled:
            raise Forbidden(f"the external server {self.server.name} is disabled")
        if self.server.lacks_credential:
            raise Forbidden(f"the external server {self.server.name} needs a credential that nobody has set")
        seen = _Exchange()
        headers = {**self.server.headers(), "accept-encoding": "identity", "user-agent": "bulkhead"}
        with _translated(self.server.name, seen), quietly(), anyio.fail_after(SESSION_BOUND_S):
            async with self.open_http() as http:
                http.headers.update(headers)
                http.event_hooks = {"response": [seen.bound]}
                transport = streamable_http_client(self.server.url, http_client=http)
                async with Client(transport, cache=None) as client:
                    return await ask(client.session)


async def _list_tools(session: ClientSession) -> list[ExternalTool]:
    found: list[ExternalTool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page: ListToolsResult = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        found += [
            ExternalTool(
                name=tool.name,
                description=clean(tool.description or "")[:MAX_DESCRIPTION_CHARS],
                input_schema=tool.input_schema,
            )
            for tool in page.tools
            if depth_of(tool.input_schema) <= MAX_DEPTH and len(str(tool.input_schema)) <= MAX_SCHEMA_CHARS
        ]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


@contextmanager
def _translated(name: str, seen: _Exchange) -> Generator[None]:
    try:
        yield
    except BulkheadError:
        raise
    except TimeoutError as exc:
        raise Unavailable(f"the external server {name} took too long") from exc
    except Exception as exc:  # whatever a stranger's answer makes the library raise is the stranger's failure
        raise _of(name, seen, list(_leaves(exc))) from exc


def _of(name: str, seen: _Exchange, failures: list[BaseException]) -> BulkheadError:
    if seen.refused:
        return Forbidden(f"the external server {name} refuses our credential, or asks for one")
    if any(isinstance(failure, AddressRefused) for failure in failures):
        return Forbidden(f"the external server {name} stands at an address to which nothing may be sent")
    if seen.left < 0:
        return Unavailable(f"the external server {name} says more than is taken")
    if any(isinstance(failure, httpx2.TransportError | OSError) for failure in failures):
        return Unavailable(f"the external server {name} cannot be reached")
    codes = {failure.code for failure in failures if isinstance(failure, MCPError)}
    if codes & {INVALID_PARAMS, METHOD_NOT_FOUND}:
        return InvalidInput(f"the external server {name} refuses the call")
    return Unavailable(f"the external server {name} failed, or does not speak MCP")


def _leaves(exc: BaseException) -> Generator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for child in exc.exceptions:
            yield from _leaves(child)
    else:
        yield exc
