"""Reads the audit trail for an operator, page by page: to verify a chain, to hand it to somebody, to look at its end.

Above: `rag.cli.audit`. Below: `chain`, and `rag.db` as the maintenance login, which reads every chain and changes none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from rag.audit.chain import START, Anchor, Record, fault_of, record_of
from rag.db.pool import Database, Row
from sql import Query, load_queries

__all__ = ["AuditReader", "Chain", "Fault", "Verdict"]

_QUERIES = load_queries("audit")
PAGE = 2000
Progress = Callable[[int], None]
"""Is told how many rows have been looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Where a tenant's chain ends: by its own account (`head`), and by what there is (`last_seq`, 0: nothing)."""

    tenant_id: UUID
    name: str | None
    """None: the tenant is gone, its trail is not."""
    head: Anchor | None
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first place at which a chain is not what it was."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verification found; `anchor` is the end of what is right, None when that is nothing."""

    chain: Chain
    anchor: Anchor | None
    fault: Fault | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReader:
    """The verbs."""

    database: Database

    async def chains(self, tenant_id: UUID | None = None) -> list[Chain]:
        """Return every chain, or that of one tenant; of tenants without a row too, and of those that are gone."""
        rows = await self._fetch(_QUERIES["chains"], tenant_id=tenant_id)
        return [
            Chain(
                tenant_id=row["tenant_id"],
                name=row["name"],
                head=None if row["head_seq"] is None else Anchor(seq=row["head_seq"], hash=row["head_hash"]),
                last_seq=row["last_seq"] or 0,
            )
            for row in rows
        ]

    async def verify(
        self, chain: Chain, *, expected: Anchor | None = None, progress: Progress = lambda _: None
    ) -> Verdict:
        """Look at every row of the chain, and tell the first that is not as it was written.

        Rows that are appended meanwhile are left for the next time.
        """
        end = Anchor(seq=0, hash=START)
        head = chain.head or end
        fault: Fault | None = None
        async for record in self.rows(chain.tenant_id):
            if record.seq > max(head.seq, chain.last_seq):
                break
            reason = fault_of(record, seq=end.seq, previous=end.hash)
            if reason is None and record.seq > head.seq:
                reason = "it stands behind the end that the chain's head tells of"
            if reason is None and expected is not None and record.seq == expected.seq and record.hash != expected.hash:
                reason = "it is not the row that was expected"
            if reason is not None:
                fault = Fault(seq=min(record.seq, end.seq + 1), reason=reason)
                break
            end = Anchor(seq=record.seq, hash=record.hash)
            if end.seq % PAGE == 0:
                progress(end.seq)
        fault = fault or _end_fault(end, head, expected)
        return Verdict(chain=chain, anchor=end if end.seq else None, fault=fault)

    async def rows(
        self, tenant_id: UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[Record]:
        """Yield the tenant's rows in their order; of a time, from `since` on and before `until`."""
        after = 0 if since is None else await self._before(tenant_id, since)
        while True:
            page = await self._fetch(_QUERIES["page"], tenant_id=tenant_id, after=after, wanted=PAGE)
            for row in page:
                if until is not None and row["at"] >= until:
                    return
                yield record_of(row)
            if len(page) < PAGE:
                return
            after = page[-1]["seq"]

    async def tail(self, tenant_id: UUID, wanted: int) -> list[Record]:
        """Return the last `wanted` rows."""
        return [record_of(row) for row in await self._fetch(_QUERIES["tail"], tenant_id=tenant_id, wanted=wanted)]

    async def _before(self, tenant_id: UUID, since: datetime) -> int:
        """Return a number that the first row of `since` or later comes after: times never fall along a chain."""
        found = await self.chains(tenant_id)
        low, high = 0, found[0].last_seq if found else 0
        while low < high:
            middle = (low + high) // 2
            page = await self._fetch(_QUERIES["page"], tenant_id=tenant_id, after=middle, wanted=1)
            if not page or page[0]["at"] >= since:
                high = middle
            else:
                low = page[0]["seq"]
        return low

    async def _fetch(self, query: Query, **parameters: object) -> list[Row]:
        async with self.database.unsafe_unscoped(reason="an operator reads the trail of any tenant") as session:
            return await session.fetch(query, **parameters)


def _end_fault(end: Anchor, head: Anchor, expected: Anchor | None) -> Fault | None:
    if end.seq < head.seq:
        return Fault(seq=end.seq + 1, reason="the chain was cut off here")
    if end.hash != head.hash:
        return Fault(seq=end.seq, reason="it is not the row that the chain's head tells of")
    if expected is not None and end.seq < expected.seq:
        return Fault(seq=end.seq + 1, reason="the chain is shorter than it was")
    return None
