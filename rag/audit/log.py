"""The audit trail's pen: what comes for a tenant while a call to the database is under way goes out with the next.

    async with open_audit(database, keys=keys) as audit:
        await audit.record(principal, entry)        # returns when the row is committed

Above: `trail`, through `rag.runtime`. Below: `rag.db` and the SQL function `rag.append_audit_v1`. Memory is bounded,
and so is every wait; what cannot be written is refused, so that its answer can be.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from rag.audit.floods import Floods
from rag.audit.values import MAX_DOCUMENTS, MAX_QUERY_CHARS, Entry
from rag.db.pool import Database
from rag.errors import BulkheadError, Forbidden, Unauthenticated, Unavailable
from rag.identity.principal import Principal
from rag.identity.seal import SealKeys
from sql import load_queries

__all__ = ["AuditLog", "open_audit", "query_digest"]

_log = logging.getLogger(__name__)
_APPEND = load_queries("audit")["append"]
MAX_BATCH = 256
MAX_WAITING = 8192
MAX_WAITING_OF_TENANT = 2048
"""Entries; a tenant whose chain somebody holds must not use up the room of all."""
APPEND_S = 5.0
RECORD_S = 10.0
CLOSE_S = 5.0
REPEATS_EVERY_S = 10.0
_REFUSED = (Forbidden, Unauthenticated)
"""How the database refuses a seal."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    principal: Principal
    entry: Entry
    done: anyio.Event | None
    """None: nobody waits for it."""
    seq: int = 0
    error: BulkheadError | None = None


class AuditLog:
    """Appends to the chains of all tenants. Made by `open_audit`."""

    def __init__(
        self,
        database: Database,
        *,
        keys: SealKeys,
        tasks: TaskGroup,
        connections: int,
        all_durable: bool,
        every_s: float,
    ) -> None:
        """`tasks` runs what writes; `connections` bounds how many of the database's it uses at a time."""
        self._database = database
        self._keys = keys
        self._tasks = tasks
        self._turns = anyio.CapacityLimiter(connections)
        self._all_durable = all_durable
        self._queues: dict[UUID, deque[_Waiting]] = {}
        self._size = 0
        self._emptied = anyio.Event()
        self._floods = Floods(every_s=every_s)
        self._flooded = anyio.Event()
        self._every_s = every_s

    async def record(self, principal: Principal, entry: Entry) -> int:
        """Append one entry as `principal` and return its number in the tenant's chain, once it is committed.

        An entry whose caller stops waiting is written all the same.

        Raises:
            Unavailable: It cannot be written now, or it is not known whether it was.
            SealRefused, Revoked: The database does not accept the principal (any more).
        """
        waiting = _Waiting(principal=principal, entry=entry, done=anyio.Event())
        assert waiting.done is not None
        self._enqueue(waiting)
        try:
            with anyio.fail_after(RECORD_S):
                await waiting.done.wait()
        except TimeoutError as exc:
            raise _unavailable() from exc
        if waiting.error is not None:
            # one error may be many callers': each raises its own
            raise type(waiting.error)(waiting.error.message) from waiting.error
        return waiting.seq

    def note(self, principal: Principal, entry: Entry) -> None:
        """Have one entry appended and do not wait: no answer depends on it. If it is lost, the log says so."""
        try:
            self._enqueue(_Waiting(principal=principal, entry=entry, done=None))
        except Unavailable:
            _log.error("an entry of the audit trail was lost: too many wait")

    def note_refusal(self, principal: Principal, entry: Entry) -> None:
        """As `note`, for what may come as often as a caller likes: repeats are counted and told together."""
        for due in self._floods.take(principal, entry, time.monotonic()):
            self.note(*due)
        self._flooded.set()

    def _enqueue(self, waiting: _Waiting) -> None:
        tenant_id = waiting.principal.tenant_id
        queue = self._queues.get(tenant_id)
        if self._size >= MAX_WAITING or (queue is not None and len(queue) >= MAX_WAITING_OF_TENANT):
            raise _unavailable()
        self._size += 1
        if queue is not None:
            queue.append(waiting)
            return
        self._queues[tenant_id] = deque([waiting])
        self._tasks.start_soon(self._drain, tenant_id)

    async def _drain(self, tenant_id: UUID) -> None:
        queue = self._queues[tenant_id]
        try:
            while queue:
                async with self._turns:
                    batch = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
                    self._size -= len(batch)
                    try:
                        await self._append(batch)
                    finally:
                        _settle(batch)
        finally:
            # reached with entries left only when the process ends
            self._size -= len(queue)
            _settle(queue)
            del self._queues[tenant_id]
            self._emptied.set()

    async def _append(self, batch: list[_Waiting]) -> None:
        """Give every entry of the batch, which are all of one tenant, its number or its error."""
        try:
            with anyio.fail_after(APPEND_S):
                first = await self._call(batch)
        except (Unavailable, TimeoutError) as exc:
            _log.error("%d entries of the audit trail were not written: the database does not take them", len(batch))
            _fail(batch, exc)
        except BulkheadError as exc:
            await self._append_apart(batch, exc)
        except Exception:  # noqa: BLE001  # whatever it is
            # a defect of ours in one entry must not end the task group, and with it the process
            _log.exception("%d entries of the audit trail were not written", len(batch))
            _fail(batch, _unavailable())
        else:
            for place, waiting in enumerate(batch):
                waiting.seq = first + place

    async def _append_apart(self, batch: list[_Waiting], error: BulkheadError) -> None:
        """A caller that is refused, or an entry that cannot be stored, must not take the others with it."""
        groups: dict[Principal, list[_Waiting]] = {}
        for waiting in batch:
            groups.setdefault(waiting.principal, []).append(waiting)
        if len(groups) == 1 and (len(batch) == 1 or isinstance(error, _REFUSED)):
            _log.warning("%d entries of the audit trail were refused: %s", len(batch), error.code)
            _fail(batch, error)
            return
        for part in groups.values() if len(groups) > 1 else [[waiting] for waiting in batch]:
            await self._append(part)

    async def _call(self, batch: list[_Waiting]) -> int:
        callers: dict[Principal, int] = {}
        entries = [self._as_json(waiting, callers.setdefault(waiting.principal, len(callers) + 1)) for waiting in batch]
        first, *others = callers
        rows = await self._database.fetch_sealed(
            _APPEND,
            first,
            others=[self._database.seal(other) for other in others],
            entries=entries,
            durable=self._all_durable or any(waiting.entry.durable for waiting in batch),
        )
        return int(rows[0]["seq"])

    def _as_json(self, waiting: _Waiting, context: int) -> dict[str, object]:
        entry, principal = waiting.entry, waiting.principal
        query = None if entry.query is None else _storable(entry.query[:MAX_QUERY_CHARS])
        return {
            "context": context,
            "actor": principal.actor,
            "door": entry.door,
            "method": entry.method,
            "target": entry.target,
            "outcome": entry.outcome,
            "documents": entry.documents[:MAX_DOCUMENTS],
            "document_count": len(entry.documents),
            "query_digest": None if query is None else query_digest(self._keys, principal.tenant_id, query),
            "query_text": query,  # the database drops it unless the tenant wants it kept
            "trace_id": entry.trace_id,
            "repeats": entry.repeats,
            "begun": entry.begun,
        }

    async def tell_repeats(self) -> None:
        """Write what `note_refusal` counts, until cancelled."""
        while True:
            await self._flooded.wait()
            while self._floods:
                await anyio.sleep(self._every_s / 10)
                self._note_all(self._floods.due(time.monotonic()))
            self._flooded = anyio.Event()

    async def finish(self) -> None:
        """Write what is counted and what waits, for CLOSE_S seconds at most."""
        self._note_all(self._floods.rest())
        with anyio.move_on_after(CLOSE_S, shield=True):
            while self._queues:
                self._emptied = anyio.Event()
                await self._emptied.wait()

    def _note_all(self, refusals: Iterable[tuple[Principal, Entry]]) -> None:
        for principal, entry in refusals:
            self.note(principal, entry)


@asynccontextmanager
async def open_audit(
    database: Database,
    *,
    keys: SealKeys,
    connections: int = 4,
    all_durable: bool = False,
    every_s: float = REPEATS_EVERY_S,
) -> AsyncGenerator[AuditLog]:
    """Yield the trail; what waits when the block ends is still written.

    `all_durable` makes reads wait for the database's disk as writes do.
    """
    async with anyio.create_task_group() as tasks:
        audit = AuditLog(
            database, keys=keys, tasks=tasks, connections=connections, all_durable=all_durable, every_s=every_s
        )
        tasks.start_soon(audit.tell_repeats)
        try:
            yield audit
        finally:
            await audit.finish()
            tasks.cancel_scope.cancel()


def query_digest(keys: SealKeys, tenant_id: UUID, query: str, *, kid: str | None = None) -> str:
    """Return `kid:hex`, an HMAC-SHA256: equal for equal queries of one tenant, and nothing to who lacks the seal keys.

    `kid` defaults to the key in use.
    """
    kid = keys.active if kid is None else kid
    # its own key by purpose and tenant, so that none can be used as another's oracle
    key = hmac.digest(keys.keys[kid], b"bulkhead audit query v1" + tenant_id.bytes, "sha256")
    return f"{kid}:{hmac.digest(key, query.encode(), 'sha256').hex()}"


def _settle(batch: Iterable[_Waiting]) -> None:
    for waiting in batch:
        if waiting.seq == 0 and waiting.error is None:
            waiting.error = _unavailable()
        if waiting.done is not None:
            waiting.done.set()


def _fail(batch: list[_Waiting], cause: Exception) -> None:
    for waiting in batch:
        waiting.error = cause if isinstance(cause, _REFUSED) else _unavailable()


def _unavailable() -> Unavailable:
    return Unavailable("this cannot be recorded in the audit trail now, so it is not answered; try again")


def _storable(text: str) -> str:
    """Return `text` without what neither UTF-8 nor PostgreSQL can hold: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
