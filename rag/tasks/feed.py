"""A task's events as they happen: read from the log, woken by NOTIFY, the same on every replica.

Above: both faces. Below: `store`, `rag.db.listener`. A slow reader falls behind and loses nothing; a lost wake-up costs
LONGEST_WAIT_S at most. Readers of one task under one token share what any of them has read: many who watch one task
cost one read each time that it moves. They share no more than that: row-level security judges each by its own token.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from rag.clock import Clock, system_clock
from rag.db.listener import LONGEST_WAIT_S, Wakeups
from rag.db.pool import Database
from rag.identity.claims import LEEWAY_S
from rag.identity.principal import Principal
from rag.tasks import store
from rag.tasks.values import TERMINAL, EventKind, TaskEvent, TaskState

__all__ = ["TASK_CHANNEL", "Feeds", "brings"]

TASK_CHANNEL = "bulkhead_task"
KEPT_EVENTS = 64
"""Of each task that somebody reads: whoever is further behind reads the log itself."""
_SEQ = re.compile("[0-9]{1,18}")


def brings(event: TaskEvent, states: Collection[TaskState]) -> bool:
    """Return whether `event` brings its task into one of `states`."""
    return event.kind is EventKind.STATUS and TaskState(event.payload["state"]) in states


@dataclass(slots=True)
class _Feed:
    """The last events that were read of one task under one token."""

    readers: int = 0
    events: deque[TaskEvent] = field(default_factory=lambda: deque[TaskEvent](maxlen=KEPT_EVENTS))
    reading: anyio.Lock = field(default_factory=anyio.Lock)

    def kept(self, after: int, upto: int) -> list[TaskEvent] | None:
        """Return the events after a position, if those up to another one are all here."""
        if self.events and self.events[0].seq <= after + 1 and self.events[-1].seq >= upto:
            return [self.events[place] for place in range(after - self.events[-1].seq, 0)]
        return None

    def keep(self, events: Sequence[TaskEvent]) -> None:
        """Keep what was read, without a gap."""
        for event in events:
            if self.events and event.seq > self.events[-1].seq + 1:
                self.events.clear()
            if not self.events or event.seq == self.events[-1].seq + 1:
                self.events.append(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """All that one process follows."""

    database: Database
    wakeups: Wakeups
    clock: Clock = system_clock
    _feeds: dict[tuple[UUID, Principal], _Feed] = field(default_factory=dict[tuple[UUID, Principal], _Feed])

    async def follow(
        self,
        principal: Principal,
        task_id: UUID,
        *,
        after: int,
        stops: Collection[TaskState] = TERMINAL,
        until: anyio.Event | None = None,
    ) -> AsyncGenerator[TaskEvent]:
        """Yield the events after position `after`, each once and in order, and stop after the one that brings the task
        into one of the states `stops`: by default, that ends it.

        Whoever is past that event already waits in vain. Stops earlier when the caller's token expires, and at a
        wake-up once `until` is set.

        Raises:
            Revoked: The caller's token was revoked while it listened.
            Unavailable: The database is not reachable.
        """
        with (
            self.wakeups.subscribe(TASK_CHANNEL, key=str(task_id)) as woken,
            self._joined(principal, task_id) as feed,
        ):
            upto: int | None = None
            while self._left_s(principal) > 0 and (until is None or not until.is_set()):
                for event in await self._next(feed, principal, task_id, after, upto):
                    after = event.seq
                    yield event
                    if brings(event, stops):
                        return
                await woken.wait(timeout_s=max(0.0, min(LONGEST_WAIT_S, self._left_s(principal))))
                # other sessions of the database can notify as well, and say anything
                upto = int(woken.said) if woken.said and _SEQ.fullmatch(woken.said) else None

    def _left_s(self, principal: Principal) -> float:
        return principal.expires_at + LEEWAY_S - self.clock()

    async def _next(
        self, feed: _Feed, principal: Principal, task_id: UUID, after: int, upto: int | None
    ) -> list[TaskEvent]:
        """Return the events after a position; `upto` is the last one that is known to be there, None: look."""
        kept = None if upto is None else feed.kept(after, upto)
        if kept is not None:
            return kept
        async with feed.reading:
            kept = None if upto is None else feed.kept(after, upto)
            if kept is not None:
                return kept
            events = await store.events_after_alone(self.database, principal, task_id, after)
            feed.keep(events)
            # the same objects for all: what is made of an event is made once (`a2a_server.once`)
            return (feed.kept(after, events[-1].seq) if events else None) or events

    @contextmanager
    def _joined(self, principal: Principal, task_id: UUID) -> Generator[_Feed]:
        feed = self._feeds.setdefault((task_id, principal), _Feed())
        feed.readers += 1
        try:
            yield feed
        finally:
            feed.readers -= 1
            if not feed.readers:
                del self._feeds[task_id, principal]
