"""Makes the lexical index of a large tenant in one go: base blocks out of all of its words, sorted once.

Above: `loading`, the throughput and volume benchmarks. Below: tests/bench/sql/fill_postings.sql. `put_document` and
compaction end with the same blocks, but take a million chunks in document by document, which is hours of rewriting last
blocks. That the outcome is the same is looked into: the product indexes some of the documents again, and both are set
beside each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

import anyio
import asyncpg

from tests.bench.connect import connected, statements
from tests.support.world import World

__all__ = ["gather_words", "index_directly"]

PARTS = 16
WRITERS = 2
SORT_MEMORY = "1GB"
COMPARED = 20
"""Documents in a row, at the beginning, in the middle and at the end."""


async def gather_words(admin: asyncpg.Connection, tenant_id: UUID) -> None:
    """Keep the words of the staged batch aside."""
    await admin.execute("set work_mem = '256MB'")
    await admin.execute(statements("fill_postings.sql")["words"], tenant_id, timeout=600)


async def index_directly(world: World, tenant_id: UUID, seal: str) -> None:
    """Make base blocks, lengths, sums and vocabulary of all words gathered; say so, and compare."""
    began = time.perf_counter()
    await _write_blocks(world, tenant_id, seal)
    took = time.perf_counter() - began
    print(f"posting blocks were written directly, sorted and full, not by put_document and compaction: {took:.1f} s")
    postings, different = await _compare(world, tenant_id, seal)
    print(f"{postings} postings were made again by the product's own indexing: {different} came out different")
    assert postings
    assert not different


async def _write_blocks(world: World, tenant_id: UUID, seal: str) -> None:
    steps = statements("fill_postings.sql")
    parts = [f"word_{part:02}" for part in range(PARTS)]
    async with anyio.create_task_group() as group:
        for writer in range(WRITERS):
            group.start_soon(_write_parts, world, tenant_id, seal, parts[writer::WRITERS])
    assert world.settings.database_url is not None
    async with connected(world.settings.database_url) as tenant, tenant.transaction():
        await tenant.execute("select rag.open_context_v1($1)", seal)
        await tenant.execute(steps["lengths"], tenant_id, timeout=600)
        await tenant.execute(steps["sums"], tenant_id, timeout=600)
    async with connected(world.superuser_url) as admin:
        await admin.execute(f"set work_mem = '{SORT_MEMORY}'")
        await admin.execute(steps["vocabulary"], tenant_id, timeout=600)
        await admin.execute(steps["clear"])


async def _compare(world: World, tenant_id: UUID, seal: str) -> tuple[int, int]:
    steps = statements("fill_postings.sql")
    postings = different = 0
    async with connected(world.superuser_url) as admin:
        first, last = await admin.fetchrow(
            "select min(d.ordinal), max(d.ordinal) from rag.document d where d.tenant_id = $1", tenant_id
        ) or (0, 0)
        for low in {first, max(first, (first + last) // 2), max(first, last - COMPARED + 1)}:
            high = min(last, low + COMPARED - 1)
            transaction = admin.transaction()
            await transaction.start()
            try:
                await admin.execute("select rag.open_context_v1($1)", seal)
                for name in ("held", "room"):
                    await admin.execute(steps[name], tenant_id, low, high, timeout=600)
                await admin.execute(steps["made"], tenant_id, low, high, timeout=600)
                row = await admin.fetchrow(steps["compared"], tenant_id, timeout=600)
                assert row is not None
                postings += row["postings"]
                different += row["different"]
            finally:
                await transaction.rollback()
    return postings, different


async def _write_parts(world: World, tenant_id: UUID, seal: str, parts: Sequence[str]) -> None:
    statement = statements("fill_postings.sql")["blocks"]
    assert world.settings.database_url is not None
    async with connected(world.settings.database_url) as tenant:
        await tenant.execute(f"set work_mem = '{SORT_MEMORY}'")
        for part in parts:
            async with tenant.transaction():
                await tenant.execute("select rag.open_context_v1($1)", seal)
                await tenant.execute(statement.replace("/*part*/", part), tenant_id, timeout=1800)
