"""Asks the product's search function one question after another, and says what the exact answer would have been.

Above: the recall and volume benchmarks. Below: `connect`. The asking connection is the servers' login under a seal; the
exact answer comes from the administrator's, who sees the same vectors without any index.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from tests.bench.connect import connected
from tests.bench.statement import search_statement
from tests.support.world import World

__all__ = ["Answer", "Place", "ask", "exact", "graph_scans"]

Place = tuple[str, int]
"""A chunk: its document's source, its number."""
_EXACT = """
select d.source, c.number
from bench.caller b
join bench.question q on q.documents = b.documents
cross join lateral (
    select e.tenant_id, e.chunk_id, e.document_id
    from rag.embedding e
    where e.tenant_id = $4 and e.model_id = b.model_id
    order by e.vector operator(public.<=>) q.vector, e.chunk_id
    limit $3
) n
join rag.chunk c on c.tenant_id = n.tenant_id and c.chunk_id = n.chunk_id
join rag.document d on d.tenant_id = n.tenant_id and d.document_id = n.document_id
where b.documents = $1 and q.number = $2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    places: tuple[Place, ...]
    dense_plan: str
    lexical_plan: str
    ms: float


async def ask(world: World, documents: int, *, questions: int, wanted: int, mode: str) -> list[Answer]:
    """Ask the tenant's first questions on one connection of the servers' login."""
    assert world.settings.database_url is not None
    answers: list[Answer] = []
    statement = search_statement(mode, wanted=wanted, documents="$1", number="$2")
    statement = f"select a.report::text as report, a.hits::text as hits from ({statement}) a"
    async with connected(world.settings.database_url) as connection:
        for number in range(1, questions + 1):
            began = time.perf_counter()
            row = await connection.fetchrow(statement, documents, number, timeout=60)
            took = (time.perf_counter() - began) * 1000
            assert row is not None
            answers.append(_answer(row, took))
    return answers


async def exact(world: World, documents: int, *, questions: int, wanted: int) -> list[tuple[Place, ...]]:
    """Return the nearest chunks to the same questions, by a scan of all of the tenant's vectors."""
    found: list[tuple[Place, ...]] = []
    async with connected(world.superuser_url) as connection:
        # a graph over all rows of the tenant would answer this as well, and then nothing would be compared
        await connection.execute("set enable_indexscan = off")
        tenant = await connection.fetchval("select tenant_id from bench.caller where documents = $1", documents)
        for number in range(1, questions + 1):
            rows = await connection.fetch(_EXACT, documents, number, wanted, tenant, timeout=60)
            found.append(tuple((row["source"], row["number"]) for row in rows))
    return found


async def graph_scans(world: World) -> int:
    """Return how often a graph was searched since the database was made: by the server's own count, not by our word."""
    async with connected(world.superuser_url) as connection:
        return int(
            await connection.fetchval(
                "select coalesce(sum(s.idx_scan), 0) from pg_stat_user_indexes s "
                "join pg_class c on c.oid = s.indexrelid join pg_am a on a.oid = c.relam "
                "where a.amname = 'hnsw' and s.schemaname = 'rag'"
            )
            or 0
        )


def _answer(row: asyncpg.Record, took_ms: float) -> Answer:
    report = cast("dict[str, Any]", json.loads(row["report"]))
    hits = cast("list[dict[str, Any]]", json.loads(row["hits"]))
    return Answer(
        places=tuple((hit["source"], hit["chunk"]) for hit in hits),
        dense_plan=report["dense_plan"],
        lexical_plan=report["lexical_plan"],
        ms=took_ms,
    )
