"""Our errors on the MCP wire: one table from `code` to the form in which a client meets it.

Above: `calls`. Below: rag.errors. What the model can mend or wait for is a tool result with `isError`, so that it reads
it; a fault of the request itself or of the caller's rights is a JSON-RPC error. Codes of ours lie outside
-32768..-32000, which JSON-RPC and MCP keep for themselves (mcp.md 0.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, TextContent

from rag.errors import BulkheadError, RateLimited

__all__ = ["CODES", "ERROR_META", "FORBIDDEN", "RATE_LIMITED", "TOO_LARGE", "UNAUTHENTICATED", "as_result", "refusal"]

UNAUTHENTICATED = 40100
FORBIDDEN = 40300
TOO_LARGE = 41300
RATE_LIMITED = 42900
ERROR_META = "bulkhead/code"
"""Key of a failed result's `_meta` that holds the error's code, for programs; the text is for the model."""

CODES: Mapping[str, int | None] = {
    "internal": INTERNAL_ERROR,
    "misconfigured": INTERNAL_ERROR,
    "invalid_cursor": INVALID_PARAMS,
    "unauthenticated": UNAUTHENTICATED,
    "revoked": UNAUTHENTICATED,
    "forbidden": FORBIDDEN,
    "seal_refused": FORBIDDEN,
    "rate_limited": RATE_LIMITED,
    # None: a tool result that the model reads
    "invalid_input": None,
    "document_refused": None,
    "not_found": None,
    "conflict": None,
    "task_not_cancelable": None,
    "task_busy": None,
    "fence_lost": None,
    "model_switched": None,
    "unavailable": None,
    "embedder_unavailable": None,
    "reranker_unavailable": None,
}


def as_result(error: BulkheadError) -> CallToolResult:
    """Return the failed tool result for `error`.

    Raises:
        MCPError: `error` is none that a model reads.
    """
    if CODES[error.code] is not None:
        raise refusal(error) from error
    # pyright knows only the alias of a field that has one
    return CallToolResult(
        content=[TextContent(text=error.message)],
        is_error=True,
        _meta={ERROR_META: error.code},
    )


def refusal(error: BulkheadError) -> MCPError:
    """Return the JSON-RPC error for `error`; of a defect it says nothing but that."""
    code = CODES[error.code] or INTERNAL_ERROR
    data: dict[str, Any] = {"code": error.code}
    if isinstance(error, RateLimited):
        data["retryAfterMs"] = math.ceil(error.retry_after_s * 1000)
    if code == INTERNAL_ERROR:
        return MCPError(code, "internal error", {"code": "internal"})
    return MCPError(code, error.message, data)
