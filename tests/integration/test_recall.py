"""The recall of graphs, sampled from live searches: measured against every vector, told by size and never by name."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import anyio
import asyncpg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from rag.corpus.vector_indexes import GraphPolicy, maintain
from rag.retrieval.recall import FEWEST, RecallSampler, recall_sampler, size_bucket
from tests.support.graphs import clustered, fill, maintenance
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
POLL_S = 0.01
SMALL = GraphPolicy(build_at=300, workers=0)


def points(reader: InMemoryMetricReader) -> dict[str, tuple[int, float]]:
    """Return count and mean by size of the tenant."""
    data = reader.get_metrics_data()
    found: dict[str, tuple[int, float]] = {}
    for resource in data.resource_metrics if data else []:
        for metric in resource.scope_metrics[0].metrics:
            assert metric.name == "recall_at_10"
            for point in metric.data.data_points:
                shown: Any = point
                assert set(shown.attributes) == {"tenant_size"}
                found[str(shown.attributes["tenant_size"])] = (shown.count, shown.sum / shown.count)
    return found


async def checked(reader: InMemoryMetricReader, count: int) -> dict[str, tuple[int, float]]:
    """Wait until so many samples are counted."""
    with anyio.fail_after(BOUND_S):
        while sum(seen for seen, _ in points(reader).values()) < count:  # noqa: ASYNC110  # a metric has no event
            await anyio.sleep(POLL_S)
    return points(reader)


def test_the_size_of_a_tenant_is_told_in_powers_of_ten() -> None:
    sizes = (1, 100, 999, 1_000, 9_999, 10_000, 100_000, 999_999, 1_000_000, 50_000_000)
    assert [size_bucket(size) for size in sizes] == ["100"] * 3 + ["1k"] * 2 + ["10k"] + ["100k"] * 2 + ["1M"] * 2


async def test_every_so_many_searches_one_is_checked_against_all_vectors(world: World) -> None:
    acme = await world.tenant("acme")
    principal, revoked = world.principal(acme), world.principal(acme, user="bob")
    without = world.principal(await world.tenant("other"))
    queries = clustered(9, seed=1)
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("bulkhead")
    async with world.database() as database, maintenance(world) as session:
        await fill(database, principal, clustered(1_200, seed=1))
        await fill(database, without, clustered(50, seed=1))
        await maintain(session, SMALL)
        async with recall_sampler(database, meter=meter, every=3, pause_s=0.0) as sampler:
            for query in queries[:8]:
                sampler.offer(principal, query, 1)
            assert await checked(reader, 2) == {"1k": (2, pytest.approx(1.0))}
            # neither who has no graph nor who may not ask any more is counted, and neither ends the checks
            async with world.operator() as operator:
                await operator.revoke_user(acme.tenant_id, "bob")
            for someone in (without, revoked, principal):
                for _ in range(3):
                    sampler.offer(someone, queries[8], 1)
            assert (await checked(reader, 3))["1k"] == (3, pytest.approx(1.0))


async def test_offers_never_wait_and_are_dropped_when_there_are_too_many(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database() as database, recall_sampler(database, every=1) as sampler:
        for query in clustered(50, seed=2):
            sampler.offer(principal, query, 1)
        assert sampler.receiving.statistics().current_buffer_used <= 4


async def test_a_graph_that_misses_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A graph with two neighbours a chunk over points without structure cannot but miss."""
    principal = world.principal(await world.tenant("acme"))
    vectors = clustered(3_000, seed=3, clusters=3_000)
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("bulkhead")
    async with world.database() as database, maintenance(world) as session:
        await fill(database, principal, vectors)
        await maintain(session, dataclasses.replace(SMALL, m=2, ef_construction=4))
        async with recall_sampler(database, meter=meter, every=1, pause_s=0.0) as sampler:
            with caplog.at_level(logging.WARNING, logger="rag.retrieval.recall"):
                for number, query in enumerate(clustered(FEWEST, seed=4, clusters=FEWEST), start=1):
                    sampler.offer(principal, query, 1)
                    await checked(reader, number)
        assert points(reader)["1k"][1] < 0.9
    (record,) = caplog.records
    assert "recall at 10 is 0." in record.message
    assert str(principal.tenant_id) not in record.message


async def test_a_member_without_groups_is_measured_over_what_that_member_may_read(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    queries = clustered(12, seed=5)
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("bulkhead")
    async with world.database() as database, maintenance(world) as session:
        await fill(database, principal, clustered(600, seed=5))
        connection = await asyncpg.connect(world.superuser_url)
        try:
            await connection.execute(
                "insert into rag.audience (tenant_id, audience, groups) values ($1, 7, '{legal}')", principal.tenant_id
            )
            await connection.execute("update rag.embedding set audience = 7 where chunk_id % 2 = 0")
        finally:
            await connection.close()
        await maintain(session, SMALL)
        async with recall_sampler(database, meter=meter, every=1, pause_s=0.0) as sampler:
            await _offer_all(sampler, reader, principal, queries)
            _, mean = points(reader)["100"]
            assert mean > 0.95


async def _offer_all(sampler: RecallSampler, reader: InMemoryMetricReader, principal: Any, queries: Any) -> None:
    for number, query in enumerate(queries, start=1):
        sampler.offer(principal, query, 1)
        await checked(reader, number)
