"""Connections to PostgreSQL, and the one way to a tenant's rows: a verified Principal opens a session.

    async with database.tenant(principal) as session:      # one transaction, context sealed and checked at its start
        rows = await session.fetch(QUERIES["list_documents"], limit=20)

Above: every domain's store. Below: asyncpg, which nothing else imports. Nothing about a tenant survives on a pooled
connection: the context is local to the transaction.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import asyncpg
import orjson
from opentelemetry import trace
from pgvector.asyncpg import register_vector  # pyright: ignore[reportMissingTypeStubs]

from rag.db.faults import translated
from rag.errors import BulkheadError
from rag.identity.principal import Principal
from rag.identity.seal import Sealer
from sql import Query

__all__ = ["CLIENT_CHECK_MS", "IDLE_IN_TRANSACTION_S", "Database", "Row", "Session", "open_database"]

Row = Mapping[str, Any]
STATEMENT_TIMEOUT_MS = 15_000
CONNECT_TIMEOUT_S = 10.0
IDLE_IN_TRANSACTION_S = 60.0
RELEASE_TIMEOUT_S = 3.0
"""How long a cancelled statement may take to end. A cancel request that overtakes its statement is lost (PostgreSQL
manual, "Canceling Requests in Progress"): then the connection is closed."""
CLIENT_CHECK_MS = 1000
"""How soon a statement ends whose connection was closed; without this it would run on."""
_OPEN = "select rag.open_context_v1($1)"
_tracer = trace.get_tracer("bulkhead.db")


class Session:
    """One transaction. Queries are named and come from sql/queries; parameters are always bound."""

    __slots__ = ("_connection",)

    def __init__(self, connection: asyncpg.Connection) -> None:
        """Wrap a connection whose transaction has begun and whose context is sealed."""
        self._connection = connection

    async def fetch(self, query: Query, **parameters: object) -> list[Row]:
        """Return all rows.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with _statement(query), translated():
            return cast("list[Row]", await self._connection.fetch(query.text, *_bound(query, parameters)))

    async def fetch_one(self, query: Query, **parameters: object) -> Row | None:
        """Return the first row, or None.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with _statement(query), translated():
            return cast("Row | None", await self._connection.fetchrow(query.text, *_bound(query, parameters)))

    async def fetch_value(self, query: Query, **parameters: object) -> Any:
        """Return the first column of the first row, or None.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with _statement(query), translated():
            return await self._connection.fetchval(query.text, *_bound(query, parameters))

    async def execute_many(self, query: Query, rows: Sequence[Mapping[str, object]]) -> None:
        """Run the statement once per row, in one batch.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with _statement(query), translated():
            await self._connection.executemany(query.text, [_bound(query, row) for row in rows])


class _PooledConnection(asyncpg.Connection):
    """Does not go back to the pool with statements that SQL has prepared on it.

    The driver prepares by protocol and trusts its names. `deallocate` and `prepare` under such a name, by a statement
    that somebody smuggled in, would run in the next tenant's transaction and be handed its seal.

    After one call of a function, and nothing else, there is nothing to end: our functions leave no state, and build no
    SQL that a statement could be smuggled into (tests/isolation/test_catalogue.py). That round trip is spared.
    """

    _one_call = False

    def was_one_call(self) -> None:
        """Note that, since it was borrowed, the connection has done nothing but one call that has ended well."""
        self._one_call = True

    def get_reset_query(self) -> str:
        """Return what ends a session's state; it fails, and with it the connection, when there is such a statement."""
        if self._one_call:
            self._one_call = False
            return ""
        check = "select 1 / (count(*) = 0)::integer from pg_catalog.pg_prepared_statements where from_sql"
        return f"{super().get_reset_query()}\n{check};"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A pool and the sealer that opens sessions on it. Built by `open_database`."""

    pool: asyncpg.Pool
    sealer: Sealer | None
    dsn: str = field(repr=False)
    """Holds the password."""

    def seal(self, principal: Principal) -> str:
        """Return the sealed context of `principal`, for the one statement that takes it as an argument."""
        if self.sealer is None:
            raise BulkheadError("this connection opens no tenant sessions")
        return self.sealer.seal(principal)

    @asynccontextmanager
    async def tenant(self, principal: Principal) -> AsyncGenerator[Session]:
        """Open a transaction as `principal`: committed when the block ends well, rolled back when it raises.

        Raises:
            SealRefused, Revoked: The database does not accept the principal (any more).
            Unavailable: No connection is to be had.
        """
        async with self.sealed(self.seal(principal)) as session:
            yield session

    @asynccontextmanager
    async def sealed(self, seal: str) -> AsyncGenerator[Session]:
        """Open a transaction under a seal that a queue function minted: for work without a caller.

        Raises:
            SealRefused, Revoked, Unavailable: As `tenant`.
        """
        async with self._transaction() as connection:
            with translated():
                await connection.execute(_OPEN, seal)
            yield Session(connection)

    async def fetch_sealed(self, query: Query, principal: Principal, /, **parameters: object) -> list[Row]:
        """Run one function call that opens the context itself, its parameter `{context}`, and return its rows.

        One round trip: the call is its own transaction, at whose end the context is gone.

        Raises:
            SealRefused, Revoked, Unavailable: As `tenant`.
        """
        return await self.fetch_under(query, self.seal(principal), **parameters)

    async def fetch_under(self, query: Query, seal: str, /, **parameters: object) -> list[Row]:
        """As `fetch_sealed`, under a seal that a queue function minted.

        Raises:
            SealRefused, Revoked, Unavailable: As `tenant`.
        """
        return await self._called(query, {**parameters, "context": seal})

    @asynccontextmanager
    async def unsafe_unscoped(self, *, reason: str) -> AsyncGenerator[Session]:
        """Open a transaction without any tenant. Row-level security then refuses every tenant table.

        For queue functions, gates and operators only; tests/isolation lists each caller. `reason` is for the reader.
        """
        del reason
        async with self._transaction() as connection:
            yield Session(connection)

    async def unsafe_unscoped_call(self, query: Query, *, reason: str, **parameters: object) -> list[Row]:
        """Run one function call without any tenant, as a transaction of its own; see `unsafe_unscoped`.

        Raises:
            Unavailable: No connection is to be had.
        """
        del reason
        return await self._called(query, parameters)

    async def _called(self, query: Query, parameters: Mapping[str, object]) -> list[Row]:
        bound = _bound(query, parameters)
        async with self._borrowed() as connection:
            with _statement(query), translated():
                rows = cast("list[Row]", await connection.fetch(query.text, *bound))
            cast("_PooledConnection", connection).was_one_call()
            return rows

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[asyncpg.Connection]:
        async with self._borrowed() as connection:
            with translated():
                transaction = connection.transaction()
                await transaction.start()
            try:
                yield connection
            except BaseException:
                # shielded: a cancelled request must not leave its transaction to the pool's reset. What cannot be
                # rolled back has lost its connection, and the reason for that is the error to tell.
                with anyio.CancelScope(shield=True), suppress(BulkheadError), translated():
                    await transaction.rollback()
                raise
            with translated():
                await transaction.commit()

    @asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[asyncpg.Connection]:
        with translated():
            # an idle connection is not waited for, and a limit is a good part of what a short statement costs
            limit_s = None if self.pool.get_idle_size() else CONNECT_TIMEOUT_S
            connection = await self.pool.acquire(timeout=limit_s)
        try:
            yield cast("asyncpg.Connection", connection)
        finally:
            # A connection that cannot be reset is closed by the driver; what was committed on it stands. Cancelled, the
            # driver would go on with it alone, and what it then raised would reach nobody but the loop.
            with suppress(BulkheadError), translated(), anyio.CancelScope(shield=True):
                await self.pool.release(connection, timeout=RELEASE_TIMEOUT_S)


@asynccontextmanager
async def open_database(
    dsn: str,
    *,
    sealer: Sealer | None,
    pool_size: int,
    application: str,
    idle_in_transaction_s: float = IDLE_IN_TRANSACTION_S,
) -> AsyncGenerator[Database]:
    """Open a pool of up to `pool_size` connections; closed when the block ends.

    A transaction in which nothing is done for `idle_in_transaction_s` is ended by the server, and what it had locked
    is free.

    Raises:
        Unavailable: The server does not accept connections.
    """
    with translated():
        pool = await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=pool_size,
            timeout=CONNECT_TIMEOUT_S,
            init=_prepare,
            connection_class=_PooledConnection,
            server_settings={
                "application_name": application,
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "client_connection_check_interval": str(CLIENT_CHECK_MS),
                "idle_in_transaction_session_timeout": str(round(1000 * idle_in_transaction_s)),
                "timezone": "UTC",
                # The largest statements run for milliseconds; compiling them would take longer than running them.
                "jit": "off",
            },
        )
    try:
        yield Database(pool=pool, sealer=sealer, dsn=dsn)
    finally:
        await pool.close()


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=_encode_jsonb,
        decoder=_decode_jsonb,
        format="binary",
    )
    await register_vector(connection)


def _encode_jsonb(value: object) -> bytes:
    return b"\x01" + orjson.dumps(value)  # the leading byte is the version of jsonb's binary format


def _decode_jsonb(data: bytes) -> Any:
    return orjson.loads(data[1:])


def _bound(query: Query, parameters: Mapping[str, object]) -> list[object]:
    if set(parameters) != set(query.parameters):
        raise TypeError(f"{query.name} takes {query.parameters}, not {tuple(parameters)}")
    return [parameters[name] for name in query.parameters]


def _statement(query: Query) -> Any:
    return _tracer.start_as_current_span(
        f"sql {query.name}",
        kind=trace.SpanKind.CLIENT,
        attributes={"db.system.name": "postgresql", "db.operation.name": query.name},
        # a driver's message may quote a row
        record_exception=False,
        set_status_on_exception=False,
    )
