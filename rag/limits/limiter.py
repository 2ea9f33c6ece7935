"""How many requests a tenant may make: counted per process, or across all of them in Redis.

Above: both faces, which ask before they work. Below: `gcra`, and redis where it is configured. A neighbour's requests
never count: there is one number per tenant. With Redis gone the processes count for themselves and log it once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol, cast
from uuid import UUID

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rag.clock import Clock, system_clock
from rag.errors import RateLimited
from rag.limits.gcra import REDIS_SCRIPT, Rate, decide
from rag.settings import Settings

__all__ = ["Limiter", "LocalLimiter", "RedisLimiter", "open_limiter"]

_log = logging.getLogger(__name__)
BURST_S = 10.0
"""A tenant that has been quiet may spend this many seconds of its rate at once."""
MAX_TENANTS = 100_000
"""Of a process's own count; the one longest unseen is forgotten first, which can only let more in."""
REDIS_TIMEOUT_S = 0.25
REDIS_CONCURRENCY = 8
"""Questions to Redis at a time, each of some tenths of a millisecond. Waiting for a turn is not waiting for Redis: a
crowd must not look like Redis gone, as it does to the library's pool when its connections are used up."""
RETRY_REDIS_S = 5.0


class Limiter(Protocol):
    """Lets requests in or says when to come back."""

    async def admit(self, tenant_id: UUID, cost: int = 1) -> None:
        """Return if the tenant may spend `cost` now.

        Raises:
            RateLimited: It may not; `retry_after_s` says when.
        """
        ...


class LocalLimiter:
    """Counts in this process."""

    def __init__(self, rate: Rate, *, clock: Clock = system_clock) -> None:
        """Start with every tenant's burst unspent."""
        self._rate = rate
        self._clock = clock
        self._due_us: OrderedDict[UUID, int] = OrderedDict()

    async def admit(self, tenant_id: UUID, cost: int = 1) -> None:
        """See `Limiter.admit`."""
        now_us = int(self._clock() * 1e6)
        wait_us, due_us = decide(self._rate, due_us=self._due_us.get(tenant_id, 0), now_us=now_us, cost=cost)
        _raise_if(wait_us)
        self._due_us[tenant_id] = due_us
        self._due_us.move_to_end(tenant_id)
        if len(self._due_us) > MAX_TENANTS:
            self._due_us.popitem(last=False)


class RedisLimiter:
    """Counts in Redis, on Redis's clock; falls back to `LocalLimiter` while Redis does not answer."""

    def __init__(self, redis: Redis, rate: Rate, *, clock: Clock = system_clock) -> None:
        """`redis` stays the caller's to close."""
        self._rate = rate
        self._clock = clock
        self._script = redis.register_script(REDIS_SCRIPT)
        self._fallback = LocalLimiter(rate, clock=clock)
        self._turns = anyio.CapacityLimiter(REDIS_CONCURRENCY)
        self._away_until = 0.0

    async def admit(self, tenant_id: UUID, cost: int = 1) -> None:
        """See `Limiter.admit`."""
        async with self._turns:
            wait_us = await self._ask(tenant_id, cost) if self._clock() >= self._away_until else None
        if wait_us is None:
            await self._fallback.admit(tenant_id, cost)
        else:
            _raise_if(wait_us)

    async def _ask(self, tenant_id: UUID, cost: int) -> int | None:
        """Return the wait that Redis decides on, or None when it does not answer."""
        arguments = [self._rate.interval_us, self._rate.burst, cost]
        try:
            with anyio.fail_after(REDIS_TIMEOUT_S):
                wait_us = await cast(
                    "Awaitable[int]", self._script(keys=[f"bulkhead:rate:{tenant_id}"], args=arguments)
                )
        except (RedisError, OSError, TimeoutError) as exc:
            if self._away_until == 0.0:
                _log.warning("redis does not answer (%s): limits are per process until it does", type(exc).__name__)
            self._away_until = self._clock() + RETRY_REDIS_S
            return None
        if self._away_until > 0.0:
            _log.warning("redis answers again: limits are shared")
            self._away_until = 0.0
        return wait_us


@asynccontextmanager
async def open_limiter(settings: Settings, *, clock: Clock = system_clock) -> AsyncGenerator[Limiter]:
    """Open the limiter that the settings ask for; closed when the block ends."""
    per_minute = settings.request_limit_per_minute
    rate = Rate(interval_us=max(1, round(60e6 / per_minute)), burst=max(1, round(BURST_S * per_minute / 60)))
    if settings.redis_url is None:
        yield LocalLimiter(rate, clock=clock)
        return
    redis = Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    try:
        yield RedisLimiter(redis, rate, clock=clock)
    finally:
        await redis.aclose()


def _raise_if(wait_us: int) -> None:
    if wait_us > 0:
        raise RateLimited("too many requests from this tenant", retry_after_s=wait_us / 1e6)
