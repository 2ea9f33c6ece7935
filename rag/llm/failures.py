"""What may go wrong with one call to a model server, told by what it may have cost. Never leaves `rag.llm`.

Above: `wire` raises them; `retries`, `breaker`'s owner and `gateway` decide by them. Below: `request`.

No message or field of a failure holds what was sent, what came back, an address or a key.
"""

from __future__ import annotations

from rag.llm.request import TokenUsage

__all__ = ["MaybeBilled", "NotBilled"]


class NotBilled(Exception):
    """No work was done: the server was not reached, or refused before it began."""

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
        at_fault: bool = True,
        status: int | None = None,
    ) -> None:
        """`retryable`: the same request may be served here later. `at_fault`: what a circuit breaker counts."""
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.at_fault = at_fault
        self.status = status


class MaybeBilled(Exception):
    """The request was sent, and no whole answer came: what it cost is not known, or only as far as `usage` tells."""

    def __init__(
        self,
        message: str,
        *,
        emitted: bool,
        usage: TokenUsage | None = None,
        at_fault: bool = True,
        status: int | None = None,
    ) -> None:
        """`emitted`: a reader has seen text. `usage`: the server's count of the whole call, said before it broke."""
        super().__init__(message)
        self.emitted = emitted
        self.usage = usage
        self.at_fault = at_fault
        self.status = status
