"""Wake-ups: one LISTEN connection a process, shared by any number of waiters. Nothing's correctness depends on it.

Below: asyncpg. Above: whoever polls a table and would rather not wait for the next poll. A wake-up says "look again"
and carries no data but what it says of where to look; after a broken connection everybody is woken, since anything may
have been missed.

    async with listener(dsn, ["bulkhead_task"], application="bulkhead-a2a") as wakeups:
        with wakeups.subscribe("bulkhead_task", key=str(task_id)) as woken:
            while not (events := await read()):
                await woken.wait(timeout_s=15)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
import asyncpg

from rag.db.faults import translated
from rag.errors import BulkheadError

__all__ = ["Subscription", "Wakeups", "listener"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
PROBE_INTERVAL_S = 15.0
"""A peer that vanished without a FIN is noticed after this long."""
PROBE_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
LONGEST_WAIT_S = 15.0
"""A lost wake-up costs at most this."""


class Subscription:
    """One waiter. A wake-up between two waits is kept: the next wait returns at once."""

    __slots__ = ("_event", "said")

    def __init__(self) -> None:
        """Made by `Wakeups.subscribe`."""
        self._event = anyio.Event()
        self.said: str | None = None
        """What the latest notification said after its key; None: whoever waited was woken for another reason."""

    def wake(self, said: str | None = None) -> None:
        """Let the current wait, or else the next one, return."""
        self.said = said
        self._event.set()

    async def wait(self, *, timeout_s: float = LONGEST_WAIT_S) -> bool:
        """Return True when woken and False after `timeout_s` seconds; one waiter at a time."""
        if not self._event.is_set():
            self.said = None
        with anyio.move_on_after(timeout_s):
            await self._event.wait()
        woken = self._event.is_set()
        if woken:
            self._event = anyio.Event()
        return woken


class Wakeups:
    """Who waits for what. A payload's first word is its key."""

    def __init__(self) -> None:
        """Made by `listener`."""
        self._waiting: dict[tuple[str, str | None], set[Subscription]] = {}

    @contextmanager
    def subscribe(self, channel: str, *, key: str | None = None) -> Generator[Subscription]:
        """Yield a subscription to notifications of `channel`, or to those whose payload begins with the word `key`.

        Subscribe first, then read, then wait: so nothing falls in between.
        """
        subscription = Subscription()
        waiting = self._waiting.setdefault((channel, key), set())
        waiting.add(subscription)
        try:
            yield subscription
        finally:
            waiting.discard(subscription)
            if not waiting:
                self._waiting.pop((channel, key), None)

    def notify(self, channel: str, payload: str) -> None:
        """Wake the subscribers of the channel and those of the payload's key."""
        key, _, said = payload.partition(" ")
        for subscription in self._waiting.get((channel, None), ()):
            subscription.wake()
        for subscription in self._waiting.get((channel, key), ()):
            subscription.wake(said)

    def wake_all(self) -> None:
        """Wake everybody: something may have been missed."""
        for waiting in self._waiting.values():
            for subscription in waiting:
                subscription.wake()


@asynccontextmanager
async def listener(dsn: str, channels: Sequence[str], *, application: str) -> AsyncGenerator[Wakeups]:
    """Listen to `channels` until the block ends, on a connection of its own that is made again whenever it breaks.

    Raises:
        Unavailable: The first connection cannot be made. Later failures are retried in the background.
    """
    wakeups = Wakeups()
    connection = await _connect(dsn, channels, wakeups, application)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_listening, connection, dsn, channels, wakeups, application)
        try:
            yield wakeups
        finally:
            tasks.cancel_scope.cancel()


async def _connect(dsn: str, channels: Sequence[str], wakeups: Wakeups, application: str) -> asyncpg.Connection:
    def on_notify(_connection: object, _pid: int, channel: str, payload: object) -> None:
        wakeups.notify(channel, str(payload))

    with translated():
        connection: asyncpg.Connection = await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": application}
        )
        try:
            for channel in channels:
                await connection.add_listener(channel, on_notify)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _keep_listening(
    connection: asyncpg.Connection,
    dsn: str,
    channels: Sequence[str],
    wakeups: Wakeups,
    application: str,
) -> None:
    retry_s = FIRST_RETRY_S
    while True:
        try:
            await _until_broken(connection)
        finally:
            connection.terminate()
        while True:
            await anyio.sleep(retry_s)
            try:
                connection = await _connect(dsn, channels, wakeups, application)
            except BulkheadError:
                _log.warning("wake-ups are down, polling goes on; next try in %.1f s", retry_s, exc_info=True)
                retry_s = min(retry_s * 2, LONGEST_RETRY_S)
            else:
                retry_s = FIRST_RETRY_S
                wakeups.wake_all()
                break


async def _until_broken(connection: asyncpg.Connection) -> None:
    broken = anyio.Event()

    def on_end(_connection: object) -> None:
        broken.set()

    connection.add_termination_listener(on_end)
    while not connection.is_closed():
        with anyio.move_on_after(PROBE_INTERVAL_S):
            await broken.wait()
            return
        try:
            with anyio.fail_after(PROBE_TIMEOUT_S):
                await connection.execute("select 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return
