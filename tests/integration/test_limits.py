"""Tenants and users are held to their rates: in one process, and shared through a real Redis that comes and goes."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import cast
from uuid import uuid4

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from rag.errors import RateLimited
from rag.identity.principal import Principal
from rag.limits.counts import Account, LocalCounts
from rag.limits.gcra import Rate, redis_script
from rag.limits.limiter import Limiter, TieredLimiter, open_limiter
from rag.limits.metrics import LimitMetrics
from rag.limits.tiers import TierSource, one_rate
from rag.limits.values import Allowance, TierLimits
from rag.settings import Settings
from tests.support.callers import PROMPT, Hand, caller
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.anyio


def tier(*, tenant: int, user: int, per_minute: int = 1) -> TierSource:
    """Return a source of one tier with these bursts; at one unit a minute no test run earns another."""
    limits = TierLimits(
        name="tried",
        tenant=Allowance(per_minute=per_minute, burst=tenant, concurrency=100),
        user=Allowance(per_minute=per_minute, burst=user, concurrency=100),
    )

    async def source(_: Principal) -> TierLimits:
        return limits

    return source


def local(tiers: TierSource, clock: Hand) -> Limiter:
    return TieredLimiter(tiers=tiers, counts=LocalCounts(clock=clock), pauses=PROMPT)


@asynccontextmanager
async def in_process(tiers: TierSource) -> AsyncGenerator[Limiter]:
    async with open_limiter(Settings(), tiers, pauses=PROMPT) as limiter:
        yield limiter


@asynccontextmanager
async def in_redis(tiers: TierSource) -> AsyncGenerator[Limiter]:
    with redis_server() as (url, _):
        async with open_limiter(Settings(redis_url=url), tiers, pauses=PROMPT) as limiter:
            yield limiter


Opened = Callable[[TierSource], AbstractAsyncContextManager[Limiter]]
EVERYWHERE = pytest.mark.parametrize("opened", [in_process, in_redis])


async def refused(limiter: Limiter, principal: Principal, cost: int = 1) -> RateLimited:
    """Return the refusal of a request that must be refused."""
    with pytest.raises(RateLimited) as caught:
        await limiter.admit(principal, cost)
    return caught.value


async def let_in(limiter: Limiter, principal: Principal, *, at_most: int = 1000) -> int:
    """Return how many requests are let in until one is refused."""
    for count in range(at_most):
        try:
            await limiter.admit(principal)
        except RateLimited:
            return count
    raise AssertionError(f"{at_most} requests were all let in")


# --- rates


async def test_a_burst_is_let_in_and_then_one_request_per_interval() -> None:
    clock = Hand()
    limiter, ada = local(tier(tenant=5, user=5), clock), caller()
    assert await let_in(limiter, ada) == 5
    assert (await refused(limiter, ada)).retry_after_s == pytest.approx(60.0)
    clock.now += 59.0
    assert (await refused(limiter, ada)).retry_after_s == pytest.approx(1.0)
    clock.now += 1.0
    await limiter.admit(ada)
    assert (await refused(limiter, ada)).retry_after_s == pytest.approx(60.0)


async def test_a_refused_request_costs_nothing() -> None:
    clock = Hand()
    limiter, ada = local(tier(tenant=5, user=5), clock), caller()
    await limiter.admit(ada, 5)
    for _ in range(100):
        await refused(limiter, ada)
    clock.now += 60.0
    await limiter.admit(ada)


async def test_a_cost_above_the_burst_waits_for_the_whole_burst_and_is_then_let_in() -> None:
    limiter, ada = local(tier(tenant=5, user=5), Hand()), caller()
    await limiter.admit(ada, 100)
    assert (await refused(limiter, ada)).retry_after_s == pytest.approx(60.0)


@EVERYWHERE
async def test_one_tenant_spending_its_rate_leaves_another_untouched(opened: Opened) -> None:
    async with opened(tier(tenant=5, user=5)) as limiter:
        noisy, quiet = caller(), caller()
        await limiter.admit(noisy, 5)
        await refused(limiter, noisy)
        assert await let_in(limiter, quiet) == 5


@EVERYWHERE
async def test_a_user_at_its_limit_charges_nothing_to_its_tenant(opened: Opened) -> None:
    async with opened(tier(tenant=10, user=4)) as limiter:
        ada = caller()
        bob, eve = caller(ada.tenant_id, "bob"), caller(ada.tenant_id, "eve")
        assert await let_in(limiter, ada) == 4
        for _ in range(20):
            assert "user" in (await refused(limiter, ada)).message
        assert [await let_in(limiter, bob), await let_in(limiter, eve)] == [4, 2]


@EVERYWHERE
async def test_a_tenant_at_its_limit_charges_nothing_to_its_users(opened: Opened) -> None:
    async with opened(tier(tenant=4, user=4)) as limiter:
        ada = caller()
        bob = caller(ada.tenant_id, "bob")
        assert await let_in(limiter, ada) == 4
        for _ in range(20):
            assert "tenant" in (await refused(limiter, bob)).message
        standing = await limiter.status(bob)
        assert (standing.tenant.remaining, standing.user.remaining) == (0, 4)


@EVERYWHERE
async def test_users_of_one_name_in_two_tenants_are_two_users(opened: Opened) -> None:
    async with opened(tier(tenant=10, user=3)) as limiter:
        assert [await let_in(limiter, caller()) for _ in range(2)] == [3, 3]


@EVERYWHERE
async def test_the_status_says_what_is_left_and_costs_nothing(opened: Opened) -> None:
    async with opened(tier(tenant=10, user=6)) as limiter:
        ada = caller()
        assert [(await limiter.status(ada)).user.remaining for _ in range(20)] == [6] * 20
        async with limiter.admitted(ada, 4):
            standing = await limiter.status(ada)
        assert standing.tier == "tried"
        assert (standing.tenant.remaining, standing.user.remaining) == (6, 2)
        assert (standing.tenant.burst, standing.user.burst, standing.user.per_minute) == (10, 6, 1)
        assert (standing.tenant.running, standing.user.running, standing.user.concurrency) == (1, 1, 100)
        assert (await limiter.status(ada)).tenant.running == 0


@EVERYWHERE
async def test_a_tenant_with_a_faster_tier_need_not_wait_for_what_it_owed_under_the_slower(opened: Opened) -> None:
    tiers = [tier(tenant=100, user=100), tier(tenant=100, user=100, per_minute=60_000)]

    async def booked(principal: Principal) -> TierLimits:
        return await tiers[0](principal)

    async with opened(booked) as limiter:
        ada = caller()
        await limiter.admit(ada, 100)
        assert (await refused(limiter, ada, 100)).retry_after_s > 5900
        tiers.pop(0)
        assert (await refused(limiter, ada, 100)).retry_after_s <= 0.1


async def test_one_rate_for_all_is_ten_seconds_of_it_at_once() -> None:
    async with in_process(one_rate(6)) as limiter:
        assert await let_in(limiter, caller()) == 1
    async with in_process(one_rate(60)) as limiter:
        assert await let_in(limiter, caller()) == 10


# --- Redis


@pytest.fixture(scope="module", name="redis")
def redis_fixture() -> Generator[Redis]:
    with redis_server() as (url, _), Redis.from_url(url) as redis:
        yield redis


RATES = st.builds(Rate, interval_us=st.integers(1, 60_000_000), burst=st.integers(1, 300))
REQUESTS = st.lists(
    st.tuples(st.integers(0, 120_000_000), st.integers(0, 400), st.sampled_from(["ada", "bob"]), st.integers(0, 1)),
    max_size=30,
)


@given(rates=st.tuples(RATES, RATES, RATES, RATES), requests=REQUESTS)
def test_redis_decides_as_the_process_does(
    redis: Redis, rates: tuple[Rate, Rate, Rate, Rate], requests: list[tuple[int, int, str, int]]
) -> None:
    """The script that production runs, but for its clock: both are told the time by the test."""
    script = redis.register_script(redis_script("tonumber(ARGV[8])"))
    tenant, clock = uuid4(), Hand()
    counts = LocalCounts(clock=clock)

    async def compare() -> None:
        now_us = 1_790_000_000_000_000
        for pause_us, cost, user, booked in requests:
            now_us += pause_us
            clock.now = now_us / 1e6
            account = Account(tenant_id=tenant, subject=user, tenant=rates[2 * booked], user=rates[2 * booked + 1])
            here = await counts.charge(account, cost)
            keys = [f"{tenant}", f"{tenant}:{user}", "replicas"]
            sizes = [number for rate in (account.tenant, account.user) for number in (rate.interval_us, rate.burst)]
            there = cast("list[int]", script(keys=keys, args=[cost, *sizes, "", 0, now_us]))
            for key in keys[:2]:
                redis.persist(key)  # it expires by the server's own clock
            assert there == [*_numbers(here), 0]

    anyio.run(compare)


def _numbers(verdict: object) -> list[int]:
    names = ("tenant_wait_us", "user_wait_us", "tenant_ahead_us", "user_ahead_us")
    return [int(getattr(verdict, name)) for name in names]


async def test_two_replicas_share_one_count_and_what_is_kept_expires() -> None:
    with redis_server() as (url, _):
        settings, tiers = Settings(redis_url=url), tier(tenant=8, user=5)
        async with (
            open_limiter(settings, tiers, pauses=PROMPT) as first,
            open_limiter(settings, tiers, pauses=PROMPT) as second,
            AsyncRedis.from_url(url) as redis,
        ):
            ada = caller()
            for number in range(5):
                await (first, second)[number % 2].admit(ada)
            assert 55.0 < (await refused(first, ada)).retry_after_s <= 60.0
            assert 55.0 < (await refused(second, ada)).retry_after_s <= 60.0
            assert await let_in(second, caller(ada.tenant_id, "bob")) == 3
            keys = [key.decode() async for key in redis.scan_iter()]
            assert len(keys) == 4
            assert all([await redis.pttl(key) > 0 for key in keys])
            assert not [key for key in keys if "ada" in key or "bob" in key]


async def test_no_subject_reaches_another_tenants_account() -> None:
    async with in_redis(tier(tenant=5, user=5)) as limiter:
        victim = caller()
        for subject in (f"{victim.tenant_id}", f":{victim.tenant_id}:ada", "*", "replicas", "ada"):
            assert await let_in(limiter, caller(user=subject)) == 5
        assert await let_in(limiter, victim) == 5


async def test_more_callers_at_once_than_connections_still_share_one_count(caplog: pytest.LogCaptureFixture) -> None:
    ada = caller()
    outcomes: list[bool] = []

    async def ask(limiter: Limiter) -> None:
        try:
            await limiter.admit(ada)
        except RateLimited:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with in_redis(tier(tenant=10, user=10)) as limiter, anyio.create_task_group() as callers:
        for _ in range(300):
            callers.start_soon(ask, limiter)
    assert (len(outcomes), sum(outcomes)) == (300, 10)
    assert caplog.records == []


async def test_a_tenant_at_its_limit_is_refused_without_asking_redis_each_time() -> None:
    clock = Hand()
    with redis_server() as (url, _), Redis.from_url(url) as redis:

        def asked() -> int:
            return int(cast("dict[str, dict[str, int]]", redis.info("commandstats"))["cmdstat_evalsha"]["calls"])

        async with open_limiter(Settings(redis_url=url), tier(tenant=5, user=3), clock=clock, pauses=PROMPT) as limiter:
            ada = caller()
            assert await let_in(limiter, ada) == 3
            known = asked()
            for _ in range(50):
                await refused(limiter, ada)
            assert asked() == known
            await limiter.admit(caller(ada.tenant_id, "bob"), 2)
            clock.now += 1.0
            await refused(limiter, ada)
            assert asked() == known + 2


async def test_a_redis_that_hangs_and_wakes_answers_each_caller_for_its_own_tenant() -> None:
    clock = Hand()
    with redis_server() as (url, process):
        async with open_limiter(Settings(redis_url=url), one_rate(6), clock=clock, pauses=PROMPT) as limiter:
            spent, during, fresh = caller(), caller(), caller()
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


# --- Redis goes away and comes back


class Dial:
    """Reads the instruments as an exporter would."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = LimitMetrics(MeterProvider(metric_readers=[self._reader]).get_meter("bulkhead.limits"))

    def read(self) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        data = self._reader.get_metrics_data()
        assert data is not None
        for scope in data.resource_metrics[0].scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    labels = dict(point.attributes or {})
                    assert set(labels) <= {"scope"}  # in particular no tenant
                    found[metric.name, str(labels.get("scope", ""))] = int(getattr(point, "value", -1))
        return found


@contextmanager
def restarted(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Run the server again that `process` was."""
    again = subprocess.Popen(cast("list[str]", process.args), stdout=subprocess.PIPE)
    try:
        assert again.stdout is not None
        assert any(b"ready to accept connections" in line.lower() for line in again.stdout)
        yield
    finally:
        again.kill()
        again.wait(timeout=5)
        if again.stdout is not None:
            again.stdout.close()


async def test_without_redis_each_replica_lets_in_its_share_and_says_so_and_shares_again_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, dials, tiers = Hand(), (Dial(), Dial()), tier(tenant=12, user=12)
    with redis_server() as (url, process):
        settings = Settings(redis_url=url)
        async with (
            open_limiter(settings, tiers, clock=clock, metrics=dials[0].metrics, pauses=PROMPT) as first,
            open_limiter(settings, tiers, clock=clock, metrics=dials[1].metrics, pauses=PROMPT) as second,
        ):
            for _ in range(2):  # each is seen by the other at its next announcement
                await first.admit(caller())
                await second.admit(caller())
                clock.now += 10.0
            assert [dial.read()["bulkhead.limits.degraded", ""] for dial in dials] == [0, 0]
            process.kill()
            process.wait(timeout=5)
            with caplog.at_level(logging.WARNING, logger="rag.limits"):
                ada = caller()
                assert [await let_in(first, ada), await let_in(second, ada)] == [6, 6]
                wait_s = (await refused(first, ada)).retry_after_s
                assert wait_s == pytest.approx(120.0)  # half of one unit a minute
                assert (await first.status(ada)).tenant.remaining == 0
                assert [dial.read()["bulkhead.limits.degraded", ""] for dial in dials] == [1, 1]
                clock.now += 5.0  # time to ask again, in vain
                await refused(first, ada)
                assert len(caplog.records) == 2
                with restarted(process):
                    clock.now += 5.0
                    assert [await let_in(first, ada), await let_in(second, ada)] == [12, 0]
                    assert [dial.read()["bulkhead.limits.degraded", ""] for dial in dials] == [0, 0]
    said = [record.message for record in caplog.records]
    assert [("1 part in 2" in text, "answers again" in text) for text in said] == [(True, False)] * 2 + [
        (False, True)
    ] * 2


async def test_a_replica_that_was_closed_is_not_counted_any_more() -> None:
    clock, tiers = Hand(), tier(tenant=12, user=12)
    with redis_server() as (url, process):
        settings = Settings(redis_url=url)
        async with open_limiter(settings, tiers, clock=clock, pauses=PROMPT) as stays:
            async with open_limiter(settings, tiers, clock=clock, pauses=PROMPT) as goes:
                await goes.admit(caller())
            await stays.admit(caller())
            process.kill()
            process.wait(timeout=5)
            assert await let_in(stays, caller()) == 12


async def test_a_limiter_that_never_met_its_redis_counts_by_itself_and_closes() -> None:
    dial = Dial()
    with redis_server() as (url, process):
        process.kill()
        process.wait(timeout=5)
        async with open_limiter(Settings(redis_url=url), one_rate(60), metrics=dial.metrics, pauses=PROMPT) as limiter:
            assert await let_in(limiter, caller()) == 10
            assert dial.read()["bulkhead.limits.degraded", ""] == 1
    assert dial.read()["bulkhead.limits.degraded", ""] == 0


@pytest.mark.parametrize("url", [None, "unix:///nowhere/redis"])
async def test_processes_that_serve_together_and_count_alone_let_in_the_rate_together(url: str | None) -> None:
    clock, ada, share = Hand(), caller(), 3
    async with AsyncExitStack() as stack:
        limiters = [
            await stack.enter_async_context(
                open_limiter(Settings(redis_url=url), one_rate(360), pauses=PROMPT, share=share, clock=clock)
            )
            for _ in range(share)
        ]
        assert [await let_in(limiter, ada) for limiter in limiters] == [20, 20, 20]
        clock.now += 1.1
        assert [await let_in(limiter, ada) for limiter in limiters] == [2, 2, 2]
        standing = await limiters[0].status(ada)
        assert (standing.tenant.burst, standing.tenant.remaining) == (60, 0)


async def test_refusals_are_counted_by_the_limit_that_they_met() -> None:
    dial = Dial()
    async with open_limiter(Settings(), tier(tenant=3, user=2), metrics=dial.metrics, pauses=PROMPT) as limiter:
        ada = caller()
        bob = caller(ada.tenant_id, "bob")
        await limiter.admit(ada, 2)
        await refused(limiter, ada, 2)  # the tenant's wait is shorter: it has one unit left
        await limiter.admit(bob)
        await refused(limiter, bob, 2)
    found = dial.read()
    assert (found["bulkhead.limits.refusals", "user"], found["bulkhead.limits.refusals", "tenant"]) == (1, 1)
