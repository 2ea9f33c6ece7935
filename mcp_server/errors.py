"""Our errors on the MCP wire: one table from `code` to the form in which a client meets it.

Above: `calls`, `auth`. Below: rag.errors. What a model can mend or wait for is, from a tool, a result with `isError`,
so that the model reads it; everything else is a JSON-RPC error. Codes of ours lie outside -32768..-32000, which
JSON-RPC and MCP keep for themselves (mcp.md 0.4). docs/errors.md shows the same table to clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, TextContent
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from rag.errors import BulkheadError, RateLimited

__all__ = [
    "CODES",
    "CONFLICT",
    "ERROR_META",
    "FORBIDDEN",
    "LEGACY_NOT_FOUND",
    "RATE_LIMITED",
    "READ_BY_MODELS",
    "REFUSED_DOCUMENT",
    "TOO_LARGE",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "as_result",
    "refusal",
]

UNAUTHENTICATED = 40100
FORBIDDEN = 40300
CONFLICT = 40900
TOO_LARGE = 41300
REFUSED_DOCUMENT = 42200
RATE_LIMITED = 42900
UNAVAILABLE = 50300
LEGACY_NOT_FOUND = -32002
"""Resource not found, up to 2025-11-25; later revisions say -32602 and forbid this one."""
ERROR_META = "bulkhead/code"
"""Key of a failed result's `_meta` that holds the error's code, for programs; the text is for the model."""

CODES: Mapping[str, int] = {
    "internal": INTERNAL_ERROR,
    "misconfigured": INTERNAL_ERROR,
    "invalid_cursor": INVALID_PARAMS,
    "unauthenticated": UNAUTHENTICATED,
    "revoked": UNAUTHENTICATED,
    "forbidden": FORBIDDEN,
    "seal_refused": FORBIDDEN,
    "rate_limited": RATE_LIMITED,
    "invalid_input": INVALID_PARAMS,
    "document_refused": REFUSED_DOCUMENT,
    "not_found": INVALID_PARAMS,
    "conflict": CONFLICT,
    "task_not_cancelable": CONFLICT,
    "task_busy": CONFLICT,
    "cost_reached": CONFLICT,
    "budget_exceeded": CONFLICT,
    "price_unknown": CONFLICT,
    "fence_lost": CONFLICT,
    "model_switched": CONFLICT,
    "unavailable": UNAVAILABLE,
    "embedder_unavailable": UNAVAILABLE,
    "reranker_unavailable": UNAVAILABLE,
}
"""The JSON-RPC code of each error."""
READ_BY_MODELS = frozenset(
    {
        "invalid_input",
        "document_refused",
        "not_found",
        "conflict",
        "task_not_cancelable",
        "task_busy",
        "cost_reached",
        "budget_exceeded",
        "price_unknown",
        "fence_lost",
        "model_switched",
        "unavailable",
        "embedder_unavailable",
        "reranker_unavailable",
    }
)
"""What a tool answers as a failed result instead."""


def as_result(error: BulkheadError) -> CallToolResult:
    """Return the failed tool result for `error`.

    Raises:
        MCPError: `error` is none that a model reads.
    """
    if error.code not in READ_BY_MODELS:
        raise refusal(error) from error
    # pyright knows only the alias of a field that has one
    return CallToolResult(
        content=[TextContent(text=error.message)],
        is_error=True,
        _meta={ERROR_META: error.code},
    )


def refusal(error: BulkheadError, *, version: str | None = None) -> MCPError:
    """Return the JSON-RPC error for `error`; of a defect it says nothing but that.

    `version` is the request's protocol revision where a resource is read: what is absent has another code before 2026.
    """
    code = CODES[error.code]
    if code == INTERNAL_ERROR:
        return MCPError(code, "internal error", {"code": "internal"})
    if error.code == "not_found" and version is not None and version not in MODERN_PROTOCOL_VERSIONS:
        code = LEGACY_NOT_FOUND
    data: dict[str, Any] = {"code": error.code}
    if isinstance(error, RateLimited):
        data["retryAfterMs"] = math.ceil(error.retry_after_s * 1000)
    return MCPError(code, error.message, data)
