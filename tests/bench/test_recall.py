"""What the dense leg finds of the truly nearest chunks, in tenants of every size, and that it never answers too few.

Asserted, unlike the other benchmarks: a recall does not depend on the machine. Vectors are synthetic (`vectors`).
"""

from __future__ import annotations

import statistics

import pytest

from tests.bench import report
from tests.bench.asking import ask, exact, graph_scans
from tests.bench.conftest import Plan
from tests.bench.corpora import synthetic_sections
from tests.bench.loading import add_questions, load, make_staging
from tests.bench.place import Place, open_world
from tests.bench.upkeep import settle
from tests.bench.vectors import VectorSpace

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(3600)]

BUCKETS = (100, 1_000, 10_000, 100_000)
QUESTIONS = 200
WANTED = 10
MOST_WANTED = 50
LEAST_RECALL = 0.99
SEED = 11
WORDS = [f"word{number}" for number in range(1000)]


async def test_the_dense_leg_finds_the_nearest_chunks_in_tenants_of_every_size(place: Place, plan: Plan) -> None:
    """All tenants lie in one database, as they do in production; each is asked 200 questions."""
    world, _ = await open_world(place, "recall", "fresh")
    await make_staging(world)
    space = VectorSpace(SEED)
    for chunks in BUCKETS:
        tenant = await world.tenant(f"chunks-{chunks}")
        sections = synthetic_sections(WORDS, chunks, words=(3, 5), seed=chunks)
        await load(world, tenant_id=tenant.tenant_id, sections=sections, space=space)
        await add_questions(
            world,
            documents=chunks,
            tenant_id=tenant.tenant_id,
            questions=[WORDS[number] for number in range(QUESTIONS)],
            space=space,
        )
    took = await settle(world)
    print(f"\nsynthetic vectors; upkeep took, in s: {took}")
    print(f"{'chunks':>8} {'plan':18} {'recall@10':>9} {'worst':>6} {'fewest of 10':>12} {'fewest of 50':>12}")
    rows: list[dict[str, object]] = []
    for chunks in BUCKETS:
        before = await graph_scans(world)
        answers = await ask(world, chunks, questions=QUESTIONS, wanted=WANTED, mode="semantic")
        scans = await graph_scans(world) - before
        many = await ask(world, chunks, questions=QUESTIONS, wanted=MOST_WANTED, mode="semantic")
        truth = await exact(world, chunks, questions=QUESTIONS, wanted=WANTED)
        recalls = [
            len(set(answer.places) & set(nearest)) / WANTED for answer, nearest in zip(answers, truth, strict=True)
        ]
        plans = sorted({answer.dense_plan for answer in (*answers, *many)})
        row: dict[str, object] = {
            "chunks": chunks,
            "plans": plans,
            "graph_scans": scans,
            "recall@10": statistics.fmean(recalls),
            "worst": min(recalls),
            "fewest_of_10": min(len(answer.places) for answer in answers),
            "fewest_of_50": min(len(answer.places) for answer in many),
        }
        rows.append(row)
        print(
            f"{chunks:8} {', '.join(plans):18} {row['recall@10']:9.4f} {row['worst']:6.2f} "
            f"{row['fewest_of_10']:12} {row['fewest_of_50']:12}"
        )
    report.save(plan.results, "recall", {"machine": await report.machine(world.superuser_url), "buckets": rows})
    for row in rows:
        assert float(str(row["recall@10"])) >= LEAST_RECALL, row
        assert (row["fewest_of_10"], row["fewest_of_50"]) == (WANTED, MOST_WANTED), row
        large = int(str(row["chunks"])) > 5_000
        assert row["plans"] == (["hnsw"] if large else ["exact"]), row
        assert row["graph_scans"] == (QUESTIONS if large else 0), row
