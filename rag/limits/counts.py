"""Who has spent how much: counted in this process, or in a Redis that all replicas share.

Above: `limiter`. Below: `gcra`, `metrics` and redis. An account is two numbers, a tenant's and a user's; a request is
charged to both or to neither.

Redis may go away. Then each replica lets in its share of every rate, one part in as many as announced themselves there
lately; it says so in the log, once, and in `bulkhead.limits.degraded`, and asks again every RETRY_REDIS_S.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast
from uuid import UUID

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rag.clock import Clock
from rag.limits.gcra import REDIS_SCRIPT, Rate, decide
from rag.limits.metrics import LimitMetrics

__all__ = ["Account", "Counts", "LocalCounts", "RedisCounts", "Verdict"]

_log = logging.getLogger(__name__)
K = TypeVar("K")
MAX_ACCOUNTS = 100_000
"""Tenants, and users, in a process's own count; the longest unseen is forgotten first: it can only be let in more."""
MAX_REFUSALS = 10_000
REFUSAL_S = 1.0
"""A refusal is repeated for at most so long without asking Redis: a tenant at its limit does not queue there."""
REDIS_TIMEOUT_S = 0.25
REDIS_CONCURRENCY = 8
"""Questions to Redis at a time, each of some tenths of a millisecond. Waiting for a turn is not waiting for Redis: a
crowd must not look like Redis gone, as it does to the library's pool when its connections are used up."""
TURN_TIMEOUT_S = 5.0
RETRY_REDIS_S = 5.0
ANNOUNCE_S = 10.0
REPLICA_S = 120.0
"""A replica that has asked nothing for so long is not counted as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user within a tenant, and the rates that both are held to."""

    tenant_id: UUID
    subject: str
    tenant: Rate
    user: Rate

    @property
    def user_key(self) -> tuple[UUID, str]:
        """The same subject in two tenants is two users."""
        return self.tenant_id, self.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Microseconds to wait, each 0 where the request is let in; and how far ahead the next request is due then."""

    tenant_wait_us: int
    user_wait_us: int
    tenant_ahead_us: int
    user_ahead_us: int

    @property
    def refused(self) -> bool:
        """Whether either must wait."""
        return self.tenant_wait_us > 0 or self.user_wait_us > 0


class Counts(Protocol):
    """Keeps accounts."""

    def refusal(self, account: Account, cost: int) -> Verdict | None:
        """Return the refusal that a request would meet now, as far as this process knows without asking."""
        ...

    async def charge(self, account: Account, cost: int) -> Verdict:
        """Charge `cost` to the tenant and to the user, or to neither. Cost 0 only asks."""
        ...


class LocalCounts:
    """Counts in this process."""

    def __init__(self, *, share: int = 1, clock: Clock = time.monotonic) -> None:
        """Start with every burst unspent. One part in `share` of every rate is let in: the rest is other processes'."""
        self._share = share
        self._clock = clock
        self._tenants = _Dues[UUID]()
        self._users = _Dues[tuple[UUID, str]]()

    def refusal(self, account: Account, cost: int) -> Verdict | None:
        """See `Counts.refusal`."""
        verdict = self._decide(account, cost, now_us=round(self._clock() * 1e6))
        return verdict if verdict.refused else None

    async def charge(self, account: Account, cost: int) -> Verdict:
        """See `Counts.charge`."""
        now_us = round(self._clock() * 1e6)
        verdict = self._decide(account, cost, now_us=now_us)
        if cost > 0 and not verdict.refused:
            self._tenants.keep(account.tenant_id, now_us + verdict.tenant_ahead_us, now_us=now_us)
            self._users.keep(account.user_key, now_us + verdict.user_ahead_us, now_us=now_us)
        return verdict

    def _decide(self, account: Account, cost: int, *, now_us: int) -> Verdict:
        if self._share > 1:
            account = _shared(account, self._share)
        tenant_due_us, user_due_us = self._tenants.get(account.tenant_id), self._users.get(account.user_key)
        return _decide_both(account, tenant_due_us, user_due_us, now_us=now_us, cost=cost)


class RedisCounts:
    """Counts in Redis, on Redis's clock; for its share in this process while Redis does not answer."""

    def __init__(
        self, redis: Redis, *, installation: str, metrics: LimitMetrics, share: int = 1, clock: Clock = time.monotonic
    ) -> None:
        """`redis` stays the caller's to close. `installation` tells apart installations that share a Redis.

        `share`: as many replicas there are known to be before Redis was ever asked.
        """
        self._redis = redis
        self._script = redis.register_script(REDIS_SCRIPT)
        self._prefix = f"bulkhead:{installation}:limits:"
        self._metrics = metrics
        self._clock = clock
        self._local = LocalCounts(clock=clock)
        self._refusals: OrderedDict[tuple[UUID, str], tuple[float, int, int]] = OrderedDict()
        self._turns = anyio.CapacityLimiter(REDIS_CONCURRENCY)
        self._replica = secrets.token_hex(8)
        self._replicas = share
        self._announce_at = 0.0
        self._ask_again_at: float | None = None

    def refusal(self, account: Account, cost: int) -> Verdict | None:
        """See `Counts.refusal`."""
        now = self._clock()
        if self._ask_again_at is not None and now < self._ask_again_at:
            return self._local.refusal(_shared(account, self._replicas), cost)
        for key in (account.user_key, (account.tenant_id, "")):
            until, *due_us = self._refusals.get(key, (0.0, 0, 0))
            if now < until:
                verdict = _decide_both(account, *due_us, now_us=round(now * 1e6), cost=cost)
                if verdict.refused:
                    return verdict
        return None

    async def charge(self, account: Account, cost: int) -> Verdict:
        """See `Counts.charge`."""
        with anyio.move_on_after(TURN_TIMEOUT_S):
            async with self._turns:
                # who waited for a turn behind the request that was refused need not ask again
                verdict = self.refusal(account, cost) or await self._ask(account, cost)
                if verdict is not None:
                    return verdict
        return await self._local.charge(_shared(account, self._replicas), cost)

    async def aclose(self) -> None:
        """Stop being counted as a replica, if Redis is there to hear it."""
        with suppress(RedisError, OSError, TimeoutError), anyio.fail_after(REDIS_TIMEOUT_S):
            if self._ask_again_at is None and self._announce_at > 0.0:
                await self._redis.zrem(f"{self._prefix}replicas", self._replica)
        if self._ask_again_at is not None:
            self._ask_again_at = None
            self._metrics.recovered()

    async def _ask(self, account: Account, cost: int) -> Verdict | None:
        """Return what Redis decides, or None when it does not answer."""
        now = self._clock()
        if self._ask_again_at is not None:
            if now < self._ask_again_at:
                return None
            self._ask_again_at = now + RETRY_REDIS_S  # one request finds out for all
        announces = now >= self._announce_at
        try:
            with anyio.fail_after(REDIS_TIMEOUT_S):
                answer = await cast(
                    "Awaitable[list[int]]",
                    self._script(keys=self._keys(account), args=self._arguments(account, cost, announces=announces)),
                )
        except (RedisError, OSError, TimeoutError) as exc:
            self._lost(exc)
            return None
        self._answered()
        *numbers, replicas = answer
        if announces:
            self._announce_at = now + ANNOUNCE_S
            self._replicas = max(1, replicas)
        verdict = Verdict(
            tenant_wait_us=numbers[0],
            user_wait_us=numbers[1],
            tenant_ahead_us=numbers[2],
            user_ahead_us=numbers[3],
        )
        self._note(account, verdict, now)
        return verdict

    def _keys(self, account: Account) -> list[str]:
        # a subject is any text: hashed, it can neither name another tenant's key nor be read by who lists keys
        user = hashlib.sha256(account.subject.encode()).hexdigest()
        tenant = f"{self._prefix}{account.tenant_id}"
        return [tenant, f"{tenant}:{user}", f"{self._prefix}replicas"]

    def _arguments(self, account: Account, cost: int, *, announces: bool) -> list[int | str]:
        rates = [number for rate in (account.tenant, account.user) for number in (rate.interval_us, rate.burst)]
        return [cost, *rates, self._replica if announces else "", round(REPLICA_S * 1e6)]

    def _note(self, account: Account, verdict: Verdict, now: float) -> None:
        """Remember a refusal, as the due times on this process's clock: they can only move further away."""
        if not verdict.refused:
            return
        now_us = round(now * 1e6)
        due_us = now_us + verdict.tenant_ahead_us, now_us + verdict.user_ahead_us
        if verdict.tenant_wait_us > 0:
            self._keep_refusal((account.tenant_id, ""), (now + REFUSAL_S, due_us[0], 0))
        if verdict.user_wait_us > 0:
            self._keep_refusal(account.user_key, (now + REFUSAL_S, *due_us))

    def _keep_refusal(self, key: tuple[UUID, str], kept: tuple[float, int, int]) -> None:
        self._refusals[key] = kept
        self._refusals.move_to_end(key)
        if len(self._refusals) > MAX_REFUSALS:
            self._refusals.popitem(last=False)

    def _lost(self, exc: Exception) -> None:
        if self._ask_again_at is None:
            self._metrics.lost()
            _log.warning(
                "redis does not answer (%s): limits are counted here, for 1 part in %d of each, until it does",
                type(exc).__name__,
                self._replicas,
            )
        self._ask_again_at = self._clock() + RETRY_REDIS_S
        self._announce_at = 0.0

    def _answered(self) -> None:
        if self._ask_again_at is not None:
            self._ask_again_at = None
            self._metrics.recovered()
            _log.warning("redis answers again: limits are shared")


class _Dues(Generic[K]):
    """When the next request of each is due; what is past says nothing and is dropped."""

    def __init__(self) -> None:
        self._due_us: OrderedDict[K, int] = OrderedDict()

    def get(self, key: K) -> int:
        return self._due_us.get(key, 0)

    def keep(self, key: K, due_us: int, *, now_us: int) -> None:
        self._due_us[key] = due_us
        self._due_us.move_to_end(key)
        for oldest in list(itertools.islice(self._due_us, 2)):
            if self._due_us[oldest] <= now_us or len(self._due_us) > MAX_ACCOUNTS:
                del self._due_us[oldest]


def _decide_both(account: Account, tenant_due_us: int, user_due_us: int, *, now_us: int, cost: int) -> Verdict:
    tenant_wait_us, tenant_charged_us = decide(account.tenant, due_us=tenant_due_us, now_us=now_us, cost=cost)
    user_wait_us, user_charged_us = decide(account.user, due_us=user_due_us, now_us=now_us, cost=cost)
    if tenant_wait_us > 0 or user_wait_us > 0:
        _, tenant_charged_us = decide(account.tenant, due_us=tenant_due_us, now_us=now_us, cost=0)
        _, user_charged_us = decide(account.user, due_us=user_due_us, now_us=now_us, cost=0)
    return Verdict(
        tenant_wait_us=tenant_wait_us,
        user_wait_us=user_wait_us,
        tenant_ahead_us=tenant_charged_us - now_us,
        user_ahead_us=user_charged_us - now_us,
    )


def _shared(account: Account, share: int) -> Account:
    return replace(account, tenant=_part(account.tenant, share), user=_part(account.user, share))


def _part(rate: Rate, share: int) -> Rate:
    return Rate(interval_us=rate.interval_us * share, burst=max(1, rate.burst // share))
