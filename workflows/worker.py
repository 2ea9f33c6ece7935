"""The worker: claims runs, keeps their leases, runs them side by side, and hands them back when it is told to stop.

Above: `__main__`. Below: `runner`, `rag.tasks.leases`. One claimer per process (a claimer per slot is a herd); the
heartbeat has a connection of its own, so that a busy pool never costs a lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.abc

from rag.db.listener import Wakeups
from rag.db.pool import Database
from rag.errors import BulkheadError
from rag.tasks import leases
from rag.tasks.values import Claim
from workflows.runner import Runner, run

__all__ = ["CANCEL_CHANNEL", "RUN_CHANNEL", "Worker"]

_log = logging.getLogger(__name__)
RUN_CHANNEL = "bulkhead_run"
CANCEL_CHANNEL = "bulkhead_cancel"
POLL_S = 0.5
"""Leases run out in silence: the queue is looked at this often without a wake-up."""
HEARTBEATS_PER_LEASE = 3
RELEASE_TIMEOUT_S = 2.0


@dataclass(slots=True, kw_only=True)
class Worker:
    """Runs until cancelled; `drain` hands everything back."""

    name: str
    """Unique among all workers."""
    runner: Runner
    leases_database: Database
    """A pool of its own for claims and heartbeats."""
    wakeups: Wakeups
    slots: int
    lease_s: float
    _held: dict[leases.Lease, tuple[Claim, anyio.CancelScope]] = field(
        default_factory=dict[leases.Lease, "tuple[Claim, anyio.CancelScope]"]
    )
    _wake: Callable[[], None] = field(default=lambda: None)
    _draining: bool = False

    async def serve(self) -> None:
        """Claim and run until cancelled or drained. What fails is logged and tried again."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_leases)
            await self._claim_until_drained(tasks)
            await self._hand_back()
            tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Have `serve` stop claiming, stop every run, hand it back uncounted and return: others take over at once."""
        self._draining = True
        self._wake()

    async def _hand_back(self) -> None:
        held = [claim for claim, _ in self._held.values()]
        for _, scope in list(self._held.values()):
            scope.cancel()
        if not held:
            return
        with anyio.move_on_after(RELEASE_TIMEOUT_S, shield=True):
            try:
                released = await leases.release_runs(self.leases_database, worker=self.name, held=held)
                _log.info("handed back %d runs", released)
            except BulkheadError as exc:
                _log.warning("the runs could not be handed back (%s); their leases will run out", exc.code)

    async def _claim_until_drained(self, tasks: anyio.abc.TaskGroup) -> None:
        with self.wakeups.subscribe(RUN_CHANNEL) as woken:
            self._wake = woken.wake  # a freed slot and a drain wake the claimer as new work does
            while not self._draining:
                free = self.slots - len(self._held)
                claims = await self._claim(free) if free else []
                for claim in claims:
                    # held from here on: a heartbeat that starts before the run does must not miss it
                    scope = anyio.CancelScope()
                    self._held[claim.task_id, claim.fence] = (claim, scope)
                    tasks.start_soon(self._run, claim, scope)
                if (len(claims) < free or not free) and not self._draining:
                    await woken.wait(timeout_s=POLL_S)

    async def _claim(self, wanted: int) -> list[Claim]:
        try:
            return await leases.claim_runs(self.leases_database, worker=self.name, wanted=wanted, lease_s=self.lease_s)
        except BulkheadError as exc:
            _log.warning("cannot look for work: %s", exc.code)
            return []

    async def _run(self, claim: Claim, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await run(self.runner, claim)
        finally:
            self._held.pop((claim.task_id, claim.fence), None)
            self._wake()

    async def _keep_leases(self) -> None:
        with self.wakeups.subscribe(CANCEL_CHANNEL) as canceled:
            while True:
                await canceled.wait(timeout_s=self.lease_s / HEARTBEATS_PER_LEASE)
                # NOTE: the list is taken before the UPDATE: a run that is claimed while the UPDATE is under way is
                # missing from its answer and is not lost (a2a.md 2.4).
                held = list(self._held.values())
                if not held:
                    continue
                try:
                    alive = await leases.heartbeat_runs(
                        self.leases_database,
                        worker=self.name,
                        held=[claim for claim, _ in held],
                        lease_s=self.lease_s,
                    )
                except BulkheadError as exc:
                    # the fence guards every write, so a run that may be lost does no harm while it goes on
                    _log.warning("heartbeat failed: %s", exc.code)
                    continue
                for claim, scope in held:
                    if (claim.task_id, claim.fence) not in alive:
                        if (claim.task_id, claim.fence) in self._held:  # else it ended by itself in the meantime
                            _log.info("the run of task %s is lost or canceled; it stops", claim.task_id)
                        scope.cancel()
