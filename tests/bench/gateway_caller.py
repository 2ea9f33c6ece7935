"""Who calls the gateway in its benchmark: `python -m tests.bench.gateway_caller`, a job on stdin, figures on stdout.

A process of its own with the worker's event loop, so that what it measures is not pytest's. Settings come from the
environment. Each run makes the same calls: `direct` by `rag.llm.wire` alone, `gateway` through the gateway with the
real ledger, `counted` the same with prompts counted by the server first.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

import anyio
import httpx
import psutil

from rag.budgets.ledger import PostgresLedger
from rag.db.pool import Database, open_database
from rag.identity.keys import load_public_keys
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.identity.seal import Sealer, load_seal_keys
from rag.identity.tokens import TokenVerifier
from rag.llm import wire
from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.llm.gateway import Asked, Caller, Gateway, Queues
from rag.llm.ledger import Bill, Hold, Ledger, Payer, Settlement
from rag.llm.request import ChatRequest, Limits
from rag.llm.routing import Rule
from rag.runtime import http_client
from rag.serving import settle_memory
from rag.settings import Settings
from tests.bench.fixed_model import model_name

SYSTEM = "You answer from the passages alone and cite each one that you use. " * 15
PASSAGES = "The owner of a vessel is liable for damage done by it within a harbour, unless he shows negligence. " * 40
"""A prompt of about 5 kB, as of five passages."""
MAX_TOKENS = 200
LIMITS = Limits()
BOUND_S = 120.0


@dataclass(slots=True, kw_only=True)
class Call:
    """What one call's caller saw. Times are of the clock of `time.perf_counter`."""

    began: float
    first: float = 0.0
    """When its first piece came."""
    last: float = 0.0
    ended: float = 0.0

    async def emit(self, _: str) -> None:
        """Take a piece."""
        self.last = time.perf_counter()
        self.first = self.first or self.last


@dataclass(slots=True, kw_only=True)
class Timed:
    """A ledger with a watch: satisfies `rag.llm.ledger.Ledger` by the real one. Milliseconds by step."""

    ledger: Ledger
    steps: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    async def hold(self, payer: Payer, bill: Bill) -> Hold:
        """As the ledger."""
        with self._watched("hold"):
            return await self.ledger.hold(payer, bill)

    async def start(self, hold: Hold) -> None:
        """As the ledger."""
        with self._watched("start"):
            await self.ledger.start(hold)

    async def settle(self, hold: Hold, settlement: Settlement) -> None:
        """As the ledger."""
        with self._watched("settle"):
            await self.ledger.settle(hold, settlement)

    async def release(self, hold: Hold) -> None:
        """As the ledger."""
        with self._watched("release"):
            await self.ledger.release(hold)

    @contextmanager
    def _watched(self, step: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        self.steps.setdefault(step, []).append(1000 * (time.perf_counter() - began))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Satisfies `rag.llm.gateway.Known`."""

    catalogue: Catalogue
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What runs share."""

    client: httpx.AsyncClient
    database: Database
    callers: Sequence[Principal]
    url: str
    postmaster: psutil.Process


def offer(url: str, seconds: float, *, kind: str) -> Offer:
    """Return the offer of the model whose answers take so long."""
    name = model_name(seconds)
    return Offer(
        model=Model(
            name=name, tier=Tier.MEDIUM, context_tokens=128_000, tiers=frozenset({"enterprise"}), tenants=frozenset()
        ),
        endpoint=Endpoint(name="fixed", base_url=url, kind=kind),
        served_name=name,
        priority=0,
        price=Price(price_id=uuid4(), input=Decimal(1), cached_input=Decimal("0.1"), output=Decimal(4)),
    )


def request(number: int) -> ChatRequest:
    """Return a prompt that was not counted before."""
    return ChatRequest(system=SYSTEM, user=f"{PASSAGES}\n\nQuestion {number}: who pays?", max_tokens=MAX_TOKENS)


async def measure(desk: Desk, side: str, concurrency: int, takes_s: float, seconds: float) -> dict[str, Any]:
    """Keep so many calls in flight for so long, and return what each took."""
    timed = Timed(ledger=PostgresLedger(desk.database))
    make = _maker(desk, side, takes_s, timed, places=concurrency)
    calls: list[Call] = []
    numbers = itertools.count()
    began = time.perf_counter()

    async def keep_calling(first_at: float) -> None:
        await anyio.sleep(first_at)  # not all at once: a model's callers do not come in step
        while time.perf_counter() - began < seconds + takes_s:
            number = next(numbers)
            call = Call(began=time.perf_counter())
            await make(number, call)
            call.ended = time.perf_counter()
            calls.append(call)

    load, cpu, database_cpu = os.getloadavg()[0], time.process_time(), _cpu_s(desk.postmaster)
    with anyio.fail_after(seconds + 2 * takes_s + BOUND_S):
        async with anyio.create_task_group() as tasks:
            for number in range(concurrency):
                tasks.start_soon(keep_calling, takes_s * number / concurrency)
    # while the first calls begin and the last ones end, fewer are in flight
    counted = [call for call in calls if takes_s <= call.began - began < seconds]
    return {
        "side": side,
        "concurrency": concurrency,
        "takes_s": takes_s,
        "load": load,
        "calls": len(calls),
        "rate": len(counted) / (max(call.began for call in counted) - min(call.began for call in counted)),
        "cpu_ms": 1000 * (time.process_time() - cpu) / len(calls),
        "database_cpu_ms": 1000 * (_cpu_s(desk.postmaster) - database_cpu) / len(calls),
        "total_ms": [1000 * (call.ended - call.began) for call in counted],
        "before_ms": [1000 * (call.first - call.began) for call in counted],
        "after_ms": [1000 * (call.ended - call.last) for call in counted],
        "steps_ms": timed.steps,
    }


def _maker(
    desk: Desk, side: str, takes_s: float, ledger: Ledger, *, places: int
) -> Callable[[int, Call], Awaitable[object]]:
    offered = offer(desk.url, takes_s, kind="vllm" if side == "counted" else "openai")
    if side == "direct":
        return lambda number, call: wire.stream(
            desk.client, offered, request(number), call.emit, cache_salt="salt", limits=LIMITS
        )

    async def known() -> Known:
        return Known(catalogue=Catalogue(offers=(offered,)))

    gateway = Gateway(client=desk.client, known=known, ledger=ledger, queues=Queues(places=places), limits=LIMITS)
    callers = [Caller(payer=Payer(principal=one), tier="enterprise", cache_salt="salt") for one in desk.callers]
    return lambda number, call: gateway.write(
        callers[number % len(callers)],
        request(number),
        Asked(key=f"bench:{uuid4()}", step="answer"),
        emit=call.emit,
    )


def _cpu_s(postmaster: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in (postmaster, *postmaster.children()))


async def main(job: dict[str, Any], settings: Settings) -> None:
    """Run all runs of the job in their order."""
    assert settings.worker_database_url is not None
    assert settings.seal_keys_file is not None
    verifier = TokenVerifier(keys=load_public_keys(settings.certs_dir), issuer=settings.issuer, audience=Audience.MCP)
    callers = [dataclasses.replace(verifier.verify(token), team="claims") for token in job["tokens"]]
    sealer = Sealer(keys=load_seal_keys(settings.seal_keys_file))
    async with (
        http_client(settings, connections=job["connections"]) as client,
        open_database(
            settings.worker_database_url, sealer=sealer, pool_size=settings.pool_size, application="bench"
        ) as database,
    ):
        settle_memory()  # looking through all modules takes 45 ms, as long as every caller waits
        postmaster = psutil.Process(job["postmaster"])
        desk = Desk(client=client, database=database, callers=callers, url=job["url"], postmaster=postmaster)
        results = [await measure(desk, *cast("tuple[str, int, float, float]", run)) for run in job["runs"]]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    anyio.run(main, json.load(sys.stdin), Settings.from_process(), backend_options={"use_uvloop": True})
