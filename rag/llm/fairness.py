"""Who may call a model server next: as many calls at a time as it has places, shared out among the tenants that wait.

Above: `gateway`, one queue for an endpoint. Below: nothing but anyio. In front of a GPU the order of arrival is no fair
one: whoever sends a thousand requests would have everybody behind them wait. Start-time fair queueing instead (Goyal,
Vin and Cheng, SIGCOMM 1996, doi 10.1145/248156.248171), a tenant being a flow and a call's cost its length:

1. A tenant has a virtual time at which its next call starts. It begins at the queue's, and no credit is saved up.
2. A place that becomes free goes to the tenant whose next call starts first, and there to who came first.
3. That call moves its tenant's next start by cost / weight, and the queue's virtual time to its own start.
4. While a place is free there is nothing to share: what was used until then is forgotten.

Two tenants that both wait are given places in proportion to their weights, to within one call of each, whatever others
send. How long a call is, is known when it has ended: its cost is corrected then (as in Sheng et al., "Fairness in
Serving Large Language Models", OSDI 2024).

Weights alone could make somebody wait very long. A tenant that waits and was given nothing for `age_s` therefore comes
before that order, the longest without first; every second place at most goes so, and the weights hold for the others.
It is the tenant that ages and not the call: a flood of old calls ages its sender no more than one does.

A queue knows its own process. Several processes in front of one server share its places out among them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from rag.clock import Clock
from rag.errors import RateLimited

__all__ = ["AGE_S", "MAX_WAITING", "FairQueue", "Load", "Place"]

AGE_S = 10.0
MAX_WAITING = 64
"""Of one tenant: more would wait longer than anybody looks on, and hold their prompts in memory meanwhile."""
FIRST_GUESS_S = 1.0
"""How long a place is held, before one was."""
MAX_COST = 1e12
"""No call costs more: sums of what there can be stay numbers."""
SMOOTHING = 0.1
"""The newest call's part in how long a place is held on average."""
MIN_RETRY_S = 0.1
MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A queue at a moment."""

    places: int
    running: int
    waiting: int
    tenants_waiting: int


@dataclass(eq=False, slots=True)
class _Waiter:
    weight: float
    cost: float
    came: float
    period: int = 0
    granted: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class _Flow:
    """What one tenant was given since a place was last free, and who of it waits."""

    start: float
    """Virtual: of the next call."""
    served: float
    """When it was last given a place, or began to wait: what its age counts from."""
    queue: deque[_Waiter] = field(default_factory=deque[_Waiter])


@dataclass(slots=True)
class Place:
    """A place that is held."""

    waited_s: float
    cost: float
    """What was charged for it, in the unit of `FairQueue.place`; set it to what the call has used before it ends."""


class FairQueue:
    """The places of one model server, as this process has them."""

    def __init__(
        self,
        *,
        places: int,
        max_waiting_per_tenant: int = MAX_WAITING,
        age_s: float = AGE_S,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start with all places free. `age_s` is in seconds; infinity leaves all to the weights."""
        if places < 1 or max_waiting_per_tenant < 1 or not age_s > 0:
            raise ValueError("a queue has at least one place to run in and one to wait in, and its age is positive")
        self._places = places
        self._max_waiting = max_waiting_per_tenant
        self._age_s = age_s
        self._clock = clock
        self._running = 0
        self._virtual = 0.0
        self._flows: dict[UUID, _Flow] = {}
        self._period = 0
        """Counts the times that a place was free again."""
        self._backlog: dict[UUID, _Flow] = {}
        """Those flows in which somebody waits. While it is not empty, no place is free."""
        self._by_age = False
        """Whether the last place went to the oldest."""
        self._held_s = FIRST_GUESS_S

    def load(self) -> Load:
        """Return how full the queue is, of all tenants together."""
        return Load(
            places=self._places,
            running=self._running,
            waiting=sum(len(flow.queue) for flow in self._backlog.values()),
            tenants_waiting=len(self._backlog),
        )

    def __len__(self) -> int:
        """Return how many tenants are kept in mind."""
        return len(self._flows)

    @asynccontextmanager
    async def place(
        self, tenant_id: UUID, *, weight: float = 1.0, cost: float = 1.0, timeout_s: float
    ) -> AsyncGenerator[Place]:
        """Hold one of the places until the block ends.

        Args:
            tenant_id: Whose call it is.
            weight: The tenant's share of the server, relative to the others' that wait.
            cost: What is known already of how much of the server the call takes: the prompt's tokens. A bound on all
                that it might take would keep its tenant from a second place until it ends.
            timeout_s: The longest wait for a place, in seconds.

        Raises:
            RateLimited: No place became free in time, or too many calls of the tenant wait already.
        """
        if not (0 < weight < math.inf and 0 < cost < math.inf):
            raise ValueError("a weight and a cost are positive and finite")
        waiter = _Waiter(weight, min(cost, MAX_COST), self._clock())
        await self._enter(tenant_id, waiter, timeout_s)
        began = self._clock()
        place = Place(began - waiter.came, cost)
        try:
            yield place
        finally:
            self._held_s += SMOOTHING * (max(0.0, self._clock() - began) - self._held_s)
            self._leave(tenant_id, waiter, used=place.cost)

    async def _enter(self, tenant_id: UUID, waiter: _Waiter, timeout_s: float) -> None:
        flow = self._flows.setdefault(tenant_id, _Flow(self._virtual, waiter.came))
        flow.start = max(flow.start, self._virtual)
        if self._running < self._places:
            self._grant(tenant_id, flow, waiter)
            return
        if len(flow.queue) >= self._max_waiting:
            raise RateLimited(
                "too many calls of this tenant wait for the model server", retry_after_s=self._until_next(waiter)
            )
        if not flow.queue:
            flow.served = waiter.came
            self._backlog[tenant_id] = flow
        flow.queue.append(waiter)
        entered = False
        try:
            with anyio.move_on_after(timeout_s):
                await waiter.granted.wait()
            entered = waiter.granted.is_set()
        finally:
            if not entered and waiter.granted.is_set():  # and cancelled in the same moment
                self._leave(tenant_id, waiter, used=0.0)
            elif not entered:
                flow.queue.remove(waiter)
                if not flow.queue:
                    del self._backlog[tenant_id]
        if not entered:
            raise RateLimited("the model server is busy", retry_after_s=self._until_next(waiter))

    def _grant(self, tenant_id: UUID, flow: _Flow, waiter: _Waiter, *, by_age: bool = False) -> None:
        if not by_age:  # whose turn was not yet must not move the time on for those whose turn it was
            self._virtual = flow.start
        flow.start += waiter.cost / waiter.weight
        flow.served = self._clock()
        self._running += 1
        self._by_age = by_age
        waiter.period = self._period
        waiter.granted.set()
        if not flow.queue:
            self._backlog.pop(tenant_id, None)

    def _leave(self, tenant_id: UUID, waiter: _Waiter, *, used: float) -> None:
        """Free a place, for whoever is next."""
        self._running -= 1
        if not self._backlog:
            self._flows.clear()
            self._virtual = 0.0
            self._period += 1
            return
        correction = (used - waiter.cost) / waiter.weight
        if waiter.period == self._period and math.isfinite(correction):
            flow = self._flows[tenant_id]
            # what was charged too much comes back, and only to now: nobody's past gives it a burst
            flow.start = max(self._virtual, flow.start + correction)
        next_id, by_age = self._next()
        flow = self._backlog[next_id]
        self._grant(next_id, flow, flow.queue.popleft(), by_age=by_age)

    def _next(self) -> tuple[UUID, bool]:
        """Return the tenant whose turn it is, and whether for its age."""
        if not self._by_age:
            oldest = min(self._backlog, key=lambda tenant_id: self._backlog[tenant_id].served)
            if self._clock() - self._backlog[oldest].served >= self._age_s:
                return oldest, True
        # who began to wait first has the first of equal starts: a dictionary keeps that order
        return min(self._backlog, key=lambda tenant_id: self._backlog[tenant_id].start), False

    def _until_next(self, waiter: _Waiter) -> float:
        """Return, in seconds, about when the tenant's next call gets a place: its share of them, held as of late."""
        others = sum(flow.queue[0].weight for flow in self._backlog.values())
        next_s = self._held_s / self._places * max(1.0, others / waiter.weight)
        return min(max(next_s, MIN_RETRY_S), MAX_RETRY_S)
