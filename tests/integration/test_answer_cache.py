"""Answers that are kept: found for the same prompt and the same sight of the corpus only, and never in the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis.asyncio import Redis

from rag.cache import MAX_VALUE_BYTES, LocalCache
from rag.corpus.store import NewDocument, delete_document, put_document
from rag.identity.principal import Principal
from rag.llm.answer_cache import AnswerCache, KeptAnswer, View, lookup_counter, open_answer_cache
from rag.llm.minilm import load_minilm
from rag.llm.request import ChatRequest, Reply, TokenUsage
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from tests.support.callers import caller
from tests.support.redis_server import redis_server
from tests.support.retrieval import retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
SECRET = b"s" * 32
MODEL = "qwen3-32b"
TEXT = "The annual fee is 0.4 % of the assets [1]."
USAGE = TokenUsage(prompt=120, cached=64, completion=14)
SCHEMA = {"type": "object", "properties": {"fee": {"type": "string"}, "per": {"type": "string"}}}
REQUEST = ChatRequest(
    system="Answer from the sources.", user="<source>The annual fee ...</source> What is the fee?", max_tokens=700
)


def reply(text: str = TEXT, **changes: Any) -> Reply:
    made = Reply(text=text, finish="stop", usage=USAGE, first_token_s=0.2, total_s=1.0)
    return dataclasses.replace(made, **changes)


def in_groups(principal: Principal, *groups: str) -> Principal:
    return dataclasses.replace(principal, groups=groups)


@pytest.fixture(name="url", scope="module")
def url_fixture() -> Iterator[str]:
    with redis_server() as (url, _):
        yield url


@pytest.fixture(name="answers", params=["redis", "process"])
async def answers_fixture(url: str, request: pytest.FixtureRequest) -> AsyncIterator[AnswerCache]:
    where = url if request.param == "redis" else None
    async with open_answer_cache(redis_url=where, secret=SECRET, installation="one") as opened:
        yield opened


async def test_an_answer_is_found_by_a_colleague_who_sees_the_same_and_sends_the_same(answers: AnswerCache) -> None:
    ada = in_groups(caller(), "staff", "board")
    bob = dataclasses.replace(in_groups(caller(ada.tenant_id, "bob"), "board", "staff", "staff"), team="sales")
    await answers.keep(View.of(ada, corpus_version=7), REQUEST, reply(), model=MODEL)
    found = await answers.find(View.of(bob, corpus_version=7), dataclasses.replace(REQUEST), model=MODEL)
    assert found == KeptAnswer(text=TEXT, model=MODEL, usage=USAGE)


async def test_nobody_finds_it_who_sees_something_else_or_asks_something_else(answers: AnswerCache) -> None:
    ada = in_groups(caller(), "staff")
    view = View.of(ada, corpus_version=7)
    request = dataclasses.replace(REQUEST, schema=SCHEMA)
    await answers.keep(view, request, reply(), model=MODEL)
    assert await answers.find(view, request, model=MODEL) is not None
    elsewhere = in_groups(caller(), "staff")
    for other in (
        View.of(elsewhere, corpus_version=7),
        View.of(ada, corpus_version=8),
        View.of(ada, corpus_version=6),
        View.of(in_groups(ada), corpus_version=7),
        View.of(in_groups(ada, "staff", "board"), corpus_version=7),
        View.of(in_groups(ada, "board"), corpus_version=7),
    ):
        assert await answers.find(other, request, model=MODEL) is None, other
    await answers.keep(View.of(in_groups(ada, "a", "b"), corpus_version=7), request, reply(), model=MODEL)
    for one in ("a,b", "a b", "ab", 'a", "b', "a|b", "a;b"):
        other = View.of(in_groups(ada, one), corpus_version=7)
        assert await answers.find(other, request, model=MODEL) is None, "two groups are not one of a clever name"
    turned = {**SCHEMA, "properties": {"per": {"type": "string"}, "fee": {"type": "string"}}}
    for changes in (
        {"system": REQUEST.system + " "},
        {"user": REQUEST.user.upper()},
        {"max_tokens": 701},
        {"schema": None},
        {"schema": turned},
        {"system": REQUEST.system + REQUEST.user[:1], "user": REQUEST.user[1:]},
    ):
        assert await answers.find(view, dataclasses.replace(request, **changes), model=MODEL) is None, changes
    assert await answers.find(view, request, model="qwen3-8b") is None


GROUPS = st.frozensets(st.sampled_from(["a", "b", "a,b", '"a"', "a b", "ab"]), max_size=3)
TEXTS = st.text(st.sampled_from('ab",[] \\\x00\ud800'), max_size=4)


@settings(deadline=None)
@given(
    kept=st.tuples(GROUPS, st.integers(0, 12), TEXTS, TEXTS, st.sampled_from(["m", "m1"])),
    asked=st.tuples(GROUPS, st.integers(0, 12), TEXTS, TEXTS, st.sampled_from(["m", "m1"])),
)
async def test_what_is_found_was_kept_under_exactly_this(kept: tuple[Any, ...], asked: tuple[Any, ...]) -> None:
    ada = caller()
    answers = AnswerCache(LocalCache())

    def parts(one: tuple[Any, ...]) -> tuple[View, ChatRequest, str]:
        groups, version, system, user, model = one
        view = View.of(in_groups(ada, *groups), corpus_version=version)
        return view, ChatRequest(system=system, user=user, max_tokens=1), model

    view, request, model = parts(kept)
    await answers.keep(view, request, reply("lone \ud800"), model=model)
    found = await answers.find(view, request, model=model)
    assert found == KeptAnswer(text="lone \ud800", model=model, usage=USAGE)
    view, request, model = parts(asked)
    assert (await answers.find(view, request, model=model) is not None) == (kept == asked)


async def test_no_answer_outlives_the_sight_of_the_document_that_it_was_written_from(world: World) -> None:
    """The same prompt, asked again after each change of what its sender may see; the corpus is a real one."""
    answers = AnswerCache(LocalCache())
    board = in_groups(world.principal(await world.tenant("acme")), "board", "staff")
    eve = dataclasses.replace(in_groups(board, "staff"), subject="eve")
    minilm = load_minilm()
    async with world.database() as database:
        engine = retriever(database, minilm)

        async def put(text: str, *groups: str) -> UUID:
            new = NewDocument(source="fees", title="Fees", text=text, groups=groups)
            return (await put_document(database, board, new)).document_id

        async def found(asker: Principal) -> bool:
            """Return whether the asker finds an answer, and keep one for the next time."""
            result = await search(engine, asker, SearchRequest(query="fee", mode=Mode.KEYWORD))
            view = View.of(asker, corpus_version=result.version)
            kept = await answers.find(view, REQUEST, model=MODEL)
            await answers.keep(view, REQUEST, reply(), model=MODEL)
            return kept is not None

        document = await put("The annual fee is 0.4 %.")
        assert [await found(board), await found(eve)] == [False, False], "not even of a colleague in other groups"
        assert [await found(board), await found(eve)] == [True, True]
        await put("The annual fee is 0.5 %.")
        assert [await found(board), await found(eve)] == [False, False], "changed"
        await put("The annual fee is 0.5 %.", "board")
        assert [await found(board), await found(eve)] == [False, False], "hidden from one of them"
        assert [await found(board), await found(eve)] == [True, True]
        await put("The annual fee is 0.6 %.", "board")
        assert [await found(board), await found(eve)] == [False, True], "a write that one of them cannot see"
        await delete_document(database, board, document)
        assert [await found(board), await found(eve)] == [False, True]
    await minilm.aclose()


async def test_a_text_that_was_cut_off_is_not_kept_and_neither_is_an_empty_or_a_huge_one(answers: AnswerCache) -> None:
    view = View.of(caller(), corpus_version=1)
    for bad in (reply(finish="length"), reply(finish="other"), reply(""), reply("x" * MAX_VALUE_BYTES)):
        await answers.keep(view, REQUEST, bad, model=MODEL)
        assert await answers.find(view, REQUEST, model=MODEL) is None
    await answers.keep(view, REQUEST, reply(usage=None), model=MODEL)
    assert await answers.find(view, REQUEST, model=MODEL) == KeptAnswer(text=TEXT, model=MODEL, usage=None)


async def test_who_asks_for_chance_gets_no_answer_of_before(answers: AnswerCache) -> None:
    view = View.of(caller(), corpus_version=1)
    by_chance = dataclasses.replace(REQUEST, temperature=0.7)
    await answers.keep(view, REQUEST, reply(), model=MODEL)
    assert await answers.find(view, by_chance, model=MODEL) is None
    await answers.keep(view, by_chance, reply("another"), model=MODEL)
    found = await answers.find(view, REQUEST, model=MODEL)
    assert found is not None
    assert found.text == TEXT


async def test_in_redis_an_answer_is_neither_readable_nor_to_be_guessed_at_by_its_name(url: str) -> None:
    redis = Redis.from_url(url)
    await redis.flushall()
    ada = in_groups(caller(), "staff")
    async with (
        open_answer_cache(redis_url=url, secret=SECRET, installation="one") as first,
        open_answer_cache(redis_url=url, secret=SECRET, installation="one") as second,
        open_answer_cache(redis_url=url, secret=b"t" * 32, installation="one") as foreign,
    ):
        view = View.of(ada, corpus_version=7)
        await first.keep(view, REQUEST, reply(), model=MODEL)
        assert await second.find(view, REQUEST, model=MODEL) is not None, "another replica"
        assert await foreign.find(view, REQUEST, model=MODEL) is None
    (name,) = await cast("Awaitable[list[bytes]]", redis.keys("*"))
    stored = await cast("Awaitable[bytes]", redis.get(name))
    for part in (TEXT, "annual", REQUEST.user, MODEL, "staff", str(ada.tenant_id)):
        assert part.encode() not in stored
        assert json.dumps(part).encode() not in stored
        assert part.encode() not in name
    await redis.aclose()


async def test_without_redis_there_is_no_answer_and_no_error() -> None:
    with redis_server() as (url, process):
        async with open_answer_cache(redis_url=url, secret=SECRET, installation="one") as answers:
            view = View.of(caller(), corpus_version=1)
            await answers.keep(view, REQUEST, reply(), model=MODEL)
            process.kill()
            process.wait(timeout=5)
            assert await answers.find(view, REQUEST, model=MODEL) is None
            await answers.keep(view, REQUEST, reply(), model=MODEL)


async def test_lookups_are_counted_by_outcome_and_nothing_else() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    answers = AnswerCache(LocalCache(lookups=lookup_counter(provider.get_meter("test"))))
    view = View.of(caller(), corpus_version=1)
    assert await answers.find(view, REQUEST, model=MODEL) is None
    await answers.keep(view, REQUEST, reply(), model=MODEL)
    for _ in range(2):
        assert await answers.find(view, REQUEST, model=MODEL) is not None
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "bulkhead.llm.answer_cache"
    counts = {tuple((point.attributes or {}).items()): point.value for point in cast("Any", metric.data).data_points}
    assert counts == {(("outcome", "miss"),): 1, (("outcome", "hit"),): 2}
    provider.shutdown()
