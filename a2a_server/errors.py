"""Our errors as A2A errors and HTTP statuses: one table, total over the tree of rag/errors.py (a test walks it).

Above: the guard, the bindings, the door. JSON-RPC answers errors with HTTP 200, except where a proxy, a client library
or a load balancer must see that the door itself is closed. HTTP+JSON and gRPC answer each error with a status of its
own (A2A 1.0, sections 5.4, 10.6 and 11.6), and all three name it by google.rpc.ErrorInfo, whose metadata has our code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import (
    A2A_ERROR_MAPPING,
    A2A_ERROR_REASONS,
    A2AError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from rag.errors import BulkheadError

__all__ = ["TABLE", "Mapped", "Status", "a2a_error", "code_of", "http_status", "json_status", "reason_of", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a caller gets for one code."""

    error: type[A2AError]
    status: int = 200
    """HTTP's over JSON-RPC. Another than 200 is HTTP+JSON's as well, and gRPC's follows from it."""
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
    "cost_reached": Mapped(error=UnsupportedOperationError),
    "budget_exceeded": Mapped(error=InvalidRequestError, status=429),
    "price_unknown": Mapped(error=UnsupportedOperationError),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a binding with statuses of its own answers an error."""

    http: int
    grpc: str
    """The name of a grpc.StatusCode."""


_GRPC = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


def code_of(error: A2AError) -> str | None:
    """Return our stable code of the error, if it is one of ours."""
    code = (error.data or {}).get("code")
    return code if isinstance(code, str) else None


def status_of(error: A2AError) -> Status:
    """Return the statuses that HTTP+JSON and gRPC answer with."""
    closed = http_status(code_of(error))
    if closed != 200:
        return Status(http=closed, grpc=_GRPC[closed])
    kind = A2A_ERROR_MAPPING.get(type(error), A2A_ERROR_MAPPING[InternalError])
    return Status(http=kind.http_code, grpc=kind.grpc_status)


def reason_of(error: A2AError) -> str:
    """Return the reason of its google.rpc.ErrorInfo: of a closed door the status itself, for which A2A has no error."""
    if http_status(code_of(error)) != 200:
        return status_of(error).grpc
    return A2A_ERROR_REASONS.get(type(error), "INTERNAL_ERROR")


def json_status(error: A2AError) -> dict[str, Any]:
    """Return the error as google.rpc.Status in JSON: HTTP+JSON's body, and that of what HTTP itself refuses."""
    status = status_of(error)
    payload = build_rest_error_payload(error)
    payload["error"].update(code=status.http, status=status.grpc)
    for detail in payload["error"].get("details", ()):
        if "reason" in detail:
            detail["reason"] = reason_of(error)
    return payload
