"""Bulk loading: COPY into unlogged staging tables as the administrator, `insert ... select` from them as the tenant.

Above: the benchmarks. Below: `corpora`, `vectors`, tests/bench/sql. Row-level security refuses COPY; everything else
here passes the same policies, constraints and indexing function as `put_document`, only a few thousand chunks at a
time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
from pgvector.asyncpg import register_vector  # pyright: ignore[reportMissingTypeStubs]

from rag.corpus.store import document_id_of
from rag.db.vectors import halfvec
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.identity.seal import Sealer, load_seal_keys
from tests.bench.corpora import Section
from tests.bench.vectors import VectorSpace
from tests.support.world import World

__all__ = ["Loaded", "add_questions", "connected", "load", "long_seal", "make_staging", "run_script", "script"]

BATCH_CHUNKS = 10_000
TEN_YEARS_S = 10 * 365 * 86_400.0
_SQL = Path(__file__).parent / "sql"


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


def script(name: str) -> str:
    """Return the text of `sql/<name>`."""
    return (_SQL / name).read_text(encoding="utf-8")


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection]:
    """Open a connection without a statement timeout that knows pgvector's types."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "public"}, timeout=30)
    try:
        await register_vector(connection)
        yield connection
    finally:
        await connection.close()


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
    world: World, *, tenant_id: UUID, sections: Iterable[Section], space: VectorSpace, plain: bool
) -> Loaded:
    """Load `sections` as the tenant's documents, with vectors out of `space`; `plain` fills bench.plain as well."""
    assert world.settings.database_url is not None
    documents = chunks = 0
    took: dict[str, float] = dict.fromkeys(("staging", "rows", "postings", "plain"), 0.0)
    steps = [("rows", name) for name in ("documents", "chunks", "vectors")] + [("postings", "postings")]
    statements = _statements(script("fill_product.sql"))
    seal = long_seal(world, tenant_id)
    async with connected(world.superuser_url) as admin, connected(world.settings.database_url) as tenant:
        for batch in _batches(sections):
            began = time.perf_counter()
            await _stage(admin, tenant_id, documents, batch, space)
            took["staging"] += time.perf_counter() - began
            async with tenant.transaction():
                await tenant.execute("select rag.open_context_v1($1)", seal)
                for part, name in steps:
                    began = time.perf_counter()
                    await tenant.execute(statements[name], tenant_id, timeout=600)
                    took[part] += time.perf_counter() - began
            if plain:
                began = time.perf_counter()
                await admin.execute(script("fill_plain.sql"), timeout=600)
                took["plain"] += time.perf_counter() - began
            await admin.execute("truncate bench.staged_document, bench.staged_chunk")
            documents += len(batch)
            chunks += sum(len(section.pieces) for section in batch)
    return Loaded(documents=documents, chunks=chunks, **{f"{part}_s": seconds for part, seconds in took.items()})


def _statements(text: str) -> dict[str, str]:
    parts = [part.split("\n", 1) for part in f"\n{text}".split("\n-- ")[1:]]
    return {name.strip(): statement.strip() for name, statement in parts}


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
