"""The queue in front of a model server: shares by weight, nobody starves, nothing is lost, a flood is its sender's."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.errors import NotFound, RateLimited
from rag.llm.fairness import MAX_RETRY_S, FairQueue, Load
from tests.support.callers import Hand

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
LONG_S = 60.0
"""A wait for a place that a test does not outlast: it must end because one became free."""
ACME, BETA, GAMMA = uuid4(), uuid4(), uuid4()


class Scene:
    """A queue that is full until `open`, and what its places were given to since, in order."""

    def __init__(self, queue: FairQueue, tasks: anyio.abc.TaskGroup) -> None:
        self.queue = queue
        self.order: list[UUID] = []
        self._tasks = tasks
        self._come = 0

    async def come(self, tenant_id: UUID, *, weight: float = 1.0, cost: float = 1.0) -> None:
        """Have a call wait: it has its place in the queue when this returns."""

        async def call() -> None:
            async with self.queue.place(tenant_id, weight=weight, cost=cost, timeout_s=LONG_S):
                self.order.append(tenant_id)
                await checkpoint()

        self._come += 1
        self._tasks.start_soon(call)
        await until(lambda: self.queue.load().waiting == self._come)


async def until(what: Callable[[], bool]) -> None:
    """Let other tasks run until `what` holds."""
    with anyio.fail_after(BOUND_S):
        while not what():
            await checkpoint()


@asynccontextmanager
async def full(queue: FairQueue) -> AsyncGenerator[Scene]:
    """Yield a scene whose one place is taken by a stranger; at the end it is free, and everybody has had a turn."""
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, queue.place(uuid4(), timeout_s=LONG_S):
            yield Scene(queue, tasks)
    assert queue.load().waiting == 0


def at_rest(queue: FairQueue) -> bool:
    load = queue.load()
    return len(queue) == 0 and load == Load(places=load.places, running=0, waiting=0, tenants_waiting=0)


async def test_a_tenant_that_floods_the_queue_puts_one_call_before_anothers_and_not_a_thousand() -> None:
    async with full(FairQueue(places=1, max_waiting_per_tenant=1000)) as scene:
        for _ in range(1000):
            await scene.come(ACME)
        for _ in range(3):
            await scene.come(BETA)
    assert scene.order[:6] == [ACME, BETA] * 3


async def test_places_go_by_weight() -> None:
    async with full(FairQueue(places=1)) as scene:
        for _ in range(40):
            await scene.come(ACME, weight=1)
        for _ in range(40):
            await scene.come(BETA, weight=3)
    assert abs(Counter(scene.order[:40])[BETA] - 30) <= 1
    assert abs(Counter(scene.order[:20])[BETA] - 15) <= 1


async def test_a_tenant_whose_calls_are_long_gets_as_much_of_the_server_and_not_as_many_calls() -> None:
    async with full(FairQueue(places=1)) as scene:
        for _ in range(40):
            await scene.come(ACME, cost=4_000)
        for _ in range(40):
            await scene.come(BETA, cost=1_000)
    assert abs(Counter(scene.order[:40])[BETA] - 32) <= 1


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), min_size=1, max_size=60),
    weights=st.tuples(*[st.integers(1, 20)] * 3),
)
async def test_no_two_tenants_that_wait_drift_apart_by_more_than_a_call_of_each(
    calls: list[tuple[int, int]], weights: tuple[int, int, int]
) -> None:
    """Goyal, Vin and Cheng 1996, theorem 1: |W_f / w_f - W_g / w_g| <= l_f / w_f + l_g / w_g while both wait."""
    tenants = (ACME, BETA, GAMMA)
    async with full(FairQueue(places=1)) as scene:
        for number, cost in calls:
            await scene.come(tenants[number], weight=weights[number], cost=cost)
    costs = [[cost for number, cost in calls if number == tenant] for tenant in range(3)]
    ended = [0, 0, 0]
    turns = [tenants.index(tenant_id) for tenant_id in scene.order]
    for turn in turns:
        served = [sum(costs[number][: ended[number]]) / weights[number] for number in range(3)]
        waiting = [number for number in range(3) if ended[number] < len(costs[number])]
        for one in waiting:
            for other in waiting:
                apart = max(costs[one]) / weights[one] + max(costs[other]) / weights[other]
                assert abs(served[one] - served[other]) <= apart + 1e-9
        ended[turn] += 1
    assert ended == [len(one) for one in costs]


async def test_within_a_tenant_who_came_first_goes_first() -> None:
    order: list[int] = []

    async def call(number: int) -> None:
        async with queue.place(ACME, timeout_s=LONG_S):
            order.append(number)

    queue = FairQueue(places=1)
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, queue.place(ACME, timeout_s=LONG_S):
            for number in range(10):
                tasks.start_soon(call, number)
            await until(lambda: queue.load().waiting == 10)
    assert order == list(range(10))


async def test_what_a_tenant_used_while_places_were_free_costs_it_nothing_later() -> None:
    queue = FairQueue(places=2)
    async with queue.place(GAMMA, timeout_s=LONG_S):
        for _ in range(100):
            async with queue.place(ACME, timeout_s=LONG_S):
                pass
        async with full(queue) as scene:
            for tenant_id in (ACME, ACME, BETA, BETA):
                await scene.come(tenant_id)
    assert scene.order == [ACME, BETA, ACME, BETA]


Calls = Sequence[tuple[UUID, float]]
"""Whose, and with which weight."""


async def served(
    first: Calls,
    *,
    then: Mapping[int, Calls] | None = None,
    age_s: float = math.inf,
    call_s: float = 0,
    before_s: float = 0,
) -> list[UUID]:
    """Return whose calls were served, in order.

    Args:
        first: They wait when the one place becomes free, `before_s` later.
        then: Those that come while the call of this number, from 0, is served; somebody else waits then.
        age_s: Of the queue.
        call_s: How long each call takes.
        before_s: How long `first` waited.
    """
    clock = Hand()
    queue = FairQueue(places=1, max_waiting_per_tenant=len(first), age_s=age_s, clock=clock)
    order: list[UUID] = []

    async def call(tenant_id: UUID, weight: float) -> None:
        async with queue.place(tenant_id, weight=weight, timeout_s=LONG_S):
            order.append(tenant_id)
            clock.now += call_s
            await come((then or {}).get(len(order) - 1, ()))

    async def come(calls: Calls) -> None:
        waiting = queue.load().waiting + len(calls)
        for tenant_id, weight in calls:
            tasks.start_soon(call, tenant_id, weight)
        await until(lambda: queue.load().waiting == waiting)

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, queue.place(uuid4(), timeout_s=LONG_S):
            await come(first)
            clock.now += before_s
    return order


async def test_who_was_away_has_saved_nothing_up() -> None:
    order = await served([(BETA, 1.0), *[(ACME, 1.0)] * 100], then={50: [(BETA, 1.0)] * 20})
    assert Counter(order[:51]) == {BETA: 1, ACME: 50}
    assert abs(Counter(order[51:71])[BETA] - 10) <= 1


async def test_who_was_away_has_not_grown_old_meanwhile() -> None:
    calls = [(BETA, 1e-9), *[(ACME, 1.0)] * 100]
    order = await served(calls, then={50: [(BETA, 1e-9)]}, age_s=10, call_s=1)
    first, second = (place for place, tenant_id in enumerate(order) if tenant_id == BETA)
    assert first <= 1
    assert 59 <= second <= 61


async def test_nobody_waits_for_ever_however_little_its_weight() -> None:
    calls = [(ACME, 1.0)] * 100 + [(BETA, 1e-9)] * 3
    assert (await served(calls, call_s=1))[-2:] == [BETA, BETA], "after everybody else"
    order = await served(calls, age_s=10, call_s=1)
    first, second, third = (place for place, tenant_id in enumerate(order) if tenant_id == BETA)
    assert first <= 1
    assert second - first <= 11
    assert third - second <= 11


async def test_a_flood_of_old_calls_does_not_stand_before_a_neighbours_new_one() -> None:
    order = await served([(ACME, 1.0)] * 500 + [(BETA, 1.0)] * 2, age_s=10, call_s=1, before_s=1000)
    assert order.index(BETA) <= 1
    assert Counter(order[:4])[BETA] == 2


async def test_where_everybody_has_grown_old_the_weights_hold_for_every_second_place() -> None:
    crowd = [uuid4() for _ in range(10)]
    calls = [(tenant_id, 1.0) for tenant_id in crowd for _ in range(20)] + [(ACME, 1000.0)] * 100
    order = await served(calls, age_s=1, call_s=10)
    # half by weight, nearly all of it hers, half in turn: she has a bit more than half, and each of the others some
    shares = Counter(order[:100])
    assert 45 <= shares[ACME] <= 60
    assert all(shares[tenant_id] >= 3 for tenant_id in crowd)


@pytest.mark.parametrize(
    ("said", "used", "share"),
    [(1000, 10, 20), (10, 10, 20), (1, 10, 20), (10, 30, 10), (10, 0, 38), (10, math.inf, 20)],
)
async def test_what_a_call_was_charged_too_much_or_too_little_is_put_right_when_it_ends(
    said: float, used: float, share: int
) -> None:
    order: list[UUID] = []
    queue = FairQueue(places=1)

    async def call(tenant_id: UUID, said: float, used: float) -> None:
        async with queue.place(tenant_id, cost=said, timeout_s=LONG_S) as place:
            order.append(tenant_id)
            place.cost = used

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, queue.place(uuid4(), timeout_s=LONG_S):
            for _ in range(40):
                tasks.start_soon(call, ACME, said, used)
                tasks.start_soon(call, BETA, 10, 10)
            await until(lambda: queue.load().waiting == 80)
    assert abs(Counter(order[:40])[ACME] - share) <= 2


async def test_what_comes_back_to_a_tenant_gives_it_no_burst() -> None:
    queue = FairQueue(places=2, max_waiting_per_tenant=100)
    order: list[UUID] = []
    ended = anyio.Event()

    async def long_call() -> None:
        async with queue.place(ACME, cost=1_000, timeout_s=LONG_S) as place:
            await ended.wait()
            place.cost = 1

    async def call(tenant_id: UUID) -> None:
        async with queue.place(tenant_id, timeout_s=LONG_S):
            order.append(tenant_id)
            if len(order) == 50:
                ended.set()
                await until(lambda: len(order) == 51)  # the other place goes on

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, queue.place(uuid4(), timeout_s=LONG_S):
            tasks.start_soon(long_call)
            for _ in range(100):
                tasks.start_soon(call, ACME)
                tasks.start_soon(call, BETA)
            await until(lambda: queue.load().waiting == 200)
    assert order[:50] == [BETA] * 50
    assert abs(Counter(order[50:70])[ACME] - 10) <= 1


async def test_who_may_not_even_wait_is_told_at_once_when_to_come_back_and_others_may() -> None:
    clock = Hand()
    queue = FairQueue(places=1, max_waiting_per_tenant=2, clock=clock)
    for _ in range(100):
        async with queue.place(BETA, timeout_s=LONG_S):
            clock.now += 8
    async with anyio.create_task_group() as tasks, queue.place(GAMMA, timeout_s=LONG_S):
        for _ in range(2):
            tasks.start_soon(hold, queue, ACME)
        await until(lambda: queue.load().waiting == 2)
        alone = await refused(queue, ACME)
        assert "of this tenant" in alone.message
        assert 7 < alone.retry_after_s < 9
        tasks.start_soon(hold, queue, BETA)
        await until(lambda: queue.load().waiting == 3)
        assert 15 < (await refused(queue, ACME)).retry_after_s < 17, "a neighbour waits too"
        for _ in range(100):
            tasks.start_soon(hold, queue, uuid4())
        await until(lambda: queue.load().tenants_waiting == 102)
        assert (await refused(queue, ACME)).retry_after_s == MAX_RETRY_S
        tasks.cancel_scope.cancel()
    assert at_rest(queue)


async def hold(queue: FairQueue, tenant_id: UUID) -> None:
    """Hold a place until cancelled."""
    async with queue.place(tenant_id, timeout_s=LONG_S):
        await anyio.sleep_forever()


async def refused(queue: FairQueue, tenant_id: UUID, *, timeout_s: float = LONG_S) -> RateLimited:
    """Return the refusal of a call that must be refused."""
    with anyio.fail_after(BOUND_S), pytest.raises(RateLimited) as caught:
        async with queue.place(tenant_id, timeout_s=timeout_s):
            pass
    return caught.value


async def test_who_waits_longer_than_it_wants_to_is_refused_and_leaves_no_trace() -> None:
    queue = FairQueue(places=1)
    async with queue.place(ACME, timeout_s=LONG_S):
        for timeout_s in (0, 0.01):
            refusal = await refused(queue, BETA, timeout_s=timeout_s)
            assert "busy" in refusal.message
            assert 0 < refusal.retry_after_s <= MAX_RETRY_S
        assert queue.load() == Load(places=1, running=1, waiting=0, tenants_waiting=0)
    assert at_rest(queue)


async def test_a_place_says_how_long_it_was_waited_for() -> None:
    clock = Hand()
    queue = FairQueue(places=1, clock=clock)
    waited: list[float] = []

    async def call() -> None:
        async with queue.place(BETA, timeout_s=LONG_S) as place:
            waited.append(place.waited_s)

    async with anyio.create_task_group() as tasks, queue.place(ACME, timeout_s=LONG_S) as place:
        assert place.waited_s == 0
        tasks.start_soon(call)
        await until(lambda: queue.load().waiting == 1)
        clock.now += 3
    assert waited == [3]


async def test_a_cancelled_call_gives_its_place_back_and_so_does_one_that_was_still_waiting() -> None:
    queue = FairQueue(places=1)
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as running:
            running.start_soon(hold, queue, ACME)
            await until(lambda: queue.load().running == 1)
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(hold, queue, ACME)
                waiting.start_soon(hold, queue, BETA)
                await until(lambda: queue.load().waiting == 2)
                waiting.cancel_scope.cancel()
            assert queue.load() == Load(places=1, running=1, waiting=0, tenants_waiting=0)
            running.cancel_scope.cancel()
    assert at_rest(queue)


async def test_a_waiter_that_is_given_a_place_and_cancelled_in_the_same_moment_passes_it_on() -> None:
    queue = FairQueue(places=1)
    entered: list[UUID] = []

    async def call() -> None:
        async with queue.place(BETA, timeout_s=LONG_S):
            entered.append(BETA)

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as unlucky:
            async with queue.place(GAMMA, timeout_s=LONG_S):
                unlucky.start_soon(hold, queue, ACME)
                await until(lambda: queue.load().waiting == 1)
                tasks.start_soon(call)
                await until(lambda: queue.load().waiting == 2)
            assert queue.load().waiting == 1, "ACME's was given the place"
            unlucky.cancel_scope.cancel()  # before it has run again
    assert entered == [BETA]
    assert at_rest(queue)


async def test_a_call_that_fails_gives_its_place_back() -> None:
    queue = FairQueue(places=1)
    for _ in range(3):
        with pytest.raises(NotFound):
            async with queue.place(ACME, timeout_s=LONG_S):
                raise NotFound
    assert at_rest(queue)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_no_place_is_lost_and_none_is_free_while_somebody_waits(seed: int) -> None:
    """Hundreds of calls that end well, fail, give up waiting or are cancelled, at any moment."""
    dice = random.Random(seed)
    places = dice.randint(1, 4)
    queue = FairQueue(places=places, max_waiting_per_tenant=20, age_s=dice.choice([0.001, 1, math.inf]))
    tenants = [uuid4() for _ in range(6)]
    ends: Counter[str] = Counter()
    running = 0

    async def call() -> None:
        nonlocal running
        with anyio.CancelScope() as scope:
            if dice.random() < 0.3:
                tasks.start_soon(cancel, scope, dice.randint(0, 40))
            try:
                timeout_s = dice.choice([0, 0.001, LONG_S, LONG_S])
                weight, cost = dice.choice([0.1, 1, 7]), dice.choice([1, 10, 500])
                async with queue.place(dice.choice(tenants), weight=weight, cost=cost, timeout_s=timeout_s) as place:
                    running += 1
                    try:
                        watch()
                        for _ in range(dice.randint(0, 5)):
                            await checkpoint()
                        place.cost = dice.choice([0, 1, 10, 1_000_000, math.nan])
                        if dice.random() < 0.2:
                            raise NotFound
                    finally:
                        running -= 1
                ends["well"] += 1
            except NotFound:
                ends["failed"] += 1
            except RateLimited:
                ends["refused"] += 1
        ends["cancelled"] += scope.cancelled_caught
        watch()

    def watch() -> None:
        load = queue.load()
        assert running <= load.running <= places, "whoever was given a place and has not run yet holds it too"
        assert load.running == places or load.waiting == 0

    async def cancel(scope: anyio.CancelScope, after: int) -> None:
        for _ in range(after):
            await checkpoint()
        scope.cancel()

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            for _ in range(400):
                tasks.start_soon(call)
                for _ in range(dice.choice([0, 0, 1, 5])):
                    await checkpoint()
    assert at_rest(queue)
    assert sum(ends.values()) == 400
    assert all(ends[end] > 0 for end in ("well", "failed", "refused", "cancelled")), ends


async def test_a_weight_or_a_cost_that_is_none_is_a_defect_and_not_a_share() -> None:
    queue = FairQueue(places=1)
    for bad in (0.0, -1.0, math.inf, math.nan):
        for arguments in ({"weight": bad}, {"cost": bad}):
            with pytest.raises(ValueError, match="positive and finite"):
                async with queue.place(ACME, timeout_s=LONG_S, **arguments):
                    pass
    for make in (partial(FairQueue, places=0), partial(FairQueue, places=1, max_waiting_per_tenant=0)):
        with pytest.raises(ValueError, match="at least one place"):
            make()
    assert at_rest(queue)
