"""What every handler does with the SDK's request before it is one of ours: who asks, and which page.

Above: `calls` and the handlers of tools, resources, prompts and completions. Below: the SDK's context, `auth`, `call`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from starlette.requests import Request

from mcp_server.auth import PRINCIPAL
from mcp_server.call import Call, Done, Operation, answer
from mcp_server.errors import refusal
from rag.errors import BulkheadError, NotFound, Unauthenticated
from rag.identity.principal import Principal
from rag.runtime import Runtime

__all__ = ["MAX_SHOWN_NAME", "Context", "answer_or_refuse", "call_of", "count_unknown", "refuse_cursor"]

Context = ServerRequestContext[dict[str, Any], Any]
MAX_SHOWN_NAME = 64
T = TypeVar("T")


def call_of(runtime: Runtime, ctx: Context) -> Call:
    """Return who asks, of what.

    Raises:
        MCPError: Nobody was let in with this request.
    """
    # from this very request, never from a session: tokens of two tenants may share one connection
    request = ctx.request
    principal = request.scope.get(PRINCIPAL) if isinstance(request, Request) else None
    if not isinstance(principal, Principal):
        raise refusal(Unauthenticated())
    return Call(runtime=runtime, principal=principal, progress=ctx.session.report_progress)


async def answer_or_refuse(call: Call, operation: Operation, work: Callable[[], Awaitable[Done[T]]]) -> T:
    """Return what `answer` does.

    Raises:
        MCPError: Whatever went wrong, in the form that the wire has for it.
    """
    try:
        return await answer(call, operation, work)
    except BulkheadError as exc:
        raise refusal(exc) from exc


def refuse_cursor(params: types.PaginatedRequestParams | None, what: str) -> None:
    """Return only where no cursor was sent to a list of one page."""
    if params is not None and params.cursor is not None:
        raise MCPError(types.INVALID_PARAMS, f"the list of {what} has one page; ask without a cursor")


async def count_unknown(call: Call, method: str) -> None:
    """Let a call of nothing count against the limits, and record it: guessing names is not free.

    Raises:
        MCPError: The caller is at a limit, or the call cannot be recorded.
    """

    async def nothing() -> Done[None]:
        raise NotFound

    try:
        await answer(call, Operation(method=method, target="unknown", scope=None), nothing)
    except NotFound:
        return
    except BulkheadError as exc:
        raise refusal(exc) from exc
