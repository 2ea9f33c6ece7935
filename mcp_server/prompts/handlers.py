"""Answers to prompts/list and prompts/get.

Above: `mcp_server.calls`. Below: the prompts, `call`.
"""

from __future__ import annotations

import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcp_server.call import Done, Operation
from mcp_server.prompts import PROMPTS, find_prompt
from mcp_server.requests import MAX_SHOWN_NAME, Context, answer_or_refuse, call_of, count_unknown, refuse_cursor
from rag.runtime import Runtime

__all__ = ["get_prompt", "list_prompts"]

_LIST = Operation(method="prompts/list", scope=None)


async def list_prompts(
    runtime: Runtime, ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    """List the prompts that the caller's scopes cover."""
    refuse_cursor(params, "prompts")
    call = call_of(runtime, ctx)

    async def listed() -> Done[types.ListPromptsResult]:
        shown = [prompt.declaration for prompt in PROMPTS if prompt.scope in call.principal.scopes]
        return Done(value=types.ListPromptsResult(prompts=shown))

    return await answer_or_refuse(call, _LIST, listed)


async def get_prompt(runtime: Runtime, ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """Return the messages of one prompt."""
    call = call_of(runtime, ctx)
    prompt = find_prompt(params.name)
    if prompt is None:
        await count_unknown(call, "prompts/get")
        message = f"Unknown prompt: {params.name[:MAX_SHOWN_NAME]}; prompts/list names those that there are"
        raise MCPError(types.INVALID_PARAMS, message)

    async def got() -> Done[types.GetPromptResult]:
        return await prompt.get(call, params.arguments or {})

    return await answer_or_refuse(call, prompt.operation, got)
