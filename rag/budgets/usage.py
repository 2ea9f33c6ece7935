"""What was spent, and how the budgets stand: read from the ledger, for a tenant's own session and for the operator.

Above: the faces' usage, the CLI and its export. Below: `rag.db`. Everything is read from the same rows, so that those
of an export add up to the totals, and the totals to what the accounts were charged, to the last digit.

A call belongs to the time at which it was held; calls under way have cost nothing yet.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from rag.db.pool import Row
from sql import Query, load_queries

__all__ = [
    "Account",
    "By",
    "Charge",
    "Position",
    "Reader",
    "Usage",
    "UsageFilter",
    "all_charges",
    "read_accounts",
    "read_charges",
    "read_usage",
    "task_cost",
]

_QUERIES = load_queries("budgets")
PAGE = 1000


class Reader(Protocol):
    """A session that may read a tenant's ledger: the tenant's own (`rag.db.pool.Session`), or an operator's
    (`rag.db.maintenance.MaintenanceSession`)."""

    async def fetch(self, query: Query, **parameters: object) -> list[Row]:
        """Return all rows."""
        ...


class By(StrEnum):
    """What totals are told apart by."""

    DAY = "day"
    """Of UTC."""
    MODEL = "model"
    USER = "user"
    TEAM = "team"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Whose calls, and of which time: from `since` on and before `until`."""

    tenant_id: UUID
    since: datetime
    until: datetime
    subject: str | None = None
    team: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What some calls came to. What they were not told apart by is None; so is the team of users without one."""

    day: date | None
    model: str | None
    subject: str | None
    team: str | None
    calls: int
    estimated_calls: int
    """Of the calls, those whose cost nobody knows: they count with the most that they can have cost."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One physical call that was paid."""

    charge_id: UUID
    held_at: datetime
    ended_at: datetime
    task_id: UUID | None
    call_key: str
    attempt: int
    subject: str
    team: str | None
    model: str
    endpoint: str
    price_id: UUID | None
    upper: Decimal
    cost: Decimal
    estimated: bool
    prompt_tokens: int | None
    """None, as the next two: the server did not say."""
    cached_tokens: int | None
    completion_tokens: int | None


Position = tuple[datetime, UUID]
"""Of a charge in the order of reading: when it was held, and its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One budget in one of its periods."""

    scope: str
    """`tenant`, `team`, `user` or `task`."""
    scope_id: str
    """The team's or user's name, the task's id; empty for the tenant."""
    model: str
    """Empty: all models together."""
    period: str
    """`day`, `month` or `task`."""
    starts_at: datetime
    ends_at: datetime | None
    amount: Decimal | None
    """The limit, as of the last call; None: there is none, it is only counted."""
    held: Decimal
    """By calls under way, and by tasks for their calls to come."""
    settled: Decimal
    overrun: Decimal
    """What calls cost beyond the most that they could: the price or the server is not as it was said to be."""

    @property
    def used(self) -> Decimal:
        """What was spent."""
        return self.settled + self.overrun

    @property
    def left(self) -> Decimal | None:
        """What a further call could hold."""
        return None if self.amount is None else max(self.amount - self.used - self.held, Decimal(0))


async def read_usage(reader: Reader, wanted: UsageFilter, *, by: Collection[By] = ()) -> list[Usage]:
    """Return what the calls came to, told apart by all of `by` and in its order of day, model, user, team; without any
    of them one total, or none where there was no call.
    """
    rows = await reader.fetch(
        _QUERIES["totals"],
        **_filters(wanted),
        by_day=By.DAY in by,
        by_model=By.MODEL in by,
        by_user=By.USER in by,
        by_team=By.TEAM in by,
    )
    return [Usage(**dict(row)) for row in rows]


async def read_charges(
    reader: Reader, wanted: UsageFilter, *, after: Position | None = None, page_size: int = PAGE
) -> list[Charge]:
    """Return up to `page_size` of the calls one by one, in the order in which they were held, after the position."""
    rows = await reader.fetch(
        _QUERIES["charges"],
        **_filters(wanted),
        after_time=after[0] if after else None,
        after_id=after[1] if after else None,
        wanted=page_size,
    )
    return [Charge(**dict(row)) for row in rows]


async def all_charges(reader: Reader, wanted: UsageFilter, *, page_size: int = PAGE) -> AsyncGenerator[Charge]:
    """Yield all of the calls, page by page: an export of any length."""
    after: Position | None = None
    while True:
        page = await read_charges(reader, wanted, after=after, page_size=page_size)
        for charge in page:
            yield charge
        if len(page) < page_size:
            return
        after = (page[-1].held_at, page[-1].charge_id)


async def task_cost(reader: Reader, task_id: UUID) -> Decimal | None:
    """Return what the task's model calls have cost so far; None: none of them has a price."""
    rows = await reader.fetch(_QUERIES["task_cost"], task_id=task_id)
    return rows[0]["cost"]


async def read_accounts(
    reader: Reader, tenant_id: UUID, moment: datetime, *, subject: str | None = None, task_id: UUID | None = None
) -> list[Account]:
    """Return how the tenant's budgets stand in the periods of `moment`: of users, that of `subject` alone (None: all);
    of tasks, that of `task_id` alone (None: of none). Budgets that nothing was held against yet are left out.
    """
    rows = await reader.fetch(
        _QUERIES["accounts"],
        tenant_id=tenant_id,
        moment=moment,
        subject=subject,
        task_id=None if task_id is None else str(task_id),
    )
    return [Account(**dict(row)) for row in rows]


def _filters(wanted: UsageFilter) -> dict[str, object]:
    return {
        "tenant_id": wanted.tenant_id,
        "since": wanted.since,
        "until": wanted.until,
        "subject": wanted.subject,
        "team": wanted.team,
        "model": wanted.model,
    }
