"""A tenant of a million chunks: how long it takes to load, compact and index, what it occupies, how fast it answers.

The plan is asserted, the times are printed. Words are those of the United States Code in Zipf's proportions, 40 to 120
a chunk; vectors are synthetic (`vectors`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import pytest

from sql import migrations
from tests.bench import report, systems
from tests.bench.asking import ask, exact, graph_scans
from tests.bench.conftest import Plan
from tests.bench.connect import connected, script
from tests.bench.corpora import Section, questions, synthetic_sections, words_by_frequency
from tests.bench.direct import index_directly
from tests.bench.loading import add_questions, load, long_seal, make_staging
from tests.bench.place import Place, finish_database, open_world
from tests.bench.statement import MODES
from tests.bench.systems import Tenant
from tests.bench.upkeep import settle
from tests.bench.vectors import VectorSpace
from tests.support.index import index_faults
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(4 * 3600)]

QUESTIONS = 500
TITLES = 20_000
"""Documents whose titles the questions are drawn from."""
COMPARED = 50
LOOKED_THROUGH = 100_000
"""Up to so many chunks the whole index is checked, above it the postings of some documents."""
SEED = 13


async def test_a_million_chunks_in_one_tenant(place: Place, plan: Plan, sections: list[Section]) -> None:
    """`--chunks` sets another size."""
    world, complete = await open_world(place, "volume", _digest(plan))
    print(f"\n{plan.chunks} chunks, text of real words by Zipf's law, vectors synthetic")
    if complete:
        print("the database of an earlier run of the same size and schema is used as it is")
    else:
        await _fill(world, plan, words_by_frequency(sections))
    tenant = await _tenant(world, plan)
    print(f"PostgreSQL before the first search: {report.memory(world.server.pid)}")
    sizes = await _sizes(world)
    print(f"sizes in MiB: {sizes}")
    for mode in MODES:
        # each question that is measured has been asked once: the pages that it needs are in memory
        await ask(world, plan.chunks, questions=QUESTIONS, wanted=10, mode=mode)
    runs: list[report.Run] = []
    for number in range(1, plan.rounds + 1):
        for mode in MODES:
            for clients in (1, 8):
                before = os.getloadavg()[0]
                got = await systems.run_sql(world, tenant, mode, clients=clients, seconds=plan.seconds, seed=number)
                runs.append(
                    report.Run(
                        system="sql",
                        mode=mode,
                        documents=plan.chunks,
                        chunks=plan.chunks,
                        concurrency=clients,
                        round=number,
                        load=before,
                        measured=got,
                    )
                )
    report.print_runs(runs)
    memory = report.memory(world.server.pid)
    print(f"PostgreSQL after the searches: {memory}")
    before = await graph_scans(world)
    answers = await ask(world, plan.chunks, questions=COMPARED, wanted=10, mode="semantic")
    scans = await graph_scans(world) - before
    truth = await exact(world, plan.chunks, questions=COMPARED, wanted=10)
    found = [len(set(answer.places) & set(nearest)) for answer, nearest in zip(answers, truth, strict=True)]
    recall = sum(found) / (10 * COMPARED)
    print(f"recall@10 against the exact scan, {COMPARED} questions: {recall:.3f}")
    machine = await report.machine(world.superuser_url)
    print(machine)
    report.save(
        plan.results,
        "volume",
        {"machine": machine, "runs": runs, "sizes_mib": sizes, "memory": memory, "recall@10": recall},
    )
    assert {answer.dense_plan for answer in answers} == {"hnsw"}
    assert scans == COMPARED
    assert all(len(answer.places) == 10 for answer in answers)


async def _fill(world: World, plan: Plan, ranked: Sequence[str]) -> None:
    await make_staging(world)
    space = VectorSpace(SEED)
    tenant = await world.tenant("volume")
    titled: list[Section] = []
    made = _remembered(synthetic_sections(ranked, plan.chunks, seed=SEED), titled)
    loaded = await load(world, tenant_id=tenant.tenant_id, sections=made, space=space, direct=True)
    print(loaded)
    await index_directly(world, tenant.tenant_id, long_seal(world, tenant.tenant_id))
    await add_questions(
        world,
        documents=plan.chunks,
        tenant_id=tenant.tenant_id,
        questions=questions(titled, QUESTIONS, seed=SEED),
        space=space,
    )
    if plan.chunks <= LOOKED_THROUGH:
        assert await index_faults(world, tenant.tenant_id) == []
        print("all base blocks and the vocabulary were looked through")
    took = await settle(world)
    print(f"upkeep took, in s: {took}; PostgreSQL after it: {report.memory(world.server.pid)}")
    await finish_database(world)


def _remembered(sections: Iterable[Section], kept: list[Section]) -> Iterator[Section]:
    for section in sections:
        if len(kept) < TITLES:
            kept.append(dataclasses.replace(section, text="", pieces=()))
        yield section


async def _tenant(world: World, plan: Plan) -> Tenant:
    async with connected(world.superuser_url) as admin:
        row = await admin.fetchrow("select tenant_id from bench.caller where documents = $1", plan.chunks)
        asked = await admin.fetch("select query from bench.question where documents = $1 order by number", plan.chunks)
    assert row is not None
    return Tenant(
        name="volume",
        tenant_id=row["tenant_id"],
        documents=plan.chunks,
        chunks=plan.chunks,
        questions=[question["query"] for question in asked],
    )


async def _sizes(world: World) -> dict[str, float]:
    """Return what the tables and their indexes occupy, partitions summed up, graphs apart."""
    async with connected(world.superuser_url) as admin:
        rows = await admin.fetch(
            """
            select
                regexp_replace(t.relname, '_\\d\\d$', '') as name,
                sum(pg_table_size(t.oid)) as tables,
                sum(pg_indexes_size(t.oid)) - coalesce(sum(g.bytes), 0) as indexes,
                coalesce(sum(g.bytes), 0) as graphs
            from pg_class t
            left join lateral (
                select sum(pg_relation_size(i.indexrelid)) as bytes
                from pg_index i
                join pg_class c on c.oid = i.indexrelid
                join pg_am a on a.oid = c.relam
                where i.indrelid = t.oid and a.amname = 'hnsw'
            ) g on true
            where t.relnamespace = 'rag'::regnamespace and t.relkind = 'r'
            group by 1
            having sum(pg_total_relation_size(t.oid)) > 1048576
            order by 1
            """
        )
    sizes: dict[str, float] = {}
    for row in rows:
        for part in ("tables", "indexes", "graphs"):
            if row[part]:
                sizes[f"{row['name']} {part}"] = round(int(row[part]) / 2**20, 1)
    return sizes


def _digest(plan: Plan) -> str:
    parts = [step.sha256 for step in migrations()]
    parts += [script(name) for name in ("stage.sql", "fill_product.sql", "fill_postings.sql")]
    return hashlib.sha256("\n".join([*parts, str(plan.chunks), str(SEED)]).encode()).hexdigest()[:12]
