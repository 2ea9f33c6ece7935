"""Sessions whose connection is cut: a typed error, nothing half-written, and the next session works."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest

from rag.db.pool import Database
from rag.errors import SealRefused, Unavailable
from rag.tenants.operator import Tenant
from sql import Query
from tests.support.documents import put_raw_document
from tests.support.world import World

pytestmark = pytest.mark.anyio

CALL = Query(
    name="call",
    description="",
    text="select seq from rag.events_after_v1($1, $2, 0)",
    parameters=("context", "task_id"),
)
TITLES = Query(name="titles", description="", text="select title from rag.document", parameters=())


async def cut(world: World) -> None:
    """End every session of the servers' login, as a restart of the database would."""
    admin = await asyncpg.connect(world.superuser_url)
    try:
        ended = await admin.fetch(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where usename = 'bulkhead_app' and datname = current_database()"
        )
    finally:
        await admin.close()
    assert ended


async def titles(database: Database, world: World, tenant: Tenant) -> list[str]:
    async with database.tenant(world.principal(tenant)) as session:
        return [row["title"] for row in await session.fetch(TITLES)]


async def test_a_connection_cut_before_a_statement_is_unavailable_and_the_next_session_works(world: World) -> None:
    acme = await world.tenant("acme")

    async def write_and_be_cut(database: Database) -> None:
        async with database.tenant(world.principal(acme)) as session:
            await put_raw_document(session, title="lost", text="Some text.")
            await cut(world)
            await session.fetch(TITLES)

    async with world.database(pool_size=1) as database:
        with pytest.raises(Unavailable):
            await write_and_be_cut(database)
        assert await titles(database, world, acme) == []


async def test_a_connection_cut_before_the_commit_is_unavailable_and_nothing_is_written(world: World) -> None:
    acme = await world.tenant("acme")

    async def write_and_be_cut(database: Database) -> None:
        async with database.tenant(world.principal(acme)) as session:
            await put_raw_document(session, title="lost", text="Some text.")
            await cut(world)

    async with world.database(pool_size=1) as database:
        with pytest.raises(Unavailable):
            await write_and_be_cut(database)
        assert await titles(database, world, acme) == []


async def test_an_idle_connection_that_was_cut_costs_at_most_one_typed_error(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database(pool_size=1) as database:
        await titles(database, world, acme)
        await cut(world)
        try:
            assert await titles(database, world, acme) == []
        except Unavailable:
            assert await titles(database, world, acme) == []


async def last_statement(world: World) -> str:
    """Return what the servers' only connection was asked last."""
    admin = await asyncpg.connect(world.superuser_url)
    try:
        (row,) = await admin.fetch(
            "select query from pg_stat_activity where usename = 'bulkhead_app' and datname = current_database()"
        )
    finally:
        await admin.close()
    return row["query"]


async def test_a_connection_is_reset_after_everything_but_one_call_that_ended_well(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database(pool_size=1) as database:
        await database.fetch_sealed(CALL, world.principal(acme), task_id=uuid4())
        assert "events_after_v1" in await last_statement(world)
        await titles(database, world, acme)
        assert "pg_prepared_statements" in await last_statement(world)
        with pytest.raises(SealRefused):
            await database.fetch_under(CALL, "no seal at all", task_id=uuid4())
        assert "pg_prepared_statements" in await last_statement(world)
