"""What a task has reserved: its calls are paid out of that, its end gives the rest back, and an export adds up."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from rag.budgets.ledger import reserve_task
from rag.budgets.operator import Budget, Period, Scope
from rag.budgets.usage import By, UsageFilter, all_charges, read_charges, read_usage
from rag.errors import BudgetExceeded
from rag.identity.principal import Principal
from rag.llm.ledger import Payer
from rag.tasks import store
from rag.tasks.values import TERMINAL, NewTask, TaskState
from sql import Query
from tests.support import tasks
from tests.support.ledger import LedgerScene, bill, cost, ledger_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
ZERO = Decimal(0)
DAY = Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal(1))
MODEL = Budget(scope=Scope.TENANT, period=Period.DAY, model="tiny", amount=Decimal(1))
TASK = Budget(scope=Scope.TASK, period=Period.TASK, amount=Decimal("0.7"))
ACCEPT = Query(
    name="accept",
    description="",
    text="select task_id, created from rag.create_task_alone_v2("
    "$1, $2, 'talk', 'rag', '{}', '{}', '{}', '{}', null, $3, $4, null, $5, null, $6)",
    parameters=("context", "task_id", "token_ids", "issued_at", "key", "reserve"),
)


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[LedgerScene]:
    """One database for the module; every test makes tenants of its own."""
    async with world(cluster) as own, ledger_scene(own) as scene:
        yield scene


async def reserved(scene: LedgerScene, who: Principal, amount: str) -> Payer:
    """Accept a task with a reserve, in one transaction."""
    new = NewTask(task_id=uuid4(), context_id="talk", workflow="rag", input={}, message={})
    async with scene.database.tenant(who) as session:
        await store.create_task(session, who, new)
        await reserve_task(session, new.task_id, Decimal(amount), team=who.team)
    return Payer(principal=who, task_id=new.task_id)


async def end(scene: LedgerScene, payer: Payer, state: TaskState = TaskState.CANCELED) -> None:
    """End the task."""
    assert payer.task_id is not None
    await tasks.status(scene.database, payer.principal, payer.task_id, state, "over", fence=None)


async def left(scene: LedgerScene, task_id: UUID | None) -> tuple[str, Decimal]:
    """Return the state of a task's reserve, and what is left of it."""
    (row,) = await scene.fetch("select state, upper from rag.charge where task_id = $1 and kind = 'reserve'", task_id)
    return row["state"], row["upper"]


async def test_a_tasks_calls_are_paid_out_of_its_reserve_and_then_by_the_budgets(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY, MODEL, TASK)
    payer = await reserved(scene, ada, "0.5")
    assert {name: one.held for name, one in (await scene.accounts(ada, task_id=payer.task_id)).items()} == {
        "task task": Decimal("0.5"),
        "tenant day": Decimal("0.5"),
    }
    hold = await scene.ledger.hold(payer, bill("0.4"))
    assert await left(scene, payer.task_id) == ("held", Decimal("0.1"))
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {name: one.held for name, one in accounts.items()} == {
        "task task": Decimal("0.5"),
        "tenant day": Decimal("0.5"),
        "tenant tiny day": Decimal("0.4"),
    }
    await scene.ledger.start(hold)
    await scene.ledger.settle(hold, cost("0.1"))
    assert await left(scene, payer.task_id) == ("held", Decimal("0.4")), "what was lent and not spent comes back"
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {name: (one.held, one.settled) for name, one in accounts.items()} == {
        "task task": (Decimal("0.4"), Decimal("0.1")),
        "tenant day": (Decimal("0.4"), Decimal("0.1")),
        "tenant tiny day": (ZERO, Decimal("0.1")),
    }
    await scene.spend(payer, "0.6", upper="0.6")  # 0.4 of the reserve, 0.2 of what is free
    assert await left(scene, payer.task_id) == ("held", ZERO)
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(payer, bill("0.1"))
    assert (refused.value.scope, refused.value.left) == ("task", ZERO)
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {(one.held, one.settled) for one in accounts.values()} == {(ZERO, Decimal("0.7"))}


async def test_a_reserve_keeps_others_out_and_lets_the_tasks_own_calls_in(
    scene: LedgerScene,
) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    payer = await reserved(scene, ada, "0.9")
    with pytest.raises(BudgetExceeded) as refused:
        await scene.ledger.hold(Payer(principal=ada), bill("0.2"))
    assert refused.value.left == Decimal("0.1")
    await scene.spend(payer, "0.8", upper="0.9")


@pytest.mark.parametrize("state", sorted(TERMINAL))
async def test_leaked_reservation_every_end_of_a_task_gives_back_what_is_left(
    scene: LedgerScene, state: TaskState
) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY, TASK)
    payer = await reserved(scene, ada, "0.5")
    await scene.spend(payer, "0.1", upper="0.3")
    flying = await scene.ledger.hold(payer, bill("0.3"))
    await scene.ledger.start(flying)
    await end(scene, payer, state)
    assert await left(scene, payer.task_id) == ("released", ZERO)
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {(one.held, one.settled) for one in accounts.values()} == {(Decimal("0.3"), Decimal("0.1"))}
    await scene.ledger.settle(flying, cost("0.2"))
    accounts = await scene.accounts(ada, task_id=payer.task_id)
    assert {(one.held, one.settled) for one in accounts.values()} == {(ZERO, Decimal("0.3"))}


async def test_a_tasks_call_that_is_swept_gives_its_reserve_back_or_takes_its_bound(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    payer = await reserved(scene, ada, "0.5")
    await scene.ledger.hold(payer, bill("0.2"))
    started = await scene.ledger.hold(payer, bill("0.2"))
    await scene.ledger.start(started)
    assert await scene.sweep(ada) == 2
    assert await left(scene, payer.task_id) == ("held", Decimal("0.3"))
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled) == (Decimal("0.3"), Decimal("0.2"))
    await scene.ledger.settle(started, cost("0.05"))
    account = (await scene.accounts(ada))["tenant day"]
    assert (account.held, account.settled) == (Decimal("0.3"), Decimal("0.05"))
    await end(scene, payer)
    assert (await scene.accounts(ada))["tenant day"].held == ZERO


async def test_a_task_that_goes_on_after_midnight_spends_its_reserve_of_yesterday_first(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    payer = await reserved(scene, ada, "0.3")
    await scene.a_day_passes(ada)
    await scene.spend(payer, "0.25", upper="0.3")
    await scene.spend(payer, "0.9", upper="1")
    flying = await scene.ledger.hold(payer, bill("0.1"))
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(payer, bill("0.1"))
    rows = await scene.fetch(
        "select held, settled from rag.budget_account where tenant_id = $1 order by starts_at", ada.tenant_id
    )
    assert [tuple(row) for row in rows] == [(ZERO, Decimal("0.3")), (Decimal("0.1"), Decimal("0.85"))]
    await scene.ledger.release(flying)


async def test_a_tasks_reserve_is_its_subjects_alone(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    payer = await reserved(scene, ada, "0.9")
    bob = dataclasses.replace(payer, principal=dataclasses.replace(ada, subject="bob"))
    with pytest.raises(BudgetExceeded):
        await scene.ledger.hold(bob, bill("0.2"))


async def test_where_no_budget_applies_nothing_is_reserved_and_a_second_reserve_changes_nothing(
    scene: LedgerScene,
) -> None:
    ada = await scene.caller()
    payer = await reserved(scene, ada, "0.9")
    assert await scene.fetch("select from rag.charge where tenant_id = $1", ada.tenant_id) == []
    assert payer.task_id is not None
    await scene.budget(ada, DAY)
    for _ in range(2):
        async with scene.database.tenant(ada) as session:
            await reserve_task(session, payer.task_id, Decimal("0.8"), team=None)
    assert (await scene.accounts(ada))["tenant day"].held == Decimal("0.8")


async def test_a_task_that_no_budget_would_pay_is_not_accepted_and_leaves_nothing(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await scene.budget(ada, DAY)
    with pytest.raises(BudgetExceeded):
        await reserved(scene, ada, "1.5")
    parameters = {"token_ids": list(ada.token_ids), "issued_at": ada.issued_at, "key": "once"}
    with pytest.raises(BudgetExceeded) as refused:
        await scene.database.fetch_sealed(ACCEPT, ada, task_id=uuid4(), reserve=Decimal("1.5"), **parameters)
    assert (refused.value.scope, refused.value.window, refused.value.left) == ("tenant", "day", Decimal(1))
    assert refused.value.resets_at is not None
    assert refused.value.resets_at > datetime.now(UTC)
    assert await scene.fetch("select from rag.task where tenant_id = $1", ada.tenant_id) == []
    first = uuid4()
    for task_id, created in ((first, True), (uuid4(), False)):
        (row,) = await scene.database.fetch_sealed(ACCEPT, ada, task_id=task_id, reserve=Decimal("0.6"), **parameters)
        assert (row["task_id"], row["created"]) == (first, created)
    assert (await scene.accounts(ada))["tenant day"].held == Decimal("0.6")


async def test_totals_and_an_export_add_up_to_what_the_budget_was_charged_to_the_last_digit(scene: LedgerScene) -> None:
    ada = await scene.caller(team="law")
    bob = dataclasses.replace(ada, subject="bob", team=None)
    await scene.budget(ada, dataclasses.replace(DAY, amount=Decimal(1000)))
    third = Decimal("0.333333333333")
    for number in range(7):
        await scene.spend(ada if number % 2 else bob, third + number, upper="8")
    await scene.spend(ada, Decimal("9.000000000001"), upper="8")
    swept = await scene.ledger.hold(Payer(principal=bob), bill("0.1", model="other"))
    await scene.ledger.start(swept)
    await scene.sweep(ada)
    await scene.ledger.hold(Payer(principal=bob), bill("5"))  # under way
    now = datetime.now(UTC)
    wanted = UsageFilter(
        tenant_id=ada.tenant_id, since=now - timedelta(days=2), until=now.replace(microsecond=0) + timedelta(seconds=5)
    )
    account = (await scene.accounts(ada))["tenant day"]
    async with scene.database.tenant(ada) as session:
        (total,) = await read_usage(session, wanted)
        rows = [charge async for charge in all_charges(session, wanted, page_size=2)]
        by = await read_usage(session, wanted, by=[By.USER, By.TEAM, By.DAY, By.MODEL])
        (ours,) = await read_usage(session, dataclasses.replace(wanted, subject="ada", team="law", model="tiny"))
        assert await read_charges(session, dataclasses.replace(wanted, subject="nobody")) == []
    expected = 7 * third + 21 + Decimal("9.000000000001") + Decimal("0.1")
    assert total.cost == expected == sum(row.cost for row in rows) == sum(one.cost for one in by) == account.used
    assert (total.calls, total.estimated_calls, len({row.charge_id for row in rows})) == (9, 1, 9)
    assert (total.prompt_tokens, total.cached_tokens, total.completion_tokens) == (80, 32, 40)
    assert [(one.model, one.subject, one.team, one.calls) for one in by] == [
        ("other", "bob", None, 1),
        ("tiny", "ada", "law", 4),
        ("tiny", "bob", None, 4),
    ]
    assert {one.day for one in by} == {rows[0].held_at.date()}
    assert ours.cost == by[1].cost
    async with scene.maintenance() as session:
        assert await read_usage(session, wanted) == [total]
    eve = await scene.caller()
    async with scene.database.tenant(eve) as session:
        assert await read_usage(session, wanted) == [], "another tenant's"
