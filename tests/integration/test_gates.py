"""A server refuses to start as a role that could step over the wall."""

from __future__ import annotations

import asyncpg
import pytest

from rag.db.gates import check_role
from rag.db.pool import open_database
from rag.errors import Misconfigured
from tests.support.world import World

pytestmark = pytest.mark.anyio


async def refused(dsn: str | None, *, claims: bool = False) -> str:
    assert dsn is not None
    async with open_database(dsn, sealer=None, pool_size=1, application="test") as database:
        with pytest.raises(Misconfigured) as caught:
            await check_role(database, claims=claims)
    return caught.value.message


async def test_the_app_role_may_serve(world: World) -> None:
    async with world.database() as database:
        await check_role(database)


async def test_the_worker_role_may_work_and_not_serve_and_the_app_role_not_work(world: World) -> None:
    async with world.database(claims=True) as database:
        await check_role(database, claims=True)
    assert "executes queue.claim_runs_v1" in await refused(world.settings.worker_database_url)
    assert "may not claim" in await refused(world.settings.database_url, claims=True)


async def test_administrator_owner_and_maintenance_may_not(world: World) -> None:
    assert "superuser" in await refused(world.superuser_url)
    assert "owns rag.document" in await refused(world.settings.owner_database_url)
    assert "member of bulkhead_owner" in await refused(world.settings.maintenance_database_url)


async def test_an_administrator_who_acts_as_the_app_role_may_not(world: World) -> None:
    """`set role none` would undo what `role=` in the URL has put on."""
    acting = "&" if "?" in world.superuser_url else "?"
    assert "logged in as" in await refused(f"{world.superuser_url}{acting}role=bulkhead_app")


@pytest.mark.parametrize(
    ("grant", "named"),
    [
        ("grant truncate on rag.document to bulkhead_app", "truncate on rag.document"),
        ("grant references on rag.chunk to bulkhead_app", "references on rag.chunk"),
        ("grant create on schema rag to bulkhead_app", "create in schema rag"),
        ("grant temp on database {database} to bulkhead_app", "temp in database"),
        ("grant select on seal.key to bulkhead_app; grant usage on schema seal to bulkhead_app", "reads seal.key"),
        ("alter table rag.document owner to bulkhead_app", "owns rag.document"),
        ("alter function rag.current_tenant() owner to bulkhead_app", "owns rag.current_tenant()"),
        ("grant select (inner_pad) on seal.key to bulkhead_app", "reads seal.key"),
        ("grant execute on function seal.mint_v3 to bulkhead_app", "executes seal.mint_v3"),
        ("alter table rag.document disable row level security", "reads rag.document past"),
        ("alter table rag.task no force row level security", "reads rag.task past"),
        ("create policy open on rag.document for select using (true)", "passes policy open on rag.document"),
        ("alter policy tenant_isolation on rag.chunk using (true)", "passes policy tenant_isolation on rag.chunk"),
        (
            "create view rag.everything as select * from rag.document; grant select on rag.everything to bulkhead_app",
            "reads rag.everything past",
        ),
    ],
)
async def test_one_grant_too_many_is_enough_to_refuse(world: World, grant: str, named: str) -> None:
    admin = await asyncpg.connect(world.superuser_url)
    try:
        database = await admin.fetchval("select current_database()")
        await admin.execute(grant.replace("{database}", f'"{database}"'))
    finally:
        await admin.close()
    assert named in await refused(world.settings.database_url)
