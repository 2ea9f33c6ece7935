"""The database of one test goes away, for everyone but administrators."""

from __future__ import annotations

import asyncpg

from tests.support.world import World

__all__ = ["cut_off"]


async def cut_off(world: World) -> None:
    """Make the world's database refuse everyone, and end the connections that there are."""
    admin = await asyncpg.connect(world.superuser_url)
    try:
        name = await admin.fetchval("select current_database()")
        await admin.execute(f'alter database "{name}" connection limit 0')
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            name,
        )
    finally:
        await admin.close()
