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
        self._due: OrderedDict[UUID, float] = OrderedDict()

    async def admit(self, tenant_id: UUID, cost: int = 1) -> None:
        """See `Limiter.admit`."""
        wait_s, due_s = decide(self._rate, due_s=self._due.get(tenant_id, 0.0), now_s=self._clock(), cost=cost)
        if wait_s > 0:
            raise RateLimited("too many requests from this tenant", retry_after_s=wait_s)
        self._due[tenant_id] = due_s
        self._due.move_to_end(tenant_id)
        if len(self._due) > MAX_TENANTS:
            self._due.popitem(last=False)


class RedisLimiter:
    """Counts in Redis, on Redis's clock; falls back to `LocalLimiter` while Redis does not answer."""

    def __init__(self, redis: Redis, rate: Rate, *, clock: Clock = system_clock) -> None:
        """`redis` stays the caller's to close."""
        self._rate = rate
        self._clock = clock
        self._script = redis.register_script(REDIS_SCRIPT)
        self._fallback = LocalLimiter(rate, clock=clock)
        self._away_until = 0.0

    async def admit(self, tenant_id: UUID, cost: int = 1) -> None:
        """See `Limiter.admit`."""
        if self._clock() >= self._away_until:
            try:
                wait_s = await self._ask(tenant_id, cost)
            except (RedisError, OSError, TimeoutError) as exc:
                if self._away_until == 0.0:
                    _log.warning("redis does not answer (%s): limits are per process until it does", type(exc).__name__)
                self._away_until = self._clock() + RETRY_REDIS_S
            else:
                if self._away_until > 0.0:
                    _log.warning("redis answers again: limits are shared")
                    self._away_until = 0.0
                if wait_s > 0:
                    raise RateLimited("too many requests from this tenant", retry_after_s=wait_s)
                return
        await self._fallback.admit(tenant_id, cost)

    async def _ask(self, tenant_id: UUID, cost: int) -> float:
        arguments = [repr(self._rate.interval_s), str(self._rate.burst), str(cost)]
        with anyio.fail_after(REDIS_TIMEOUT_S):
            answer = await cast("Awaitable[bytes]", self._script(keys=[f"bulkhead:rate:{tenant_id}"], args=arguments))
        return float(answer)


@asynccontextmanager
async def open_limiter(settings: Settings, *, clock: Clock = system_clock) -> AsyncGenerator[Limiter]:
    """Open the limiter that the settings ask for; closed when the block ends."""
    interval_s = 60.0 / settings.request_limit_per_minute
    rate = Rate(interval_s=interval_s, burst=max(1, round(BURST_S / interval_s)))
    if settings.redis_url is None:
        yield LocalLimiter(rate, clock=clock)
        return
    redis = Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    try:
        yield RedisLimiter(redis, rate, clock=clock)
    finally:
        await redis.aclose()
