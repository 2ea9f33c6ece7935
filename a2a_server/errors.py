"""Our errors as A2A errors and HTTP statuses: one table, total over the tree of rag/errors.py (a test walks it).

Above: handler, dispatcher, middleware. JSON-RPC answers errors with HTTP 200, except where a proxy, a client library or
a load balancer must see that the door itself is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from rag.errors import BulkheadError

__all__ = ["TABLE", "Mapped", "a2a_error", "http_status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a caller gets for one code."""

    error: type[A2AError]
    status: int = 200
    told: bool = True
    """Whether the message goes out; where it does not, a defect is ours and its text is not the caller's business."""


TABLE: Mapping[str, Mapped] = {
    "internal": Mapped(error=InternalError, told=False),
    "invalid_input": Mapped(error=InvalidParamsError),
    "document_refused": Mapped(error=InvalidParamsError),
    "invalid_cursor": Mapped(error=InvalidParamsError),
    "not_found": Mapped(error=TaskNotFoundError),
    "unauthenticated": Mapped(error=InvalidRequestError, status=401),
    "revoked": Mapped(error=InvalidRequestError, status=401),
    "forbidden": Mapped(error=InvalidRequestError, status=403),
    "seal_refused": Mapped(error=InvalidRequestError, status=403),
    "conflict": Mapped(error=UnsupportedOperationError),
    "task_not_cancelable": Mapped(error=TaskNotCancelableError),
    "task_busy": Mapped(error=UnsupportedOperationError),
    "fence_lost": Mapped(error=InternalError, told=False),
    "model_switched": Mapped(error=InternalError, told=False),
    "rate_limited": Mapped(error=InvalidRequestError, status=429),
    "unavailable": Mapped(error=InternalError, status=503),
    "embedder_unavailable": Mapped(error=InternalError, status=503),
    "reranker_unavailable": Mapped(error=InternalError, status=503),
    "misconfigured": Mapped(error=InternalError, told=False),
}


def a2a_error(exc: BulkheadError) -> A2AError:
    """Return the A2A error for one of ours; `data.code` is the stable code."""
    mapped = TABLE[exc.code]
    return mapped.error(exc.message if mapped.told else None, {"code": exc.code})


def http_status(code: object) -> int:
    """Return the HTTP status for a stable code; 200 for whatever is none."""
    return TABLE[code].status if isinstance(code, str) and code in TABLE else 200
