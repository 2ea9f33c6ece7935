"""What a call through the gateway costs, and whom: with the real ledger, and servers of our own that fail as told.

Some tests are named after what went wrong elsewhere: a retry billed twice, a streamed call cut off half way, fail-open
when the ledger is down.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import anyio
import asyncpg
import pytest

from rag.db.pool import Database
from rag.errors import BudgetExceeded, PriceUnknown, Unavailable
from rag.identity.principal import Principal
from rag.llm.catalogue import Tier
from rag.llm.ledger import Bill, Hold, Payer, Settlement
from rag.llm.request import ChatRequest
from rag.llm.routing import Policy, Rule, When
from tests.support.gateway import PRICE, Desk, asked, desk, offer
from tests.support.openai_server import Fault, OpenAiServer, serve_openai
from tests.support.outage import cut_off
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
MAX_TOKENS = 10
PROMPT = 100
UPPER = PRICE.upper(prompt=PROMPT, completion=MAX_TOKENS, seconds=11)
COST = PRICE.cost(prompt=PROMPT, cached=0, completion=2, milliseconds=0)
"""Of "Hello world.", which comes in two pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Ada's tenant, and two servers of one model, of which `here` is asked first."""

    world: World
    database: Database
    ada: Principal
    here: OpenAiServer
    there: OpenAiServer
    desk: Desk

    async def charges(self) -> list[dict[str, Any]]:
        """Return what stands in the ledger, oldest first."""
        return [dict(row) for row in await self._look(CHARGES)]

    async def held(self) -> Decimal:
        """Return what is held in all accounts."""
        (row,) = await self._look("select coalesce(sum(held), 0) as held from rag.budget_account")
        return row["held"]

    async def _look(self, query: str) -> list[asyncpg.Record]:
        admin = await asyncpg.connect(self.world.superuser_url)
        try:
            return await admin.fetch(query)
        finally:
            await admin.close()


CHARGES = "select state, upper, cost, estimated, attempt, endpoint, prompt_tokens from rag.charge order by held_at"


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """A tenant of the free tier: one unit of money a day."""
    acme = await world.tenant("acme")
    ada = world.principal(acme)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(world.database(claims=True))
        here = await stack.enter_async_context(serve_openai())
        there = await stack.enter_async_context(serve_openai())
        here.prompt_tokens = there.prompt_tokens = PROMPT
        offers = [
            offer(here.base_url, endpoint="here", priority=0),
            offer(there.base_url, endpoint="there", priority=1),
        ]
        opened = await stack.enter_async_context(desk(database, ada, offers))
        yield Scene(world=world, database=database, ada=ada, here=here, there=there, desk=opened)


async def test_a_call_is_held_started_and_settled_at_what_it_cost(scene: Scene) -> None:
    scene.here.cached_tokens = 64
    assert await scene.desk.write(max_tokens=MAX_TOKENS) == "Hello world."
    (row,) = await scene.charges()
    cost = PRICE.cost(prompt=PROMPT, cached=64, completion=2, milliseconds=0)
    assert (row["state"], row["cost"], row["estimated"]) == ("settled", cost, False)
    assert row["upper"] >= cost
    assert await scene.held() == 0


async def test_what_was_refused_before_any_work_is_tried_again_and_paid_once(scene: Scene) -> None:
    """A retry billed twice: here each physical call has a row of its own, and only one of them costs anything."""
    scene.here.faults.append(Fault(status=503))
    assert await scene.desk.write(max_tokens=MAX_TOKENS) == "Hello world."
    rows = await scene.charges()
    assert [(row["state"], row["cost"], row["attempt"]) for row in rows] == [
        ("released", Decimal(0), 1),
        ("settled", COST, 2),
    ]
    assert len(scene.here.requests) == 2
    assert await scene.held() == 0


async def test_a_failure_that_may_have_cost_is_paid_and_another_server_is_asked(scene: Scene) -> None:
    scene.here.faults.append(Fault(status=500))
    request = ChatRequest(system="Rules.", user="Why?", max_tokens=MAX_TOKENS)
    written = await scene.desk.gateway.write(scene.desk.caller, request, asked(), emit=scene.desk.emit)
    assert (written.served.endpoint, written.served.fallback, written.served.attempts) == ("there", "endpoint", 2)
    assert Decimal(written.served.cost or 0) == UPPER + COST
    assert written.served.estimated
    rows = await scene.charges()
    assert [(row["state"], row["cost"], row["estimated"]) for row in rows] == [
        ("settled", UPPER, True),
        ("settled", COST, False),
    ]
    assert len(scene.here.requests) == 1


async def test_a_streamed_call_cut_off_half_way_is_paid_at_its_bound_and_not_said_twice(scene: Scene) -> None:
    scene.here.faults.append(Fault(cut_after=1))
    with pytest.raises(Unavailable, match="in the middle of its answer"):
        await scene.desk.write(max_tokens=MAX_TOKENS)
    assert scene.desk.emitted == ["Hello"]
    assert scene.there.requests == []
    (row,) = await scene.charges()
    assert (row["state"], row["cost"], row["estimated"]) == ("settled", UPPER, True)
    assert await scene.held() == 0


async def test_a_caller_that_goes_away_leaves_nothing_held(scene: Scene) -> None:
    scene.here.faults.append(Fault(stall_after=1))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            async def emit(_: str) -> None:
                tasks.cancel_scope.cancel()

            request = ChatRequest(system="Rules.", user="Why?", max_tokens=MAX_TOKENS)

            async def write() -> None:
                await scene.desk.gateway.write(scene.desk.caller, request, asked(), emit=emit)

            tasks.start_soon(write)
        await scene.here.abandoned.wait()
    (row,) = await scene.charges()
    assert (row["state"], row["cost"], row["estimated"]) == ("settled", UPPER, True)
    assert await scene.held() == 0


async def test_over_budget_nothing_is_sent_and_the_refusal_says_what_is_left(scene: Scene) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        await scene.desk.write(max_tokens=20_000)
    refused = caught.value
    assert (refused.scope, refused.window, refused.left) == ("tenant", "day", Decimal(1))
    assert refused.resets_at is not None
    assert scene.here.requests == scene.there.requests == []
    assert await scene.held() == 0


async def test_a_caller_may_bound_one_request(scene: Scene) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        await scene.desk.write(scene.desk.whose(scene.ada, max_cost=Decimal("0.001")), max_tokens=MAX_TOKENS)
    assert caught.value.scope == "request"
    assert scene.here.requests == []


async def test_without_a_price_a_budget_lets_nothing_through(scene: Scene) -> None:
    offers = [offer(scene.here.base_url, price=None)]
    async with desk(scene.database, scene.ada, offers) as unpriced:
        with pytest.raises(PriceUnknown):
            await unpriced.write()
    assert scene.here.requests == []


class Down:
    """A ledger whose database has gone, from the step on that it is told."""

    def __init__(self, *, holds: bool) -> None:
        self._holds = holds
        self.released: list[Hold] = []

    async def hold(self, payer: Payer, bill: Bill) -> Hold:
        if not self._holds:
            raise Unavailable
        return Hold(charge_id=bill.price.price_id if bill.price else PRICE.price_id, payer=payer, upper=bill.upper)

    async def start(self, hold: Hold) -> None:
        del hold
        raise Unavailable

    async def settle(self, hold: Hold, settlement: Settlement) -> None:
        raise AssertionError((hold, settlement))

    async def release(self, hold: Hold) -> None:
        self.released.append(hold)


@pytest.mark.parametrize("holds", [False, True])
async def test_fail_open_when_the_ledger_is_down(scene: Scene, holds: bool) -> None:
    """It must not happen: without the ledger's word nothing is sent, to no server, and the error may be retried."""
    ledger = Down(holds=holds)
    offers = [offer(scene.here.base_url), offer(scene.there.base_url, endpoint="there", priority=1)]
    async with desk(scene.database, scene.ada, offers, ledger=ledger) as unkept:
        with pytest.raises(Unavailable):
            await unkept.write()
    assert scene.here.requests == scene.there.requests == []
    assert len(ledger.released) == holds


async def test_the_real_ledger_without_its_database_lets_nothing_through(scene: Scene) -> None:
    async with (
        scene.world.database(claims=True) as database,
        desk(database, scene.ada, [offer(scene.here.base_url)]) as opened,
    ):
        assert await opened.write() == "Hello world."
        await cut_off(scene.world)
        with pytest.raises(Unavailable):
            await opened.write()
    assert len(scene.here.requests) == 1


async def test_a_server_that_keeps_failing_is_left_alone(scene: Scene) -> None:
    scene.here.faults.extend([Fault(status=500)] * 5)
    for _ in range(7):
        assert await scene.desk.write(max_tokens=MAX_TOKENS) == "Hello world."
    assert len(scene.here.requests) == 5
    assert len(scene.there.requests) == 7


async def test_a_smaller_model_writes_only_where_the_caller_allows_it_and_the_result_says_so(scene: Scene) -> None:
    rules = (Rule(name="everything", tier=Tier.LARGE, when=When()),)
    offers = [
        offer(scene.here.base_url, model="big", tier=Tier.LARGE),
        offer(scene.there.base_url, model="little", tier=Tier.SMALL, endpoint="there"),
    ]
    scene.here.faults.extend([Fault(status=500)] * 2)
    request = ChatRequest(system="Rules.", user="Why?", max_tokens=MAX_TOKENS)
    async with desk(scene.database, scene.ada, offers, rules=rules) as opened:
        with pytest.raises(Unavailable):
            await opened.gateway.write(opened.caller, request, asked(), emit=opened.emit)
        assert scene.there.requests == []
        allowing = opened.allowing(Policy(allow_downgrade=True))
        written = await opened.gateway.write(allowing, request, asked(), emit=opened.emit)
    served = written.served
    assert (served.model, served.tier, served.required) == ("little", "small", "large")
    assert (served.downgraded, served.fallback) == (True, "model")


async def test_a_tenant_that_floods_a_server_does_not_keep_others_out(scene: Scene) -> None:
    bolt = await scene.world.tenant("bolt")
    scene.here.faults.extend([Fault(hang=True)])
    order: list[str] = []
    async with desk(scene.database, scene.ada, [offer(scene.here.base_url)], places=1) as opened:

        async def write(whose: str, caller: Any) -> None:
            try:
                await opened.write(caller, max_tokens=MAX_TOKENS)
                order.append(whose)
            except Unavailable:
                pass  # the one that hangs until the server lets it go

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(write, "acme", opened.caller)
                await _until(lambda: len(scene.here.requests) == 1)
                tasks.start_soon(write, "bolt", opened.whose(scene.world.principal(bolt)))
                await _until(lambda: _waiting(opened) == 20)
                scene.here.closing.set()
    assert order.index("bolt") <= 2, "it came last and is not served last"


def _waiting(opened: Desk) -> int:
    return opened.gateway.loads()["here"].waiting


async def _until(condition: Any) -> None:
    while not condition():
        await anyio.lowlevel.checkpoint()
