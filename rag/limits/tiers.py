"""Which tier a tenant has booked, and what that allows: read from the database, and kept for a while.

Above: `limiter`, which asks for every request, and the CLI, whose operator changes the numbers. Below: `rag.db`.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from rag.clock import Clock
from rag.db.maintenance import MaintenanceSession
from rag.db.pool import Database, Row
from rag.errors import NotFound, Unavailable
from rag.identity.principal import Principal
from rag.limits.values import Allowance, TierLimits
from sql import load_queries

__all__ = ["TierCache", "TierSource", "list_tiers", "one_rate", "set_tier"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("limits")
FRESH_S = 30.0
RETRY_S = 5.0
"""While the database does not answer, one request in so long asks it again; the others go by what is known."""
LOOKUP_TIMEOUT_S = 5.0
FIRST_TIMEOUT_S = 10.0
MAX_TENANTS = 10_000
BURST_S = 10.0
"""Of `one_rate`: after a pause, this many seconds of it may be spent at once."""
UNCAPPED = 100_000
"""Of `one_rate`: more operations at a time than a process can run."""

TierSource = Callable[[Principal], Awaitable[TierLimits]]
"""Returns what the principal's tenant may ask for; raises as `TierCache.__call__`."""


def one_rate(per_minute: int) -> TierSource:
    """Return the source that knows one rate for every tenant and every user, and caps no concurrency."""
    allowance = Allowance(per_minute=per_minute, burst=max(1, round(BURST_S * per_minute / 60)), concurrency=UNCAPPED)
    limits = TierLimits(name="one for all", tenant=allowance, user=allowance)

    async def source(_: Principal) -> TierLimits:
        return limits

    return source


@dataclass(slots=True)
class _Known:
    limits: TierLimits
    fresh_until: float


@dataclass(slots=True)
class _Asking:
    """Requests of one tenant that nothing is known of yet: one asks, the others wait for its answer."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    callers: int = 0
    failures: int = 0


class TierCache:
    """What tenants may ask for, at most FRESH_S old. Satisfies `TierSource`."""

    def __init__(self, database: Database, *, clock: Clock = time.monotonic) -> None:
        """Start knowing nothing."""
        self._database = database
        self._clock = clock
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._asking: dict[UUID, _Asking] = {}

    async def __call__(self, principal: Principal) -> TierLimits:
        """Return what the principal's tenant may ask for.

        Raises:
            SealRefused, Revoked: The database was asked, and does not accept the principal.
            Unavailable: The database does not answer, and nothing is known of the tenant.
        """
        known = self._known.get(principal.tenant_id)
        if known is None:
            return await self._first(principal)
        self._known.move_to_end(principal.tenant_id)
        if self._clock() < known.fresh_until:
            return known.limits
        # this request asks again; the others go on with what is known
        known.fresh_until = self._clock() + RETRY_S
        try:
            return await self._ask(principal)
        except Unavailable:
            _log.warning("the database does not answer: limits go by the tiers that it told before")
            return known.limits

    async def _first(self, principal: Principal) -> TierLimits:
        asking = self._asking.setdefault(principal.tenant_id, _Asking())
        asking.callers += 1
        failures = asking.failures
        try:
            with anyio.fail_after(FIRST_TIMEOUT_S):
                async with asking.lock:
                    known = self._known.get(principal.tenant_id)
                    if known is not None:
                        return known.limits
                    if asking.failures > failures:  # while this request waited
                        raise _unknown()
                    return await self._ask(principal)
        except TimeoutError as exc:
            raise _unknown() from exc
        except Unavailable:
            asking.failures += 1
            raise
        finally:
            asking.callers -= 1
            if asking.callers == 0:
                del self._asking[principal.tenant_id]

    async def _ask(self, principal: Principal) -> TierLimits:
        try:
            with anyio.fail_after(LOOKUP_TIMEOUT_S):
                async with self._database.tenant(principal) as session:
                    row = await session.fetch_one(_QUERIES["tier_of_tenant"], tenant_id=principal.tenant_id)
        except TimeoutError as exc:
            raise _unknown() from exc
        assert row is not None  # the session proved that there is such a tenant
        known = _Known(_limits(row), self._clock() + FRESH_S)
        self._known[principal.tenant_id] = known
        self._known.move_to_end(principal.tenant_id)
        if len(self._known) > MAX_TENANTS:
            self._known.popitem(last=False)
        return known.limits


async def list_tiers(session: MaintenanceSession) -> list[TierLimits]:
    """Return every tier, the smallest first."""
    return [_limits(row) for row in await session.fetch(_QUERIES["list_tiers"])]


async def set_tier(
    session: MaintenanceSession,
    name: str,
    *,
    tenant_per_minute: int | None = None,
    tenant_burst: int | None = None,
    tenant_concurrency: int | None = None,
    user_per_minute: int | None = None,
    user_burst: int | None = None,
    user_concurrency: int | None = None,
) -> None:
    """Give the tenants of the tier other numbers; None leaves one as it is. Servers follow within FRESH_S.

    Raises:
        NotFound: There is no such tier.
        InvalidInput: A number is below 1 or too large.
    """
    found = await session.owner_value(
        _QUERIES["set_tier"],
        name=name,
        tenant_per_minute=tenant_per_minute,
        tenant_burst=tenant_burst,
        tenant_concurrency=tenant_concurrency,
        user_per_minute=user_per_minute,
        user_burst=user_burst,
        user_concurrency=user_concurrency,
    )
    if found is None:
        raise NotFound("there is no such tier; `bulkhead tenant tiers` shows all")


def _limits(row: Row) -> TierLimits:
    tenant, user = [
        Allowance(per_minute=row[f"{of}_per_minute"], burst=row[f"{of}_burst"], concurrency=row[f"{of}_concurrency"])
        for of in ("tenant", "user")
    ]
    return TierLimits(name=row["name"], tenant=tenant, user=user)


def _unknown() -> Unavailable:
    return Unavailable("the limits of this tenant are not known now; try again")
