"""Sixty-four writers and readers beside compactors and embedders lose nothing, find nothing twice, never deadlock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import numpy as np
import pytest

from rag.corpus.compaction import compact_due
from rag.corpus.embedding import embed_due
from rag.corpus.store import NewDocument, delete_document, document_id_of, put_document
from rag.db.pool import Database
from rag.errors import NotFound
from rag.identity.principal import Principal
from rag.llm.ports import Vectors
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from tests.support.index import index_faults, stored
from tests.support.retrieval import only, retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 40.0
WRITERS, READERS, SHARED = 40, 24, 6
CONNECTIONS = 20


class Hashing:
    """An embedder at once: a text's vector is random, and the same every time."""

    model = "all-MiniLM-L6-v2"
    dimension = 384

    async def embed(self, texts: Sequence[str]) -> Vectors:
        rows = [np.random.default_rng(sum(map(ord, text))).normal(size=self.dimension) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)

    async def aclose(self) -> None:
        """Hold nothing."""


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What goes on at once in one tenant, until the writers are done."""

    database: Database
    principal: Principal
    writing: int = WRITERS
    searches: int = 0
    confirmed: set[str] = field(default_factory=set[str])
    """Documents whose put has returned and that nobody deletes."""

    async def write(self, name: int) -> None:
        """Put, replace and delete documents of one's own, and contend for those that all writers write."""
        chance = random.Random(name)
        for number in range(4):
            own = f"own{name}x{number}"
            for edition in range(2):
                text = f"harbour {own} edition{edition} of the ship"
                await put_document(self.database, self.principal, NewDocument(source=own, title="Log", text=text))
            if number % 2:
                await delete_document(self.database, self.principal, document_id_of(self.principal.tenant_id, own))
            else:
                self.confirmed.add(own)
            shared = f"shared{chance.randrange(SHARED)}"
            if chance.random() < 0.3:
                try:
                    await delete_document(
                        self.database, self.principal, document_id_of(self.principal.tenant_id, shared)
                    )
                except NotFound:
                    continue
            else:
                text = f"lantern {shared} written by writer{name}"
                await put_document(self.database, self.principal, NewDocument(source=shared, title="Log", text=text))
        self.writing -= 1

    async def read(self, mode: Mode) -> None:
        """What had been confirmed before a search began is found by it; no document is found in two editions."""
        chance = random.Random(self.writing)
        while self.writing:
            wanted = chance.choice(sorted(self.confirmed)) if self.confirmed else None
            request = SearchRequest(query=f"harbour {wanted or 'ship'}", mode=mode, limit=50)
            found = await search(retriever(self.database, Hashing()), self.principal, request)
            sources = [hit.source for hit in found.hits]
            assert len(sources) == len(set(sources))
            assert wanted is None or mode is Mode.SEMANTIC or wanted in sources
            self.searches += 1

    async def compact(self) -> None:
        """Compact and sweep in small steps."""
        while self.writing:
            await compact_due(self.database, settle_s=0.0, budget=500, sweep_budget=500, sweep_share=0.0)

    async def embed(self) -> None:
        """Make vectors as they fall due."""
        while self.writing:
            await embed_due(self.database, only(Hashing()))


async def test_writers_readers_compactor_and_embedder_lose_nothing(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(claims=True, pool_size=CONNECTIONS) as database:
        traffic = Traffic(database=database, principal=principal)
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                for name in range(WRITERS):
                    tasks.start_soon(traffic.write, name)
                for number in range(READERS):
                    tasks.start_soon(traffic.read, tuple(Mode)[number % 3])
                for act in (traffic.compact, traffic.compact, traffic.embed, traffic.embed):
                    tasks.start_soon(act)
            while await embed_due(database, only(Hashing())):
                pass
            await stored(world, "update queue.upkeep set available_at = clock_timestamp()")
            while await compact_due(database, settle_s=0.0, sweep_share=0.0):
                pass
        assert traffic.searches > READERS
        standing = {row["source"] for row in await stored(world, "select source from rag.document")}
        assert {source for source in standing if source.startswith("own")} == traffic.confirmed
        for source in sorted(standing)[::4]:
            (hit,) = (
                await search(retriever(database, Hashing()), principal, SearchRequest(query=source, mode=Mode.KEYWORD))
            ).hits
            assert hit.source == source
    assert await index_faults(world, principal.tenant_id) == []
    assert await stored(world, "select 1 from rag.tombstone") == []
    assert await stored(world, "select 1 from rag.posting where fresh") == []
    # every chunk has its vector, and nothing else has one
    assert (
        await stored(
            world,
            "select 1 from rag.chunk c full join rag.embedding e using (tenant_id, chunk_id) "
            "where c.number is null or e.model_id is null",
        )
        == []
    )
    (counted,) = await stored(world, "select sum(chunks) as chunks from rag.corpus_change")
    (chunks,) = await stored(world, "select count(*) as chunks from rag.chunk")
    assert counted["chunks"] == chunks["chunks"] > 0
    (database_row,) = await stored(world, "select deadlocks from pg_stat_database where datname = current_database()")
    assert database_row["deadlocks"] == 0
