"""Schedules in PostgreSQL, for one caller at a time: row-level security shows nobody another subject's.

Above: the doors and the loop that fires. Below: `rag.db` and sql/queries/schedules.sql. Sessions are passed in: firing
is one transaction with the task that it makes. The queue of what is due follows each row by a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from rag.db.pool import Database, Row, Session
from rag.errors import Conflict, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.identity.scopes import parse_scopes
from rag.schedules.timing import Timing
from rag.schedules.values import DueSchedule, Missed, NewSchedule, Schedule, ScheduleState
from rag.tasks.values import Grant
from sql import load_queries

__all__ = [
    "MOST_SCHEDULES",
    "add",
    "claim_due",
    "find",
    "get",
    "list_schedules",
    "move_on",
    "pause",
    "remove",
    "renew",
    "stop",
]

_QUERIES = load_queries("schedules")
_REASON = "the queue of schedules holds ids and times only and belongs to no tenant"
MOST_SCHEDULES = 100
"""Of one subject."""


async def add(session: Session, principal: Principal, new: NewSchedule, *, next_at: datetime) -> tuple[Schedule, bool]:
    """Store a standing order of the caller, or find the one that it has already made; say whether it is new.

    Raises:
        Conflict: The caller has another one of that name, or as many as one may have.
        InvalidInput: The name or the request has a bad form or length.
    """
    rows = await session.fetch(_QUERIES["list_schedules"])
    for row in rows:
        if row["name"] == new.name:
            found = _schedule(row)
            # until when is no part of what is ordered: it counts from now where nothing is said
            if replace(found.order, until=new.until) != new:
                raise Conflict("you have another schedule of that name; remove it first, or choose another name")
            return found, False
    row = await session.fetch_one(
        _QUERIES["add_schedule"],
        schedule_id=uuid4(),
        **_ordered(new),
        **_granted(Grant.of(principal)),
        next_at=next_at,
        most=MOST_SCHEDULES,
    )
    if row is None:
        raise Conflict(f"you have {MOST_SCHEDULES} schedules, and may have no more; remove one first")
    return _schedule(row), True


async def list_schedules(session: Session) -> list[Schedule]:
    """Return the caller's schedules, by name."""
    return [_schedule(row) for row in await session.fetch(_QUERIES["list_schedules"])]


async def find(session: Session, name: str) -> Schedule:
    """Return the caller's schedule of that name.

    Raises:
        NotFound: There is none.
    """
    return _found(await session.fetch_one(_QUERIES["find_schedule"], name=name))


async def get(session: Session, schedule_id: UUID) -> Schedule:
    """Return the schedule that a claim's seal opens.

    Raises:
        NotFound: It was removed.
    """
    return _found(await session.fetch_one(_QUERIES["get_schedule"], schedule_id=schedule_id))


async def pause(session: Session, name: str) -> Schedule:
    """Have the caller's schedule fire no more until it is resumed; one that does not fire stays as it is.

    Raises:
        NotFound: There is none.
    """
    row = await session.fetch_one(_QUERIES["pause_schedule"], name=name)
    return _schedule(row) if row is not None else await find(session, name)


async def remove(session: Session, name: str) -> Schedule:
    """Take the caller's schedule away; what it has started goes on.

    Raises:
        NotFound: There is none.
    """
    return _found(await session.fetch_one(_QUERIES["remove_schedule"], name=name))


async def renew(session: Session, principal: Principal, name: str, *, next_at: datetime, until: datetime) -> Schedule:
    """Have the caller's schedule fire again, under the grant that the caller gives now.

    A grant is never changed where it stands: the row is taken away and stored anew, under the check of a new one.

    Raises:
        NotFound: There is none.
    """
    former = await remove(session, name)
    row = await session.fetch_one(
        _QUERIES["restore_schedule"],
        schedule_id=former.schedule_id,
        **{**_ordered(former.order), "until": until},
        **_granted(Grant.of(principal)),
        next_at=next_at,
        last_at=former.last_at,
        last_task_id=former.last_task_id,
        fired=former.fired,
        skipped=former.skipped,
        created_at=former.created_at,
    )
    return _found(row)


async def claim_due(database: Database, *, wanted: int, lease_s: float) -> list[DueSchedule]:
    """Lease up to `wanted` schedules of any tenant whose time has come, longest waiting first. For the worker."""
    async with database.unsafe_unscoped(reason=_REASON) as session:
        rows = await session.fetch(_QUERIES["claim_schedules"], wanted=wanted, lease_s=lease_s)
    return [
        DueSchedule(schedule_id=row["schedule_id"], due_at=row["due_at"], attempt=row["attempts"], seal=row["seal"])
        for row in rows
    ]


async def move_on(
    session: Session,
    due: DueSchedule,
    *,
    next_at: datetime | None,
    task_id: UUID | None,
    reason: str | None = None,
) -> bool:
    """Move the schedule from the time that is due to the next one, having started `task_id` for it, or none.

    Returns False, having written nothing, if somebody else has done so, or its owner has paused or removed it: of all
    who try for one time, one transaction is told True. Without a next time it stops, for `reason`.
    """
    moved = await session.fetch_value(
        _QUERIES["move_on"],
        schedule_id=due.schedule_id,
        due_at=due.due_at,
        next_at=next_at,
        task_id=task_id,
        reason=reason,
    )
    return moved is not None


async def stop(session: Session, due: DueSchedule, reason: str) -> None:
    """Have the schedule fire no more, and say why; unless it has moved on meanwhile."""
    await session.fetch_value(_QUERIES["stop_schedule"], schedule_id=due.schedule_id, due_at=due.due_at, reason=reason)


def _ordered(new: NewSchedule) -> Mapping[str, Any]:
    if "\0" in new.request:
        raise InvalidInput("the request holds a NUL character")
    return {
        "name": new.name,
        "workflow": new.workflow,
        "request": new.request,
        "options": dict(new.options),
        "cron": new.timing.cron,
        "time_zone": new.timing.time_zone,
        "every_s": new.timing.every_s,
        "missed": new.missed.value,
        "until": new.until,
    }


def _granted(grant: Grant) -> Mapping[str, Any]:
    return {
        "scopes": sorted(scope.value for scope in grant.scopes),
        "groups": list(grant.groups),
        "team": grant.team,
        "token_ids": list(grant.token_ids),
        "token_issued_at": grant.issued_at,
    }


def _found(row: Row | None) -> Schedule:
    if row is None:
        raise NotFound("you have no schedule of that name; `bulkhead schedule list` shows yours")
    return _schedule(row)


def _schedule(row: Row) -> Schedule:
    return Schedule(
        tenant_id=row["tenant_id"],
        schedule_id=row["schedule_id"],
        name=row["name"],
        workflow=row["workflow"],
        request=row["request"],
        options=row["options"],
        timing=Timing(cron=row["cron"], time_zone=row["time_zone"], every_s=row["every_s"]),
        missed=Missed(row["missed"]),
        until=row["until"],
        state=ScheduleState(row["state"]),
        reason=row["reason"],
        next_at=row["next_at"],
        last_at=row["last_at"],
        last_task_id=row["last_task_id"],
        fired=row["fired"],
        skipped=row["skipped"],
        grant=Grant(
            subject=row["subject"],
            scopes=parse_scopes(" ".join(row["scopes"])),
            groups=tuple(row["groups"]),
            team=row["team"],
            token_ids=tuple(row["token_ids"]),
            issued_at=row["token_issued_at"],
        ),
        created_at=row["created_at"],
    )
