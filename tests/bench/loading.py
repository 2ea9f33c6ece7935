"""Bulk loading: COPY into unlogged staging tables as the administrator, `insert ... select` from them as the tenant.

Above: the benchmarks. Below: `corpora`, `vectors`, tests/bench/sql. Row-level security refuses COPY; everything else
here passes the same policies, constraints and indexing function as `put_document`, only a few thousand chunks at a
time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import anyio
import asyncpg

from rag.corpus.store import document_id_of
from rag.db.vectors import halfvec
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.identity.seal import Sealer, load_seal_keys
from tests.bench.connect import connected, script, statements
from tests.bench.corpora import Section
from tests.bench.direct import gather_words
from tests.bench.vectors import VectorSpace
from tests.support.world import World

__all__ = ["Loaded", "add_questions", "load", "long_seal", "make_staging", "run_script"]

BATCH_CHUNKS = 10_000
TEN_YEARS_S = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load put in and how long each part of it took, in seconds."""

    documents: int
    chunks: int
    staging_s: float
    rows_s: float
    """Documents, chunks and vectors."""
    postings_s: float
    plain_s: float


async def run_script(world: World, name: str) -> None:
    """Run `sql/<name>` as the administrator."""
    async with connected(world.superuser_url) as connection:
        await connection.execute(script(name))


async def make_staging(world: World) -> None:
    """Make the schema `bench`, once per database."""
    await run_script(world, "stage.sql")


def long_seal(world: World, tenant_id: UUID) -> str:
    """Return a seal that outlives any benchmark, of a principal without groups: what pgbench presents for a token."""
    assert world.settings.seal_keys_file is not None
    sealer = Sealer(
        keys=load_seal_keys(world.settings.seal_keys_file),
        clock=lambda: time.time() + TEN_YEARS_S,
    )
    now = time.time()
    return sealer.seal(
        Principal(
            tenant_id=tenant_id,
            subject="bench",
            scopes=frozenset({Scope.CORPUS_READ, Scope.CORPUS_WRITE}),
            token_ids=("bench",),
            issued_at=now,
            expires_at=now + TEN_YEARS_S,
        )
    )


async def add_questions(
    world: World, *, documents: int, tenant_id: UUID, questions: list[str], space: VectorSpace
) -> None:
    """Store the tenant's seal under its size, and its questions, each with a vector out of `space`."""
    vectors = space.queries(len(questions))
    async with connected(world.superuser_url) as connection:
        await connection.execute(
            "insert into bench.caller (documents, tenant_id, model_id, seal) "
            "select $1, $2, m.model_id, $3 from rag.embedding_model m",
            documents,
            tenant_id,
            long_seal(world, tenant_id),
        )
        await connection.copy_records_to_table(
            "question",
            schema_name="bench",
            columns=["documents", "number", "query", "vector"],
            records=[
                (documents, number, query, halfvec(vector))
                for number, (query, vector) in enumerate(zip(questions, vectors, strict=True), start=1)
            ],
        )


async def load(
    world: World,
    *,
    tenant_id: UUID,
    sections: Iterable[Section],
    space: VectorSpace,
    plain: bool = False,
    direct: bool = False,
) -> Loaded:
    """Load `sections` as the tenant's documents, with vectors out of `space`.

    `plain` fills bench.plain as well. `direct` only gathers the words, for `direct.write_blocks`.
    """
    assert world.settings.database_url is not None
    documents = chunks = 0
    took: dict[str, float] = dict.fromkeys(("staging", "rows", "postings", "plain"), 0.0)
    seal = long_seal(world, tenant_id)
    async with connected(world.superuser_url) as admin, connected(world.settings.database_url) as tenant:
        for batch in _batches(sections):
            began = time.perf_counter()
            await _stage(admin, tenant_id, documents, batch, space)
            took["staging"] += time.perf_counter() - began
            async with anyio.create_task_group() as group:
                if direct:
                    group.start_soon(_timed, took, "postings", partial(gather_words, admin, tenant_id))
                await _fill(tenant, tenant_id, seal, took, postings=not direct)
            if plain:
                began = time.perf_counter()
                await admin.execute(script("fill_plain.sql"), timeout=600)
                took["plain"] += time.perf_counter() - began
            await admin.execute("truncate bench.staged_document, bench.staged_chunk")
            documents += len(batch)
            chunks += sum(len(section.pieces) for section in batch)
    return Loaded(
        documents=documents, chunks=chunks, **{f"{part}_s": round(seconds, 1) for part, seconds in took.items()}
    )


def _batches(sections: Iterable[Section]) -> Iterator[list[Section]]:
    batch: list[Section] = []
    chunks = 0
    for section in sections:
        batch.append(section)
        chunks += len(section.pieces)
        if chunks >= BATCH_CHUNKS:
            yield batch
            batch, chunks = [], 0
    if batch:
        yield batch


async def _fill(
    tenant: asyncpg.Connection, tenant_id: UUID, seal: str, took: dict[str, float], *, postings: bool
) -> None:
    steps = statements("fill_product.sql")
    async with tenant.transaction():
        await tenant.execute("select rag.open_context_v1($1)", seal)
        for part, name in (("rows", "documents"), ("rows", "chunks"), ("rows", "vectors"), ("postings", "postings")):
            if postings or part != "postings":
                await _timed(took, part, partial(tenant.execute, steps[name], tenant_id, timeout=600))


async def _timed(took: dict[str, float], part: str, call: Callable[[], Awaitable[object]]) -> None:
    began = time.perf_counter()
    await call()
    took[part] += time.perf_counter() - began


async def _stage(
    admin: asyncpg.Connection, tenant_id: UUID, first: int, batch: list[Section], space: VectorSpace
) -> None:
    vectors = iter(space.chunks([len(section.pieces) for section in batch]))
    numbered = list(enumerate(batch, start=first))
    await admin.copy_records_to_table(
        "staged_document",
        schema_name="bench",
        columns=["tenant_id", "number", "document_id", "source", "title", "text", "chunks"],
        records=[
            (
                tenant_id,
                number,
                document_id_of(tenant_id, section.source),
                section.source,
                section.title,
                section.text,
                len(section.pieces),
            )
            for number, section in numbered
        ],
    )
    await admin.copy_records_to_table(
        "staged_chunk",
        schema_name="bench",
        columns=["tenant_id", "document", "number", "start_char", "end_char", "heading", "text", "vector"],
        records=[
            (tenant_id, number, at, piece.start, piece.end, piece.heading, piece.text, halfvec(next(vectors)))
            for number, section in numbered
            for at, piece in enumerate(section.pieces)
        ],
    )
