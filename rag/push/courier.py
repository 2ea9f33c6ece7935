"""Tells webhooks what has happened to their tasks: at least once, in order, each by one process at a time.

Above: the worker process. Below: `store` (the outbox), `notice` (one delivery). What it does with one of them:

1. Claim it: a lease, a fencing number, a seal for the one task.
2. Read the webhook, and then, as its maker, the events from its position on. A maker who may not read any more is told
   nothing.
3. Deliver one event; advance the position, which renews the lease; go on with the next.
4. On a failure wait longer each time, and after the last attempt give up: what was given up stays in the outbox,
   visible to operators, and goes on from where it stopped once they say so.

A receiver that is slow holds one slot of its tenant and nobody's stream. A process that dies leaves a lease that runs
out: what was delivered and not yet noted is delivered again, under the same event id.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import httpx2
from opentelemetry.metrics import get_meter

from rag.clock import Clock, system_clock
from rag.db.listener import Wakeups
from rag.db.pool import Database
from rag.errors import BulkheadError, Conflict, NotFound, Revoked
from rag.identity.outward import OutwardKey
from rag.identity.secretbox import SecretBox
from rag.push import store
from rag.push.notice import Failed, Notice, headers_of, send
from rag.push.values import PACE, ClaimedPush, Pace, Recipient
from rag.tasks import store as tasks
from rag.tasks.values import TERMINAL, EventKind, Task, TaskEvent, TaskState
from rag.telemetry import log_fields

__all__ = ["PUSH_CHANNEL", "Courier", "Rendering"]

_log = logging.getLogger(__name__)
_meter = get_meter("bulkhead.push")
_deliveries = _meter.create_counter(
    "bulkhead.push.deliveries", unit="{request}", description="Notifications sent, by what became of them"
)
_dead = _meter.create_counter(
    "bulkhead.push.dead", unit="{webhook}", description="Webhooks that were given up, by the reason of the last attempt"
)
PUSH_CHANNEL = "bulkhead_push"
POLL_S = 1.0
"""Retries come due and leases run out in silence."""
TURN_S = 120.0
"""After this long with one webhook others get the slot; well before the claim's seal ends."""
RELEASE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How the protocol writes what is told; pure functions of the log."""

    event: Callable[[Task, TaskEvent], bytes]
    snapshot: Callable[[Task, Sequence[TaskEvent]], bytes]
    """Of the task at the last of the events, which are its log from the first one on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Courier:
    """Runs until cancelled. What is passed in stays its owner's to close."""

    database: Database
    """Of the login that may claim."""
    client: httpx2.AsyncClient
    """Of `rag.outbound.pinned_client`."""
    box: SecretBox
    key: OutwardKey
    issuer: str
    """Base URL of the A2A server, below which its JWKS is."""
    rendering: Rendering
    pace: Pace = PACE
    clock: Clock = system_clock
    chance: Callable[[], float] = random.random
    """0 to 1, for spreading retries."""

    async def serve(self, wakeups: Wakeups) -> None:
        """Tell what is due, whenever it is. Failures are logged and tried again; they never end this.

        `wakeups` should listen to PUSH_CHANNEL; without notifications it polls.
        """
        busy = 0
        with wakeups.subscribe(PUSH_CHANNEL) as woken:

            async def deliver(claim: ClaimedPush) -> None:
                nonlocal busy
                try:
                    await self._deliver(claim)
                finally:
                    busy -= 1
                    woken.wake()

            async with anyio.create_task_group() as group:
                while True:
                    free = self.pace.slots - busy
                    claims = await self._claim(free) if free else []
                    for claim in claims:
                        busy += 1
                        group.start_soon(deliver, claim)
                    if len(claims) < free or not free:
                        await woken.wait(timeout_s=POLL_S)

    async def _claim(self, wanted: int) -> list[ClaimedPush]:
        try:
            return await store.claim(self.database, wanted=wanted, pace=self.pace)
        except BulkheadError as exc:
            _log.warning("cannot look for webhooks to tell: %s", exc.code)
            await anyio.sleep(POLL_S)
            return []

    async def _deliver(self, claim: ClaimedPush) -> None:
        """Have one turn with a webhook. Raises nothing but cancellation: what breaks off is offered again."""
        with log_fields(task=str(claim.task_id), push=str(claim.push_id)):
            try:
                await self._turn(claim)
            except anyio.get_cancelled_exc_class():
                with anyio.move_on_after(RELEASE_TIMEOUT_S, shield=True):
                    await self._release(claim)
                raise
            except BulkheadError as exc:
                _log.warning("a webhook was not told (%s); its lease will offer it again", exc.code)
            except Exception:  # noqa: BLE001  # the courier outlives every webhook
                _log.exception("a webhook was not told; its lease will offer it again")

    async def _turn(self, claim: ClaimedPush) -> None:
        try:
            async with self.database.sealed(claim.seal) as session:
                to = await store.recipient(session, self.box, claim.push_id, expires_at=self.clock() + TURN_S)
                if to is None:
                    await store.finish(session, claim)
                    return
        except Conflict:
            # not at once for good: while keys are rotated a server may know one that this process has yet to be told
            await self._failed(claim, Failed("credentials cannot be opened"))
            return
        await self._tell(claim, to)

    async def _tell(self, claim: ClaimedPush, to: Recipient) -> None:
        """Deliver event after event, until there is none left, one was not taken, or it is others' turn."""
        until = anyio.current_time() + TURN_S
        while anyio.current_time() < until:
            try:
                task, notices, ends = await self._notices(to, claim)
                for notice in notices:
                    await self._attempt(notice, to)
                    claim = dataclasses.replace(claim, next_seq=notice.seq + 1, attempts=0)
                    async with self.database.sealed(claim.seal) as session:
                        if not await store.advance(session, claim, lease_s=self.pace.lease_s):
                            return
            except Failed as exc:
                await self._failed(claim, exc)
                return
            if ends or not notices:
                async with self.database.sealed(claim.seal) as session:
                    over = ends or (task.state in TERMINAL and task.version < claim.next_seq)
                    await (store.finish(session, claim) if over else store.rest(session, claim))
                return
        await self._release(claim)

    async def _attempt(self, notice: Notice, to: Recipient) -> None:
        headers = headers_of(notice, to, key=self.key, issuer=self.issuer, now=self.clock())
        try:
            await send(self.client, notice, to, headers, timeout_s=self.pace.timeout_s)
        except Failed as exc:
            _deliveries.add(1, {"outcome": exc.reason})
            raise
        _deliveries.add(1, {"outcome": "taken"})

    async def _notices(self, to: Recipient, claim: ClaimedPush) -> tuple[Task, list[Notice], bool]:
        """Return the task, what comes next, and whether the last of it is the task's end; read as the webhook's maker.

        Raises:
            Failed: The maker may not read it any more, or it cannot be written.
        """
        task_id, seq = claim.task_id, claim.next_seq
        try:
            async with self.database.tenant(to.maker) as session:
                task = await tasks.get_task(session, task_id)
                # the first event is the task itself; later ones mean little to who has not seen what was before, and
                # those that a compaction took away are in what they came to
                whole = seq == to.first_seq > 1 or seq <= task.compacted_to
                read = tasks.events_after(session, task_id, 0) if whole else store.events_from(session, task_id, seq)
                events = await read
        except Revoked as exc:
            raise Failed("revoked", final=True) from exc
        except NotFound as exc:
            raise Failed("not readable", final=True) from exc
        if whole:
            seq = max(seq, task.compacted_to)
            events = [one for one in events if one.seq <= seq]
        try:
            notices = (
                [Notice(task_id=task_id, seq=seq, body=self.rendering.snapshot(task, events))]
                if whole
                else [Notice(task_id=task_id, seq=one.seq, body=self.rendering.event(task, one)) for one in events]
            )
        except Exception as exc:  # whatever broke would break each time: it is given up like anything else
            _log.exception("a notification cannot be written")
            raise Failed("cannot be written") from exc
        return task, notices, any(_ends(one) for one in events)

    async def _failed(self, claim: ClaimedPush, exc: Failed) -> None:
        attempts = claim.attempts + 1
        delay_s = None if exc.final else self.pace.delay_s(attempts, self.chance())
        if delay_s is not None and exc.after is not None:
            delay_s = max(delay_s, exc.after.seconds(self.clock()))
        async with self.database.sealed(claim.seal) as session:
            if not await store.fail(session, claim, delay_s=delay_s, reason=exc.reason):
                return
        if delay_s is None:
            _dead.add(1, {"reason": exc.reason})
            _log.error("a webhook is given up after %d attempts: %s", attempts, exc.reason)
        else:
            _log.warning("a webhook was not told (%s); attempt %d in %.0f s", exc.reason, attempts + 1, delay_s)

    async def _release(self, claim: ClaimedPush) -> None:
        try:
            async with self.database.sealed(claim.seal) as session:
                await store.rest(session, claim, soon=True)
        except BulkheadError as exc:
            _log.warning("a webhook could not be handed back (%s); its lease will run out", exc.code)


def _ends(event: TaskEvent) -> bool:
    return event.kind is EventKind.STATUS and TaskState(event.payload["state"]) in TERMINAL
