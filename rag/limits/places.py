"""How many operations of a tenant, of each of its users, and of all tenants together run at a time in this process.

Above: `limiter`. Below: nothing but anyio. An operation holds a place while it runs. When all are taken it waits in its
own tenant's queue, for WAIT_S at most, and has been charged nothing. There are as many places to wait in as to run in,
so what a tenant can hold of this process's memory is bounded. A place of the whole process that becomes free goes to
the tenants that wait in turn, whatever the length of their queues: no tenant stands in another's way.

Operations that last, because they wait for something, take no place of the process: they use none of what is scarce.
"""

from __future__ import annotations

import sys
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
    lasting: bool
    granted: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class _Room(_Uses):
    """One tenant's places. Whenever one is free, nobody who may take it is waiting."""

    users: dict[str, _Uses] = field(default_factory=dict[str, _Uses])
    queue: deque[_Waiter] = field(default_factory=deque[_Waiter])


class Places:
    """The places of all tenants in this process."""

    def __init__(self, *, total: int | None = None, wait_s: float = WAIT_S) -> None:
        """Start with all of them free; `total` bounds the operations of all tenants that do not last."""
        self._total = sys.maxsize if total is None else total
        self._wait_s = wait_s
        self._running = 0
        self._rooms: dict[UUID, _Room] = {}
        self._turns: deque[UUID] = deque()
        """Of whom somebody waits; the first is the next."""

    def __len__(self) -> int:
        """Return how many tenants are kept in mind: those of which something runs or waits."""
        return len(self._rooms)

    def running(self, tenant_id: UUID, subject: str) -> tuple[int, int]:
        """Return how many operations of the tenant, and of the user, hold a place now."""
        room = self._rooms.get(tenant_id, _Room())
        return room.running, room.users.get(subject, _Uses()).running

    async def enter(self, tenant_id: UUID, subject: str, limits: TierLimits, *, lasting: bool = False) -> None:
        """Take a place of the tenant, the user and the process; whoever returns from here must `leave`.

        Raises:
            RateLimited: None became free in time, or too many are waiting already.
        """
        room = self._rooms.setdefault(tenant_id, _Room())
        if self._take(room, subject, limits, lasting=lasting):
            return
        user = room.users.setdefault(subject, _Uses())
        if room.waiting >= limits.tenant.concurrency or user.waiting >= limits.user.concurrency:
            self._tidy(tenant_id, subject)
            raise self._full(room, user, limits)
        waiter = _Waiter(subject, limits, lasting)
        if not room.queue:
            self._turns.append(tenant_id)
        room.queue.append(waiter)
        _count_waiting(room, subject, 1)
        entered = False
        try:
            with anyio.move_on_after(self._wait_s):
                await waiter.granted.wait()
            entered = waiter.granted.is_set()
        finally:
            if not entered and waiter.granted.is_set():  # and cancelled in the same moment
                self.leave(tenant_id, subject, lasting=lasting)
            elif not entered:
                self._stop_waiting(tenant_id, waiter)
                self._tidy(tenant_id, subject)
        if not entered:
            raise self._full(room, user, limits)

    def leave(self, tenant_id: UUID, subject: str, *, lasting: bool = False) -> None:
        """Free the place that `enter` took: for the first who waits and may take it."""
        room = self._rooms[tenant_id]
        room.running -= 1
        room.users[subject].running -= 1
        self._running -= not lasting
        # one place became free: the tenants that wait have their turns
        for _ in range(len(self._turns)):
            next_id = self._turns[0]
            self._turns.rotate(-1)
            if self._grant(next_id):
                break
        self._tidy(tenant_id, subject)

    def _grant(self, tenant_id: UUID) -> bool:
        room = self._rooms[tenant_id]
        for waiter in room.queue:
            if self._take(room, waiter.subject, waiter.limits, lasting=waiter.lasting):
                self._stop_waiting(tenant_id, waiter)
                waiter.granted.set()
                return True
        return False

    def _stop_waiting(self, tenant_id: UUID, waiter: _Waiter) -> None:
        room = self._rooms[tenant_id]
        room.queue.remove(waiter)
        if not room.queue:
            self._turns.remove(tenant_id)
        _count_waiting(room, waiter.subject, -1)

    def _take(self, room: _Room, subject: str, limits: TierLimits, *, lasting: bool) -> bool:
        user = room.users.get(subject, _Uses())
        if room.running >= limits.tenant.concurrency or user.running >= limits.user.concurrency:
            return False
        if not lasting and self._running >= self._total:
            return False
        room.users[subject] = user
        room.running += 1
        user.running += 1
        self._running += not lasting
        return True

    def _full(self, room: _Room, user: _Uses, limits: TierLimits) -> RateLimited:
        if room.running >= limits.tenant.concurrency:
            message = "too many operations of this tenant at a time"
        elif user.running >= limits.user.concurrency:
            message = "too many operations of this user at a time"
        else:
            message = "the server is busy"
        return RateLimited(message, retry_after_s=self._wait_s)

    def _tidy(self, tenant_id: UUID, subject: str) -> None:
        """Forget who neither runs nor waits."""
        room = self._rooms[tenant_id]
        if room.users[subject] == _Uses():
            del room.users[subject]
        if not room.users:
            del self._rooms[tenant_id]


def _count_waiting(room: _Room, subject: str, change: int) -> None:
    room.waiting += change
    room.users[subject].waiting += change
