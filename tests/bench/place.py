"""Where the benchmarks run: an embedded PostgreSQL of their own with room for volume, and a database that can be kept.

Above: the fixtures of tests/bench. Below: `rag.db.embedded`, `rag.installation`, tests/support/world.py. The server has
the product's own settings but for memory and checkpoints, and it is durable (fsync on), unlike the one of the tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import asyncpg

from rag.db.embedded import EmbeddedPostgres, embedded_postgres
from rag.db.migrate import bootstrap, ensure_database
from rag.identity.keys import ensure_keys, load_signing_key
from rag.identity.outward import ensure_outward_keys
from rag.identity.tokens import TokenIssuer
from rag.installation import _passwords, embedded_settings, prepare_database  # pyright: ignore[reportPrivateUsage]
from rag.settings import Settings
from tests.support.world import World

__all__ = ["SERVER_SETTINGS", "Place", "bench_place", "finish_database", "open_world"]

SERVER_SETTINGS = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "effective_cache_size": "8GB",
    "max_connections": "300",
}
_COMPLETE = "bench_complete"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The running server and the settings that name its data directory."""

    server: EmbeddedPostgres
    settings: Settings


@contextmanager
def bench_place(root: Path) -> Generator[Place]:
    """Start or join the server under `root`. Blocks: to be entered before any event loop runs."""
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    ensure_keys(root / "certs")
    ensure_outward_keys(root / "certs")
    with embedded_postgres(root, settings=SERVER_SETTINGS) as server:
        yield Place(server=server, settings=Settings(data_dir=root, certs_dir=root / "certs"))


async def open_world(place: Place, kind: str, digest: str) -> tuple[World, bool]:
    """Return the database of `kind` and whether it is complete already: made earlier from what `digest` stands for.

    Others of the same kind are dropped: there is one at a time, since one may be many gigabytes.
    """
    name = f"bench_{kind}_{digest}"
    settings = dataclasses.replace(embedded_settings(place.settings, place.server, database=name), pool_size=8)
    admin = await asyncpg.connect(place.server.superuser_url)
    try:
        complete = await _is_complete(place, admin, name)
        for row in await admin.fetch(
            "select datname from pg_database where starts_with(datname, $1)", f"bench_{kind}_"
        ):
            if row["datname"] != name or not complete:
                await admin.execute(f'drop database "{row["datname"]}" with (force)')
    finally:
        await admin.close()
    superuser_url = await ensure_database(place.server.superuser_url, name)
    if not complete:
        await bootstrap(superuser_url, _passwords(place.settings.data_dir / "database-passwords.json"))
        await prepare_database(settings)
    world = World(
        settings=settings,
        server=place.server,
        superuser_url=superuser_url,
        issuer=TokenIssuer(signing_key=load_signing_key(settings.certs_dir), issuer=settings.issuer),
    )
    return world, complete


async def finish_database(world: World) -> None:
    """Mark the world's database as complete, so that the next run of the same content takes it as it is."""
    with anyio.fail_after(30):
        connection = await asyncpg.connect(world.superuser_url)
        try:
            await connection.execute(f"comment on schema bench is '{_COMPLETE}'")
        finally:
            await connection.close()


async def _is_complete(place: Place, admin: asyncpg.Connection, name: str) -> bool:
    if not await admin.fetchval("select exists (select from pg_database where datname = $1)", name):
        return False
    connection = await asyncpg.connect(await ensure_database(place.server.superuser_url, name))
    try:
        comment = await connection.fetchval(
            "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = 'bench'"
        )
    finally:
        await connection.close()
    return comment == _COMPLETE
