"""Many callers at once, with failures, cancellations and crashes: no budget is oversold, and no use is forgotten.

Each caller keeps its own account of what it really used, which the ledger is compared with at the end. Meanwhile one
connection looks again and again whether any budget is above its limit, and another cuts the callers' connections.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from rag.budgets.ledger import PostgresLedger, reserve_task
from rag.budgets.operator import Budget, Period, Scope
from rag.budgets.sweep import sweep_due
from rag.errors import BudgetExceeded, Conflict, Unavailable
from rag.identity.principal import Principal
from rag.llm.ledger import Hold, Payer
from rag.tasks import store
from rag.tasks.values import NewTask
from tests.support.ledger import LedgerScene, bill, cost, ledger_scene
from tests.support.world import World

pytestmark = pytest.mark.anyio
ZERO = Decimal(0)
MODELS = ("small", "medium", "large")
CALLS = 4
"""Of each caller."""
CUT_EVERY = 40
"""Calls between two cuts of a connection."""
OVERSOLD = """
select count(*)
from rag.budget_account a
where a.held < 0 or a.settled < 0 or a.held + a.settled > a.ceiling or a.ceiling is distinct from a.amount
"""
"""Limits stay as they are while the callers run: so the ceiling, which the database itself enforces, is the limit."""


@dataclass(slots=True, kw_only=True)
class Real:
    """One call as its caller knows it."""

    hold: Hold
    model: str
    used: Decimal = ZERO
    """What the model server has billed."""
    told: bool = False
    """The ledger has confirmed what it was told."""


@dataclass(slots=True, kw_only=True)
class Crowd:
    """Callers of two tenants."""

    scene: LedgerScene
    payers: list[Payer]
    calls: list[Real] = field(default_factory=list[Real])
    refused: int = 0
    failed: int = 0
    looked: int = 0
    cut: int = 0
    running: int = 0

    async def call(self, chance: random.Random) -> None:
        """Make one call, which may go wrong anywhere."""
        payer = chance.choice(self.payers)
        upper = Decimal(chance.randrange(1, 10**10)) / 10**12
        model = chance.choice(MODELS)
        patience_s = chance.choice([None, None, None, 0.0005, 0.003, 0.02])
        with anyio.move_on_after(patience_s):
            hold = await self.scene.ledger.hold(payer, bill(upper, model=model))
            real = Real(hold=hold, model=model)
            self.calls.append(real)
            fate = chance.random()
            if fate < 0.1:
                return  # its process has crashed before anything was sent
            if fate < 0.2:
                await self.scene.ledger.release(hold)
                real.told = True
                return
            await self.scene.ledger.start(hold)
            if fate < 0.3:
                await self.scene.ledger.release(hold)  # refused by the server before any work
                real.told = True
                return
            real.used = upper * chance.randrange(101) / 100 if fate < 0.95 else upper * 2
            if fate < 0.4:
                return  # crashed, and what it used is known to nobody
            await self.scene.ledger.settle(hold, cost(real.used))
            real.told = True

    async def caller(self, seed: int) -> None:
        """Make some calls, one after the other."""
        chance = random.Random(seed)
        for _ in range(CALLS):
            try:
                await self.call(chance)
            except BudgetExceeded:
                self.refused += 1
            except (Unavailable, Conflict):
                self.failed += 1
        self.running -= 1

    async def watch(self) -> None:
        """Look whether any budget is oversold, all the time."""
        connection = await asyncpg.connect(self.scene.world.superuser_url)
        try:
            while self.running:
                assert await connection.fetchval(OVERSOLD) == 0
                self.looked += 1
        finally:
            await connection.close()

    async def saboteur(self) -> None:
        """Cut one of the callers' connections now and then."""
        connection = await asyncpg.connect(self.scene.world.superuser_url)
        try:
            while self.running:
                if len(self.calls) // CUT_EVERY > self.cut:
                    self.cut += 1
                    await connection.fetch(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where usename = 'bulkhead_worker' and datname = current_database() order by random() limit 1"
                    )
                else:
                    await anyio.lowlevel.checkpoint()
                    await connection.fetchval("select 1")
        finally:
            await connection.close()

    async def sweeper(self) -> None:
        """Sweep beside them: nothing is due yet, or is due at once."""
        while self.running:
            with suppress(Unavailable):
                await sweep_due(self.scene.worker)


async def accepted(scene: LedgerScene, who: Principal, amount: Decimal) -> UUID:
    """Accept a task with a reserve."""
    new = NewTask(task_id=uuid4(), context_id="talk", workflow="rag", input={}, message={})
    async with scene.database.tenant(who) as session:
        await store.create_task(session, who, new)
        await reserve_task(session, new.task_id, amount, team=who.team)
    return new.task_id


async def crowd(scene: LedgerScene, *, scarce: Decimal) -> Crowd:
    """Return the users of two tenants, each with two tasks that have a reserve; `scarce` is what a tenant may spend."""
    payers: list[Payer] = []
    for _ in range(2):
        ada = await scene.caller(team="law")
        await scene.budget(
            ada,
            Budget(scope=Scope.TENANT, period=Period.DAY, amount=scarce),
            Budget(scope=Scope.TENANT, period=Period.MONTH, amount=scarce * 2),
            Budget(scope=Scope.TENANT, period=Period.DAY, model="large", amount=scarce / 4),
            Budget(scope=Scope.TEAM, period=Period.DAY, amount=scarce / 2),
            Budget(scope=Scope.USER, period=Period.DAY, amount=scarce * 3 / 10),
            Budget(scope=Scope.USER, period=Period.MONTH, scope_id="ada", amount=scarce / 4),
            Budget(scope=Scope.TASK, period=Period.TASK, amount=scarce / 5),
        )
        for name, team in (("ada", "law"), ("bob", "law"), ("cem", "tax"), ("dana", None)):
            who = dataclasses.replace(ada, subject=name, team=team)
            payers.append(Payer(principal=who))
            tasks = [await accepted(scene, who, scarce / 20) for _ in range(2)]
            payers.extend(Payer(principal=who, task_id=task_id) for task_id in tasks)
    return Crowd(scene=scene, payers=payers)


@contextmanager
def closed_connections_are_no_news() -> Generator[None]:
    """A caller that is cancelled between two messages of the driver (0.32) leaves a connection that cannot be reset.

    The pool closes it, and since nobody waits for that any more, tells the event loop. Nothing else is kept from it.
    """
    loop = asyncio.get_running_loop()
    told = loop.get_exception_handler()

    def tell(where: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), asyncpg.InternalClientError):
            return
        if told is None:
            where.default_exception_handler(context)
        else:
            told(where, context)

    loop.set_exception_handler(tell)
    try:
        yield
    finally:
        loop.set_exception_handler(told)


async def run(scene: LedgerScene, callers: int, *, seed: int) -> Crowd:
    """Let so many callers run at once, then end their tasks and sweep what they left behind."""
    everybody = await crowd(scene, scarce=Decimal(callers * CALLS) / 2000)
    everybody.running = callers
    with anyio.fail_after(300), closed_connections_are_no_news():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(everybody.watch)
            tasks.start_soon(everybody.saboteur)
            tasks.start_soon(everybody.sweeper)
            for number in range(callers):
                tasks.start_soon(everybody.caller, seed + number)
        for payer in everybody.payers:
            if payer.task_id is not None:
                await store.cancel(scene.database, payer.principal, payer.task_id)
        for tenant in {payer.principal.tenant_id: payer.principal for payer in everybody.payers}.values():
            while await scene.sweep(tenant):
                pass
    return everybody


async def check(everybody: Crowd) -> None:
    """Compare the ledger with what the callers know."""
    scene = everybody.scene
    assert await scene.fetch("select from rag.budget_account where held <> 0") == []
    assert await scene.fetch("select from queue.charge") == []
    assert await scene.fetch("select from rag.charge where state in ('held', 'started')") == []
    charges = {row["charge_id"]: row for row in await scene.fetch("select * from rag.charge where kind = 'call'")}
    for real in everybody.calls:
        charge = charges[real.hold.charge_id]
        if real.told:
            assert charge["cost"] == real.used.quantize(Decimal("1E-12"), rounding="ROUND_UP")
            assert not charge["estimated"]
        else:
            # what a server takes beyond the bound, only its answer tells
            assert charge["cost"] >= min(real.used, real.hold.upper)
            assert charge["cost"] in {ZERO, real.hold.upper} or charge["cost"] >= real.used
    # what an account was charged is the sum of its charges: at the same time the export's and the usage's
    wrong = await scene.fetch(
        """
        select a.scope, a.scope_id, a.model, a.period, a.settled + a.overrun as account, sum(c.cost) as charges
        from rag.budget_account a
        left join rag.charge c on c.tenant_id = a.tenant_id and c.kind = 'call'
            and (a.model = '' or c.model = a.model)
            and case a.scope
                when 'user' then c.subject = a.scope_id
                when 'team' then c.team = a.scope_id
                when 'task' then c.task_id::text = a.scope_id
                else true
            end
        group by a.tenant_id, a.account_id
        having a.settled + a.overrun <> coalesce(sum(c.cost), 0)
        """
    )
    assert wrong == []


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[LedgerScene]:
    """A database of the test's own, and ten connections for all of the callers."""
    async with ledger_scene(world, pool_size=10) as scene:
        yield scene


async def test_a_hundred_callers_with_failures_and_crashes_oversell_no_budget_and_forget_no_use(
    scene: LedgerScene,
) -> None:
    everybody = await run(scene, 100, seed=20261121)
    await check(everybody)
    assert everybody.looked > 20
    assert everybody.cut >= 3
    assert everybody.refused > 0
    assert len(everybody.calls) > 50
    assert {real.told for real in everybody.calls} == {True, False}


async def test_holds_that_run_out_under_their_callers_forget_no_use_either(scene: LedgerScene) -> None:
    """Every hold and every call is due at once, so that the sweep competes with its owner."""
    hasty = dataclasses.replace(scene, ledger=PostgresLedger(scene.worker, hold_s=0.0, call_s=0.0))
    everybody = await run(hasty, 40, seed=7)
    await check(everybody)
    assert everybody.failed > 0


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_five_hundred_callers_with_failures_and_crashes_oversell_no_budget_and_forget_no_use(
    scene: LedgerScene, seed: int
) -> None:
    everybody = await run(scene, 500, seed=seed * 10_000)
    await check(everybody)
    assert everybody.cut >= 15
    assert everybody.refused > 0
