"""One injected statement against documents of a group that the caller is not in: nothing read, nothing spoilt."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest

from rag.corpus.compaction import compact_due
from rag.corpus.embedding import embed_due
from rag.corpus.store import NewDocument, list_documents, pending_embeddings, put_document
from rag.db.pool import Database
from rag.errors import Conflict, Forbidden, InvalidInput, Revoked, SealRefused
from rag.identity.principal import Principal
from rag.llm.minilm import load_minilm
from rag.retrieval.cache import LocalResultCache
from rag.retrieval.search import search
from rag.retrieval.values import SearchRequest
from rag.tenants.operator import Tenant
from sql import Query
from tests.support.index import index_faults, lexical_hits, stored
from tests.support.retrieval import only, retriever
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio

CONTENT = ("document", "chunk", "embedding", "posting", "corpus_change", "term", "spelling", "audience", "tombstone")
REFUSED = [
    # a row of the hidden audience
    "insert into rag.corpus_change (tenant_id, audience, chunks, terms, writes) "
    "values ({tenant}, {audience}, 9, 9, -9)",
    "insert into rag.posting (tenant_id, term, audience, first_chunk, last_chunk, postings, fresh, chunk_ids, "
    "frequencies, title_frequencies, lengths) "
    "values ({tenant}, 'merger', {audience}, 1, 1, 1, true, '{{1}}', '{{9}}', '{{9}}', '{{1}}')",
    "insert into rag.audience values ({tenant}, 7, '{{staff}}')",
    "insert into rag.term values ({tenant}, {audience}, 'secrets', 5)",
    "insert into rag.spelling values ({tenant}, {audience}, 'secret', 'secrets')",
    "update rag.document set audience = {audience}, groups = '{{board}}' where source = 'open'",
    # a row of one's own audience about a hidden document: it would be buried, or say what it never said
    "insert into rag.tombstone (tenant_id, ordinal, audience, chunks) values ({tenant}, {ordinal}, 0, 1)",
    "insert into rag.tombstone (tenant_id, ordinal, audience) select {tenant}, g, 0 from generate_series(1, 99) g",
    "insert into rag.chunk (tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, audience) "
    "values ({tenant}, 77::bigint << 20, '{document}', 1, 0, 1, '', 'Forged.', 0)",
    "insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience) "
    "values ({tenant}, 1, {ordinal}::bigint << 20, '{document}', '[1, 2, 3]', 0)",
    "insert into rag.document (tenant_id, document_id, source, title, media_type, content_hash, text, chunks, ordinal, "
    "audience) values ({tenant}, gen_random_uuid(), 'deal', 't', 't', '', '', 1, 77, 0) "
    "on conflict (tenant_id, source) do update set title = 'Mine' returning text",
    # a way to be somebody else
    "select seal.mint_v2({tenant}, 'eve', 60)",
    "select rag.audience_of_v1('{{board}}')",
]
FRUITLESS = [
    "update rag.document set audience = 0, groups = '{{}}' where source = 'deal' returning text",
    "delete from rag.document where source = 'deal' returning text",
    "select rag.delete_document_v2('{document}')",
    "select rag.drop_version_v1('{document}', {ordinal})",
    "select queue.enqueue_embedding_v2('{document}', 0, 0)",
    "select queue.finish_embedding_v1('{document}')",
]
"""Of a form that runs, and finds nothing to run on."""
HIDDEN = "The secret merger of the harbour railways."


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The board's document, and a colleague who is not on the board."""

    world: World
    tenant: Tenant
    database: Database
    board: Principal
    eve: Principal
    document: UUID
    ordinal: int
    audience: int

    async def inject(self, text: str) -> list[tuple[object, ...]]:
        """Run a statement of Eve's own choice in a session of hers."""
        given = {"document": self.document, "ordinal": self.ordinal, "audience": self.audience}
        text = text.format(tenant="rag.current_tenant()", **given)
        query = Query(name="injected", description="", text=text, parameters=())
        async with self.database.tenant(self.eve) as session:
            return [tuple(row.values()) for row in await session.fetch(query)]


@pytest.fixture(scope="module", name="untouched")
async def untouched_fixture(cluster: Cluster) -> AsyncIterator[Scene]:
    """One scene for all attempts that change nothing, and that see that they have not."""
    async with world(cluster) as own, _scene(own) as scene:
        yield scene


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncIterator[Scene]:
    """A scene of the test's own."""
    async with _scene(world) as scene:
        yield scene


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    """Yield a hidden document and an open one, the hidden one still without vectors."""
    tenant = await world.tenant("acme")
    caller = world.principal(tenant)
    board = dataclasses.replace(caller, subject="bob", groups=("board",))
    eve = dataclasses.replace(caller, subject="eve", groups=("staff", "board-assistants"))
    async with world.database(claims=True) as database:
        hidden = NewDocument(source="deal", title="Deal", text=HIDDEN, groups=("board",))
        document = (await put_document(database, board, hidden)).document_id
        await put_document(database, eve, NewDocument(source="open", title="Open", text="The public merger."))
        ((ordinal, audience),) = await stored(world, "select ordinal, audience from rag.document where source = 'deal'")
        yield Scene(
            world=world,
            tenant=tenant,
            database=database,
            board=board,
            eve=eve,
            document=document,
            ordinal=ordinal,
            audience=audience,
        )


async def everything(scene: Scene) -> list[object]:
    """Return all that the database holds of the hidden document."""
    own: list[object] = []
    for table in CONTENT:
        column = "" if table == "audience" else "audience, "
        query = f"select {column}t::text from rag.{table} t where audience = $1 order by t::text"
        own += [tuple(row) for row in await stored(scene.world, query, scene.audience)]
    queued = "select q::text from queue.embedding q where q.document_id = $1"
    own += [tuple(row) for row in await stored(scene.world, queued, scene.document)]
    own += [tuple(row) for row in await stored(scene.world, "select ordinal from rag.tombstone")]
    return own


async def test_no_table_shows_a_row_of_a_hidden_audience(scene: Scene) -> None:
    while await compact_due(scene.database, settle_s=0.0):
        pass
    again = NewDocument(source="deal", title="Deal", text="The merger is off.", groups=("board",))
    await put_document(scene.database, scene.board, again)
    for table in CONTENT:
        held = await stored(scene.world, f"select count(*) from rag.{table} where audience = $1", scene.audience)
        assert held[0][0] > 0 or table in {"embedding", "spelling"}, table
        assert await scene.inject(f"select 1 from rag.{table} where audience <> 0") == [], table


@pytest.mark.parametrize("attempt", REFUSED)
async def test_no_row_can_be_written_into_or_about_what_is_hidden(untouched: Scene, attempt: str) -> None:
    before = await everything(untouched)
    with pytest.raises((SealRefused, Forbidden)):
        await untouched.inject(attempt)
    assert await everything(untouched) == before


@pytest.mark.parametrize("attempt", FRUITLESS)
async def test_no_function_reaches_what_is_hidden(untouched: Scene, attempt: str) -> None:
    before = await everything(untouched)
    assert await untouched.inject(attempt) in ([], [(None,)])
    assert await everything(untouched) == before
    assert await pending_embeddings(untouched.database, untouched.board) == 2
    assert [hit[0] for hit in await lexical_hits(untouched.database, untouched.board, "secret")] == ["deal"]
    assert await index_faults(untouched.world, untouched.tenant.tenant_id) == []


async def test_a_taken_source_is_refused_and_says_nothing_else(scene: Scene) -> None:
    for text in (HIDDEN, "Another text."):
        with pytest.raises(Conflict) as refused:
            await put_document(scene.database, scene.eve, NewDocument(source="deal", title="Deal", text=text))
        assert "secret" not in str(refused.value)
        assert "board" not in str(refused.value)


@pytest.mark.parametrize(
    "group",
    ["*", "%", '"', "\\", "NULL", "{board,x}", "Board", "board ", '{"reach":"tenant"}', '","reach":"tenant', "b" * 256],
)
async def test_a_group_of_any_name_is_that_group_and_no_other(scene: Scene, group: str) -> None:
    odd = dataclasses.replace(scene.eve, subject="odd", groups=(group,))
    await put_document(scene.database, odd, NewDocument(source="odd", title="t", text="Odd.", groups=(group,)))
    seen = {
        who.subject: [one.source for one in (await list_documents(scene.database, who)).documents]
        for who in (odd, scene.eve, scene.board)
    }
    assert seen == {"odd": ["odd", "open"], "eve": ["open"], "bob": ["deal", "open"]}


@pytest.mark.parametrize("group", ["", "b" * 257, "\0", "a\nb", "\ud800"])
async def test_what_no_group_can_be_called_makes_no_principal(untouched: Scene, group: str) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(untouched.eve, groups=(group,))


async def test_a_search_is_stale_while_a_vector_waits_that_its_caller_could_see(scene: Scene) -> None:
    """Whoever wrote the text: the versions of two who can see different documents do not compare."""
    minilm = load_minilm()
    asked = retriever(scene.database, minilm)
    while await embed_due(scene.database, only(minilm)):
        pass
    await put_document(scene.database, scene.board, NewDocument(source="late", title="Late", text="An open merger."))
    version = (await search(asked, scene.eve, SearchRequest(query="merger"))).version
    assert (await search(asked, scene.eve, SearchRequest(query="merger", min_version=version, wait_s=0))).stale
    while await embed_due(scene.database, only(minilm)):
        pass
    hidden = NewDocument(source="deal 2", title="Deal", text=HIDDEN, groups=("board",))
    await put_document(scene.database, scene.board, hidden)
    # and not while one waits that it could not see
    assert not (await search(asked, scene.eve, SearchRequest(query="merger", min_version=version, wait_s=0))).stale
    await minilm.aclose()


async def test_a_kept_result_is_given_to_nobody_who_could_not_have_found_it(scene: Scene) -> None:
    minilm = load_minilm()
    while await embed_due(scene.database, only(minilm)):
        pass
    kept = retriever(scene.database, minilm, cache=LocalResultCache())
    request = SearchRequest(query="secret merger")
    colleague = dataclasses.replace(scene.board, subject="ann")
    first = await search(kept, scene.board, request)
    assert [hit.source for hit in first.hits] == ["deal", "open"]
    again = await search(kept, colleague, request)
    assert (again.report.cached, again.hits) == (True, first.hits)
    stranger = scene.world.principal(await scene.world.tenant("globex"))
    for who, sources in ((scene.eve, ["open"]), (dataclasses.replace(stranger, groups=("board",)), [])):
        other = await search(kept, who, request)
        assert (other.report.cached, [hit.source for hit in other.hits]) == (False, sources)
    tenant_id = scene.tenant.tenant_id
    await stored(
        scene.world, "update rag.tenant set bm25_weight = 1, vector_weight = 0 where tenant_id = $1", tenant_id
    )
    assert not (await search(kept, colleague, request)).report.cached, "other weights, another result"
    assert (await search(kept, colleague, request)).report.cached
    async with scene.world.operator() as operator:
        await operator.revoke_user(tenant_id, "ann")
    with pytest.raises(Revoked):
        await search(kept, colleague, request)
    await minilm.aclose()


async def test_the_maintenance_login_counts_and_sees_no_content(scene: Scene) -> None:
    assert scene.world.settings.maintenance_database_url is not None
    attempts = [
        *(f"select t from rag.{table} t" for table in CONTENT),
        "select audience from rag.corpus_change",
        "select count(*) from rag.corpus_change where writes > 0",
        "select ctid from rag.corpus_change",
        "select vector from rag.embedding",
        "select 1 from rag.embedding_00",
        "delete from rag.corpus_change",
        "update rag.embedding set model_id = 1",
    ]
    connection = await asyncpg.connect(scene.world.settings.maintenance_database_url)
    try:
        assert await connection.fetchval("select sum(chunks) from rag.corpus_change") == 2
        for attempt in attempts:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(attempt)
    finally:
        await connection.close()
