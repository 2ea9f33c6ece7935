"""The migration runner: concurrent starts, the checked-in schema, and refusal of a chain that does not fit."""

from __future__ import annotations

import dataclasses
import secrets

import anyio
import anyio.to_thread
import asyncpg
import pytest

import sql
from rag.db import migrate as migrate_module
from rag.db.migrate import bootstrap, ensure_database, migrate
from rag.errors import Misconfigured
from rag.installation import embedded_settings
from sql import migrations, schema_file
from tests.support.schema import dump_schema
from tests.support.world import Cluster, World, cluster_passwords

pytestmark = pytest.mark.anyio


async def test_twenty_concurrent_starts_apply_each_migration_once(cluster: Cluster) -> None:
    name = f"test_0_{secrets.token_hex(6)}"
    admin_url = await ensure_database(cluster.server.superuser_url, name)
    await bootstrap(admin_url, cluster_passwords(cluster))
    owner_url = embedded_settings(cluster.settings, cluster.server, database=name).owner_database_url
    assert owner_url is not None
    applied: list[int] = []

    async def start() -> None:
        applied.extend(await migrate(owner_url))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(start)
    assert sorted(applied) == [step.version for step in migrations()]
    admin = await asyncpg.connect(cluster.server.superuser_url)
    await admin.execute(f'drop database "{name}" with (force)')
    await admin.close()


async def test_a_second_run_applies_nothing(world: World) -> None:
    assert world.settings.owner_database_url is not None
    assert await migrate(world.settings.owner_database_url) == []


async def test_the_checked_in_schema_is_what_the_chain_ends_in(world: World) -> None:
    dumped = await anyio.to_thread.run_sync(dump_schema, world.superuser_url)
    assert dumped == schema_file().read_text(encoding="utf-8"), "run `make schema` and commit sql/schema.sql"


async def test_a_changed_migration_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = migrations()
    changed = (dataclasses.replace(first, sha256="0" * 64), *rest)
    monkeypatch.setattr(migrate_module, "migrations", lambda: changed)
    assert world.settings.owner_database_url is not None
    with pytest.raises(Misconfigured, match="was changed after it had been applied"):
        await migrate(world.settings.owner_database_url)


async def test_a_database_newer_than_the_code_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_module, "migrations", lambda: migrations()[:-1])
    assert world.settings.owner_database_url is not None
    with pytest.raises(Misconfigured, match="newer than this version"):
        await migrate(world.settings.owner_database_url)


async def test_every_named_query_prepares_against_the_real_schema(world: World) -> None:
    """A query that names a column that is gone fails here, not in production."""
    domains = sorted(path.stem for path in (schema_file().parent / "queries").glob("*.sql"))
    assert "gates" in domains
    connection = await asyncpg.connect(world.superuser_url)
    try:
        for domain in domains:
            for query in sql.load_queries(domain).values():
                statement = await connection.prepare(query.text)
                assert len(statement.get_parameters()) == len(query.parameters), f"{domain}: {query.name}"
    finally:
        await connection.close()
