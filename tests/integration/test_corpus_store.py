"""Documents are stored whole, once, by tenant; their vectors follow and nothing of a deleted one stays reachable."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import anyio
import asyncpg
import pytest

from rag.corpus.embedding import embed_due, run_embedder
from rag.corpus.store import (
    MAX_PART_CHARS,
    NewDocument,
    Outcome,
    delete_document,
    document_id_of,
    get_document,
    list_documents,
    pending_embeddings,
    put_document,
)
from rag.corpus.text import MAX_TEXT_CHARS
from rag.db.listener import Wakeups
from rag.db.pool import Database
from rag.errors import DocumentRefused, EmbedderUnavailable, InvalidInput, NotFound, Revoked
from rag.identity.principal import Principal
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from rag.llm.ports import Vectors
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from sql import Query, load_queries
from tests.support.retrieval import only, retriever
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 5.0
COUNT_VECTORS = Query(name="count_vectors", description="", text="select count(*) from rag.embedding", parameters=())
TEXT = "# Fraud\n\nIt is unlawful to use a manipulative device.\n\n## Remedies\n\nThe court may grant an injunction."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One tenant's caller on an open database."""

    database: Database
    principal: Principal
    other: Principal


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncIterator[Place]:
    """Two tenants and a pool."""
    async with _place(world) as place:
        yield place


@pytest.fixture(scope="module", name="empty")
async def empty_fixture(cluster: Cluster) -> AsyncIterator[Place]:
    """One place for all documents that are refused; nothing is stored there."""
    async with world(cluster) as own, _place(own) as place:
        yield place


@asynccontextmanager
async def _place(world: World) -> AsyncGenerator[Place]:
    mine, theirs = await world.tenant("mine"), await world.tenant("theirs")
    async with world.database(claims=True) as database:
        yield Place(database=database, principal=world.principal(mine), other=world.principal(theirs))


@pytest.fixture(scope="module", name="minilm")
async def minilm_fixture() -> AsyncIterator[MiniLmEmbedder]:
    """The real default model."""
    embedder = load_minilm()
    yield embedder
    await embedder.aclose()


def new(source: str = "law/fraud.md", text: str = TEXT, title: str = "Fraud", **more: object) -> NewDocument:
    """Return a small Markdown document."""
    return NewDocument(source=source, title=title, text=text, media_type="text/markdown", **more)  # pyright: ignore[reportArgumentType]


async def vectors(place: Place) -> int:
    """Count the tenant's stored vectors."""
    async with place.database.tenant(place.principal) as session:
        return await session.fetch_value(COUNT_VECTORS)


async def found(place: Place, query: str) -> list[str]:
    """Return the sources that a keyword search finds, best first."""
    request = SearchRequest(query=query, mode=Mode.KEYWORD)
    result = await search(retriever(place.database, Stopped()), place.principal, request)
    return [hit.source for hit in result.hits]


class Stopped:
    """An embedder whose server is gone."""

    model = "all-MiniLM-L6-v2"
    dimension = 384

    async def embed(self, texts: Sequence[str]) -> Vectors:
        raise EmbedderUnavailable

    async def aclose(self) -> None:
        """Hold nothing."""


async def test_a_stored_document_is_read_back_whole_and_in_parts(place: Place) -> None:
    stored = await put_document(place.database, place.principal, new(metadata={"title": 15, "tags": ["a"]}))
    assert (stored.outcome, stored.version) == (Outcome.CREATED, 1)
    assert stored.document_id == document_id_of(place.principal.tenant_id, "law/fraud.md")
    whole = await get_document(place.database, place.principal, stored.document_id)
    assert (whole.text, whole.start, whole.end) == (TEXT, 0, len(TEXT))
    assert whole.document.metadata == {"title": 15, "tags": ["a"]}
    assert whole.document.characters == len(TEXT)
    part = await get_document(place.database, place.principal, stored.document_id, start=2, end=7)
    assert (part.text, part.start, part.end) == ("Fraud", 2, 7)
    past = await get_document(place.database, place.principal, stored.document_id, start=10**12)
    assert (past.text, past.start, past.end) == ("", len(TEXT), len(TEXT))


async def test_a_read_is_bounded_and_spans_count_characters_not_bytes(place: Place) -> None:
    text = "§" * MAX_PART_CHARS + " Ende 😀."
    stored = await put_document(place.database, place.principal, new(text=text))
    first = await get_document(place.database, place.principal, stored.document_id)
    assert (first.start, first.end) == (0, MAX_PART_CHARS)
    rest = await get_document(place.database, place.principal, stored.document_id, start=first.end)
    assert first.text + rest.text == text


async def test_line_ends_and_composition_are_normalised_before_anything_is_compared(place: Place) -> None:
    await put_document(place.database, place.principal, new(text="Cafe\u0301\r\nun deux"))
    again = await put_document(place.database, place.principal, new(text="\ufeffCafé\nun deux"))
    assert again.outcome is Outcome.UNCHANGED
    assert (await get_document(place.database, place.principal, again.document_id)).text == "Café\nun deux"


async def test_the_same_content_changes_nothing_and_any_difference_makes_a_new_version(place: Place) -> None:
    outcomes = [
        (await put_document(place.database, place.principal, document)).outcome
        for document in (
            new(),
            new(),
            new(title="Fraud and deceit"),
            new(title="Fraud and deceit", metadata={"a": 1, "b": 2}),
            new(title="Fraud and deceit", metadata={"b": 2, "a": 1}),
        )
    ]
    created, updated, unchanged = Outcome.CREATED, Outcome.UPDATED, Outcome.UNCHANGED
    assert outcomes == [created, unchanged, updated, updated, unchanged]


async def test_an_update_replaces_what_is_found(place: Place) -> None:
    await put_document(place.database, place.principal, new(text="The old words speak of ploughshares."))
    updated = await put_document(place.database, place.principal, new(text="The new words speak of bicycles."))
    assert (updated.outcome, updated.version) == (Outcome.UPDATED, 2)
    assert await found(place, "ploughshares") == []
    assert await found(place, "bicycles") == ["law/fraud.md"]


async def test_a_deleted_document_is_gone_from_every_read_at_once(place: Place, minilm: MiniLmEmbedder) -> None:
    stored = await put_document(place.database, place.principal, new())
    assert await embed_due(place.database, only(minilm)) == 1
    assert await vectors(place) > 0
    await delete_document(place.database, place.principal, stored.document_id)
    assert await found(place, "manipulative device") == []
    semantic = SearchRequest(query="manipulative device", mode=Mode.SEMANTIC)
    assert (await search(retriever(place.database, minilm), place.principal, semantic)).hits == ()
    assert (await list_documents(place.database, place.principal)).documents == ()
    assert await vectors(place) == 0
    with pytest.raises(NotFound):
        await get_document(place.database, place.principal, stored.document_id)
    with pytest.raises(NotFound):
        await delete_document(place.database, place.principal, stored.document_id)


async def test_a_document_put_again_after_deletion_is_found_once(place: Place) -> None:
    stored = await put_document(place.database, place.principal, new())
    await delete_document(place.database, place.principal, stored.document_id)
    assert (await put_document(place.database, place.principal, new())).outcome is Outcome.CREATED
    assert await found(place, "injunction") == ["law/fraud.md"]


async def test_the_list_is_in_the_order_of_sources_and_its_pages_join_without_gap(place: Place) -> None:
    sources = [f"law/{number:02}.md" for number in range(7)]
    for source in reversed(sources):
        await put_document(place.database, place.principal, new(source=source))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await list_documents(place.database, place.principal, after=after, limit=3)
        seen += [document.source for document in page.documents]
        after = page.next_after
    assert seen == sources


async def test_another_tenant_sees_nothing_of_a_document(place: Place) -> None:
    stored = await put_document(place.database, place.principal, new())
    with pytest.raises(NotFound) as foreign:
        await get_document(place.database, place.other, stored.document_id)
    with pytest.raises(NotFound) as absent:
        await get_document(place.database, place.other, uuid4())
    assert foreign.value.message == absent.value.message
    with pytest.raises(NotFound):
        await delete_document(place.database, place.other, stored.document_id)
    assert (await list_documents(place.database, place.other)).documents == ()
    assert await pending_embeddings(place.database, place.other) == 0
    assert (await put_document(place.database, place.other, new())).outcome is Outcome.CREATED


@pytest.mark.parametrize("text", ["", " \n\t ", "a\0b", "\ud800", "x" * (MAX_TEXT_CHARS + 1), "\x01\x02\x03\x04"])
async def test_text_that_cannot_be_stored_is_refused(empty: Place, text: str) -> None:
    with pytest.raises(DocumentRefused):
        await put_document(empty.database, empty.principal, new(text=text))


@pytest.mark.parametrize(
    "fields",
    [
        {"source": ""},
        {"source": " "},
        {"source": "a\nb"},
        {"source": "a\0"},
        {"source": "\ud800"},
        {"source": "é" * 513},
        {"title": " \n"},
        {"metadata": {"a": float("nan")}},
        {"metadata": {"a": 10**30}},
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"a": "b\0"}},
        {"metadata": {"a": "x" * 20_000}},
        {"metadata": json.loads('{"a":' * 33 + "1" + "}" * 33)},
    ],
)
async def test_fields_that_cannot_be_stored_are_refused(empty: Place, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        await put_document(empty.database, empty.principal, new(**fields))  # pyright: ignore[reportArgumentType]


async def test_the_longest_source_and_hostile_but_legal_text_are_stored(place: Place) -> None:
    document = new(source="é" * 512, text="'; drop table rag.document; -- 😀 " + "z" * 3000 + " \u202e שלום")
    stored = await put_document(place.database, place.principal, document)
    assert (await get_document(place.database, place.principal, stored.document_id)).text == document.text


async def test_twenty_writers_of_one_document_leave_one_document(place: Place) -> None:
    with anyio.fail_after(BOUND_S * 4):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(
                    put_document, place.database, place.principal, new(text=f"Edition {number} of the mantra.")
                )
    assert await found(place, "mantra") == ["law/fraud.md"]
    document = (await list_documents(place.database, place.principal)).documents[0]
    assert document.version == 20


async def test_vectors_follow_and_the_queue_empties(place: Place, minilm: MiniLmEmbedder) -> None:
    for number in range(3):
        await put_document(place.database, place.principal, new(source=f"{number}.md"))
    assert await pending_embeddings(place.database, place.principal) == 3
    assert await embed_due(place.database, only(minilm)) == 3
    assert await pending_embeddings(place.database, place.principal) == 0
    assert await vectors(place) == 3
    assert await embed_due(place.database, only(minilm)) == 0


async def test_an_embedder_that_fails_leaves_the_document_for_later(place: Place) -> None:
    await put_document(place.database, place.principal, new())
    with pytest.raises(EmbedderUnavailable):
        await embed_due(place.database, only(Stopped()))
    assert await pending_embeddings(place.database, place.principal) == 1
    assert await found(place, "injunction") == ["law/fraud.md"]


async def test_the_loop_outlives_a_failing_embedder_and_then_catches_up(place: Place, minilm: MiniLmEmbedder) -> None:
    failed = anyio.Event()

    class Recovering(Stopped):
        async def embed(self, texts: Sequence[str]) -> Vectors:
            if not failed.is_set():
                failed.set()
                raise EmbedderUnavailable
            return await minilm.embed(texts)

    await put_document(place.database, place.principal, new(source="1.md"))
    with anyio.fail_after(BOUND_S * 2):
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run_embedder, place.database, only(Recovering()), wakeups=Wakeups()))
            await failed.wait()
            await put_document(place.database, place.principal, new(source="2.md"))
            while await pending_embeddings(place.database, place.principal) == 2:  # each look waits for the database
                pass
            group.cancel_scope.cancel()
    assert await vectors(place) == 1


async def test_a_document_deleted_or_replaced_during_inference_leaves_no_stray_vector(
    place: Place, minilm: MiniLmEmbedder
) -> None:
    stored = await put_document(place.database, place.principal, new())

    class Meanwhile(Stopped):
        replaced = False

        async def embed(self, texts: Sequence[str]) -> Vectors:
            if not self.replaced:
                self.replaced = True
                await put_document(place.database, place.principal, new(text="Quite other words."))
            return await minilm.embed(texts)

    await embed_due(place.database, only(Meanwhile()))
    assert await vectors(place) == 1

    class Deleted(Stopped):
        async def embed(self, texts: Sequence[str]) -> Vectors:
            await delete_document(place.database, place.principal, stored.document_id)
            return await minilm.embed(texts)

    await put_document(place.database, place.principal, new(text="A third edition."))
    await embed_due(place.database, only(Deleted()))
    assert await vectors(place) == 0
    assert await pending_embeddings(place.database, place.principal) == 0


async def test_a_deletion_that_commits_while_its_vectors_are_stored_is_no_failure(
    world: World, place: Place, minilm: MiniLmEmbedder
) -> None:
    stored = await put_document(place.database, place.principal, new())
    deleted = anyio.Event()

    async def delete_slowly() -> None:
        watcher = await asyncpg.connect(world.superuser_url)
        try:
            async with place.database.tenant(place.principal) as session:
                await session.fetch(load_queries("corpus")["delete_document"], document_id=stored.document_id)
                deleted.set()
                # commit only once the embedder's insert waits for this deletion's outcome
                while not await watcher.fetchval("select count(*) from pg_locks where not granted"):
                    pass
        finally:
            await watcher.close()

    class Deleting(Stopped):
        async def embed(self, texts: Sequence[str]) -> Vectors:
            tasks.start_soon(delete_slowly)
            await deleted.wait()
            return await minilm.embed(texts)

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            assert await embed_due(place.database, only(Deleting())) == 1
    assert await vectors(place) == 0


async def test_a_put_that_commits_while_its_document_leaves_the_queue_is_not_forgotten(
    world: World, place: Place, minilm: MiniLmEmbedder
) -> None:
    stored = await put_document(place.database, place.principal, new())
    await embed_due(place.database, only(minilm))
    watcher = await asyncpg.connect(world.superuser_url)
    written = anyio.Event()

    async def put_slowly() -> None:
        async with place.database.tenant(place.principal) as session:
            await session.fetch(
                load_queries("corpus")["put_document"],
                document_id=stored.document_id,
                source="law/fraud.md",
                title="Fraud",
                media_type="text/plain",
                metadata={},
                groups=[],
                content_hash=b"another",
                text="Quite other words.",
                starts=[0],
                ends=[18],
                headings=[""],
                texts=["Quite other words."],
            )
            written.set()
            # commit only once the embedder, which holds an older claim, waits for this put's outcome
            while not await watcher.fetchval("select count(*) from pg_locks where not granted"):
                pass

    class Putting(Stopped):
        async def embed(self, texts: Sequence[str]) -> Vectors:
            if not written.is_set():
                tasks.start_soon(put_slowly)
                await written.wait()
            return await minilm.embed(texts)

    # one claim for two documents: the put falls between it and the embedder's look at the second
    await put_document(place.database, place.principal, new(source="first.md"))
    await watcher.execute(
        "insert into queue.embedding (tenant_id, document_id) values ($1, $2)",
        place.principal.tenant_id,
        stored.document_id,
    )
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            assert await embed_due(place.database, only(Putting())) == 2
        await embed_due(place.database, only(minilm))
    await watcher.close()
    assert await vectors(place) == 2
    assert await pending_embeddings(place.database, place.principal) == 0


async def test_a_revoked_token_writes_and_reads_nothing(world: World) -> None:
    tenant = await world.tenant("acme")
    principal = world.principal(tenant)
    async with world.database() as database, world.operator() as operator:
        stored = await put_document(database, principal, new())
        await operator.revoke_token(tenant.tenant_id, principal.token_ids[0])
        with pytest.raises(Revoked):
            await put_document(database, principal, new(text="more"))
        with pytest.raises(Revoked):
            await get_document(database, principal, stored.document_id)
        with pytest.raises(Revoked):
            await search(retriever(database, Stopped()), principal, SearchRequest(query="fraud", mode=Mode.KEYWORD))
