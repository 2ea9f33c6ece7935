"""How many operations of a tenant and of a user run at a time: capped, fair, and given back whatever happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from rag.errors import NotFound, RateLimited
from rag.identity.principal import Principal
from rag.limits.counts import LocalCounts
from rag.limits.limiter import Limiter, TieredLimiter, open_limiter
from rag.limits.metrics import LimitMetrics
from rag.limits.pauses import Pauses
from rag.limits.places import Places
from rag.limits.tiers import TierSource
from rag.limits.values import Allowance, TierLimits
from rag.settings import Settings
from tests.support.callers import PROMPT, caller
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
LONG_S = 60.0
"""A wait for a place that a test does not outlast: it must end because one became free."""


def tier(*, tenant: int, user: int, burst: int = 10_000) -> TierSource:
    """Return a source of one tier with these places; at one unit a minute no test run earns another."""
    limits = TierLimits(
        name="tried",
        tenant=Allowance(per_minute=1, burst=burst, concurrency=tenant),
        user=Allowance(per_minute=1, burst=burst, concurrency=user),
    )

    async def source(_: Principal) -> TierLimits:
        return limits

    return source


def limiter_of(tiers: TierSource, *, wait_s: float = LONG_S) -> tuple[Limiter, Places]:
    places = Places(wait_s=wait_s)
    return TieredLimiter(tiers=tiers, counts=LocalCounts(), places=places, pauses=PROMPT), places


@asynccontextmanager
async def held(limiter: Limiter, principal: Principal, count: int) -> AsyncGenerator[None]:
    """Hold `count` places until the block ends."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(limiter.admitted(principal))
        yield


async def work(limiter: Limiter, principal: Principal) -> None:
    """Hold a place until cancelled."""
    async with limiter.admitted(principal):
        await anyio.sleep_forever()


async def refused(limiter: Limiter, principal: Principal) -> RateLimited:
    """Return the refusal of an operation that must be refused."""
    with pytest.raises(RateLimited) as caught:
        async with limiter.admitted(principal):
            pass
    return caught.value


async def test_no_more_operations_of_a_user_run_than_its_tier_says_and_the_rest_come_back_later() -> None:
    limiter, places = limiter_of(tier(tenant=10, user=2), wait_s=0.01)
    ada = caller()
    async with held(limiter, ada, 2):
        refusal = await refused(limiter, ada)
        assert "of this user" in refusal.message
        assert 0 < refusal.retry_after_s <= 1
        async with held(limiter, caller(ada.tenant_id, "bob"), 2):
            standing = await limiter.status(ada)
            assert (standing.tenant.running, standing.user.running) == (4, 2)
    async with held(limiter, ada, 2):
        pass
    assert len(places) == 0


async def test_all_users_of_a_tenant_share_its_places_and_another_tenant_has_its_own() -> None:
    limiter, _ = limiter_of(tier(tenant=3, user=2), wait_s=0.01)
    ada = caller()
    bob = caller(ada.tenant_id, "bob")
    async with held(limiter, ada, 2), held(limiter, bob, 1):
        assert "of this tenant" in (await refused(limiter, bob)).message
        async with held(limiter, caller(), 2):
            pass


async def test_who_waits_gets_a_place_in_the_order_of_coming() -> None:
    limiter, places = limiter_of(tier(tenant=2, user=2))
    ada = caller()
    order: list[str] = []

    async def come(name: str) -> None:
        async with limiter.admitted(caller(ada.tenant_id, name)):
            order.append(name)

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, held(limiter, ada, 2):
            for name in ("bob", "eve"):
                tasks.start_soon(come, name)
                await anyio.wait_all_tasks_blocked()
            assert order == []
    assert order == ["bob", "eve"]
    assert len(places) == 0


async def test_a_user_whose_places_are_taken_does_not_stand_in_a_colleagues_way() -> None:
    limiter, _ = limiter_of(tier(tenant=3, user=2))
    ada = caller()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):  # two run, two wait
            tasks.start_soon(work, limiter, ada)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(BOUND_S):
            async with held(limiter, caller(ada.tenant_id, "bob"), 1):
                assert (await limiter.status(ada)).tenant.running == 3
        tasks.cancel_scope.cancel()


async def test_no_more_may_wait_than_run() -> None:
    limiter, places = limiter_of(tier(tenant=2, user=2))
    ada = caller()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(work, limiter, ada)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(BOUND_S):  # at once, where a place in the queue would mean LONG_S
            for number in range(50):
                await refused(limiter, caller(ada.tenant_id, f"user {number}"))
        tasks.cancel_scope.cancel()
    assert len(places) == 0


async def test_a_cancelled_operation_gives_its_place_back_and_so_does_one_that_was_still_waiting() -> None:
    limiter, places = limiter_of(tier(tenant=1, user=1))
    ada = caller()
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as running:
            running.start_soon(work, limiter, ada)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(work, limiter, ada)
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            assert (await limiter.status(ada)).user.running == 1
            running.cancel_scope.cancel()
        assert len(places) == 0
        async with held(limiter, ada, 1):
            pass


async def test_a_waiter_that_is_given_a_place_and_cancelled_in_the_same_moment_gives_it_back() -> None:
    limiter, places = limiter_of(tier(tenant=1, user=1))
    ada = caller()
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            async with held(limiter, ada, 1):
                tasks.start_soon(work, limiter, ada)
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()  # before the waiter has run again
        assert len(places) == 0


async def test_an_operation_that_fails_gives_its_place_back() -> None:
    limiter, places = limiter_of(tier(tenant=1, user=1))
    for _ in range(3):
        with pytest.raises(NotFound):
            async with limiter.admitted(caller()):
                raise NotFound
    assert len(places) == 0


async def test_who_found_no_place_has_been_charged_nothing_and_who_is_over_its_rate_takes_none() -> None:
    limiter, places = limiter_of(tier(tenant=1, user=1, burst=3), wait_s=0.01)
    ada = caller()
    async with held(limiter, ada, 1):
        for _ in range(10):
            await refused(limiter, ada)
        assert (await limiter.status(ada)).user.remaining == 2
    await limiter.admit(ada, 2)
    assert "too many requests" in (await refused(limiter, ada)).message
    assert len(places) == 0


async def test_a_tenant_at_all_of_its_limits_leaves_a_neighbour_every_place_and_every_unit() -> None:
    """Through Redis, with a thousand requests of the noisy tenant on their way: none of them stands before hers."""
    noisy, quiet = caller(), caller()
    refusals: list[str] = []

    async def insist(limiter: Limiter) -> None:
        try:
            await work(limiter, noisy)
        except RateLimited as exc:
            refusals.append(exc.message)

    with redis_server() as (url, _):
        async with (
            open_limiter(Settings(redis_url=url), tier(tenant=20, user=20, burst=20), pauses=PROMPT) as limiter,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(1000):
                tasks.start_soon(insist, limiter)
            with anyio.fail_after(BOUND_S):
                async with held(limiter, quiet, 20):
                    standing = (await limiter.status(quiet)).user
                    assert (standing.running, standing.remaining) == (20, 0)
                    assert (await limiter.status(noisy)).tenant.running == 20
                    assert len(refusals) >= 960
            tasks.cancel_scope.cancel()


async def test_a_missing_place_is_counted_among_the_refusals() -> None:
    reader = InMemoryMetricReader()
    metrics = LimitMetrics(MeterProvider(metric_readers=[reader]).get_meter("bulkhead.limits"))
    limiter = TieredLimiter(
        tiers=tier(tenant=1, user=1), counts=LocalCounts(), places=Places(wait_s=0.01), metrics=metrics
    )
    ada = caller()
    async with held(limiter, ada, 1):
        await refused(limiter, ada)
    data = reader.get_metrics_data()
    assert data is not None
    found = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    points = [(dict(point.attributes or {}), point.value) for point in found["bulkhead.limits.refusals"].data_points]  # pyright: ignore[reportAttributeAccessIssue]
    assert points == [({"scope": "concurrency"}, 1)]


async def test_a_refusal_is_held_back_without_a_place_and_no_more_of_them_than_may_be() -> None:
    pauses = Pauses(pause_s=LONG_S, max_paused=1)
    limiter = TieredLimiter(tiers=tier(tenant=5, user=5, burst=1), counts=LocalCounts(), pauses=pauses)
    ada = caller()
    await limiter.admit(ada)
    refusals: list[RateLimited] = []

    async def insist() -> None:
        refusals.append(await refused(limiter, ada))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(insist)
        await anyio.wait_all_tasks_blocked()
        assert refusals == []
        assert (await limiter.status(ada)).tenant.running == 0
        await insist()
        assert len(refusals) == 1
        tasks.cancel_scope.cancel()


async def test_the_places_of_the_process_go_to_the_tenants_that_wait_in_turn() -> None:
    allowed = await tier(tenant=10, user=10)(caller())
    places = Places(total=2, wait_s=LONG_S)
    crowd, quiet = uuid4(), uuid4()
    entered: list[UUID] = []

    async def enter(tenant_id: UUID) -> None:
        await places.enter(tenant_id, "ada", allowed)
        entered.append(tenant_id)

    for _ in range(2):
        await enter(crowd)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(enter, crowd)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(enter, quiet)
        await anyio.wait_all_tasks_blocked()
        # what lasts takes no place of the process
        await places.enter(quiet, "grace", allowed, lasting=True)
        places.leave(quiet, "grace", lasting=True)
        assert entered == [crowd, crowd]
        for _ in range(2):
            places.leave(crowd, "ada")
            await anyio.wait_all_tasks_blocked()
        assert sorted(entered[2:]) == sorted([crowd, quiet]), "one each, though five of the crowd came first"
        for tenant_id in (quiet, crowd, crowd, crowd, crowd, crowd):
            places.leave(tenant_id, "ada")
            await anyio.wait_all_tasks_blocked()
    assert len(places) == 0


async def test_a_process_that_is_full_says_that_it_is_busy() -> None:
    allowed = await tier(tenant=10, user=10)(caller())
    places = Places(total=1, wait_s=0.01)
    await places.enter(uuid4(), "ada", allowed)
    with pytest.raises(RateLimited, match="the server is busy"):
        await places.enter(uuid4(), "ada", allowed)
    assert len(places) == 1
