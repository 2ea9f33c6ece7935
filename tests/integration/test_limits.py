"""A tenant's requests are limited by their own rate: in one process, and shared through a real Redis."""

from __future__ import annotations

import logging
import signal
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis

from rag.errors import RateLimited
from rag.limits.gcra import Rate
from rag.limits.limiter import Limiter, LocalLimiter, RedisLimiter, open_limiter
from rag.settings import Settings
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.anyio
RATE = Rate(interval_us=60_000_000, burst=5)
"""Slow enough that no test run earns another unit."""


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def refused(limiter: Limiter, tenant: object, cost: int = 1) -> float:
    """Return the wait of a request that must be refused."""
    with pytest.raises(RateLimited) as caught:
        await limiter.admit(tenant, cost)  # pyright: ignore[reportArgumentType]
    return caught.value.retry_after_s


async def test_a_burst_is_let_in_and_then_one_request_per_interval() -> None:
    clock = Hand()
    limiter = LocalLimiter(RATE, clock=clock)
    tenant = uuid4()
    for _ in range(5):
        await limiter.admit(tenant)
    assert await refused(limiter, tenant) == pytest.approx(60.0)
    clock.now += 59.0
    assert await refused(limiter, tenant) == pytest.approx(1.0)
    clock.now += 1.0
    await limiter.admit(tenant)
    assert await refused(limiter, tenant) == pytest.approx(60.0)


async def test_a_refused_request_costs_nothing() -> None:
    clock = Hand()
    limiter = LocalLimiter(RATE, clock=clock)
    tenant = uuid4()
    await limiter.admit(tenant, 5)
    for _ in range(100):
        await refused(limiter, tenant)
    clock.now += 60.0
    await limiter.admit(tenant)


async def test_a_cost_above_the_burst_waits_for_the_whole_burst_and_is_then_let_in() -> None:
    limiter = LocalLimiter(RATE, clock=Hand())
    tenant = uuid4()
    await limiter.admit(tenant, 100)
    assert await refused(limiter, tenant) == pytest.approx(60.0)


async def test_one_tenant_spending_its_rate_leaves_another_untouched() -> None:
    limiter = LocalLimiter(RATE, clock=Hand())
    noisy, quiet = uuid4(), uuid4()
    await limiter.admit(noisy, 5)
    await refused(limiter, noisy)
    for _ in range(5):
        await limiter.admit(quiet)


async def test_two_processes_share_one_count_in_redis() -> None:
    with redis_server() as (url, _):
        first, second = Redis.from_url(url), Redis.from_url(url)
        try:
            limiters = RedisLimiter(first, RATE), RedisLimiter(second, RATE)
            tenant, other = uuid4(), uuid4()
            for number in range(5):
                await limiters[number % 2].admit(tenant)
            assert 55.0 < await refused(limiters[0], tenant) <= 60.0
            assert 55.0 < await refused(limiters[1], tenant) <= 60.0
            await limiters[0].admit(other, 5)
            assert await first.pttl(f"bulkhead:rate:{tenant}") > 0
        finally:
            await first.aclose()
            await second.aclose()


async def test_without_redis_the_process_counts_for_itself_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Hand()
    with redis_server() as (url, process):
        async with open_limiter(Settings(redis_url=url, request_limit_per_minute=6), clock=clock) as limiter:
            tenant = uuid4()
            await limiter.admit(tenant)
            process.kill()
            process.wait(timeout=5)
            with caplog.at_level(logging.WARNING, logger="rag.limits.limiter"):
                await limiter.admit(tenant)
                await refused(limiter, tenant)
                clock.now += 6.0
                await refused(limiter, tenant)
    assert [record.message.split(":")[1] for record in caplog.records] == [" limits are per process until it does"]


async def test_more_callers_at_once_than_connections_still_share_one_count(caplog: pytest.LogCaptureFixture) -> None:
    tenant = uuid4()
    outcomes: list[bool] = []

    async def ask(limiter: Limiter) -> None:
        try:
            await limiter.admit(tenant)
        except RateLimited:
            outcomes.append(False)
        else:
            outcomes.append(True)

    with redis_server() as (url, _):
        async with (
            open_limiter(Settings(redis_url=url, request_limit_per_minute=60)) as limiter,
            anyio.create_task_group() as callers,
        ):
            for _ in range(300):
                callers.start_soon(ask, limiter)
    assert (len(outcomes), sum(outcomes)) == (300, 10)
    assert caplog.records == []


async def test_a_redis_that_hangs_and_wakes_answers_each_caller_for_its_own_tenant() -> None:
    clock = Hand()
    with redis_server() as (url, process):
        async with open_limiter(Settings(redis_url=url, request_limit_per_minute=6), clock=clock) as limiter:
            spent, during, fresh = uuid4(), uuid4(), uuid4()
            await limiter.admit(spent)
            process.send_signal(signal.SIGSTOP)
            await limiter.admit(during)
            process.send_signal(signal.SIGCONT)
            clock.now += 6.0
            # an answer that was left unread in a connection would now reach the wrong caller
            await refused(limiter, spent)
            await limiter.admit(fresh)
            await refused(limiter, spent)
            await refused(limiter, fresh)


async def test_settings_without_redis_give_a_limiter_of_the_configured_rate() -> None:
    clock = Hand()
    async with open_limiter(Settings(request_limit_per_minute=60), clock=clock) as limiter:
        tenant = uuid4()
        await limiter.admit(tenant, 10)
        assert await refused(limiter, tenant) == pytest.approx(1.0)
