"""The entries of one operation: before its work where it writes, and one at its end, whichever that is.

Above: `mcp_server.call`. Below: `log`. No answer leaves without its entry: what cannot be recorded is Unavailable.
"""

from __future__ import annotations

import dataclasses
import logging

import anyio
from opentelemetry import trace

from rag.audit.log import AuditLog
from rag.audit.values import BEGUN, CANCELED, MAX_QUERY_CHARS, OK, Entry
from rag.errors import BulkheadError, RateLimited, Revoked, SealRefused, Unavailable
from rag.identity.principal import Principal

__all__ = ["Trail", "trace_id"]

_log = logging.getLogger(__name__)


class Trail:
    """Records one operation; each of `end`, `refuse` and `cancel` does something once, whichever comes first."""

    def __init__(
        self,
        audit: AuditLog,
        principal: Principal,
        *,
        door: str,
        method: str,
        target: str,
        query: str | None = None,
        writes: bool = False,
        only_refusals: bool = False,
    ) -> None:
        """`only_refusals`: what it answers tells nothing of the tenant's data."""
        self._audit = audit
        self._principal = principal
        self._entry = Entry(
            door=door,
            method=method,
            target=target,
            outcome=BEGUN,
            query=None if query is None else query[:MAX_QUERY_CHARS],
            trace_id=trace_id(),
            durable=writes,
        )
        self._only_refusals = only_refusals
        self._ended = False

    async def begin(self) -> None:
        """Record that the work of an operation that writes is about to begin; of others nothing.

        Raises:
            Unavailable, SealRefused, Revoked: As `AuditLog.record`; the work must not begin.
        """
        if not self._entry.durable:
            return
        with anyio.CancelScope(shield=True):  # bounded by record; a canceled operation refers to this entry too
            try:
                begun = await self._audit.record(self._principal, self._entry)
            except BulkheadError:
                self._ended = True
                raise
            # what was asked stands in the first entry
            self._entry = dataclasses.replace(self._entry, begun=begun, query=None)

    async def end(self, documents: tuple[str, ...]) -> None:
        """Record that the work is done, out of these documents.

        Raises:
            Unavailable, SealRefused, Revoked: As `AuditLog.record`; the result must not be given.
        """
        if self._ended or self._only_refusals:
            return
        self._ended = True
        await self._audit.record(self._principal, dataclasses.replace(self._entry, outcome=OK, documents=documents))

    async def refuse(self, error: BulkheadError) -> None:
        """Record that the operation is answered with `error`.

        Raises:
            Unavailable: It cannot be recorded, and `error` might tell something.
        """
        if self._ended:
            return
        self._ended = True
        entry = dataclasses.replace(self._entry, outcome=error.code)
        if isinstance(error, Revoked | SealRefused):
            _log.warning("a refusal cannot be recorded as its tenant: %s", error.code)
        elif isinstance(error, RateLimited) and entry.begun is None:
            self._audit.note_refusal(self._principal, entry)
        else:
            try:
                await self._audit.record(self._principal, entry)
            except (Revoked, SealRefused) as exc:
                _log.warning("a refusal cannot be recorded as its tenant: %s", exc.code)
            except Unavailable:
                if not isinstance(error, Unavailable):
                    raise

    def cancel(self) -> None:
        """Record that the caller is gone; does not wait."""
        if not self._ended and not self._only_refusals:
            self._ended = True
            self._audit.note(self._principal, dataclasses.replace(self._entry, outcome=CANCELED))


def trace_id() -> str | None:
    """Return the current trace's id, 32 hexadecimal digits, or None outside of any."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None
