"""What a row of the audit trail is and how its hash is made: the same text as `rag.append_audit_v1` makes in SQL.

Above: `reader`. Below: nothing. Written apart from the SQL on purpose: a verification that asked the database for the
hashes would believe whoever changed it. docs/audit.md describes the text for auditors who trust neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rag.db.pool import Row
from rag.errors import InvalidInput

__all__ = ["START", "Anchor", "Record", "as_dict", "canonical_text", "fault_of", "hash_of", "parse_anchor", "record_of"]

START = bytes(32)
"""What the first row has for the hash of the row before it."""
VERSION = "bulkhead audit v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row."""

    tenant_id: UUID
    seq: int
    at: datetime
    subject: str
    actor: str | None
    door: str
    method: str
    target: str
    outcome: str
    documents: tuple[str, ...]
    document_count: int
    query_digest: str | None
    query_text: str | None
    trace_id: str | None
    token_ids: tuple[str, ...]
    repeats: int
    begun: int | None
    previous: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A row's number and hash, kept where whoever administers the database cannot change it."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        """Return SEQ:HASH."""
        return f"{self.seq}:{self.hash.hex()}"


def parse_anchor(text: str) -> Anchor:
    """Return the anchor that `text` (SEQ:HASH) is.

    Raises:
        InvalidInput: It is of another form.
    """
    number, _, digest = text.strip().partition(":")
    try:
        anchor = Anchor(seq=int(number), hash=bytes.fromhex(digest))
    except ValueError as exc:
        raise InvalidInput("an anchor is SEQ:HASH, as `bulkhead audit verify` prints it") from exc
    if anchor.seq < 1 or len(anchor.hash) != len(START):
        raise InvalidInput("an anchor is SEQ:HASH, as `bulkhead audit verify` prints it")
    return anchor


def record_of(row: Row) -> Record:
    """Return the row that the database gave."""
    values: dict[str, Any] = dict(row)
    values |= {name: tuple(values[name]) for name in ("documents", "token_ids")}
    return Record(**values)


def as_dict(record: Record) -> dict[str, object]:
    """Return the row as an export shows it, in the order in which it is hashed."""
    return {
        "tenant_id": str(record.tenant_id),
        "seq": record.seq,
        "at": record.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "subject": record.subject,
        "actor": record.actor,
        "door": record.door,
        "method": record.method,
        "target": record.target,
        "outcome": record.outcome,
        "documents": list(record.documents),
        "document_count": record.document_count,
        "query_digest": record.query_digest,
        "query_text": record.query_text,
        "trace_id": record.trace_id,
        "token_ids": list(record.token_ids),
        "repeats": record.repeats,
        "begun": record.begun,
        "previous": record.previous.hex(),
        "hash": record.hash.hex(),
    }


def canonical_text(record: Record) -> str:
    """Return what is hashed: a JSON array of VERSION and every field but the hash, as PostgreSQL's jsonb prints it."""
    fields = as_dict(record)
    del fields["hash"]
    return json.dumps([VERSION, *fields.values()], ensure_ascii=False)


def hash_of(record: Record) -> bytes:
    """Return the hash that the row must have."""
    return hashlib.sha256(canonical_text(record).encode()).digest()


def fault_of(record: Record, *, seq: int, previous: bytes) -> str | None:
    """Return what is wrong with the row that follows number `seq`, whose hash is `previous`; None when it is right."""
    if record.seq != seq + 1:
        return "a row is missing" if record.seq > seq + 1 else "a row stands where none can"
    if record.previous != previous:
        return "it does not follow the row before it"
    if record.hash != hash_of(record):
        return "the row was changed"
    return None
