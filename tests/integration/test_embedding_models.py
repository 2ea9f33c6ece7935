"""A tenant changes its embedding model while it is searched and written to: the old vectors or the new, never a mix.

The second model is real too: MiniLM's first 256 components, served over HTTP under a name that says so.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import numpy as np
import pytest

from rag.corpus.embedding import EMBEDDING_CHANNEL, embed_due, run_embedder
from rag.corpus.store import NewDocument, pending_embeddings, put_document
from rag.corpus.switching import Pace
from rag.corpus.vectors import Outages
from rag.db.listener import listener
from rag.errors import Conflict, EmbedderUnavailable, InvalidInput, Misconfigured, NotFound
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.installation import prepare_database
from rag.llm.embedders import Embedders
from rag.llm.minilm import MODEL, MiniLmEmbedder, load_minilm
from rag.llm.ports import Embedder, Vectors
from rag.retrieval.search import Retriever, search
from rag.retrieval.values import Mode, SearchRequest, SearchResult
from rag.runtime import Runtime, open_runtime
from rag.settings import Settings
from rag.tenants import models as catalogue
from rag.tenants.models import ModelStatus, State
from rag.tenants.operator import Tenant
from tests.support.openai_server import Fault, OpenAiServer, serve_openai
from tests.support.retrieval import only, retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
CUT = "all-MiniLM-L6-v2-first-256"
CUT_DIMENSION = 256
BOUND_S = 60.0
LOOK_S = 0.02
DOCUMENTS = 100
LIMIT = 10
QUICK = Pace(grace_s=0.0, missing_s=0.05, graph_s=0.1)
KEEPING = dataclasses.replace(QUICK, grace_s=3600.0)
SUBJECTS = ("insider trading", "a patent on seeds", "a medical record", "a bankrupt railway", "an oath of office")
VERBS = ("is governed by", "was amended under", "shall be read with", "does not affect", "is exempt from")
OBJECTS = ("the commission's rules", "chapter eleven", "the interstate compact", "the district court")
QUERIES = ("who may trade on inside knowledge", "railway in chapter eleven", "what doctors write down", "seeds court")


@dataclass(frozen=True, slots=True)
class Remembering:
    """Asks a real embedder once for each query: a busy machine must not make a search's vector late."""

    inner: Embedder
    known: dict[str, Vectors] = field(default_factory=dict[str, Vectors])

    @property
    def model(self) -> str:
        """As `inner`."""
        return self.inner.model

    @property
    def dimension(self) -> int:
        """As `inner`."""
        return self.inner.dimension

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """As `inner`."""
        (text,) = texts
        if text not in self.known:
            self.known[text] = await self.inner.embed(texts)
        return self.known[text]

    async def aclose(self) -> None:
        """Nothing of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tenant on a process that knows both models."""

    world: World
    settings: Settings
    runtime: Runtime
    server: OpenAiServer
    tenant: Tenant
    principal: Principal
    retriever: Retriever

    @property
    def cut_id(self) -> int:
        """The second model's id."""
        return next(key for key, one in self.runtime.embedders.by_id.items() if one.model == CUT)


@pytest.fixture(scope="module", name="minilm")
async def minilm_fixture() -> AsyncIterator[MiniLmEmbedder]:
    """What stands behind the second model's server."""
    embedder = load_minilm()
    yield embedder
    await embedder.aclose()


@pytest.fixture(name="server")
async def server_fixture(minilm: MiniLmEmbedder) -> AsyncIterator[OpenAiServer]:
    """The second model's server."""

    async def cut(texts: list[str]) -> list[list[float]]:
        return (await minilm.embed(texts))[:, :CUT_DIMENSION].tolist()

    async with serve_openai() as running:
        running.embed = cut
        yield running


@pytest.fixture(name="settings")
async def settings_fixture(world: World, server: OpenAiServer, tmp_path: Path) -> Settings:
    """Settings that name the second model, on a database that was migrated with them."""
    path = tmp_path / "models.json"
    path.write_text(json.dumps([{"model": CUT, "dimension": CUT_DIMENSION, "url": server.base_url}]), encoding="utf-8")
    settings = dataclasses.replace(world.settings, embeddings_file=path)
    await prepare_database(settings)
    return settings


@pytest.fixture(name="place")
async def place_fixture(world: World, settings: Settings, server: OpenAiServer) -> AsyncIterator[Place]:
    """A tenant with embedded documents, and a worker's runtime."""
    tenant = await world.tenant("mine")
    async with worker_runtime(settings) as runtime:
        remembering = Embedders(
            by_id={key: Remembering(one) for key, one in runtime.embedders.by_id.items()},
            default_id=runtime.embedders.default_id,
        )
        place = Place(
            world=world,
            settings=settings,
            runtime=runtime,
            server=server,
            tenant=tenant,
            principal=world.principal(tenant),
            retriever=Retriever(database=runtime.database, embedders=remembering),
        )
        for number in range(DOCUMENTS):
            await put(place, number)
        while await embed_due(runtime.database, runtime.embedders, claim=50):
            pass
        yield place


@asynccontextmanager
async def worker_runtime(settings: Settings) -> AsyncGenerator[Runtime]:
    """Open what a worker opens."""
    as_worker = dataclasses.replace(settings, database_url=settings.worker_database_url, pool_size=8)
    async with open_runtime(as_worker, audience=Audience.A2A, application="test-worker", claims=True) as runtime:
        yield runtime


@asynccontextmanager
async def working(place: Place, pace: Pace = QUICK) -> AsyncGenerator[None]:
    """Run a worker's embedding loops meanwhile; leaving is a crash: whatever they are at is cut off."""
    database, embedders = place.runtime.database, place.runtime.embedders
    async with (
        listener(database.dsn, [EMBEDDING_CHANNEL], application="test-listen") as wakeups,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(run_embedder, database, embedders, wakeups=wakeups, pace=pace))
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def put(place: Place, number: int) -> None:
    """Store a document; no two have the same words."""
    text = f"{SUBJECTS[number % 5]} {VERBS[number // 5 % 5]} {OBJECTS[number // 25 % 4]}, paragraph {number}."
    document = NewDocument(source=f"law/{number:05}.txt", title="Law", text=text)
    await put_document(place.runtime.database, place.principal, document)


async def ask(place: Place, query: str, **more: object) -> SearchResult:
    """Search as the tenant's user."""
    request = SearchRequest(query=query, limit=LIMIT, **more)  # pyright: ignore[reportArgumentType]
    return await search(place.retriever, place.principal, request)


async def status(place: Place) -> ModelStatus:
    """Return how the tenant stands, as the operator sees it."""
    async with place.world.operator() as operator:
        (found,) = await catalogue.statuses(operator.database, place.tenant.tenant_id)
    return found


async def change(place: Place, model: str = CUT) -> None:
    """Begin a change, as the operator does."""
    async with place.world.operator() as operator:
        await catalogue.migrate(operator.database, place.tenant.tenant_id, model)


async def until(place: Place, reached: Callable[[ModelStatus], bool]) -> ModelStatus:
    """Wait until the tenant stands so."""
    with anyio.fail_after(BOUND_S):
        while True:
            found = await status(place)
            if reached(found):
                return found
            await anyio.sleep(LOOK_S)


async def nothing_pending(place: Place) -> None:
    """Wait until no document of the tenant is on the queue."""
    with anyio.fail_after(BOUND_S):
        while True:
            if await pending_embeddings(place.runtime.database, place.principal) == 0:
                return
            await anyio.sleep(LOOK_S)


async def let_leases_run_out(place: Place) -> None:
    """Make everything on the queue due, as half a minute would."""
    await sql(place, "update queue.embedding set available_at = clock_timestamp()")


def is_settled_on_cut(found: ModelStatus) -> bool:
    """The change is done and cleaned up."""
    return found.state is State.SETTLED and found.active is not None and found.active.model == CUT


async def sql(place: Place, statement: str, *arguments: object) -> Any:
    """Look, or meddle, as the administrator."""
    connection = await asyncpg.connect(place.world.superuser_url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


async def bulkhead(place: Place, *arguments: str) -> tuple[int, Any, str]:
    """Run the real command line; return its status, its JSON and what it complained of."""
    command = [sys.executable, "-m", "rag.cli", "embeddings", *arguments]
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(command, env=place.settings.to_env(), check=False)
    out = done.stdout.decode()
    return done.returncode, json.loads(out) if "--json" in arguments and out else out, done.stderr.decode()


async def test_every_search_during_a_change_is_the_old_one_or_the_new_one(place: Place) -> None:
    old = {query: (await ask(place, query)).hits for query in QUERIES}
    seen: dict[str, list[object]] = {query: [] for query in QUERIES}
    done = anyio.Event()

    async def searching(query: str) -> None:
        while not done.is_set():
            result = await ask(place, query)
            assert (len(result.hits), result.degraded) == (LIMIT, ())
            seen[query].append(result.hits)

    async with anyio.create_task_group() as tasks, working(place):
        for query in QUERIES:
            tasks.start_soon(searching, query)
        await change(place)
        await until(place, is_settled_on_cut)
        done.set()
    new = {query: (await ask(place, query)).hits for query in QUERIES}
    for query in QUERIES:
        assert old[query] != new[query]
        # the old answer until the switch, the new one from it on
        turns = [hits == new[query] for hits in seen[query]]
        assert turns == sorted(turns)
        assert all(hits in (old[query], new[query]) for hits in seen[query])
        assert (turns[0], turns[-1]) == (False, True)
    assert await sql(place, "select count(distinct model_id) from rag.embedding") == 1
    assert (await status(place)).active == catalogue.Fill(
        model=CUT, dimension=CUT_DIMENSION, filled=DOCUMENTS, graph=False
    )


async def test_documents_that_are_put_during_a_change_have_vectors_of_one_model_in_every_search(place: Place) -> None:
    results: list[tuple[str, SearchResult]] = []
    done = anyio.Event()
    written = DOCUMENTS

    async def writing() -> None:
        nonlocal written
        while not done.is_set():
            await put(place, written)
            written += 1
            await anyio.sleep(5 * LOOK_S)

    async def searching(query: str) -> None:
        while not done.is_set():
            results.append((query, await ask(place, query)))
            await anyio.sleep(LOOK_S)

    async with anyio.create_task_group() as tasks, working(place):
        tasks.start_soon(writing)
        for query in QUERIES:
            tasks.start_soon(searching, query)
        await change(place)
        # under steady writing: the change does not wait for a quiet moment
        await until(place, is_settled_on_cut)
        # the searches that loop may all have begun before
        results.extend([(query, await ask(place, query)) for query in QUERIES])
        done.set()
    by_model = [[await cosines(place, query, model_id) for query in QUERIES] for model_id in (1, place.cut_id)]
    used: set[int] = set()
    for query, result in results:
        assert (len(result.hits), result.degraded) == (LIMIT, ())
        measured = [hit for hit in result.hits if hit.explain.vector_score is not None]
        # a chunk that was there before the change began never loses its vector
        assert all(hit.explain.vector_imputed is False for hit in result.hits if number_of(hit.source) < DOCUMENTS)
        fitting = {
            which
            for which, known in enumerate(by_model)
            if all(
                abs(known[QUERIES.index(query)][hit.text] - (hit.explain.vector_score or 0)) < 2e-3 for hit in measured
            )
        }
        assert fitting, "some hits were measured by one model and some by the other"
        used |= fitting
    assert used == {0, 1}
    await let_leases_run_out(place)
    async with working(place):
        await nothing_pending(place)
    assert (await status(place)).active == catalogue.Fill(
        model=CUT, dimension=CUT_DIMENSION, filled=written, graph=False
    )


def number_of(source: str) -> int:
    """Return the number under which `put` stored a document."""
    return int(source.removeprefix("law/").removesuffix(".txt"))


async def cosines(place: Place, query: str, model_id: int) -> dict[str, float]:
    """Return, for the text of every chunk, how near the model puts it to the query."""
    embedder = place.runtime.embedders.get(model_id)
    connection = await asyncpg.connect(place.world.superuser_url)
    rows = await connection.fetch("select text from rag.chunk")
    await connection.close()
    texts = [str(row["text"]) for row in rows]
    vectors = await embedder.embed([f"Law\n{text}" for text in texts])
    (asked,) = await embedder.embed([query])
    return dict(zip(texts, np.asarray(vectors @ asked).tolist(), strict=True))


async def test_a_worker_that_dies_in_the_middle_loses_nothing(place: Place) -> None:
    # the third slice hangs in the model's server when its worker is killed
    place.server.faults.extend([Fault(), Fault(), Fault(hang=True)])
    asked = len(place.server.requests)
    await change(place)
    async with working(place):
        await until(
            place,
            lambda found: (
                len(place.server.requests) >= asked + 3 and found.next is not None and found.next.filled == 64
            ),
        )
    half = await status(place)
    assert (half.state, half.next) == (
        State.FILLING,
        catalogue.Fill(model=CUT, dimension=CUT_DIMENSION, filled=64, graph=False),
    )
    assert (await ask(place, QUERIES[0])).degraded == ()
    async with working(place):
        done = await until(place, is_settled_on_cut)
    assert done.active is not None
    assert (done.active.filled, done.chunks, done.unused) == (DOCUMENTS, DOCUMENTS, 0)


async def test_two_workers_share_a_tenant(place: Place) -> None:
    await change(place)
    asked = len(place.server.requests)
    async with working(place), working(place):
        done = await until(place, is_settled_on_cut)
    assert done.active is not None
    assert done.active.filled == DOCUMENTS
    texts = [text for request in place.server.requests[asked:] for text in request["input"]]
    assert set(map(len, (texts, set(texts)))) <= {DOCUMENTS, len(texts)}
    assert len(set(texts)) == DOCUMENTS


async def test_a_model_whose_server_is_down_holds_up_its_own_change_and_nothing_else(place: Place) -> None:
    real, place.server.embed = place.server.embed, refusing
    await change(place)
    async with working(place):
        failing = await until(place, lambda found: found.failures > 0)
        assert failing.state is State.FILLING
        await put(place, DOCUMENTS)
        await nothing_pending(place)
        assert (await ask(place, QUERIES[0])).degraded == ()
        still = await status(place)
        assert still.active == catalogue.Fill(model=MODEL, dimension=384, filled=DOCUMENTS + 1, graph=False)
        place.server.embed = real
        done = await until(place, is_settled_on_cut)
    assert (done.chunks, done.failures) == (DOCUMENTS + 1, 0)


async def refusing(_: list[str]) -> list[list[float]]:
    """Answer nothing that could be vectors."""
    return []


async def test_a_canceled_change_leaves_the_old_model_and_none_of_the_new_vectors(place: Place) -> None:
    old = await ask(place, QUERIES[0])
    place.server.faults.extend([Fault(), Fault(hang=True)])
    await change(place)
    async with working(place):
        await until(place, lambda found: found.next is not None and found.next.filled == 32)
    async with place.world.operator() as operator:
        await catalogue.cancel(operator.database, place.tenant.tenant_id)
        with pytest.raises(Conflict, match="is not changing"):
            await catalogue.cancel(operator.database, place.tenant.tenant_id)
    canceled = await status(place)
    assert (canceled.state, canceled.next, canceled.unused) == (State.CLEANING, None, 32)
    async with working(place):
        clean = await until(place, lambda found: found.state is State.SETTLED)
    assert clean.active == catalogue.Fill(model=MODEL, dimension=384, filled=DOCUMENTS, graph=False)
    assert (await ask(place, QUERIES[0])).hits == old.hits


async def test_a_tenant_goes_back_within_the_grace_without_embedding_anything(place: Place) -> None:
    old = await ask(place, QUERIES[0])
    async with working(place, KEEPING):
        await change(place)
        switched = await until(place, lambda found: found.next is None and found.unused > 0)
        assert (switched.state, switched.unused) == (State.CLEANING, DOCUMENTS)
        await change(place, MODEL)
        back = await until(place, lambda found: found.next is None and found.active is not None)
    assert back.active == catalogue.Fill(model=MODEL, dimension=384, filled=DOCUMENTS, graph=False)
    assert (await ask(place, QUERIES[0])).hits == old.hits


async def test_a_large_tenant_waits_for_its_graph(place: Place) -> None:
    # large by its counter: whether a graph is needed is decided by that
    await sql(
        place,
        "update rag.corpus_change set chunks = chunks + 6000 "
        "where change_id = (select change_id from rag.corpus_change where tenant_id = $1 limit 1)",
        place.tenant.tenant_id,
    )
    await change(place)
    async with working(place):
        waiting = await until(place, lambda found: found.state is State.INDEXING)
        assert waiting.next is not None
        assert (waiting.next.filled, waiting.next.graph) == (DOCUMENTS, False)
        await sql(
            place,
            "insert into rag.vector_index (tenant_id, model_id, index_name, ready) values ($1, $2, 'none', true)",
            place.tenant.tenant_id,
            place.cut_id,
        )
        await until(place, is_settled_on_cut)


async def test_a_process_without_the_tenants_model_answers_by_words_and_says_so(
    place: Place, minilm: MiniLmEmbedder
) -> None:
    async with working(place):
        await change(place)
        await until(place, is_settled_on_cut)
    lacking = retriever(place.runtime.database, minilm)
    request = SearchRequest(query="a bankrupt railway", limit=LIMIT)
    result = await search(lacking, place.principal, request)
    assert result.degraded == ("dense",)
    assert [hit.source for hit in result.hits] == [
        hit.source for hit in (await ask(place, "a bankrupt railway", mode=Mode.KEYWORD)).hits
    ]
    with pytest.raises(EmbedderUnavailable):
        await search(lacking, place.principal, dataclasses.replace(request, mode=Mode.SEMANTIC))
    # nor does a worker that lacks it make vectors of another model
    await put(place, DOCUMENTS)
    with pytest.raises(EmbedderUnavailable):
        await embed_due(place.runtime.database, only(minilm))
    assert await sql(place, "select count(*) from rag.embedding where model_id = 1") == 0


async def test_a_model_that_does_not_answer_holds_up_no_tenant_of_another(place: Place) -> None:
    async with working(place):
        await change(place)
        await until(place, is_settled_on_cut)
    real, place.server.embed = place.server.embed, refusing
    theirs = place.world.principal(await place.world.tenant("theirs"))
    database, embedders, outages = place.runtime.database, place.runtime.embedders, Outages()
    for number in range(DOCUMENTS, DOCUMENTS + 6):
        await put(place, number)
    document = NewDocument(source="theirs.txt", title="Theirs", text="A text of a tenant with the built-in model.")
    await put_document(database, theirs, document)
    asked = len(place.server.requests)
    assert await embed_due(database, embedders, claim=8, outages=outages) == 1
    assert await pending_embeddings(database, theirs) == 0
    # asked for the first of the six, in as many attempts as the client makes, and let rest for the others
    assert len(place.server.requests) - asked < 6
    assert await pending_embeddings(database, place.principal) == 6
    assert await sql(place, "select array_agg(attempts order by attempts) from queue.embedding") == [0, 0, 0, 0, 0, 1]
    place.server.embed = real
    await let_leases_run_out(place)
    async with working(place):
        await nothing_pending(place)


async def test_another_default_leaves_tenants_with_vectors_on_their_model(place: Place) -> None:
    old = await ask(place, QUERIES[0])
    settings = dataclasses.replace(
        place.world.settings,
        embeddings_url=place.server.base_url,
        embeddings_model=CUT,
        embeddings_dimension=CUT_DIMENSION,
    )
    newcomer = await place.world.tenant("newcomer")
    async with worker_runtime(settings) as runtime:
        assert runtime.embedders.default.model == CUT
        request = SearchRequest(query=QUERIES[0], limit=LIMIT)
        found = await search(runtime.retriever, place.principal, request)
        assert (found.hits, found.degraded) == (old.hits, ())
        document = NewDocument(source="first.txt", title="First", text="The first text of a new tenant.")
        await put_document(runtime.database, place.world.principal(newcomer), document)
        assert await embed_due(runtime.database, runtime.embedders) == 1
    async with place.world.operator() as operator:
        (settled,) = await catalogue.statuses(operator.database, newcomer.tenant_id)
    assert settled.active == catalogue.Fill(model=CUT, dimension=CUT_DIMENSION, filled=1, graph=False)


async def test_a_model_that_the_database_does_not_know_is_refused_at_the_start(
    world: World, server: OpenAiServer, tmp_path: Path
) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps([{"model": CUT, "dimension": CUT_DIMENSION, "url": server.base_url}]), encoding="utf-8")
    settings = dataclasses.replace(world.settings, embeddings_file=path)
    with pytest.raises(Misconfigured, match=f"does not know the embedding model {CUT} with 256 dimensions"):
        async with worker_runtime(settings):
            pass
    await prepare_database(settings)
    await prepare_database(settings)
    server.dimension = 8
    server.embed = None
    with pytest.raises(Misconfigured, match=f"{CUT}: the embedding server answers vectors of 8 numbers"):
        async with worker_runtime(settings):
            pass


async def test_operators_see_and_change_models_by_the_command_line(place: Place) -> None:
    code, known, _ = await bulkhead(place, "models", "--json")
    assert (code, known) == (
        0,
        [
            {"model": MODEL, "dimension": 384, "tenants": 1, "changing": 0, "served_by": "built in"},
            {
                "model": CUT,
                "dimension": CUT_DIMENSION,
                "tenants": 0,
                "changing": 0,
                "served_by": place.server.base_url,
            },
        ],
    )
    for arguments, said in (
        (("--model", CUT), "say whose"),
        (("--tenant", "mine"), "say what"),
        (("--tenant", "mine", "--model", "elephant"), "there is no embedding model 'elephant'"),
        (("--tenant", "mine", "--model", MODEL), f"the tenant uses {MODEL} already"),
    ):
        code, _, error = await bulkhead(place, "migrate", *arguments)
        assert (code, said in error) == (1, True), error
    # nobody works: the wait ends, the change stands
    code, _, error = await bulkhead(place, "migrate", "--tenant", "mine", "--model", CUT, "--wait", "--timeout", "0")
    assert (code, "not done after 0 s; the workers go on" in error) == (1, True), error
    code, (found,), _ = await bulkhead(place, "status", "--tenant", "mine", "--json")
    assert (code, found) == (
        0,
        {
            "tenant_id": str(place.tenant.tenant_id),
            "tenant": "mine",
            "state": "filling",
            "chunks": DOCUMENTS,
            "active": {"model": MODEL, "dimension": 384, "filled": DOCUMENTS, "graph": False},
            "next": {"model": CUT, "dimension": CUT_DIMENSION, "filled": 0, "graph": False},
            "unused": 0,
            "failures": 0,
        },
    )
    code, (found,), _ = await bulkhead(place, "migrate", "--all", "--cancel", "--json")
    assert (code, found["next"]) == (0, None)
    async with working(place):
        code, found, error = await bulkhead(place, "migrate", "--all", "--model", CUT, "--wait", "--json")
    assert code == 0, error
    assert [(one["active"]["model"], one["active"]["filled"], one["next"]) for one in found] == [(CUT, DOCUMENTS, None)]
    code, shown, _ = await bulkhead(place, "status")
    assert (code, "mine" in shown, "100 %" in shown) == (0, True, True)


async def test_a_name_with_two_dimensions_has_to_be_told_apart(place: Place) -> None:
    await sql(place, "insert into rag.embedding_model (name, dimension) values ($1, 128)", CUT)
    async with place.world.operator() as operator:
        with pytest.raises(InvalidInput, match="128, 256 dimensions"):
            await catalogue.migrate(operator.database, place.tenant.tenant_id, CUT)
        await catalogue.migrate(operator.database, place.tenant.tenant_id, CUT, dimension=CUT_DIMENSION)
        with pytest.raises(NotFound):
            await catalogue.migrate(operator.database, place.tenant.tenant_id, CUT, dimension=3)
