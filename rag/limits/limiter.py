"""Lets requests in, or says when to come back: by tenant and by user, by rate and by how many run at a time.

Above: both faces, which ask before they work. Below: `tiers` (what is allowed), `counts` (what was spent), `places`
(what runs), `pauses` (before a refusal). A neighbour's requests never count, and never stand in a queue before one's
own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NoReturn, Protocol

from redis.asyncio import Redis

from rag.clock import Clock
from rag.errors import RateLimited
from rag.identity.principal import Principal
from rag.limits.counts import REDIS_TIMEOUT_S, Account, Counts, LocalCounts, RedisCounts, Verdict
from rag.limits.gcra import remaining
from rag.limits.metrics import METRICS, LimitMetrics, RefusedBy
from rag.limits.pauses import Pauses
from rag.limits.places import Places
from rag.limits.tiers import TierSource
from rag.limits.values import Allowance, LimitStatus, Standing, TierLimits
from rag.settings import Settings

__all__ = ["Limiter", "TieredLimiter", "open_limiter"]

MIN_RETRY_S = 0.001
OPERATIONS_PER_CONNECTION = 8
"""Of the database: so many operations run at a time in a process. More would wait for a connection, in no order of
tenants."""


class Limiter(Protocol):
    """Lets requests in or says when to come back.

    Each method may ask the database for the tenant's tier, and raises what `tiers.TierSource` does: SealRefused or
    Revoked for a principal that is not accepted, Unavailable where the database does not answer.
    """

    async def admit(self, principal: Principal, cost: int = 1) -> None:
        """Return if the caller may spend `cost` now, which is charged to it and to its tenant, or to neither.

        Raises:
            RateLimited: It may not; `retry_after_s` says when.
        """
        ...

    def admitted(
        self, principal: Principal, cost: int = 1, *, lasting: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """Admit the caller and hold one of its places among the operations that run at a time, until the block ends.

        `lasting` operations wait for something most of the time, and take no place of the process.

        Raises:
            RateLimited: As `admit`, or all places are taken; then nothing is charged.
        """
        ...

    async def status(self, principal: Principal) -> LimitStatus:
        """Return how the caller stands. Costs nothing."""
        ...


class TieredLimiter:
    """Holds each tenant, and each user within it, to what the tenant's tier allows. Satisfies `Limiter`."""

    def __init__(
        self,
        *,
        tiers: TierSource,
        counts: Counts,
        places: Places | None = None,
        pauses: Pauses | None = None,
        metrics: LimitMetrics = METRICS,
    ) -> None:
        """Take the parts; what is open in them stays the caller's to close."""
        self._tiers = tiers
        self._counts = counts
        self._places = Places() if places is None else places
        self._pauses = Pauses() if pauses is None else pauses
        self._metrics = metrics

    async def admit(self, principal: Principal, cost: int = 1) -> None:
        """See `Limiter.admit`."""
        verdict = await self._counts.charge(_account(principal, await self._tiers(principal)), cost)
        if verdict.refused:
            await self._refuse(verdict)

    @asynccontextmanager
    async def admitted(self, principal: Principal, cost: int = 1, *, lasting: bool = False) -> AsyncGenerator[None]:
        """See `Limiter.admitted`."""
        limits = await self._tiers(principal)
        account = _account(principal, limits)
        # what is refused anyway neither waits for a place nor keeps another waiting
        known = self._counts.refusal(account, cost)
        if known is not None and known.refused:
            await self._refuse(known)
        try:
            await self._places.enter(principal.tenant_id, principal.subject, limits, lasting=lasting)
        except RateLimited:
            self._metrics.refused(RefusedBy.CONCURRENCY)
            await self._pauses.before_refusing()
            raise
        try:
            verdict = await self._counts.charge(account, cost)
            if not verdict.refused:
                yield
                return
        finally:
            self._places.leave(principal.tenant_id, principal.subject, lasting=lasting)
        await self._refuse(verdict)

    async def status(self, principal: Principal) -> LimitStatus:
        """See `Limiter.status`."""
        limits = await self._tiers(principal)
        account = _account(principal, limits)
        verdict = await self._counts.charge(account, 0)
        tenant_running, user_running = self._places.running(principal.tenant_id, principal.subject)
        return LimitStatus(
            tier=limits.name,
            tenant=_standing(limits.tenant, verdict.tenant_ahead_us, tenant_running),
            user=_standing(limits.user, verdict.user_ahead_us, user_running),
        )

    async def _refuse(self, verdict: Verdict) -> NoReturn:
        by = RefusedBy.TENANT if verdict.tenant_wait_us >= verdict.user_wait_us else RefusedBy.USER
        self._metrics.refused(by)
        wait_s = max(verdict.tenant_wait_us, verdict.user_wait_us) / 1e6
        paused_s = await self._pauses.before_refusing()
        raise RateLimited(f"too many requests from this {by.value}", retry_after_s=max(wait_s - paused_s, MIN_RETRY_S))


@asynccontextmanager
async def open_limiter(
    settings: Settings,
    tiers: TierSource,
    *,
    metrics: LimitMetrics = METRICS,
    pauses: Pauses | None = None,
    share: int = 1,
    clock: Clock = time.monotonic,
) -> AsyncGenerator[Limiter]:
    """Open a limiter that counts in Redis, or in this process where none is configured; closed when the block ends.

    Where it counts alone it lets in one part in `share`, the number of processes that serve together.
    """
    places = Places(total=OPERATIONS_PER_CONNECTION * settings.pool_size)
    if settings.redis_url is None:
        local = LocalCounts(share=share, clock=clock)
        yield TieredLimiter(tiers=tiers, counts=local, places=places, pauses=pauses, metrics=metrics)
        return
    redis = Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    counts = RedisCounts(redis, installation=settings.issuer, metrics=metrics, share=share, clock=clock)
    try:
        yield TieredLimiter(tiers=tiers, counts=counts, places=places, pauses=pauses, metrics=metrics)
    finally:
        await counts.aclose()
        await redis.aclose()


def _account(principal: Principal, limits: TierLimits) -> Account:
    return Account(
        tenant_id=principal.tenant_id,
        subject=principal.subject,
        tenant=limits.tenant.rate,
        user=limits.user.rate,
    )


def _standing(allowance: Allowance, ahead_us: int, running: int) -> Standing:
    return Standing(
        per_minute=allowance.per_minute,
        burst=allowance.burst,
        remaining=remaining(allowance.rate, ahead_us=ahead_us),
        running=running,
        concurrency=allowance.concurrency,
    )
