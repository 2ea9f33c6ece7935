"""Loads a model server with so many calls at a time, level after level, and notes when each piece of text came.

Above: `rag.cli.bench`. Below: `rag.llm.wire`, one physical call each, without the gateway: no budget, no queue, no
retry and no cache of ours is in what is measured, and nobody is charged in the ledger.

The load is closed: a call begins when one before it has ended. That tells what a server can do at a concurrency, and
nothing about how long callers wait who come at a rate of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import httpx

from rag.errors import Unavailable
from rag.llm.bench.figures import Call, LevelRecord
from rag.llm.bench.prompts import PromptShape, prompt, tenant_of
from rag.llm.bench.server import Counters, read_counters
from rag.llm.catalogue import Offer
from rag.llm.request import Limits
from rag.llm.wire import MaybeBilled, NotBilled, stream

__all__ = ["MIN_REQUESTS", "PER_PLACE", "Plan", "Report", "measure", "warm_up"]

MIN_REQUESTS = 100
"""Of a level, where the plan does not say: as many as a p99 needs."""
PER_PLACE = 8
"""Requests for each one at a time, at least: the last ones of a level have fewer beside them."""
SETTLE_S = 2.0
"""For a server to have counted the last call of a level."""
_WARM_UP = "warm-up"
_BEAT_S = 0.05

Report = Callable[[LevelRecord], None]
"""Is shown a level's record after each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of the server."""

    run: str
    """A name that no other run has."""
    shape: PromptShape = field(default_factory=PromptShape)
    max_tokens: int = 128
    warm_up: int = 3
    """Calls before the first level that are not counted: connections, compiled kernels."""
    requests: int | None = None
    """Of each level; None: `MIN_REQUESTS`, and `PER_PLACE` for each one at a time."""
    seconds: float = 120.0
    """After which a level begins no further request."""
    limits: Limits = field(default_factory=Limits)

    def requests_at(self, concurrency: int) -> int:
        """Return how many requests the level of `concurrency` has."""
        return self.requests if self.requests is not None else max(MIN_REQUESTS, PER_PLACE * concurrency)


async def warm_up(client: httpx.AsyncClient, offer: Offer, plan: Plan) -> None:
    """Make the calls that are not counted.

    Raises:
        Unavailable: None of them came to its end; the message says why.
    """
    record = LevelRecord(concurrency=1)
    for number in range(plan.warm_up):
        await _call(client, offer, plan, level=_WARM_UP, number=number, record=record)
    if plan.warm_up and not record.calls:
        raise Unavailable(f"the model server answers no request: {next(iter(record.failures))}")


async def measure(
    client: httpx.AsyncClient,
    offer: Offer,
    plan: Plan,
    *,
    concurrencies: Sequence[int],
    records: list[LevelRecord],
    report: Report,
) -> None:
    """Run one level after the other. Each adds its record to `records` as it begins, and to the record as it goes: one
    that is cancelled has left all that it measured.
    """
    for place, concurrency in enumerate(concurrencies):
        record = LevelRecord(concurrency=concurrency)
        records.append(record)
        await _level(client, offer, plan, level=f"{place}-{concurrency}", record=record, report=report)


async def _level(
    client: httpx.AsyncClient, offer: Offer, plan: Plan, *, level: str, record: LevelRecord, report: Report
) -> None:
    before = await read_counters(client, offer.endpoint)
    numbers = iter(range(plan.requests_at(record.concurrency)))
    began, cpu_began = anyio.current_time(), time.process_time()

    async def caller(numbers: Iterator[int]) -> None:
        for number in numbers:
            if anyio.current_time() - began >= plan.seconds:
                return
            await _call(client, offer, plan, level=level, number=number, record=record)
            record.duration_s = anyio.current_time() - began
            record.client_cpu_s = time.process_time() - cpu_began
            report(record)

    async with anyio.create_task_group() as watch:
        watch.start_soon(_watch_lag, record)
        async with anyio.create_task_group() as callers:
            for _ in range(record.concurrency):
                callers.start_soon(caller, numbers)
        watch.cancel_scope.cancel()
    record.complete = True
    if before is not None and (after := await _counters_after(client, offer, before, len(record.calls))) is not None:
        record.counters = (before, after)


async def _counters_after(client: httpx.AsyncClient, offer: Offer, before: Counters, finished: int) -> Counters | None:
    """Return the counters once these calls are in them: a server counts a moment after the answer is out."""
    after = await read_counters(client, offer.endpoint)
    with anyio.move_on_after(SETTLE_S):
        while after is not None and (after.requests or 0) - (before.requests or 0) < finished:
            await anyio.sleep(_BEAT_S)
            after = await read_counters(client, offer.endpoint)
    return after


async def _watch_lag(record: LevelRecord) -> None:
    """Note how late this event loop is: a piece that waits in a socket is timed when the loop comes to it."""
    while True:
        due = anyio.current_time() + _BEAT_S
        await anyio.sleep_until(due)
        record.lags_s.append(anyio.current_time() - due)


async def _call(
    client: httpx.AsyncClient, offer: Offer, plan: Plan, *, level: str, number: int, record: LevelRecord
) -> None:
    request = prompt(plan.shape, run=plan.run, level=level, number=number, max_tokens=plan.max_tokens)
    salt = f"bench-{plan.run}-{level}-{tenant_of(plan.shape, number)}"  # vLLM refuses / and @ in it
    times: list[float] = []

    async def emit(piece: str) -> None:
        del piece
        times.append(anyio.current_time())

    record.started += 1
    try:
        reply = await stream(client, offer, request, emit, cache_salt=salt, limits=plan.limits)
    except (NotBilled, MaybeBilled) as exc:
        record.failures[str(exc)] += 1
    else:
        record.calls.append(Call(reply=reply, gaps_s=tuple(later - earlier for earlier, later in pairwise(times))))
