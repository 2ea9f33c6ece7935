"""The one tree of errors, on the ground floor: everything above raises from here, nothing here imports ours.

    BulkheadError                 internal            a defect of ours; told to a caller without detail
    |-- InvalidInput              invalid_input       the caller can mend the request
    |   |-- DocumentRefused       document_refused    one file or document that cannot be taken in
    |   `-- InvalidCursor         invalid_cursor      a paging cursor that is not ours or not this tenant's
    |-- NotFound                  not_found           absent, or not this tenant's: never told apart
    |-- Unauthenticated           unauthenticated     no token, or one that does not verify
    |   `-- Revoked               revoked             the token, its user or its tenant was revoked
    |-- Forbidden                 forbidden           verified, but the scope is missing
    |   `-- SealRefused           seal_refused        the database refused the tenant context
    |-- Conflict                  conflict            the request contradicts what is stored
    |   |-- TaskNotCancelable     task_not_cancelable the task has already ended
    |   |-- TaskBusy              task_busy           the task is working and takes no message now
    |   |-- CostReached           cost_reached        the task has used what it may; its caller is asked for more
    |   |-- BudgetExceeded        budget_exceeded     a budget has not that much left; carries which and what is left
    |   |-- PriceUnknown          price_unknown       a budget applies, and the model has no price
    |   |-- FenceLost             fence_lost          another worker owns the run: stop, write nothing
    |   `-- ModelSwitched         model_switched      the tenant's vectors are another model's; carries which
    |-- RateLimited               rate_limited        slow down; carries when to come back
    |-- Unavailable               unavailable         a dependency is down; trying again may help
    |   |-- EmbedderUnavailable   embedder_unavailable  no query vector to be had: the lexical leg answers alone
    |   `-- RerankerUnavailable   reranker_unavailable  no second opinion to be had: the fused order stands
    `-- Misconfigured             misconfigured       refuse to start; the message says what to set

Each face maps `code` to its own protocol in one table, and a test walks this tree so that the tables stay total.
A message is written for the caller: it names no SQL, no path of the server, no document text and no token.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import ClassVar

__all__ = [
    "BudgetExceeded",
    "BulkheadError",
    "Conflict",
    "CostReached",
    "DocumentRefused",
    "EmbedderUnavailable",
    "FenceLost",
    "Forbidden",
    "InvalidCursor",
    "InvalidInput",
    "Misconfigured",
    "ModelSwitched",
    "NotFound",
    "PriceUnknown",
    "RateLimited",
    "RerankerUnavailable",
    "Revoked",
    "SealRefused",
    "TaskBusy",
    "TaskNotCancelable",
    "Unauthenticated",
    "Unavailable",
]


class BulkheadError(Exception):
    """The request failed inside the server."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None) -> None:
        """Without `message`, the class docstring's first line is the message."""
        doc = (type(self).__doc__ or "").strip().splitlines()
        self.message = message or (doc[0] if doc else self.code)
        super().__init__(self.message)


class InvalidInput(BulkheadError):
    """The request is not valid."""

    code = "invalid_input"


class DocumentRefused(InvalidInput):
    """The document cannot be taken in."""

    code = "document_refused"


class InvalidCursor(InvalidInput):
    """The cursor is not valid here; start again without one."""

    code = "invalid_cursor"


class NotFound(BulkheadError):
    """There is nothing by that name here."""

    code = "not_found"


class Unauthenticated(BulkheadError):
    """A valid bearer token is required."""

    code = "unauthenticated"


class Revoked(Unauthenticated):
    """The token was revoked."""

    code = "revoked"


class Forbidden(BulkheadError):
    """The token does not carry the scope that this needs."""

    code = "forbidden"


class SealRefused(Forbidden):
    """The tenant context was refused."""

    code = "seal_refused"


class Conflict(BulkheadError):
    """The request contradicts the stored state."""

    code = "conflict"


class TaskNotCancelable(Conflict):
    """The task has already ended."""

    code = "task_not_cancelable"


class TaskBusy(Conflict):
    """The task is working and takes no message now."""

    code = "task_busy"


class CostReached(Conflict):
    """The task has used what it may."""

    code = "cost_reached"


class BudgetExceeded(Conflict):
    """The budget has not that much left."""

    code = "budget_exceeded"

    def __init__(
        self,
        message: str | None = None,
        *,
        scope: str = "",
        window: str = "",
        left: Decimal = Decimal(0),
        resets_at: datetime | None = None,
    ) -> None:
        """`scope` is request, task, user, team or tenant; `window` request, task, day or month; `left` is never below 0
        and in the installation's currency; `resets_at` is when the window ends, None for one that does not.
        """
        super().__init__(message)
        self.scope = scope
        self.window = window
        self.left = left
        self.resets_at = resets_at


class PriceUnknown(Conflict):
    """A budget applies, and the model has no price; the operator sets one."""

    code = "price_unknown"


class FenceLost(Conflict):
    """Another worker owns this run."""

    code = "fence_lost"


class ModelSwitched(Conflict):
    """The tenant's vectors are made with another embedding model now; ask again."""

    code = "model_switched"

    def __init__(self, message: str | None = None, *, model_id: int = 0) -> None:
        """`model_id` is the model to embed the query with."""
        super().__init__(message)
        self.model_id = model_id


class RateLimited(BulkheadError):
    """Too many requests."""

    code = "rate_limited"

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0) -> None:
        """`retry_after_s` is the earliest time, in seconds from now, at which the same request would be let in."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(BulkheadError):
    """A part of the system is not reachable; try again."""

    code = "unavailable"


class EmbedderUnavailable(Unavailable):
    """The embedding model is not reachable."""

    code = "embedder_unavailable"


class RerankerUnavailable(Unavailable):
    """The reranking model is not reachable."""

    code = "reranker_unavailable"


class Misconfigured(BulkheadError):
    """The configuration is not usable."""

    code = "misconfigured"
