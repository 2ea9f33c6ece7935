"""How many operations of a tenant, and of each of its users, run at a time in this process.

Above: `limiter`. Below: nothing but anyio. An operation holds a place while it runs. When all are taken it waits in its
own tenant's queue, for WAIT_S at most: no tenant stands in another's way, and who waits has been charged nothing. There
are as many places to wait in as to run in, so what a tenant can hold of this process's memory is bounded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from rag.errors import RateLimited
from rag.limits.values import TierLimits

__all__ = ["WAIT_S", "Places"]

WAIT_S = 1.0
"""A moment's crowd passes in it; who still has no place then had better come back later."""


@dataclass(slots=True)
class _Uses:
    running: int = 0
    waiting: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    subject: str
    limits: TierLimits
    granted: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class _Room(_Uses):
    """One tenant's places. Whenever one is free, nobody who may take it is waiting."""

    users: dict[str, _Uses] = field(default_factory=dict[str, _Uses])
    queue: deque[_Waiter] = field(default_factory=deque[_Waiter])


class Places:
    """The places of all tenants in this process."""

    def __init__(self, *, wait_s: float = WAIT_S) -> None:
        """Start with all of them free."""
        self._wait_s = wait_s
        self._rooms: dict[UUID, _Room] = {}

    def __len__(self) -> int:
        """Return how many tenants are kept in mind: those of which something runs or waits."""
        return len(self._rooms)

    def running(self, tenant_id: UUID, subject: str) -> tuple[int, int]:
        """Return how many operations of the tenant, and of the user, hold a place now."""
        room = self._rooms.get(tenant_id, _Room())
        return room.running, room.users.get(subject, _Uses()).running

    async def enter(self, tenant_id: UUID, subject: str, limits: TierLimits) -> None:
        """Take a place of the tenant and of the user; whoever returns from here must `leave`.

        Raises:
            RateLimited: None became free in time, or too many are waiting already.
        """
        room = self._rooms.setdefault(tenant_id, _Room())
        if _take(room, subject, limits):
            return
        user = room.users.setdefault(subject, _Uses())
        if room.waiting >= limits.tenant.concurrency or user.waiting >= limits.user.concurrency:
            self._tidy(tenant_id, subject)
            raise _full(room, limits, self._wait_s)
        waiter = _Waiter(subject, limits)
        room.queue.append(waiter)
        _count_waiting(room, subject, 1)
        entered = False
        try:
            with anyio.move_on_after(self._wait_s):
                await waiter.granted.wait()
            entered = waiter.granted.is_set()
        finally:
            if not entered and waiter.granted.is_set():  # and cancelled in the same moment
                self.leave(tenant_id, subject)
            elif not entered:
                room.queue.remove(waiter)
                _count_waiting(room, subject, -1)
                self._tidy(tenant_id, subject)
        if not entered:
            raise _full(room, limits, self._wait_s)

    def leave(self, tenant_id: UUID, subject: str) -> None:
        """Free the place that `enter` took: for the first who waits and may take it."""
        room = self._rooms[tenant_id]
        room.running -= 1
        room.users[subject].running -= 1
        for waiter in list(room.queue):
            if _take(room, waiter.subject, waiter.limits):
                room.queue.remove(waiter)
                _count_waiting(room, waiter.subject, -1)
                waiter.granted.set()
                break  # one place became free
        self._tidy(tenant_id, subject)

    def _tidy(self, tenant_id: UUID, subject: str) -> None:
        """Forget who neither runs nor waits."""
        room = self._rooms[tenant_id]
        if room.users[subject] == _Uses():
            del room.users[subject]
        if not room.users:
            del self._rooms[tenant_id]


def _take(room: _Room, subject: str, limits: TierLimits) -> bool:
    user = room.users.get(subject, _Uses())
    if room.running >= limits.tenant.concurrency or user.running >= limits.user.concurrency:
        return False
    room.users[subject] = user
    room.running += 1
    user.running += 1
    return True


def _count_waiting(room: _Room, subject: str, change: int) -> None:
    room.waiting += change
    room.users[subject].waiting += change


def _full(room: _Room, limits: TierLimits, wait_s: float) -> RateLimited:
    whose = "tenant" if room.running >= limits.tenant.concurrency else "user"
    return RateLimited(f"too many operations of this {whose} at a time", retry_after_s=wait_s)
