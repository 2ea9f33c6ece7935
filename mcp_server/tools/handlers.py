"""Answers to tools/list and tools/call.

Above: `mcp_server.calls`. Below: the tools, `call`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import mcp_types as types
import orjson
from mcp.shared.exceptions import MCPError

from mcp_server.call import Done, Operation, answer
from mcp_server.errors import as_result
from mcp_server.requests import MAX_SHOWN_NAME, Context, answer_or_refuse, call_of, count_unknown, refuse_cursor
from mcp_server.tools import TOOLS, find_tool
from mcp_server.tools.tool import Output
from rag.errors import BulkheadError
from rag.runtime import Runtime

__all__ = ["call_tool", "list_tools"]

_LIST = Operation(method="tools/list", scope=None)


async def list_tools(
    runtime: Runtime, ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    """List the tools that the caller's scopes cover."""
    refuse_cursor(params, "tools")
    call = call_of(runtime, ctx)

    async def listed() -> Done[types.ListToolsResult]:
        tools = [tool.declaration for tool in TOOLS if tool.scope in call.principal.scopes]
        return Done(value=types.ListToolsResult(tools=tools))

    return await answer_or_refuse(call, _LIST, listed)


async def call_tool(runtime: Runtime, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    """Run one tool; what a model can mend is a result."""
    call = call_of(runtime, ctx)
    tool = find_tool(params.name)
    if tool is None:
        await count_unknown(call, "tools/call")
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:MAX_SHOWN_NAME]}")

    async def called() -> Done[types.CallToolResult]:
        output = await tool.call(call, params.arguments or {})
        return Done(value=_result(output), documents=output.documents_used())

    query, operation = _query(params.arguments), tool.operation
    try:
        return await answer(call, operation if query is None else dataclasses.replace(operation, query=query), called)
    except BulkheadError as exc:
        return as_result(exc)


def _query(arguments: dict[str, Any] | None) -> str | None:
    query = (arguments or {}).get("query")
    return query if isinstance(query, str) else None


def _result(output: Output) -> types.CallToolResult:
    # the JSON text beside the structure is for clients older than structured content (MCP, server/tools)
    structured = output.model_dump(mode="json")
    text = types.TextContent.model_construct(type="text", text=orjson.dumps(structured).decode())
    # not validated here: the SDK's kernel validates every result on its way out
    return types.CallToolResult.model_construct(content=[text], structured_content=structured)
