"""One entry of the audit trail, as a face hands it in.

Above: `trail`, `log`. What proves the caller (subject, token ids) is no part of it: the database takes that from the
sealed context.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BEGUN", "CANCELED", "MAX_DOCUMENTS", "MAX_QUERY_CHARS", "OK", "Entry"]

BEGUN, OK, CANCELED = "begun", "ok", "canceled"
MAX_DOCUMENTS = 50
"""So many ids are kept of an operation's documents; how many there were is kept as well."""
MAX_QUERY_CHARS = 10_000
"""Twice and a half of what a search takes; only so much of a longer text is digested or kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What was done, or refused."""

    door: str
    """The server: mcp."""
    method: str
    """Of the protocol, such as tools/call."""
    target: str = ""
    outcome: str
    """BEGUN, OK, CANCELED, or the code of an error (rag/errors.py)."""
    documents: tuple[str, ...] = ()
    query: str | None = field(default=None, repr=False)
    trace_id: str | None = None
    repeats: int = 1
    """How many refusals of this kind the entry stands for."""
    begun: int | None = None
    """Number of the entry that was written before the work."""
    durable: bool = False
    """Wait until the database's disk has it; else a crash of its host may lose the last moments of the trail."""
