"""Non-interference: what one may not read changes no byte of any answer, apart from timings.

The same calls are made in two worlds. In the first their caller is alone; in the second others write, search and delete
between any two of them: another tenant with the same names and texts, or a group of the same tenant that the caller is
not in. Then the two transcripts are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import orjson
import pytest

from rag.clock import system_clock
from rag.corpus.collection import collection
from rag.corpus.compaction import compact_due
from rag.corpus.embedding import embed_due
from rag.corpus.store import (
    NewDocument,
    delete_document,
    document_id_of,
    get_document,
    list_documents,
    pending_embeddings,
    put_document,
)
from rag.corpus.titles import ids_between, list_entries, recent_tags, titles_from
from rag.db.pool import Database
from rag.errors import BulkheadError, NotFound
from rag.identity.principal import Principal
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from rag.push import store as push
from rag.push.values import PURPOSE, NewWebhook
from rag.retrieval.cache import LocalResultCache
from rag.retrieval.filters import parse_filter
from rag.retrieval.search import Retriever, search
from rag.retrieval.similar import SimilarRequest, find_similar
from rag.retrieval.values import Fusion, Mode, SearchRequest
from rag.schedules import store as schedules
from rag.schedules.timing import timing
from rag.tasks import store
from rag.tasks.values import TaskFilter
from tests.support import tasks
from tests.support.retrieval import only, retriever
from tests.support.world import Cluster, world
from workflows.schedules import Ordered, order

pytestmark = pytest.mark.anyio
BOUND_S = 120.0
ALICE_TENANT, OTHER_TENANT = UUID("11111111-1111-4111-8111-111111111111"), UUID("22222222-2222-4222-8222-222222222222")
TEXTS = {
    "lease": "The harbour tenant shall give notice to the landlord in writing, under Rule 10b-5.",
    "ship": "A ship in the harbour gives notice of its cargo to the harbour master.",
    "merger": "The merger of two railways needs the commission's approval and a notice.",
    "oath": "An oath of office is taken before the harbour court.",
}
QUERIES = (
    SearchRequest(query="harbour notice"),
    SearchRequest(query="harbour notice", mode=Mode.KEYWORD, limit=2),
    SearchRequest(query="who tells the landlord", mode=Mode.SEMANTIC),
    SearchRequest(query="harbour notice", fusion=Fusion.RRF, bm25_weight=1, vector_weight=2),
    SearchRequest(query='"notice to the landlord" 10b-5'),
    SearchRequest(query="harbuor landlrd mergr secrt", mode=Mode.KEYWORD),
    SearchRequest(query="secret takeover of the harbour"),
    SearchRequest(query="notice", filter=parse_filter({"metadata": {"year": 1934}})),
    SearchRequest(query="notice", filter=parse_filter({"field": "source", "prefix": "l"}), max_per_document=1),
    SearchRequest(query="notice", min_version=3, wait_s=0),
    SearchRequest(query="notice", min_version=5, wait_s=0),
    SearchRequest(query="notice", min_version=10_000, wait_s=0),
)
TIMES = {"timings_ms", "created_at", "updated_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One world: its database, and the caller whose answers count."""

    database: Database
    embedder: MiniLmEmbedder
    plain: Retriever
    caching: Retriever
    alice: Principal
    admin: asyncpg.Connection
    box: SecretBox

    async def embed(self) -> None:
        """Make all vectors that are due."""
        while await embed_due(self.database, only(self.embedder)):
            pass

    async def compact(self) -> None:
        """Bring every tenant's index and vocabulary up to date, dead postings included."""
        while await compact_due(self.database, claim=10, settle_s=0.0, sweep_share=0.0):
            pass


Act = Callable[[Stage], Awaitable[object]]


def put(source: str, text: str, **more: Any) -> Act:
    """Write a document as Alice."""
    new = NewDocument(source=source, title=more.pop("title", "Of law"), text=text, **more)

    async def act(stage: Stage) -> object:
        return await put_document(stage.database, stage.alice, new)

    return act


def remove(source: str) -> Act:
    """Delete one as Alice."""

    async def act(stage: Stage) -> object:
        return await delete_document(stage.database, stage.alice, document_id_of(ALICE_TENANT, source))

    return act


async def look(stage: Stage) -> object:
    """Ask Alice's every question, twice where answers are kept, and look at all that she has."""
    answers: list[object] = [await search(stage.plain, stage.alice, query) for query in QUERIES]
    answers += [await search(stage.caching, stage.alice, query) for query in QUERIES[:2] * 2]
    page = await list_documents(stage.database, stage.alice, limit=2)
    answers += [page, await list_documents(stage.database, stage.alice, after=page.next_after or "")]
    answers += [await get_document(stage.database, stage.alice, one.document_id, end=20) for one in page.documents]
    answers.append(await pending_embeddings(stage.database, stage.alice))
    entries = await list_entries(stage.database, stage.alice, limit=2)
    answers += [entries, await list_entries(stage.database, stage.alice, after=entries.next_after or "", limit=2)]
    answers += [await titles_from(stage.database, stage.alice, typed) for typed in ("", "of", "THE SECRET")]
    answers.append(await ids_between(stage.database, stage.alice, UUID(int=0), UUID(int=2**128 - 1), limit=3))
    answers.append(await recent_tags(stage.database, stage.alice, "", limit=100))
    answers.append(await collection(stage.database, stage.alice, default_model=1))
    for one in page.documents:
        answers.append(await find_similar(stage.plain, stage.alice, SimilarRequest(document_id=one.document_id)))
    async with stage.database.tenant(stage.alice) as session:
        for size in (1, 50):
            listed = await store.list_tasks(session, TaskFilter(), page_size=size)
            answers.append([(task.input, task.state, task.version) for task in listed])
        answers.append(await store.count_tasks(session, TaskFilter()))
        answers.append(sorted((await store.count_own_tasks(session, stage.alice)).items()))
        for one in await schedules.list_schedules(session):
            answers.append([one.name, one.request, one.state, one.fired, one.skipped, one.last_task_id])
        for task in await store.list_tasks(session, TaskFilter(), page_size=50):
            hooks = await push.list_(session, task.task_id, wanted=50)
            answers.append([[hook.config_id, hook.url, hook.scheme] for hook in hooks])
    return answers


def ask(question: str) -> Act:
    """Start a task as Alice."""

    async def act(stage: Stage) -> object:
        await tasks.accept(stage.database, stage.alice, question=question)
        return question

    return act


async def order_and_hook(stage: Stage) -> object:
    """Have Alice's latest task told to a webhook, and order another one for every hour."""
    await _order(stage, stage.alice, "who pays the harbour dues?")
    return await _hook(stage, stage.alice, "https://alice.example/")


async def _order(stage: Stage, who: Principal, text: str) -> None:
    hourly = timing(cron=None, time_zone=None, every_s=3600.0)
    await order(stage.database, who, Ordered(name="digest", text=text, timing=hourly), clock=system_clock)


async def _hook(stage: Stage, who: Principal, url: str) -> object:
    async with stage.database.tenant(who) as session:
        (task,) = await store.list_tasks(session, TaskFilter(), page_size=1)
        hook = await push.create(session, who, stage.box, task.task_id, NewWebhook(url=url, config_id="hook"))
    return [hook.config_id, hook.url]


STORY: Sequence[Act] = (
    look,
    ask("who pays the harbour dues?"),
    order_and_hook,
    order_and_hook,
    put("lease", TEXTS["lease"], metadata={"year": 1934}),
    put("ship", TEXTS["ship"], metadata={"year": 1912, "tags": ["sea"]}),
    look,
    Stage.embed,
    look,
    Stage.compact,
    look,
    put("lease", TEXTS["lease"], metadata={"year": 1934}),
    put("lease", TEXTS["lease"] + " And a merger.", title="Harbour", metadata={"year": 1935}),
    put("lease 2", TEXTS["lease"], metadata={"year": 1934}),
    put("oath", TEXTS["oath"], groups=("clerks",)),
    put("oath", TEXTS["oath"], groups=("judges",)),
    look,
    Stage.embed,
    remove("ship"),
    remove("ship"),
    remove("hidden/merger"),
    ask("and who does not?"),
    look,
    Stage.compact,
    look,
    put("merger", TEXTS["merger"]),
    put("merger 2", TEXTS["merger"]),
    Stage.embed,
    Stage.compact,
    look,
)


@asynccontextmanager
async def a_stage(cluster: Cluster, embedder: MiniLmEmbedder) -> AsyncGenerator[Stage]:
    """Open a world with both tenants, under the same ids in every one."""
    async with world(cluster) as own:
        admin = await asyncpg.connect(own.superuser_url)
        await admin.execute(
            "insert into rag.tenant (tenant_id, name) values ($1, 'alice'), ($2, 'other')", ALICE_TENANT, OTHER_TENANT
        )
        alice = dataclasses.replace(own.principal(ALICE_TENANT), groups=("clerks",))
        seal_keys = own.settings.seal_keys_file
        assert seal_keys is not None
        async with own.database(claims=True) as database:
            yield Stage(
                database=database,
                embedder=embedder,
                plain=retriever(database, embedder),
                caching=retriever(database, embedder, cache=LocalResultCache()),
                alice=alice,
                admin=admin,
                box=SecretBox.derive(load_seal_keys(seal_keys), purpose=PURPOSE),
            )
        await admin.close()


async def transcript(stage: Stage, story: Sequence[Act], meanwhile: Act | None) -> list[str]:
    """Play the story; what `meanwhile` does between its acts is not written down."""
    lines: list[str] = []
    with anyio.fail_after(BOUND_S):
        for act in story:
            if meanwhile is not None:
                await meanwhile(stage)
            try:
                answer = await act(stage)
            except BulkheadError as exc:
                answer = [type(exc).__name__, str(exc)]
            lines.append(orjson.dumps(without_times(answer), default=str, option=orjson.OPT_SORT_KEYS).decode())
    return lines


def without_times(answer: Any) -> Any:
    """Return an answer as plain values, without what a clock says."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        fields = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
        return {name: without_times(value) for name, value in fields.items() if name not in TIMES}
    if isinstance(answer, list | tuple):
        return [without_times(one) for one in answer]  # pyright: ignore[reportUnknownVariableType]
    assert not isinstance(answer, datetime), "a time that has no name here"
    return answer


class Crowd:
    """Somebody else: before each of Alice's acts it does the next of its own, again and again."""

    def __init__(self, principal: Callable[[Stage], Principal], *, prefix: str, groups: tuple[str, ...]) -> None:
        self.principal = principal
        self.prefix = prefix
        self.groups = groups
        self.turn = 0

    async def __call__(self, stage: Stage) -> None:
        """Write Alice's texts and others, search for them, move and delete some; vectors are left waiting."""
        self.turn += 1
        me = self.principal(stage)
        for name, text in TEXTS.items():
            new = NewDocument(
                source=f"{self.prefix}{name}{'' if self.turn % 3 else self.turn}",
                title="The secret takeover",
                text=f"{text} The secret harbour takeover, notice {'harbour ' * self.turn}",
                metadata={"year": 1934, "tags": ["sea", "secret"]},
                groups=self.groups,
            )
            await put_document(stage.database, me, new)
            await search(stage.caching, me, SearchRequest(query="harbour notice"))
            await search(stage.caching, me, SearchRequest(query="harbuor takeovr"))
        await tasks.accept(stage.database, me, question="what of the secret takeover?")
        await _order(stage, me, "what of the secret takeover?")
        await _hook(stage, me, "https://secret.example/")
        gone = document_id_of(me.tenant_id, f"{self.prefix}merger")
        if self.turn % 2:
            with suppress(NotFound):
                await delete_document(stage.database, me, gone)
        assert await pending_embeddings(stage.database, me) > 0


@pytest.fixture(scope="module", name="embedder")
async def embedder_fixture() -> AsyncIterator[MiniLmEmbedder]:
    """The real model."""
    embedder = load_minilm()
    yield embedder
    await embedder.aclose()


def other_tenant(stage: Stage) -> Principal:
    """Return the same user name, in the same groups, elsewhere."""
    return dataclasses.replace(stage.alice, tenant_id=OTHER_TENANT)


def other_group(stage: Stage) -> Principal:
    """Return a colleague in a group that Alice is not in."""
    return dataclasses.replace(stage.alice, subject="bob", groups=("board",))


async def both(
    cluster: Cluster, embedder: MiniLmEmbedder, crowd: Crowd, story: Sequence[Act] = STORY
) -> tuple[list[str], list[str]]:
    """Return the transcripts of the world with Alice alone, and of the one with the crowd."""
    async with a_stage(cluster, embedder) as stage:
        alone = await transcript(stage, story, None)
    async with a_stage(cluster, embedder) as stage:
        beside = await transcript(stage, story, crowd)
        crowded = "select count(*) > 0 from rag.document where title = 'The secret takeover'"
        assert await stage.admin.fetchval(crowded), "there was a crowd"
    return alone, beside


async def test_another_tenants_traffic_changes_no_byte(cluster: Cluster, embedder: MiniLmEmbedder) -> None:
    # the same sources, the same texts, and a group of the same name
    crowd = Crowd(other_tenant, prefix="", groups=("clerks",))
    alone, beside = await both(cluster, embedder, crowd)
    assert beside == alone


async def test_documents_of_a_group_change_no_byte_for_who_is_not_in_it(
    cluster: Cluster, embedder: MiniLmEmbedder
) -> None:
    # other sources: that a name is taken is told (docs/adr/0007)
    crowd = Crowd(other_group, prefix="hidden/", groups=("board",))
    alone, beside = await both(cluster, embedder, crowd)
    assert beside == alone


async def test_the_story_has_something_to_tell(cluster: Cluster, embedder: MiniLmEmbedder) -> None:
    """Two transcripts without misspellings, phrases, kept or stale answers in them would be the same for nothing."""
    async with a_stage(cluster, embedder) as stage:
        told = "\n".join(await transcript(stage, STORY, None))
    marks = ('"cached":true', '"stale":true', '"harbuor":["harbour"]', '"vector_imputed":true', "NotFound", "Forbidden")
    assert "https://alice.example/" in told
    assert "digest" in told
    for mark in marks:
        assert mark in told, mark
