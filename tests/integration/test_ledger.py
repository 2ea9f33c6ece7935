"""Budgets that hold: what others' ledgers got wrong, by name, and what ours promises besides.

The failures named here are open or recent ones of gateways in use: see docs/budgets.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from rag.budgets.ledger import PostgresLedger
from rag.budgets.operator import (
    Budget,
    Period,
    Scope,
    drop_budget,
    list_budgets,
    list_tier_budgets,
    set_budget,
    set_tier_budget,
)
from rag.budgets.sweep import run_sweeper, sweep_due
from rag.errors import BudgetExceeded, Conflict, InvalidInput, NotFound, PriceUnknown, SealRefused, Unavailable
from rag.identity.principal import Principal
from rag.llm.ledger import Hold, Payer
from rag.tenants.operator import Tier
from tests.support.ledger import LedgerScene, bill, cost, ledger_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
CONNECTIONS = 8
ZERO = Decimal(0)
DAY = Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal(1))


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[LedgerScene]:
    """One database for the module; every test makes tenants of its own."""
    async with world(cluster) as own, ledger_scene(own, pool_size=CONNECTIONS) as scene:
        yield scene


def of(who: Principal) -> Payer:
    return Payer(principal=who)


async def waiting(locker: asyncpg.Connection, wanted: int) -> None:
    """Wait until so many statements of the ledger wait for the locker; for 0, until the server has ended them all."""
    query = "select count(*) from pg_stat_activity where query like '%_charge_v1%' and datname = current_database()"
    query += " and pid <> $1 and " + ("wait_event_type = 'Lock'" if wanted else "state = 'active'")
    with anyio.fail_after(BOUND_S):
        while await locker.fetchval(query, locker.get_server_pid()) != wanted:
            # within a transaction, the server would tell the same again
            await locker.execute("select pg_stat_clear_snapshot()")


# What others got wrong


async def test_check_then_increment_race_of_many_at_once_no_more_are_let_in_than_fit(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    await scene.spend(ada, "0.1")
    let_in: list[Hold] = []
    refused: list[BudgetExceeded] = []

    async def ask() -> None:
        try:
            let_in.append(await scene.ledger.hold(of(ada), bill("0.3")))
        except BudgetExceeded as exc:
            refused.append(exc)

    locker = await asyncpg.connect(scene.world.superuser_url)
    try:
        # all of them have come as far as they can before any of them is let in
        await locker.execute("begin")
        await locker.execute("select 1 from rag.budget_account where tenant_id = $1 for update", ada.tenant_id)
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                for _ in range(CONNECTIONS):
                    tasks.start_soon(ask)
                await waiting(locker, CONNECTIONS)
                await locker.execute("commit")
    finally:
        await locker.close()
    assert (len(let_in), len(refused)) == (3, CONNECTIONS - 3)
    assert {exc.left for exc in refused} == {ZERO}
    assert (await scene.accounts(ada))["tenant day"].held == Decimal("0.9")


async def test_leaked_reservation_a_hold_whose_holder_is_gone_is_given_back(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    await scene.ledger.hold(of(ada), bill("0.9"))  # and its process ends here
    assert await sweep_due(scene.worker) == 0, "its time is not over"
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(of(ada), bill("0.9"))
    assert await scene.sweep(ada) == 1
    assert (await scene.accounts(ada))["tenant day"].held == ZERO
    await scene.ledger.hold(of(ada), bill("0.9"))


async def test_leaked_reservation_a_call_that_was_cancelled_while_it_was_held_holds_nothing(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    await scene.spend(ada, "0.1")
    locker = await asyncpg.connect(scene.world.superuser_url)
    try:
        await locker.execute("begin; lock table rag.budget_account in exclusive mode")
        with anyio.move_on_after(0.1) as scope:
            await scene.ledger.hold(of(ada), bill("0.5"))
        assert scope.cancelled_caught
        await waiting(locker, 0)
    finally:
        await locker.close()
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled) == (ZERO, Decimal("0.1"))


async def test_leaked_reservation_a_call_that_is_cancelled_while_it_is_made_is_settled_or_swept(
    scene: LedgerScene,
) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.5"))
    await scene.ledger.start(hold)  # and what was sent may have been billed
    assert await scene.sweep(ada) == 1
    charge = await scene.charge(hold)
    assert (charge["state"], charge["estimated"], charge["cost"]) == ("settled", True, Decimal("0.5"))
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled) == (ZERO, Decimal("0.5"))


async def test_fail_open_when_the_ledger_is_down_no_call_is_let_in(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    held = await scene.ledger.hold(of(ada), bill("0.1"))
    hasty = PostgresLedger(scene.worker, timeout_s=0.2)
    locker = await asyncpg.connect(scene.world.superuser_url)
    try:
        await locker.execute("begin; lock table rag.charge in access exclusive mode")
        for step in (
            lambda: hasty.hold(of(ada), bill("0.1")),
            lambda: hasty.start(held),
            lambda: hasty.settle(held, cost("0.1")),
            lambda: hasty.release(held),
        ):
            with pytest.raises(Unavailable):
                await step()
        await waiting(locker, 0)
    finally:
        await locker.close()
    assert (await scene.charge(held))["state"] == "held"
    assert (await scene.accounts(ada))["tenant day"].held == Decimal("0.1")


async def test_fail_open_when_the_ledger_is_cut_off_no_call_is_let_in(scene: LedgerScene) -> None:
    ada = await scene.caller()
    async with scene.world.database(pool_size=1, claims=True) as database:
        ledger = PostgresLedger(database)
        held = await ledger.hold(of(ada), bill("0.1"))
        locker = await asyncpg.connect(scene.world.superuser_url)
        failed: list[Unavailable] = []

        async def start() -> None:
            try:
                await ledger.start(held)
            except Unavailable as exc:
                failed.append(exc)

        try:
            await locker.execute("begin; lock table rag.charge in access exclusive mode")
            with anyio.fail_after(BOUND_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(start)
                    waiting: asyncpg.Record | None = None
                    while waiting is None:
                        # within a transaction, the server would tell the same again
                        await locker.execute("select pg_stat_clear_snapshot()")
                        waiting = await locker.fetchrow(
                            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                            "where wait_event_type = 'Lock' and query like '%start_charge%' "
                            "and datname = current_database()"
                        )
        finally:
            await locker.close()
        assert len(failed) == 1, "nothing may be sent"
        assert (await scene.charge(held))["state"] == "held"
        await ledger.start(held)


SCOPES = (
    Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal("0.4")),
    Budget(scope=Scope.TENANT, period=Period.MONTH, amount=Decimal("0.4")),
    Budget(scope=Scope.TENANT, period=Period.MONTH, model="tiny", amount=Decimal("0.4")),
    Budget(scope=Scope.TEAM, scope_id="law", period=Period.DAY, amount=Decimal("0.4")),
    Budget(scope=Scope.TEAM, period=Period.MONTH, amount=Decimal("0.4")),
    Budget(scope=Scope.USER, scope_id="ada", period=Period.MONTH, amount=Decimal("0.4")),
    Budget(scope=Scope.USER, period=Period.DAY, model="tiny", amount=Decimal("0.4")),
    Budget(scope=Scope.TASK, period=Period.TASK, amount=Decimal("0.4")),
    Budget(scope=Scope.REQUEST, period=Period.REQUEST, amount=Decimal("0.4")),
    Budget(scope=Scope.REQUEST, period=Period.REQUEST, model="tiny", amount=Decimal("0.4")),
)


@pytest.mark.parametrize("tight", SCOPES, ids=lambda one: f"{one.scope}-{one.period}-{one.scope_id}-{one.model}")
async def test_missing_scope_each_budget_alone_refuses_and_then_nothing_is_held_in_any(
    scene: LedgerScene, tight: Budget
) -> None:
    ada = await scene.caller(team="law")
    await scene.budget(ada, *(dataclasses.replace(one, amount=Decimal(9)) for one in SCOPES), tight)
    payer = Payer(principal=ada, task_id=uuid4())
    await scene.spend(payer, "0.3")
    wanted = "0.5" if tight.scope is Scope.REQUEST else "0.2"
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(payer, bill(wanted))
    assert (refused.value.scope, refused.value.window) == (tight.scope, tight.period)
    assert refused.value.left == Decimal("0.4") - (ZERO if tight.scope is Scope.REQUEST else Decimal("0.3"))
    assert (refused.value.resets_at is not None) == (tight.period in {Period.DAY, Period.MONTH})
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert len(accounts) == 8
    assert {(one.held, one.settled) for one in accounts.values()} == {(ZERO, Decimal("0.3"))}
    await scene.ledger.hold(payer, bill("0.1"))
    assert {one.held for one in (await scene.accounts(ada, task_id=payer.task_id)).values()} == {Decimal("0.1")}


async def test_under_priced_long_prompt_the_bound_is_held_and_what_is_beyond_it_is_counted(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal("0.45")))
    for _ in range(3):
        await scene.ledger.hold(of(ada), bill("0.12"))
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(of(ada), bill("0.12"))
    bob = await scene.caller()
    await scene.budget(bob, Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal("0.45")))
    hold = await scene.spend(bob, "0.50", upper="0.12")  # the server took more than it could
    account = (await scene.accounts(bob))["tenant day"]
    assert (account.settled, account.overrun, account.left) == (Decimal("0.12"), Decimal("0.38"), ZERO)
    assert (await scene.charge(hold))["cost"] == Decimal("0.50"), "the ledger is never below what was used"
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(bob), bill("0.000001"))
    assert refused.value.left == ZERO


async def test_retry_billed_twice_what_is_settled_again_counts_once_and_what_was_not_billed_not_at_all(
    scene: LedgerScene,
) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    first = await scene.ledger.hold(of(ada), bill("0.4", key="answer", attempt=1))
    await scene.ledger.start(first)
    await scene.ledger.release(first)  # refused with 503: nothing was billed
    await scene.ledger.release(first)
    second = await scene.ledger.hold(of(ada), bill("0.4", key="answer", attempt=2))
    await scene.ledger.start(second)
    for amount in ("0.2", "0.2", "0.3"):  # the answer to the first was lost, and the last is wrong
        await scene.ledger.settle(second, cost(amount))
    await scene.ledger.release(second)
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled, account.overrun) == (ZERO, Decimal("0.2"), ZERO)
    states = [(await scene.charge(one))["state"] for one in (first, second)]
    assert states == ["released", "settled"]


async def test_retry_billed_twice_a_hold_that_is_asked_for_again_holds_once(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.4"))
    again = "select * from rag.hold_charge_v1($1, $2, 'key', 1, 'tiny', 'here', $2, 0.4, null, null, null, 60)"
    assert await scene.fetch(again, scene.database.seal(ada), hold.charge_id) == []
    assert (await scene.accounts(ada))["tenant day"].held == Decimal("0.4")


# What a call goes through


async def test_a_call_starts_once_and_not_when_its_hold_has_run_out(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.4"))
    await scene.ledger.start(hold)
    with pytest.raises(Conflict):
        await scene.ledger.start(hold)
    late = await scene.ledger.hold(of(ada), bill("0.4"))
    await scene.sweep(ada)
    with pytest.raises(Conflict):
        await scene.ledger.start(late)
    assert (await scene.charge(late))["state"] == "released"


async def test_a_settlement_that_comes_after_the_sweep_corrects_the_estimate(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    known = [await scene.ledger.hold(of(ada), bill("0.3")) for _ in range(3)]
    for hold in known:
        await scene.ledger.start(hold)
    assert await scene.sweep(ada) == 3
    assert (await scene.accounts(ada))["tenant day"].settled == Decimal("0.9")
    await scene.ledger.settle(known[0], cost("0.1"))
    await scene.ledger.settle(known[1], cost("0.5"))
    await scene.ledger.release(known[2])
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled, account.overrun) == (ZERO, Decimal("0.4"), Decimal("0.2"))
    assert not (await scene.charge(known[0]))["estimated"]


async def test_what_a_released_call_turns_out_to_have_cost_is_counted_and_breaks_no_limit(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.5"))
    await scene.ledger.start(hold)
    await scene.ledger.release(hold)
    await scene.spend(ada, "1")
    await scene.ledger.settle(hold, cost("0.2"))
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.settled, account.overrun) == (Decimal(1), Decimal("0.2"))


async def test_a_call_that_is_started_is_given_more_time_and_the_sweep_leaves_it_alone(scene: LedgerScene) -> None:
    ada = await scene.caller()
    ledger = PostgresLedger(scene.worker, hold_s=-1, call_s=60)
    hold = await ledger.hold(of(ada), bill("0.4"))
    await ledger.start(hold)
    assert await sweep_due(scene.worker) == 0
    left = await ledger.hold(of(ada), bill("0.4"))
    assert await sweep_due(scene.worker) == 1
    assert [(await scene.charge(one))["state"] for one in (hold, left)] == ["started", "released"]


async def test_the_sweeper_goes_on_after_the_database_has_failed_it(
    scene: LedgerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await scene.caller()
    ledger = PostgresLedger(scene.worker, hold_s=-1)
    await ledger.hold(of(ada), bill("0.4"))
    monkeypatch.setattr("rag.budgets.sweep.FIRST_PAUSE_S", 0.01)
    async with scene.world.database(pool_size=1, claims=True) as database:
        await sweep_due(database)
        await scene.fetch(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where usename = 'bulkhead_worker' and datname = current_database()"
        )
        hold = await ledger.hold(of(ada), bill("0.4"))
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: run_sweeper(database, idle_s=0.01))
                while (await scene.charge(hold))["state"] == "held":
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()


async def test_without_any_budget_every_call_is_let_in_and_written_down(scene: LedgerScene) -> None:
    ada = await scene.caller()
    hold = await scene.ledger.hold(of(ada), bill("0", priced=False))
    await scene.ledger.start(hold)
    await scene.ledger.settle(hold, cost("0"))
    paid = await scene.spend(ada, "123.456789012345")
    assert await scene.accounts(ada) == {}
    assert (await scene.charge(paid))["cost"] == Decimal("123.456789012345")
    assert (await scene.charge(hold))["completion_tokens"] == 5


@pytest.mark.parametrize("limited", ["tenant", "request", "caller"])
async def test_an_unknown_price_refuses_where_a_limit_applies(scene: LedgerScene, limited: str) -> None:
    ada = await scene.caller()
    payer = Payer(principal=ada, max_cost=Decimal(1) if limited == "caller" else None)
    if limited == "tenant":
        await scene.budget(ada, DAY)
    if limited == "request":
        await scene.budget(ada, Budget(scope=Scope.REQUEST, period=Period.REQUEST, amount=Decimal(1)))
    with pytest.raises(PriceUnknown):
        await scene.ledger.hold(payer, bill("0", priced=False))


async def test_a_request_may_not_cost_more_than_its_caller_said(scene: LedgerScene) -> None:
    ada = await scene.caller()
    payer = Payer(principal=ada, max_cost=Decimal("0.2"))
    await scene.ledger.hold(payer, bill("0.2"))
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(payer, bill("0.21"))
    assert (refused.value.scope, refused.value.left) == ("request", Decimal("0.2"))
    assert "0.2" in refused.value.message


# Which budgets apply


async def test_tiers_are_data_and_a_tenants_own_budget_replaces_its_tiers(scene: LedgerScene) -> None:
    ada = await scene.caller(tier=Tier.FREE)
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(ada), bill("1.01"))
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
    assert refused.value.window == "day"
    assert refused.value.resets_at == datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC)
    await scene.budget(ada, dataclasses.replace(DAY, amount=Decimal(5)))
    await scene.spend(ada, "4")
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(ada), bill("1.01"))
    assert (refused.value.window, refused.value.left) == ("day", Decimal(1))
    await scene.budget(ada, dataclasses.replace(DAY, amount=None))
    await scene.spend(ada, "5")
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(ada), bill("1.01"))
    assert refused.value.window == "month"
    accounts = await scene.accounts(ada)
    assert (accounts["tenant day"].amount, accounts["tenant day"].used) == (None, Decimal(9))


async def test_a_user_with_a_budget_of_its_own_has_that_and_others_have_the_one_for_each(scene: LedgerScene) -> None:
    ada = await scene.caller()
    bob = dataclasses.replace(ada, subject="bob")
    await scene.budget(
        ada,
        Budget(scope=Scope.USER, period=Period.DAY, amount=Decimal("0.1")),
        Budget(scope=Scope.USER, period=Period.DAY, scope_id="ada", amount=Decimal(1)),
    )
    await scene.spend(ada, "0.9")
    await scene.spend(bob, "0.1")
    for who, left in ((ada, Decimal("0.1")), (bob, ZERO)):
        with pytest.raises(BudgetExceeded) as refused:
            await scene.ledger.hold(of(who), bill("0.2"))
        assert refused.value.left == left


async def test_a_limit_that_is_lowered_below_what_is_used_refuses_and_breaks_nothing(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    await scene.spend(ada, "0.5")
    hold = await scene.ledger.hold(of(ada), bill("0.3"))
    await scene.budget(ada, dataclasses.replace(DAY, amount=Decimal("0.1")))
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(ada), bill("0.01"))
    assert refused.value.left == ZERO
    await scene.ledger.start(hold)
    await scene.ledger.settle(hold, cost("0.2"))
    assert (await scene.accounts(ada))["tenant day"].settled == Decimal("0.7")
    await scene.budget(ada, dataclasses.replace(DAY, amount=Decimal("0.8")))
    await scene.spend(ada, "0.1")


async def test_a_budget_that_is_set_or_set_again_counts_what_was_spent_before(scene: LedgerScene) -> None:
    ada = await scene.caller(team="law")
    payer = Payer(principal=ada, task_id=uuid4())
    await scene.spend(payer, "0.5")
    flying = await scene.ledger.hold(payer, bill("0.2"))
    await scene.spend(dataclasses.replace(ada, subject="bob", team=None), "0.01")
    young = [dataclasses.replace(one, amount=Decimal(1)) for one in SCOPES if one.scope is not Scope.REQUEST]
    await scene.budget(ada, *young)
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(payer, bill("0.4"))
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {name: one.used for name, one in accounts.items()} == {
        name: Decimal("0.71") if name.startswith("tenant") else Decimal("0.7") for name in accounts
    }
    await scene.ledger.release(flying)
    async with scene.maintenance() as session:
        for one in young:
            await drop_budget(session, ada.tenant_id, one)
    assert await scene.accounts(ada, task_id=payer.task_id) == {}
    await scene.spend(payer, "0.1")
    await scene.budget(ada, DAY)
    await scene.spend(payer, "0.1")
    assert (await scene.accounts(ada))["tenant day"].used == Decimal("0.71")


async def test_a_tenant_that_books_another_tier_is_counted_anew_when_it_comes_back(scene: LedgerScene) -> None:
    ada = await scene.caller(tier=Tier.FREE)
    await scene.spend(ada, "0.3")
    async with scene.world.operator() as operator:
        await operator.set_tier(ada.tenant_id, Tier.ENTERPRISE)
        await scene.spend(ada, "0.5")
        await operator.set_tier(ada.tenant_id, Tier.FREE)
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(of(ada), bill("0.21"))
    assert refused.value.left == Decimal("0.2")


async def test_the_budget_of_yesterday_is_no_longer_held_against_and_still_settled_into(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.8"))
    await scene.a_day_passes(ada)
    await scene.spend(ada, "0.9")
    await scene.ledger.start(hold)
    await scene.ledger.settle(hold, cost("0.7"))
    rows = await scene.fetch(
        "select held, settled from rag.budget_account where tenant_id = $1 order by starts_at", ada.tenant_id
    )
    assert [tuple(row) for row in rows] == [(ZERO, Decimal("0.7")), (ZERO, Decimal("0.9"))]


# Alerts


async def test_a_budget_is_told_of_once_at_80_and_once_at_100_per_cent(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    await scene.spend(ada, "0.79")
    assert await scene.alerts(ada) == []
    await scene.spend(ada, "0.02")
    (first,) = await scene.alerts(ada)
    assert (first.mark, first.scope, first.period, first.used) == (80, "tenant", "day", Decimal("0.81"))
    for _ in range(2):
        await scene.spend(ada, "0.01")
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(of(ada), bill("0.5"))
    assert [one.mark for one in await scene.alerts(ada)] == [80, 100]
    await scene.spend(ada, "0.17")
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(of(ada), bill("0.5"))
    found = await scene.alerts(ada)
    assert [one.mark for one in found] == [80, 100]
    assert found[0].position < found[1].position


async def test_one_call_that_takes_all_of_a_budget_is_told_of_at_both_marks(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(of(ada), bill("3"))
    assert await scene.alerts(ada) == [], "nothing was used"
    await scene.spend(ada, "1")
    assert sorted(one.mark for one in await scene.alerts(ada)) == [80, 100]


# The operator's verbs


async def test_an_operator_sets_lists_and_takes_away_budgets(scene: LedgerScene) -> None:
    ada = await scene.caller()
    async with scene.maintenance() as session:
        for budget in SCOPES:
            await set_budget(session, ada.tenant_id, budget)
        assert set(await list_budgets(session, ada.tenant_id)) == set(SCOPES)
        await drop_budget(session, ada.tenant_id, SCOPES[0])
        with pytest.raises(NotFound):
            await drop_budget(session, ada.tenant_id, SCOPES[0])
        with pytest.raises(NotFound):
            await set_budget(session, uuid4(), DAY)
        for wrong in (
            dataclasses.replace(DAY, period=Period.TASK),
            dataclasses.replace(DAY, scope_id="ada"),
            dataclasses.replace(DAY, amount=Decimal(-1)),
            dataclasses.replace(DAY, amount=Decimal("1E+13")),
            dataclasses.replace(DAY, amount=Decimal("NaN")),
            dataclasses.replace(DAY, amount=Decimal("0.0000001")),
        ):
            with pytest.raises(InvalidInput):
                await set_budget(session, ada.tenant_id, wrong)


async def test_an_operator_changes_what_a_tier_may_spend(cluster: Cluster) -> None:
    async with world(cluster) as own, ledger_scene(own) as scene:
        ada = await scene.caller(tier=Tier.FREE)
        async with scene.maintenance() as session:
            shipped = {one.tier: (one.day, one.month) for one in await list_tier_budgets(session)}
            assert shipped == {
                "free": (Decimal(1), Decimal(10)),
                "pro": (Decimal(20), Decimal(200)),
                "enterprise": (None, None),
            }
            await scene.spend(ada, "0.5")
            await set_tier_budget(session, "free", Period.DAY, None)
            await scene.spend(ada, "2")
            await set_tier_budget(session, "free", Period.DAY, Decimal(3))
            with pytest.raises(BudgetExceeded) as refused:
                await scene.ledger.hold(of(ada), bill("0.6"))
            assert refused.value.left == Decimal("0.5")
            with pytest.raises(NotFound):
                await set_tier_budget(session, "gold", Period.DAY, None)
            with pytest.raises(InvalidInput):
                await set_tier_budget(session, "free", Period.TASK, Decimal(1))


# Walls


async def test_nobody_ends_another_tenants_calls(scene: LedgerScene) -> None:
    ada, eve = await scene.caller(), await scene.caller()
    await scene.budget(ada, DAY)
    hold = await scene.ledger.hold(of(ada), bill("0.4"))
    stolen = dataclasses.replace(hold, payer=of(eve))
    with pytest.raises(Conflict):
        await scene.ledger.start(stolen)
    with pytest.raises(Conflict):
        await scene.ledger.settle(stolen, cost("0"))
    await scene.ledger.release(stolen)
    assert (await scene.charge(hold))["state"] == "held"
    assert await scene.accounts(eve) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "update rag.budget_account set settled = 0",
        "delete from rag.charge",
        "insert into rag.budget (tenant_id, scope, period, amount) values (rag.current_tenant(), 'tenant', 'day', 9)",
        "update rag.tier_budget set amount = 9",
        "delete from rag.budget_alert",
        "select * from queue.charge",
        "select queue.sweep_charges_v1(1)",
        "select rag.sweep_charges_v1('{}', '{}')",
        "select rag.end_charge_v1(null, 'released', 0, false, null, null, null)",
        "select rag.settle_charge_v1('', null, 0, false, null, null, null)",
        "select rag.release_charge_v1('', null)",
    ],
)
async def test_the_servers_login_cannot_write_the_ledger_but_by_its_functions(
    scene: LedgerScene, statement: str
) -> None:
    ada = await scene.caller()
    connection = await asyncpg.connect(scene.database.dsn)
    try:
        async with connection.transaction():
            await connection.execute("select rag.open_context_v1($1)", scene.database.seal(ada))
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    except asyncpg.InFailedSQLTransactionError:
        pass
    finally:
        await connection.close()


async def test_a_ledger_call_without_a_valid_seal_is_refused(scene: LedgerScene) -> None:
    ada = await scene.caller()
    forged = scene.database.seal(ada).replace("ada", "bob")
    connection = await asyncpg.connect(scene.worker.dsn)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select * from rag.release_charge_v1($1, $2)", forged, uuid4())
    finally:
        await connection.close()
    gone = dataclasses.replace(ada, tenant_id=uuid4())
    with pytest.raises(SealRefused):
        await scene.ledger.hold(of(gone), bill("0.1"))
