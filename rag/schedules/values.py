"""What a schedule is, without any protocol.

Above: `store`, the loop that fires, the doors. Below: `timing`, the grant of `rag.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from rag.schedules.timing import Timing
from rag.tasks.values import Grant

__all__ = ["DueSchedule", "Missed", "NewSchedule", "Schedule", "ScheduleState"]


class Missed(StrEnum):
    """What becomes of times that passed while no worker was there."""

    ONCE = "once"
    """One task stands for all of them."""
    SKIP = "skip"
    """None does: the next task starts at the next time."""


class ScheduleState(StrEnum):
    """Whether it fires."""

    ACTIVE = "active"
    PAUSED = "paused"
    """By its owner."""
    STOPPED = "stopped"
    """By itself: it may or can do no more, and says why. Resuming it gives it a new grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A standing order to store."""

    name: str
    """Unique among its owner's: a-z, 0-9, ., _ and -, at most 63 characters."""
    workflow: str
    request: str
    options: Mapping[str, Any]
    timing: Timing
    missed: Missed
    until: datetime
    """Nothing is due later: a standing order that nobody renews ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A standing order as it stands."""

    tenant_id: UUID
    schedule_id: UUID
    name: str
    workflow: str
    request: str
    options: Mapping[str, Any]
    timing: Timing
    missed: Missed
    until: datetime
    state: ScheduleState
    reason: str | None
    """Why it stopped."""
    next_at: datetime | None
    last_at: datetime | None
    """What was due when it last fired; the task itself may have started later."""
    last_task_id: UUID | None
    fired: int
    skipped: int
    """Times that a task of its own was not started for, under Missed.SKIP."""
    grant: Grant
    created_at: datetime

    @property
    def order(self) -> NewSchedule:
        """What its owner has ordered."""
        return NewSchedule(
            name=self.name,
            workflow=self.workflow,
            request=self.request,
            options=self.options,
            timing=self.timing,
            missed=self.missed,
            until=self.until,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSchedule:
    """A leased schedule whose time has come."""

    schedule_id: UUID
    due_at: datetime
    attempt: int
    seal: str = field(repr=False)
    """Opens the one schedule for ten minutes, as the system."""
