"""The MCP server proper: lists the tools that a caller may use, and runs them.

Above: `app`, which puts it behind HTTP and authentication. Below: the SDK's low-level Server, `tools`, `errors`. Serves
the revisions 2025-11-25 and 2026-07-28 alike; nothing is kept between two requests.
"""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import Any

import anyio
import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from starlette.requests import Request

from mcp_server.auth import PRINCIPAL
from mcp_server.errors import ERROR_META, as_result, refusal
from mcp_server.tools import TOOLS, find_tool
from mcp_server.tools.tool import Output, Tool
from rag.errors import BulkheadError, RateLimited, Unauthenticated, Unavailable
from rag.identity.principal import Principal, require
from rag.runtime import Runtime
from rag.telemetry import log_fields

__all__ = ["build_server"]

_log = logging.getLogger(__name__)
Context = ServerRequestContext[dict[str, Any], Any]
INSTRUCTIONS = (
    "Bulkhead holds your organisation's documents. To answer a question, call hybrid_search, read around a passage "
    "with retrieve_document where needed, and cite passages by title, document_id and character span."
)
LIST_TTL_MS = 300_000
DISCOVER_TTL_MS = 3_600_000
MAX_SHOWN_NAME = 64


def build_server(runtime: Runtime) -> Server[dict[str, Any]]:
    """Return the server over `runtime`."""

    async def on_list_tools(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        if params is not None and params.cursor is not None:
            raise MCPError(types.INVALID_PARAMS, "the list of tools has one page; ask without a cursor")
        principal = _caller(ctx)
        await _admit(runtime, principal)
        return types.ListToolsResult(tools=[tool.declaration for tool in TOOLS if tool.scope in principal.scopes])

    async def on_call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        principal = _caller(ctx)
        with log_fields(tenant=str(principal.tenant_id)):
            await _admit(runtime, principal)
            tool = find_tool(params.name)
            if tool is None:
                raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:MAX_SHOWN_NAME]}")
            began = time.perf_counter()
            result = await _call(runtime, principal, tool, params.arguments or {})
            outcome = (result.meta or {}).get(ERROR_META, "ok")
            _log.info("%s: %s in %.0f ms", tool.name, outcome, (time.perf_counter() - began) * 1000)
            return result

    return Server(
        "bulkhead",
        title="Bulkhead",
        version=version("bulkhead"),
        instructions=INSTRUCTIONS,
        # without it the SDK runs tools/list before each call (mcp.md 6)
        get_tool_input_schema=lambda name: tool.declaration.input_schema if (tool := find_tool(name)) else None,
        on_list_tools=on_list_tools,
        on_call_tool=on_call_tool,
        cache_hints={
            # which tools are listed depends on the caller's scopes
            "tools/list": CacheHint(LIST_TTL_MS, "private"),
            "server/discover": CacheHint(DISCOVER_TTL_MS, "public"),
        },
    )


def _caller(ctx: Context) -> Principal:
    # from this very request, never from a session: tokens of two tenants may share one connection
    request = ctx.request
    principal = request.scope.get(PRINCIPAL) if isinstance(request, Request) else None
    if not isinstance(principal, Principal):
        raise refusal(Unauthenticated())
    return principal


async def _admit(runtime: Runtime, principal: Principal) -> None:
    try:
        await runtime.limiter.admit(principal.tenant_id)
    except RateLimited as exc:
        raise refusal(exc) from exc


async def _call(
    runtime: Runtime, principal: Principal, tool: Tool[Any], arguments: dict[str, Any]
) -> types.CallToolResult:
    try:
        require(principal, tool.scope)
        with anyio.fail_after(tool.timeout_s):
            output = await tool.call(runtime, principal, arguments)
    except TimeoutError:
        _log.warning("%s ran into its limit of %.0f s", tool.name, tool.timeout_s)
        return as_result(Unavailable(f"{tool.name} took longer than {tool.timeout_s:.0f} s; try again"))
    except BulkheadError as exc:
        if type(exc) is BulkheadError:
            _log.exception("%s failed", tool.name)
        return as_result(exc)
    except MCPError:
        raise
    except Exception as exc:
        # the SDK would write the exception's text, which may quote a request, into the span
        _log.exception("%s failed", tool.name)
        raise refusal(BulkheadError()) from exc
    return _result(output)


def _result(output: Output) -> types.CallToolResult:
    # the JSON text beside the structure is for clients older than structured content (MCP, server/tools)
    return types.CallToolResult(
        content=[types.TextContent(text=output.model_dump_json())],
        structured_content=output.model_dump(mode="json"),
    )
