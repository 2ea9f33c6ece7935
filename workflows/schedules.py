"""Recurring tasks: taking an order, and the loop that starts a task for each time that comes due, exactly once.

Above: the A2A server's door for schedules, the worker process. Below: `accept`, `rag.schedules`, `rag.tasks.store`.

Firing is one transaction under the grant of whoever made the schedule: its next time moves on and the task is accepted,
or neither. Only one transaction can move a schedule on from one time (a compare-and-set on its row), so two workers, a
lease that runs out in the middle and a worker that dies all end in one task for each time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio

from rag.clock import Clock
from rag.db.pool import Database, Session
from rag.errors import BulkheadError, Forbidden, InvalidInput, NotFound, Revoked, SealRefused
from rag.identity.principal import Principal
from rag.schedules import store as schedules
from rag.schedules.timing import Timing, next_after
from rag.schedules.values import DueSchedule, Missed, NewSchedule, Schedule
from rag.tasks import store as tasks
from rag.tasks.values import NewTask
from rag.telemetry import log_fields
from workflows.accept import Asked, new_task

__all__ = ["Ordered", "fire_due", "order", "resume", "run_now", "run_scheduler"]

_log = logging.getLogger(__name__)
CLAIM = 20
POLL_S = 1.0
"""The queue is looked at this often: a task starts within about a second of its time."""
LEASE_S = 30.0
"""Doubled with each attempt at one time, up to 32 minutes: what fails is tried again and never ends a schedule."""
MISSED_AFTER_S = 300.0
"""A time that is so long past when somebody looks was missed, not late; see `Missed`."""
DEFAULT_LIFE = timedelta(days=90)
LONGEST_LIFE = timedelta(days=400)
GRANT_S = 600.0
"""For as long as which a firing may use the grant; it takes milliseconds."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """What somebody wants done again and again."""

    name: str
    text: str
    workflow: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timing: Timing
    missed: Missed = Missed.ONCE
    until: datetime | None = None
    """None: DEFAULT_LIFE from now."""


async def order(database: Database, principal: Principal, ordered: Ordered, *, clock: Clock) -> tuple[Schedule, bool]:
    """Store a standing order of the caller, or find that it stands already; say whether it is new.

    Raises:
        InvalidInput: There is no such workflow, it can make nothing of the order, the name or the time is not usable.
        Forbidden: The caller lacks a scope that the workflow needs.
        Conflict: The caller has another schedule of that name, or too many.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    now = _now(clock)
    asked = new_task(
        principal, Asked(text=ordered.text, workflow=ordered.workflow, options=ordered.options, message={})
    )
    new = NewSchedule(
        name=ordered.name,
        workflow=asked.workflow,
        request=ordered.text,
        options=ordered.options,
        timing=ordered.timing,
        missed=ordered.missed,
        until=_until(ordered.until, now),
    )
    async with database.tenant(principal) as session:
        made = await schedules.add(session, principal, new, next_at=_first(new.timing, now, new.until))
    _log.info("a schedule for %s %s", new.workflow, "is made" if made[1] else "stands already")
    return made


async def resume(
    database: Database, principal: Principal, name: str, *, until: datetime | None, clock: Clock
) -> Schedule:
    """Have the caller's schedule fire again, from its next time on and under the grant that the caller gives now.

    Raises:
        NotFound: There is none of that name.
        InvalidInput: Its workflow is no more, or takes no such order any more.
        Forbidden: The caller lacks a scope that the workflow needs.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    now = _now(clock)
    async with database.tenant(principal) as session:
        former = await schedules.find(session, name)
        new_task(principal, _asked(former, now))
        ends = _until(until, now)
        next_at = _first(former.timing, now, ends)
        return await schedules.renew(session, principal, name, next_at=next_at, until=ends)


async def run_now(database: Database, principal: Principal, name: str, *, key: str | None, clock: Clock) -> UUID:
    """Start a task for the caller's schedule now, beside its times and whatever its state; return the task's id.

    It acts under the token of this request. Under a key that the caller has used before, that task is returned.

    Raises:
        NotFound: There is no schedule of that name.
        Conflict: The key stands for another request.
        InvalidInput, Forbidden, SealRefused, Revoked, Unavailable: As `workflows.accept.accept`.
    """
    async with database.tenant(principal) as session:
        found = await schedules.find(session, name)
        new = new_task(principal, _asked(found, _now(clock), key=key))
        return (await tasks.create_task(session, principal, new)).task_id


async def run_scheduler(database: Database, *, clock: Clock) -> None:
    """Fire what comes due, until cancelled. Failures are logged, and slow the loop down; they never end it."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            fired = await fire_due(database, clock=clock)
        except BulkheadError as exc:
            _log.warning("schedules pause for %.0f s: %s", pause_s, exc.code)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            continue
        pause_s = FIRST_PAUSE_S
        if fired < CLAIM:
            await anyio.sleep(POLL_S)


async def fire_due(database: Database, *, clock: Clock, claim: int = CLAIM, lease_s: float = LEASE_S) -> int:
    """Start a task for each of up to `claim` schedules that are due; return how many were. The login is the worker's.

    Raises:
        Unavailable: The database failed; what was claimed comes back when its lease has run out.
    """
    claimed = await schedules.claim_due(database, wanted=claim, lease_s=lease_s)
    for due in claimed:
        try:
            await _fire(database, due, clock)
        except BulkheadError as exc:
            _log.warning("a schedule is tried again later (attempt %d): %s", due.attempt, exc.code)
        except Exception:  # noqa: BLE001  # one order that breaks must not keep the others from their times
            _log.exception("a schedule is tried again later (attempt %d)", due.attempt)
    return len(claimed)


async def _fire(database: Database, due: DueSchedule, clock: Clock) -> None:
    async with database.sealed(due.seal) as session:
        try:
            schedule = await schedules.get(session, due.schedule_id)
        except NotFound:
            return  # removed meanwhile, and its place in the queue with it
    now = max(_now(clock), due.due_at)
    next_at = next_after(schedule.timing, now, due=due.due_at)
    over = "its cron expression has no further time"
    if next_at is not None and next_at > schedule.until:
        next_at, over = None, "its time is over; resume it to go on"
    principal = schedule.grant.principal(schedule.tenant_id, expires_at=clock() + GRANT_S)
    missed = schedule.missed is Missed.SKIP and (now - due.due_at).total_seconds() > MISSED_AFTER_S
    with log_fields(tenant=str(schedule.tenant_id)):
        try:
            new = None if missed else new_task(principal, _asked(schedule, due.due_at, due=due))
            async with database.tenant(principal) as session:
                await _move_on(session, principal, due, new=new, next_at=next_at, over=over)
        except SealRefused:
            raise  # of ours, not of the order's
        except (Revoked, Forbidden, InvalidInput, NotFound) as exc:
            # trying again would not help: its owner must
            async with database.sealed(due.seal) as session:
                await _stop(session, due, _why(exc))


async def _move_on(
    session: Session,
    principal: Principal,
    due: DueSchedule,
    *,
    new: NewTask | None,
    next_at: datetime | None,
    over: str,
) -> None:
    task_id = new.task_id if new else None
    if not await schedules.move_on(session, due, next_at=next_at, task_id=task_id, reason=over):
        return
    if new is None:
        _log.info("a schedule skipped a time that was missed")
        return
    await tasks.create_task(session, principal, new)
    with log_fields(task=str(new.task_id)):
        _log.info("a schedule started a task for %s", new.workflow)


async def _stop(session: Session, due: DueSchedule, reason: str) -> None:
    _log.warning("a schedule stops: %s", reason)
    await schedules.stop(session, due, reason)


def _why(exc: BulkheadError) -> str:
    if isinstance(exc, Revoked):
        return "the token that it was made with, its user or its tenant was revoked; resume it with another token"
    return exc.message


def _asked(schedule: Schedule, at: datetime, *, due: DueSchedule | None = None, key: str | None = None) -> Asked:
    """Return the order as a message: what a caller would have sent at that time."""
    metadata = {"schedule": schedule.name, "scheduledAt": at.astimezone(UTC).isoformat()}
    message_id = f"schedule:{schedule.schedule_id}:{metadata['scheduledAt']}"
    return Asked(
        text=schedule.request,
        options=schedule.options,
        workflow=schedule.workflow,
        context_id=f"schedule-{schedule.schedule_id}",
        message={"message_id": message_id, "parts": [{"text": schedule.request}], "metadata": metadata},
        idempotency_key=message_id if due else key,
    )


def _first(timing: Timing, now: datetime, until: datetime) -> datetime:
    first = next_after(timing, now)
    if first is None or first > until:
        raise InvalidInput(f"nothing comes due before the schedule ends, on {until:%Y-%m-%d}")
    return first


def _until(until: datetime | None, now: datetime) -> datetime:
    if until is None:
        return now + DEFAULT_LIFE
    if not now < until <= now + LONGEST_LIFE:
        raise InvalidInput(f"a schedule lasts {LONGEST_LIFE.days} days at most; resume it before it ends")
    return until


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock(), UTC)
