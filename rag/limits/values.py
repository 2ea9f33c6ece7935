"""What a caller may ask for, and how much of it is left, as values.

Above: `tiers`, which reads them from the database, `limiter`, which holds callers to them, and whoever shows them.
Below: `gcra`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag.limits.gcra import Rate

__all__ = ["Allowance", "LimitStatus", "Standing", "TierLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one tenant, or one user of it, may ask for."""

    per_minute: int
    """Units of cost in the long run; most operations cost one."""
    burst: int
    """Units at once after a pause."""
    concurrency: int
    """Operations that run at a time in one process."""

    @property
    def rate(self) -> Rate:
        """The same as the algorithm counts it."""
        return Rate(interval_us=max(1, round(60e6 / self.per_minute)), burst=self.burst)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    """What the tenants of a tier may ask for, and each of their users within that."""

    name: str
    tenant: Allowance
    user: Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An allowance, and what of it is left now."""

    per_minute: int
    burst: int
    remaining: int
    """Units that would be let in now; `burst` after a pause."""
    running: int
    """Operations that run in this process now, the one that asks among them."""
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStatus:
    """How a caller stands: its tenant, and itself within the tenant."""

    tier: str
    tenant: Standing
    user: Standing
