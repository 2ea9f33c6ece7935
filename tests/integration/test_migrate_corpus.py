"""A database with the documents, vectors and tasks that version 7 left is migrated: all is kept, and found.

What was there is written by that version's own functions, kept in its migrations, under the seals of its callers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from rag.corpus.compaction import compact_due
from rag.corpus.embedding import embed_due
from rag.corpus.store import NewDocument, Outcome, delete_document, document_id_of, pending_embeddings, put_document
from rag.db.migrate import bootstrap, ensure_database, install_seal_keys, migrate, register_embedding_model
from rag.db.pool import Database, Session
from rag.db.vectors import halfvec
from rag.errors import NotFound
from rag.identity.principal import Principal
from rag.identity.seal import load_seal_keys
from rag.installation import embedded_settings
from rag.llm.minilm import MODEL, MiniLmEmbedder, load_minilm
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from sql import Query, migrations
from tests.support import tasks
from tests.support.index import index_faults
from tests.support.retrieval import only, retriever
from tests.support.world import Cluster, World, cluster_passwords

pytestmark = pytest.mark.anyio
BEFORE = 7
ACME, GLOBEX = UUID("aaaaaaaa-0000-4000-8000-000000000001"), UUID("aaaaaaaa-0000-4000-8000-000000000002")
WORDS = ("alder", "juniper", "hawthorn", "sycamore", "willow", "mahogany", "tamarind", "baobab")
LONG = 1100
"""Chunks: two such documents are more than one batch of the migration, and their words more than one block."""
KEPT = {
    "documents": "select tenant_id, document_id, source, title, media_type, metadata, content_hash, text, version, "
    "chunks, created_at, updated_at from rag.document order by tenant_id, source",
    "chunks": "select tenant_id, document_id, number, start_char, end_char, heading, text from rag.chunk "
    "order by tenant_id, document_id, number",
    "vectors": "select e.tenant_id, e.model_id, e.document_id, c.number, e.vector::text from rag.embedding e "
    "join rag.chunk c on c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id and c.document_id = e.document_id "
    "order by e.tenant_id, e.document_id, c.number, e.model_id",
    "queue": "select tenant_id, document_id from queue.embedding order by tenant_id, document_id",
}
PUT = Query(
    name="put_v1",
    description="",
    text="select * from rag.put_document_v1($1, $2, $3, 'text/plain', '{\"year\": 1934}', $4, "
    "array_to_string($5::text[], ' '), array(select n from generate_series(0, cardinality($5) - 1) n), "
    "array(select n from generate_series(1, cardinality($5)) n), array_fill('Part'::text, array[cardinality($5)]), $5)",
    parameters=("document", "source", "title", "hash", "chunks"),
)
EMBED = Query(
    name="embed",
    description="",
    text="insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector) "
    "select c.tenant_id, 1, c.chunk_id, c.document_id, $2 from rag.chunk c "
    "where c.tenant_id = rag.current_tenant() and c.document_id = $1 and c.text = $3",
    parameters=("document", "vector", "text"),
)
FINISH = Query(name="finish", description="", text="select queue.finish_embedding_v1($1)", parameters=("document",))
DELETE = Query(name="delete", description="", text="select rag.delete_document_v1($1)", parameters=("document",))
FIND = Query(
    name="find",
    description="",
    text="select source, number from rag.search_v1($1, $2, null, 1::smallint, 50, 1, 0, 200)",
    parameters=("context", "query"),
)
ACCEPT = Query(
    name="accept",
    description="",
    text="select rag.create_task_v1($1, 'c', 'rag', '{}', '{}', '{tasks:run}', $2::text[], null, $3::text[], $4, null)",
    parameters=("task", "groups", "tokens", "issued_at"),
)
CHECKPOINT = Query(
    name="checkpoint",
    description="",
    text="insert into checkpoint.checkpoints (thread_id, checkpoint_id, checkpoint) values ($1, 'x', '{}')",
    parameters=("thread",),
)
QUERIES = (
    "landlord notice",
    "ship cargo",
    "what ada knows",
    "what gil knows",
    "merger railways",
    "deleted",
    "oath",
    "1099 7",
)


@pytest.fixture(name="old")
async def old_fixture(cluster: Cluster, world: World) -> AsyncIterator[World]:
    """A world whose database stands at version 7; beside the one of today, whose keys it shares."""
    name = f"test_{int(time.time())}_{secrets.token_hex(6)}"
    superuser_url = await ensure_database(cluster.server.superuser_url, name)
    await bootstrap(superuser_url, cluster_passwords(cluster))
    settings = embedded_settings(cluster.settings, cluster.server, database=name)
    assert settings.owner_database_url is not None
    assert settings.seal_keys_file is not None
    assert await migrate(settings.owner_database_url, through=BEFORE) == list(range(1, BEFORE + 1))
    await install_seal_keys(settings.owner_database_url, load_seal_keys(settings.seal_keys_file))
    await register_embedding_model(settings.owner_database_url, name=MODEL, dimension=384)
    yield dataclasses.replace(world, settings=settings, superuser_url=superuser_url)
    admin = await asyncpg.connect(cluster.server.superuser_url)
    await admin.execute(f'drop database "{name}" with (force)')
    await admin.close()


@pytest.fixture(scope="module", name="minilm")
async def minilm_fixture() -> AsyncIterator[MiniLmEmbedder]:
    """The model that made the vectors."""
    embedder = load_minilm()
    yield embedder
    await embedder.aclose()


async def put(session: Session, tenant: UUID, source: str, texts: Sequence[str], *, title: str = "Of law") -> UUID:
    """Write a document of these chunks as version 7 did."""
    document = document_id_of(tenant, source)
    digest = hashlib.sha256("|".join((title, *texts)).encode()).digest()
    await session.fetch(PUT, document=document, source=source, title=title, hash=digest, chunks=list(texts))
    return document


async def fill(database: Database, principal: Principal, minilm: MiniLmEmbedder) -> None:
    """Write documents with vectors, one that waits for them, one of two versions, and one that is deleted again."""
    tenant = principal.tenant_id
    short = {
        "lease": ["The landlord shall have notice in writing.", "The harbour tenant pays."],
        "ship": ["A ship gives notice of its cargo to the harbour master."],
        f"of {principal.subject}": [f"What only {principal.subject} knows of the merger.", "An oath."],
    }
    long = {f"long {d}": [f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} clause {n}" for n in range(LONG)] for d in range(2)}
    async with database.tenant(principal) as session:
        await put(session, tenant, "lease", ["The landlord was someone else."])
        gone = await put(session, tenant, "gone", ["A deleted harbour notice."])
        for source, texts in {**short, **long}.items():
            document = await put(session, tenant, source, texts)
            for text in texts[:2]:
                (vector,) = await minilm.embed([text])
                await session.fetch(EMBED, document=document, vector=halfvec(vector), text=text)
            await session.fetch(FINISH, document=document)
        await put(session, tenant, "waiting", ["A merger of railways waits for its vector."])
        await session.fetch(DELETE, document=gone)


async def kept(old: World) -> dict[str, list[tuple[Any, ...]]]:
    """Return what must not change: all columns that both versions have, without the ids that never left the server."""
    admin = await asyncpg.connect(old.superuser_url)
    try:
        return {name: [tuple(row) for row in await admin.fetch(query)] for name, query in KEPT.items()}
    finally:
        await admin.close()


async def test_what_version_7_stored_is_kept_and_found_and_stays_private(old: World, minilm: MiniLmEmbedder) -> None:
    admin = await asyncpg.connect(old.superuser_url)
    await admin.execute("insert into rag.tenant (tenant_id, name) values ($1, 'acme'), ($2, 'globex')", ACME, GLOBEX)
    await admin.close()
    ada, gil = old.principal(ACME, user="ada"), old.principal(GLOBEX, user="gil")
    before: dict[tuple[str, str], list[tuple[str, int]]] = {}
    async with old.database() as database:
        for me in (ada, gil):
            await fill(database, me, minilm)
            for query in QUERIES:
                found = await database.fetch_sealed(FIND, me, query=query)
                before[me.subject, query] = [(row["source"], row["number"]) for row in found]
    stored = await kept(old)
    assert {name: len(rows) for name, rows in stored.items()} == {
        "documents": 12,
        "chunks": 2 * (2 * LONG + 6),
        "vectors": 2 * (5 + 4),
        "queue": 2,
    }

    assert old.settings.owner_database_url is not None
    assert await migrate(old.settings.owner_database_url) == [step.version for step in migrations()[BEFORE:]]

    assert await kept(old) == stored
    async with old.database(claims=True) as database:
        asked = retriever(database, minilm)
        for me in (ada, gil):
            assert await pending_embeddings(database, me) == 1
            for query in QUERIES:
                request = SearchRequest(query=query, mode=Mode.KEYWORD, limit=50)
                found = await search(asked, me, request)
                assert {(hit.source, hit.chunk) for hit in found.hits} == set(before[me.subject, query][:50]), query
            (best, *_) = (await search(asked, me, SearchRequest(query="written notice to a landlord"))).hits
            assert (best.source, best.explain.vector_imputed) == ("lease", False)
            assert best.explain.vector_rank == 1
        # and everything goes on from there
        again = NewDocument(source="lease", title="Of law", text="The landlord moved away.", groups=("board",))
        member = dataclasses.replace(ada, groups=("board",))
        assert (await put_document(database, member, again)).outcome is Outcome.UPDATED
        assert await delete_document(database, gil, document_id_of(GLOBEX, "ship")) > 0
        while await embed_due(database, only(minilm)):
            pass
        while await compact_due(database, claim=2, settle_s=0.0, sweep_share=0.0):
            pass
        assert [await pending_embeddings(database, me) for me in (member, gil)] == [0, 0]
        moved = SearchRequest(query="landlord", mode=Mode.KEYWORD)
        assert [len((await search(asked, me, moved)).hits) for me in (member, ada, gil)] == [1, 0, 1]
    for tenant in (ACME, GLOBEX):
        assert await index_faults(old, tenant) == []


async def test_tasks_of_version_7_belong_to_those_who_are_in_their_groups(old: World) -> None:
    admin = await asyncpg.connect(old.superuser_url)
    await admin.execute("insert into rag.tenant (tenant_id, name) values ($1, 'acme')", ACME)
    bob = dataclasses.replace(old.principal(ACME, user="bob"), groups=("board",))
    task = UUID(int=7)
    async with old.database() as database, database.tenant(bob) as session:
        await session.fetch(ACCEPT, task=task, groups=["board"], tokens=list(bob.token_ids), issued_at=bob.issued_at)
        await session.fetch(CHECKPOINT, thread=str(task))
    assert old.settings.owner_database_url is not None
    await migrate(old.settings.owner_database_url)
    assert await admin.fetchval("select subject from checkpoint.checkpoints") == "bob"
    await admin.close()
    eve, member = [
        dataclasses.replace(bob, subject=user, groups=groups) for user, groups in (("eve", ()), ("ann", ("x", "board")))
    ]
    async with old.database(claims=True) as database:
        for who, number in ((bob, 1), (member, 1), (eve, 0)):
            assert len(await tasks.events(database, who, task)) == number
        # a server of the version before goes on until it is replaced
        async with database.tenant(bob) as session:
            more = {"task": UUID(int=8), "groups": ["board"], "tokens": list(bob.token_ids), "issued_at": bob.issued_at}
            await session.fetch(ACCEPT, **more)
        assert (await tasks.read(database, bob, UUID(int=8))).grant.groups == ("board",)
        with pytest.raises(NotFound):
            await tasks.read(database, eve, UUID(int=8))


async def test_an_empty_version_7_is_migrated(old: World) -> None:
    assert old.settings.owner_database_url is not None
    assert await migrate(old.settings.owner_database_url) == [step.version for step in migrations()[BEFORE:]]
