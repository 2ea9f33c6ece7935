"""LangGraph's own PostgreSQL saver, made to carry the tenant and the fence. The only importer of psycopg.

Above: `runner`, with one saver per run. Below: schema `checkpoint`, which our migrations make (never the library).

The stock saver takes one lock around every statement and knows no tenant; overriding `_cursor` cures both. It is
private to the library, so the version is pinned, and tests/integration/test_checkpoints.py holds it to its place.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from rag.db.pool import CLIENT_CHECK_MS, IDLE_IN_TRANSACTION_S
from rag.errors import BulkheadError, FenceLost, Revoked, SealRefused, Unavailable

__all__ = ["CheckpointPool", "RunContext", "TenantPostgresSaver", "open_checkpoints"]

CheckpointPool = AsyncConnectionPool[AsyncConnection[DictRow]]
ACQUIRE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_MS = 15_000
CHECKED_FOR_S = 1.0
"""A connection that was there so lately is not asked again, for a round trip: a run borrows one many times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What every use of the checkpoints proves: whose they are, and that the run is still this worker's."""

    seal: Callable[[], str]
    """Returns a fresh seal of the run's principal."""
    task_id: UUID
    fence: int


class TenantPostgresSaver(AsyncPostgresSaver):
    """One run's checkpoints. Every read and write is a transaction that is sealed and fenced before anything else."""

    def __init__(self, pool: CheckpointPool, context: RunContext) -> None:
        """Only plain values are restored from storage: msgpack is strict, pickle is off."""
        super().__init__(pool, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self._pool = pool
        self._context = context

    async def setup(self) -> None:
        """Refuse: the tables are made by sql/migrations, with row-level security."""
        raise BulkheadError

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncGenerator[AsyncCursor[DictRow]]:
        del pipeline  # always: the two statements below then cost no round trip of their own
        with _translated():
            async with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.pipeline(),
                connection.cursor(binary=True, row_factory=dict_row) as cursor,
            ):
                await cursor.execute("select rag.open_context_v1(%s)", (self._context.seal(),))
                await cursor.execute("select queue.hold_fence_v1(%s, %s)", (self._context.task_id, self._context.fence))
                yield cursor


@asynccontextmanager
async def open_checkpoints(
    dsn: str, *, pool_size: int, application: str, transaction_s: float = IDLE_IN_TRANSACTION_S
) -> AsyncGenerator[CheckpointPool]:
    """Open the saver's own pool of up to `pool_size` connections as the app role; closed when the block ends.

    A transaction that takes longer than `transaction_s` is ended by the server, and what it had locked is free. (How
    long it stands idle is no measure here: a pipeline is never idle to the server before its end.)

    Raises:
        Unavailable: The server does not accept connections.
    """

    alive_at: WeakKeyDictionary[AsyncConnection[DictRow], float] = WeakKeyDictionary()

    async def alive(connection: AsyncConnection[DictRow]) -> None:
        fresh = time.monotonic() < alive_at.get(connection, -math.inf) + CHECKED_FOR_S
        if fresh and not _told_something(connection):
            return
        # psycopg sees that a connection is gone when it uses it. After a restart of the server all are: they go
        # together, since the pool would pause longer from each that fails to the next, and cost runs their attempts.
        try:
            await CheckpointPool.check_connection(connection)
            alive_at[connection] = time.monotonic()
        except psycopg.OperationalError:
            await pool.drain()
            raise

    options = (
        f"-c search_path=checkpoint -c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC "
        f"-c client_connection_check_interval={CLIENT_CHECK_MS} "
        f"-c transaction_timeout={round(1000 * transaction_s)}"
    )
    pool: CheckpointPool = AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=pool_size,
        timeout=ACQUIRE_TIMEOUT_S,
        open=False,
        reconnect_timeout=ACQUIRE_TIMEOUT_S,  # then whoever comes next tries at once
        check=alive,
        kwargs={
            "autocommit": True,
            # statements without names: there is none that a smuggled `prepare` could take the place of
            "prepare_threshold": None,
            "row_factory": dict_row,
            "options": options,
            "application_name": application,
        },
    )
    with _translated():
        await pool.open(wait=True, timeout=ACQUIRE_TIMEOUT_S)
    try:
        yield pool
    finally:
        await pool.close(timeout=ACQUIRE_TIMEOUT_S)


def _told_something(connection: AsyncConnection[DictRow]) -> bool:
    """Return whether something has come of an idle connection: its end, most likely, when the server was restarted."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _translated() -> Generator[None]:
    """Do for psycopg what `rag.db.faults` does for asyncpg.

    Raises:
        SealRefused, Revoked, FenceLost, Unavailable, BulkheadError: As there.
    """
    try:
        yield
    except (psycopg.OperationalError, PoolTimeout) as exc:
        raise Unavailable("the database is not reachable; try again") from exc
    except psycopg.Error as exc:
        raise _of(exc) from exc


def _of(exc: psycopg.Error) -> BulkheadError:
    match cast("Any", exc).sqlstate:
        case "42501":
            return Revoked() if exc.diag.message_detail == "revoked" else SealRefused()
        case "BH001":
            return FenceLost()
        case _:
            return BulkheadError()
