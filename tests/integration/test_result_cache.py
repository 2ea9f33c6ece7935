"""Cached results: bounded, aging, each tenant's its own; only ciphertext in Redis, and no error without it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast
from uuid import uuid4

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis.asyncio import Redis

from rag.cache import ENTRY_BYTES, MAX_VALUE_BYTES, Cache, CacheKey, LocalCache, RedisCache
from rag.retrieval.cache import lookup_counter, open_result_cache
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.anyio
SECRET = b"s" * 32
ACME, BETA = str(uuid4()), str(uuid4())
TEXT = b"The annual fee is 0.4 % of the assets."


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def key(*parts: object, tenant: str = ACME) -> CacheKey:
    return (tenant, *map(str, parts))


@pytest.fixture(name="redis")
async def redis_fixture() -> AsyncIterator[Redis]:
    with redis_server() as (url, _):
        client = Redis.from_url(url)
        yield client
        await client.aclose()


def in_redis(redis: Redis, *, secret: bytes = SECRET, installation: str = "one", purpose: str = "result") -> RedisCache:
    return RedisCache(redis, secret=secret, installation=installation, purpose=purpose)


async def names(redis: Redis) -> list[bytes]:
    return sorted(await cast("Awaitable[list[bytes]]", redis.keys("*")))


async def test_a_value_is_found_under_its_key_only(redis: Redis) -> None:
    for cache in (LocalCache(), in_redis(redis)):
        await cache.put(key("a", "bc"), TEXT)
        assert await cache.get(key("a", "bc")) == TEXT
        for other in (key("ab", "c"), key("a", "bc", ""), key("a"), key("a", "bc", tenant=BETA), key('a","bc')):
            assert await cache.get(other) is None
        await cache.put(key("a", "bc"), b"newer")
        assert await cache.get(key("a", "bc")) == b"newer"
        await cache.put(key("none"), b"")
        assert await cache.get(key("none")) == b""


async def test_a_value_grows_old(redis: Redis) -> None:
    clock = Hand()
    cache = LocalCache(ttl_s=10, clock=clock)
    await cache.put(key(), TEXT)
    clock.now += 9.9
    assert await cache.get(key()) == TEXT
    clock.now += 0.1
    assert await cache.get(key()) is None
    await RedisCache(redis, secret=SECRET, installation="one", purpose="result", ttl_s=10).put(key(), TEXT)
    (name,) = await names(redis)
    assert 0 < await redis.pttl(name) <= 10_000


async def test_what_is_too_large_is_not_kept(redis: Redis) -> None:
    for cache in (LocalCache(), in_redis(redis)):
        await cache.put(key("largest"), bytes(MAX_VALUE_BYTES))
        await cache.put(key("larger"), bytes(MAX_VALUE_BYTES + 1))
        assert await cache.get(key("largest")) == bytes(MAX_VALUE_BYTES)
        assert await cache.get(key("larger")) is None


async def test_a_tenant_pushes_out_what_it_has_not_used_longest() -> None:
    cache = LocalCache(max_tenant_bytes=3 * (100 + ENTRY_BYTES))
    for number in range(3):
        await cache.put(key(number), bytes(100))
    assert await cache.get(key(0)) is not None
    await cache.put(key(3), bytes(100))
    assert [await cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]


async def test_a_tenant_that_holds_no_more_than_its_share_loses_nothing_to_others() -> None:
    entry = 100 + ENTRY_BYTES
    cache = LocalCache(max_bytes=10 * entry, max_tenant_bytes=6 * entry)
    await cache.put(key("a"), bytes(100))
    await cache.put(key("b"), bytes(100))
    for number in range(1000):
        await cache.put(key(number, tenant=BETA), bytes(100))
        await cache.put(key(number, tenant=str(number % 3)), bytes(100))
    assert await cache.get(key("a")) is not None
    assert await cache.get(key("b")) is not None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 900), st.integers(0, 3)), max_size=60)
)
async def test_memory_stays_within_its_bounds_and_no_answer_is_wrong(calls: list[tuple[str, int, int, int]]) -> None:
    clock = Hand()
    cache = LocalCache(max_bytes=4_000, max_tenant_bytes=2_500, ttl_s=10, clock=clock)
    latest: dict[CacheKey, tuple[float, bytes]] = {}
    for number, (tenant, name, size, pause) in enumerate(calls):
        clock.now += pause
        value = bytes([number]) * size
        await cache.put(key(name, tenant=tenant), value)
        latest[key(name, tenant=tenant)] = (clock.now, value)
        for asked, (since, kept) in latest.items():
            assert await cache.get(asked) in {None, kept}
            if clock.now - since >= 10:
                assert await cache.get(asked) is None
        assert await cache.get(key(name, tenant=tenant)) == value
        sizes = {tenant: shelf.size for tenant, shelf in cache._shelves.items()}  # pyright: ignore[reportPrivateUsage]
        held = [
            sum(len(entry[1]) + ENTRY_BYTES for entry in shelf.entries.values())
            for shelf in cache._shelves.values()  # pyright: ignore[reportPrivateUsage]
        ]
        assert list(sizes.values()) == held
        assert sum(held) == cache._size <= 4_000  # pyright: ignore[reportPrivateUsage]
        assert all(0 < size <= 2_500 for size in held)


async def test_what_lies_in_redis_says_neither_text_nor_query_nor_tenant(redis: Redis) -> None:
    await in_redis(redis).put(key("what is the fee?"), TEXT)
    (name,) = await names(redis)
    stored = await cast("Awaitable[bytes]", redis.get(name))
    assert name.startswith(b"bulkhead:one:result:")
    for part in (TEXT, TEXT[:8], b"the fee", ACME.encode(), SECRET):
        assert part not in stored
        assert part not in name
    await in_redis(redis).put(key("what is the fee?"), TEXT)
    assert await names(redis) == [name]
    assert await cast("Awaitable[bytes]", redis.get(name)) != stored  # another nonce each time


async def test_a_value_moved_or_changed_in_redis_is_a_miss(redis: Redis) -> None:
    cache = in_redis(redis)
    await cache.put(key("q"), TEXT)
    (own,) = await names(redis)
    stored = await cast("Awaitable[bytes]", redis.get(own))
    await cache.put(key("q", tenant=BETA), b"of beta")
    (foreign,) = set(await names(redis)) - {own}
    await cache.put(key("other"), b"of acme too")
    (sibling,) = set(await names(redis)) - {own, foreign}
    for name in (foreign, sibling):
        await redis.set(name, stored)
    assert await cache.get(key("q", tenant=BETA)) is None
    assert await cache.get(key("other")) is None
    for place in range(0, len(stored), 7):
        changed = bytearray(stored)
        changed[place] ^= 1
        await redis.set(own, bytes(changed))
        assert await cache.get(key("q")) is None
    for nonsense in (b"", b"\x01", stored[:-1], stored + b"x", b"x" * 100, bytes(8 << 20)):
        await redis.set(own, nonsense)
        assert await cache.get(key("q")) is None
    await redis.delete(own)
    await redis.lpush(cast("Any", own), "a list")
    assert await cache.get(key("q")) is None


async def test_another_secret_installation_or_purpose_shares_nothing(redis: Redis) -> None:
    await in_redis(redis).put(key("q"), TEXT)
    assert await in_redis(redis).get(key("q")) == TEXT
    assert await in_redis(redis, secret=b"t" * 32).get(key("q")) is None
    assert await in_redis(redis, installation="two").get(key("q")) is None
    assert await in_redis(redis, purpose="answer").get(key("q")) is None
    (own,) = await names(redis)
    await in_redis(redis, purpose="answer").put(key("q"), b"an answer")
    (other,) = set(await names(redis)) - {own}
    await redis.set(other, await cast("Awaitable[bytes]", redis.get(own)))
    assert await in_redis(redis, purpose="answer").get(key("q")) is None, "copied from one to the other"
    with pytest.raises(ValueError, match="at least 16 bytes"):
        in_redis(redis, secret=b"short")


async def test_two_replicas_share_results_and_one_without_redis_keeps_its_own() -> None:
    with redis_server() as (url, _):
        async with (
            open_result_cache(redis_url=url, secret=SECRET, installation="one") as first,
            open_result_cache(redis_url=url, secret=SECRET, installation="one") as second,
            open_result_cache(redis_url=None, secret=SECRET, installation="one") as alone,
        ):
            await first.put(key("q"), TEXT)
            assert await second.get(key("q")) == TEXT
            assert await alone.get(key("q")) is None


async def test_without_redis_every_lookup_is_a_quick_miss_said_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Hand()
    caplog.set_level(logging.WARNING, logger="rag.cache")
    with redis_server() as (url, process):
        redis = Redis.from_url(url, socket_timeout=0.1, socket_connect_timeout=0.1)
        cache = RedisCache(redis, secret=SECRET, installation="one", purpose="result", clock=clock)
        await cache.put(key("q"), TEXT)
        process.kill()
        process.wait(timeout=5)
        began = time.monotonic()
        for _ in range(100):
            assert await cache.get(key("q")) is None
            await cache.put(key("q"), TEXT)
        assert time.monotonic() - began < 2
        clock.now += 6
        assert await cache.get(key("q")) is None
        await redis.aclose()
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [" results are not cached until it does"]


async def test_a_redis_that_hangs_delays_a_crowd_no_more_than_once_and_is_used_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Hand()
    caplog.set_level(logging.WARNING, logger="rag.cache")
    with redis_server() as (url, process):
        redis = Redis.from_url(url)
        cache = RedisCache(redis, secret=SECRET, installation="one", purpose="result", clock=clock)
        for number in range(200):
            await cache.put(key(number), str(number).encode())
        process.send_signal(signal.SIGSTOP)

        async def ask(number: int) -> None:
            assert await cache.get(key(number)) is None

        began = time.monotonic()
        async with anyio.create_task_group() as crowd:
            for number in range(200):
                crowd.start_soon(ask, number)
        assert time.monotonic() - began < 2
        process.send_signal(signal.SIGCONT)
        clock.now += 6
        # an answer that was left unread in a connection would now be another key's
        for number in range(200):
            assert await cache.get(key(number)) == str(number).encode()
        await redis.aclose()
    assert len(caplog.records) == 2


async def test_lookups_are_counted_by_outcome_and_nothing_else(redis: Redis) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    lookups = lookup_counter(provider.get_meter("test"))
    caches: list[Cache] = [
        LocalCache(lookups=lookups),
        RedisCache(redis, secret=SECRET, installation="one", purpose="result", lookups=lookups),
    ]
    for cache in caches:
        await cache.get(key("q"))
        await cache.put(key("q"), TEXT)
        await cache.get(key("q"))
        await cache.get(key("q"))
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "bulkhead.search.cache"
    counts = {tuple((point.attributes or {}).items()): point.value for point in cast("Any", metric.data).data_points}
    assert counts == {(("outcome", "miss"),): 2, (("outcome", "hit"),): 4}
    provider.shutdown()
