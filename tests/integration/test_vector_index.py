"""Graphs of large tenants: built while writers write, used by the planner, dropped in time, mended after a crash."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import asyncpg
import numpy as np
import orjson
import pytest

from rag.corpus.vector_indexes import Act, Change, GraphPolicy, maintain
from rag.db.vectors import halfvec
from rag.errors import BulkheadError
from rag.tenants.operator import Tenant
from sql import Query
from tests.support.graphs import clustered, dense_search, fill, maintenance
from tests.support.index import delete, put, stored
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
POLL_S = 0.02
SMALL = GraphPolicy(build_at=300, workers=0)
GRAPHS = """
    select c.relname::text as name, i.indisvalid as valid
    from pg_index i join pg_class c on c.oid = i.indexrelid
    where c.relname ~ '^graph_'
"""
WRITE = Query(
    name="write",
    description="Makes the transaction one that writes to the vectors: a build waits until it has ended.",
    text="delete from rag.embedding e where e.chunk_id = -1",
    parameters=(),
)
FLUSH = Query(name="flush", description="", text="select pg_stat_force_next_flush()", parameters=())
EXPLAIN = Query(
    name="explain",
    description="The dense leg of rag.search_v2, planned as an EXECUTE plans it: with the values of its parameters.",
    text=(
        "explain (format json) select e.chunk_id from rag.embedding e "
        "where e.tenant_id = {tenant} and e.model_id = '1'::smallint and e.audience = any ('{{0}}'::bigint[]) "
        "order by (e.vector::public.halfvec(384)) operator(public.<=>) $1 limit 100"
    ),
    parameters=("vector",),
)
REGISTER = "select index_name, ready, built_chunks from rag.vector_index"


def graph_name(tenant: Tenant) -> str:
    """What a tenant's graph over the first model is called."""
    return f"graph_{tenant.tenant_id.hex}_1"


@asynccontextmanager
async def superuser(world: World) -> AsyncGenerator[asyncpg.Connection]:
    """A connection that may look at, and end, what others do."""
    connection = await asyncpg.connect(world.superuser_url)
    try:
        yield connection
    finally:
        await connection.close()


async def building(connection: asyncpg.Connection) -> int:
    """Return the process that builds an index in this database, once there is one that waits for writers."""
    with anyio.fail_after(BOUND_S):
        while True:
            found = await connection.fetchval(
                "select pid from pg_stat_progress_create_index p "
                "where p.datname = current_database() and p.phase ~ '^waiting'"
            )
            if found is not None:
                return int(found)
            await anyio.sleep(POLL_S)


async def test_a_large_tenant_is_searched_through_its_graph_whatever_the_connection_did_before(world: World) -> None:
    """Nothing but the plan of this statement counts: ten searches of another tenant would flip it to a generic one."""
    small, large = await world.tenant("small"), await world.tenant("large")
    some, many = world.principal(small), world.principal(large)
    vectors = clustered(5_200, seed=1)
    async with world.database(pool_size=1) as database:
        await fill(database, some, clustered(150, seed=2))
        await fill(database, many, vectors)
        plan, exact = await dense_search(database, many, vectors[77], limit=50)
        assert plan == "exact"
        async with maintenance(world) as session:
            assert await maintain(session, GraphPolicy()) == [Change(act=Act.BUILT, index_name=graph_name(large))]
            assert await maintain(session, GraphPolicy()) == []
        (row,) = await stored(world, REGISTER)
        assert tuple(row) == (graph_name(large), True, 5_200)
        for number in range(10):
            plan, hits = await dense_search(database, some, vectors[number])
            assert (plan, len(hits)) == ("exact", 10)
        plan, found = await dense_search(database, many, vectors[77], limit=50)
        assert plan == "hnsw"
        assert len(found) == 50
        assert len(set(found) & set(exact)) >= 49
        assert found[:10] == exact[:10]
        async with database.tenant(many) as session:
            await session.fetch(FLUSH)
            explain = dataclasses.replace(EXPLAIN, text=EXPLAIN.text.format(tenant=f"'{large.tenant_id}'"))
            explained = await session.fetch_value(explain, vector=halfvec(vectors[77]))
        plan_text = str(orjson.loads(explained))
        assert graph_name(large) in plan_text
        assert "'Node Type': 'Sort'" not in plan_text
    (row,) = await stored(world, "select idx_scan from pg_stat_user_indexes where indexrelname ~ '^graph_'")
    assert row["idx_scan"] == 1, "the search went through the graph, and no other did"


async def test_recall_of_a_built_graph_is_at_least_99_percent(world: World) -> None:
    principal = world.principal(await world.tenant("large"))
    vectors = clustered(6_000, seed=3)
    queries = clustered(60, seed=3)  # around the same centres
    async with world.database() as database:
        await fill(database, principal, vectors)
        async with maintenance(world) as session:
            await maintain(session, GraphPolicy())
        recalls: list[float] = []
        for query in queries:
            true = np.sort(vectors.astype(np.float16).astype(np.float32) @ query)[::-1][:10]
            plan, found = await dense_search(database, principal, query)
            assert plan == "hnsw"
            recalls.append(sum(score >= true[-1] - 1e-3 for score in found) / 10)
    print(f"recall at 10 over {len(queries)} queries: {np.mean(recalls):.4f}")
    assert np.mean(recalls) >= 0.99


async def test_writers_and_searches_go_on_while_a_graph_is_built(world: World) -> None:
    acme = await world.tenant("acme")
    principal = world.principal(acme)
    async with world.database() as database, superuser(world) as watch, maintenance(world) as session:
        await fill(database, principal, clustered(400, seed=4))
        done: list[Change] = []

        async def build() -> None:
            done.extend(await maintain(session, SMALL))

        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks, database.tenant(principal) as writer:
                await writer.fetch(WRITE)
                tasks.start_soon(build)
                await building(watch)
                await put(database, principal, "meanwhile", ["oak"])
                await fill(database, principal, clustered(20, seed=5))
                plan, hits = await dense_search(database, principal, clustered(1, seed=4)[0])
                assert (plan, len(hits)) == ("exact", 10)
                assert [tuple(row)[1] for row in await stored(world, REGISTER)] == [False]
                assert done == []
        assert done == [Change(act=Act.BUILT, index_name=graph_name(acme))]
        assert [row["valid"] for row in await stored(world, GRAPHS)] == [True]
        await delete(database, principal, "meanwhile")


async def test_a_build_that_was_killed_is_put_right_by_the_next_pass(world: World) -> None:
    acme = await world.tenant("acme")
    principal = world.principal(acme)
    async with world.database() as database, superuser(world) as watch:
        await fill(database, principal, clustered(400, seed=6))
        async with maintenance(world) as session:

            async def build() -> None:
                with pytest.raises(BulkheadError):
                    await maintain(session, SMALL)

            with anyio.fail_after(BOUND_S):
                async with anyio.create_task_group() as tasks, database.tenant(principal) as writer:
                    await writer.fetch(WRITE)
                    tasks.start_soon(build)
                    assert await watch.fetchval("select pg_terminate_backend($1)", await building(watch))
        assert [tuple(row) for row in await stored(world, GRAPHS)] == [(graph_name(acme), False)]
        assert [tuple(row)[1] for row in await stored(world, REGISTER)] == [False]
        async with maintenance(world) as session:
            changes = await maintain(session, SMALL)
        assert [change.act for change in changes] == [Act.DROPPED, Act.BUILT]
        assert [tuple(row) for row in await stored(world, GRAPHS)] == [(graph_name(acme), True)]
        assert [tuple(row) for row in await stored(world, REGISTER)] == [(graph_name(acme), True, 400)]


async def test_a_tenant_on_the_edge_keeps_its_graph_and_one_that_shrank_loses_it(world: World) -> None:
    acme = await world.tenant("acme")
    principal = world.principal(acme)
    async with world.database() as database, maintenance(world) as session:
        await fill(database, principal, clustered(100, seed=7))
        assert await maintain(session, SMALL) == []
        await fill(database, principal, clustered(200, seed=8))
        assert [change.act for change in await maintain(session, SMALL)] == [Act.BUILT]
        sources = [row["source"] for row in await stored(world, "select source from rag.document order by ordinal")]
        await delete(database, principal, sources[0])
        assert await maintain(session, SMALL) == [], "200 of 300: more than 60 %"
        await delete(database, principal, sources[1])
        assert [change.act for change in await maintain(session, SMALL)] == [Act.DROPPED]
        assert await stored(world, GRAPHS) == []
        assert await stored(world, REGISTER) == []


async def test_graphs_that_nobody_has_registered_or_somebody_has_dropped_are_put_right(world: World) -> None:
    acme, gone = await world.tenant("acme"), await world.tenant("gone")
    async with world.database() as database, maintenance(world) as session, superuser(world) as admin:
        await fill(database, world.principal(acme), clustered(300, seed=9))
        await maintain(session, SMALL)
        name = graph_name(gone)
        await admin.execute(
            f"create index {name} on rag.embedding_00 "
            "using hnsw ((vector::public.halfvec(384)) public.halfvec_cosine_ops) "
            f"where tenant_id = '{gone.tenant_id}' and model_id = '1'::smallint"
        )
        await admin.execute(f"drop index rag.{graph_name(acme)}")
        changes = await maintain(session, SMALL)
        assert {(change.act, change.index_name) for change in changes} == {
            (Act.DROPPED, name),
            (Act.DROPPED, graph_name(acme)),
            (Act.BUILT, graph_name(acme)),
        }
        assert [tuple(row) for row in await stored(world, GRAPHS)] == [(graph_name(acme), True)]
        assert await maintain(session, SMALL) == []


async def test_one_session_builds_at_a_time(world: World) -> None:
    async with world.database() as database, maintenance(world) as first:
        await fill(database, world.principal(await world.tenant("acme")), clustered(300, seed=10))
        assert len(await maintain(first, SMALL)) == 1
        await fill(database, world.principal(await world.tenant("other")), clustered(300, seed=11))
        async with maintenance(world) as second:
            assert await maintain(second, SMALL) == []
            assert len(await maintain(first, SMALL)) == 1
    assert len(await stored(world, GRAPHS)) == 2


async def test_the_maintenance_login_counts_and_reads_nothing(world: World) -> None:
    assert world.settings.maintenance_database_url is not None
    async with world.database() as database:
        await fill(database, world.principal(await world.tenant("acme")), clustered(10, seed=12))
    connection = await asyncpg.connect(world.settings.maintenance_database_url)
    try:
        assert await connection.fetchval("select count(*) from (select tenant_id from rag.embedding) e") == 10
        for query in (
            "select vector from rag.embedding",
            "select chunk_id from rag.embedding",
            "select terms from rag.corpus_change",
            "select text from rag.chunk",
            "select title from rag.document",
            "delete from rag.embedding",
            "insert into rag.corpus_change (tenant_id) values (gen_random_uuid())",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(query)
    finally:
        await connection.close()
