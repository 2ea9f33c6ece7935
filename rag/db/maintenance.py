"""One session of the maintenance login, for what no transaction can hold: statements that build and drop concurrently.

Above: the upkeep of vector indexes. Below: asyncpg. Texts of statements that take no parameters are made by the
server's own format(), out of bound parameters, and run as the schema's owner, which the maintenance login may become.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import asyncpg

from rag.db.faults import translated
from rag.db.pool import Row
from rag.errors import BulkheadError
from sql import Query

__all__ = ["MaintenanceSession", "open_maintenance"]

CONNECT_TIMEOUT_S = 10
CLOSE_TIMEOUT_S = 5.0
CONNECTION_CHECK_MS = 5_000
"""A build whose process was killed stops this soon, instead of going on for nobody with the lock of the one builder."""
OWNER = "bulkhead_owner"


class MaintenanceSession:
    """A connection without time limit on its statements. Each statement is a transaction of its own, but for
    those in a `snapshot`.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: asyncpg.Connection) -> None:
        """Made by `open_maintenance`."""
        self._connection = connection

    async def fetch(self, query: Query, **parameters: object) -> list[Row]:
        """Return all rows, as the maintenance login.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with translated():
            return cast("list[Row]", await self._connection.fetch(query.text, *_bound(query, parameters)))

    async def fetch_value(self, query: Query, **parameters: object) -> Any:
        """Return the first column of the first row, or None, as the maintenance login.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with translated():
            return await self._connection.fetchval(query.text, *_bound(query, parameters))

    async def owner_value(self, query: Query, **parameters: object) -> Any:
        """Return the first column of the first row, or None, as the owner of the schema.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        async with self._as_owner():
            return await self._connection.fetchval(query.text, *_bound(query, parameters))

    async def execute_made(self, query: Query, **parameters: object) -> None:
        """Run, as the owner of the schema, the statement whose text `query` returns.

        Raises:
            BulkheadError: As `faults.translated` says; `query` returned no text.
        """
        async with self._as_owner():
            statement = await self._connection.fetchval(query.text, *_bound(query, parameters))
            await self._connection.execute(str(statement))

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[None]:
        """Let all statements of the block see the database as it was at the first of them; they can only read.

        Raises:
            BulkheadError: As `faults.translated` says.
        """
        with translated():
            transaction = self._connection.transaction(isolation="repeatable_read", readonly=True)
            await transaction.start()
        try:
            yield
        finally:
            # nothing was written, so that its end may fail: then the connection is gone, and the transaction with it
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True), suppress(BulkheadError), translated():
                await transaction.rollback()

    @asynccontextmanager
    async def _as_owner(self) -> AsyncGenerator[None]:
        with translated():
            await self._connection.execute(f"set role {OWNER}")
            try:
                yield
            finally:
                if not self._connection.is_closed():
                    with anyio.CancelScope(shield=True):
                        await self._connection.execute("reset role")


@asynccontextmanager
async def open_maintenance(dsn: str, *, application: str) -> AsyncGenerator[MaintenanceSession]:
    """Open a session as the maintenance login; closed when the block ends, even in the middle of a statement.

    Raises:
        Unavailable: The server does not accept connections.
    """
    with translated():
        connection: asyncpg.Connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={
                "application_name": application,
                "statement_timeout": "0",
                "client_connection_check_interval": str(CONNECTION_CHECK_MS),
                "timezone": "UTC",
                "jit": "off",
            },
        )
    try:
        yield MaintenanceSession(connection)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            await connection.close()
        if scope.cancelled_caught:
            connection.terminate()


def _bound(query: Query, parameters: dict[str, object]) -> list[object]:
    if set(parameters) != set(query.parameters):
        raise TypeError(f"{query.name} takes {query.parameters}, not {tuple(parameters)}")
    return [parameters[name] for name in query.parameters]
