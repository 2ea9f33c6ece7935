"""What the tool `usage` says of money: the caller's own budgets and spending, and nothing of anybody else's."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from rag.budgets.operator import Budget, Period, Scope
from rag.budgets.standing import read_standing
from rag.budgets.usage import Account
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.llm.ledger import Payer
from rag.tenants.operator import Tenant, Tier
from tests.support.ledger import LedgerScene, bill, ledger_scene
from tests.support.mcp_scene import McpScene, mcp_scene, with_new_tenants
from tests.support.world import ALL_SCOPES, Cluster, world

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server, and the ledger of the same database."""

    mcp: McpScene
    money: LedgerScene

    async def spend(self, user: str = "ada", *, team: str | None = None, tenant: Tenant | None = None) -> Any:
        """Return what the tool tells a user."""
        token = self.mcp.world.issuer.issue(
            tenant_id=(tenant or self.mcp.acme).tenant_id,
            subject=user,
            audience=Audience.MCP,
            scopes=ALL_SCOPES,
            team=team,
            lifetime_s=600.0,
        )
        return (await self.mcp.ask("usage", {}, token=token))["spend"]

    def payer(self, user: str = "ada", *, team: str | None = None) -> Principal:
        """Return who pays for a user's calls."""
        return dataclasses.replace(self.mcp.world.principal(self.mcp.acme, user=user), team=team)

    async def book(self, tier: Tier) -> None:
        """Let the tenant book a tier."""
        async with self.mcp.world.operator() as operator:
            await operator.set_tier(self.mcp.acme.tenant_id, tier)


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """One server for the module."""
    async with world(cluster) as own, mcp_scene(own) as mcp, ledger_scene(own) as money:
        yield Scene(mcp=mcp, money=money)


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> Scene:
    """The server, and two new tenants."""
    return Scene(mcp=await with_new_tenants(stage.mcp), money=stage.money)


def named(spend: Any) -> dict[str, dict[str, Any]]:
    """Return the budgets by whose they are, model and period."""
    return {" ".join(filter(None, (one["whose"], one["model"], one["period"]))): one for one in spend["budgets"]}


def standing(amount: str | None, used: str, held: str, left: str | None) -> dict[str, str | None]:
    """Return the amounts of a budget as they are told."""
    return {"amount": amount, "used": used, "held": held, "left": left}


def amounts(budget: dict[str, Any]) -> dict[str, Any]:
    """Return the amounts of a budget."""
    return {name: budget[name] for name in ("amount", "used", "held", "left")}


async def test_a_new_tenant_sees_what_its_tier_lets_it_spend(scene: Scene) -> None:
    spend = await scene.spend()
    budgets = named(spend)
    assert set(budgets) == {"organisation day", "organisation month"}
    assert amounts(budgets["organisation day"]) == standing("1", "0", "0", "1")
    assert amounts(budgets["organisation month"]) == standing("10", "0", "0", "10")
    now, resets_at = datetime.now(UTC), datetime.fromisoformat(budgets["organisation day"]["resets_at"])
    assert now < resets_at <= now + timedelta(days=1)
    assert (resets_at.hour, resets_at.minute) == (0, 0)
    assert spend["this_month"] == {
        "calls": 0,
        "estimated_calls": 0,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "cost": "0",
    }


async def test_what_is_spent_and_held_is_told_to_the_last_digit(scene: Scene) -> None:
    ada = scene.payer()
    await scene.money.spend(ada, "0.000000000001", upper="0.25")
    await scene.money.ledger.hold(Payer(principal=ada), bill("0.3"))
    spend = await scene.spend()
    told = named(spend)["organisation day"]
    assert amounts(told) == standing("1", "0.000000000001", "0.3", "0.699999999999")
    assert (spend["this_month"]["calls"], spend["this_month"]["cost"]) == (1, "0.000000000001")
    assert (spend["this_month"]["prompt_tokens"], spend["this_month"]["cached_tokens"]) == (10, 4)


async def test_a_caller_sees_its_own_row_and_its_teams_and_nobody_elses(scene: Scene) -> None:
    await scene.book(Tier.ENTERPRISE)
    ada, bob = scene.payer(team="red"), scene.payer("bob", team="blue")
    await scene.money.budget(
        ada,
        Budget(scope=Scope.USER, period=Period.DAY, amount=Decimal(5)),
        Budget(scope=Scope.USER, period=Period.DAY, scope_id="bob", amount=Decimal(77)),
        Budget(scope=Scope.TEAM, period=Period.MONTH, amount=Decimal(50)),
        Budget(scope=Scope.TEAM, period=Period.MONTH, scope_id="blue", amount=Decimal(88)),
        Budget(scope=Scope.TASK, period=Period.TASK, amount=Decimal(99)),
    )
    await scene.money.spend(ada, "1")
    await scene.money.spend(bob, "2")
    first = await scene.spend(team="red")
    assert {name: amounts(one) for name, one in named(first).items()} == {
        "user day": standing("5", "1", "0", "4"),
        "team month": standing("50", "1", "0", "49"),
    }
    assert first["this_month"]["cost"] == "1"
    second = await scene.spend("bob", team="blue")
    assert {name: amounts(one) for name, one in named(second).items()} == {
        "user day": standing("77", "2", "0", "75"),
        "team month": standing("88", "2", "0", "86"),
    }
    without_team = await scene.spend("carol")
    assert set(named(without_team)) == {"user day"}
    assert (await scene.spend(tenant=scene.mcp.rival))["this_month"]["calls"] == 0


async def test_without_a_budget_there_is_none_and_ones_own_cost_is_told(scene: Scene) -> None:
    await scene.book(Tier.ENTERPRISE)
    await scene.money.spend(scene.payer(), "3.5")
    spend = await scene.spend()
    assert (spend["budgets"], spend["this_month"]["cost"]) == ([], "3.5")


async def test_a_budget_that_only_counts_has_no_limit_and_nothing_left_to_tell(scene: Scene) -> None:
    ada = scene.payer()
    await scene.money.budget(ada, Budget(scope=Scope.TENANT, period=Period.DAY, amount=None))
    await scene.money.spend(ada, "3")
    assert amounts(named(await scene.spend())["organisation day"]) == standing(None, "3", "0", None)


async def test_what_stands_before_the_first_call_under_a_budget_is_what_its_account_begins_with(scene: Scene) -> None:
    """The tool works out what applies by itself: the ledger must come to the same."""
    await scene.book(Tier.ENTERPRISE)
    ada = scene.payer(team="red")
    await scene.money.spend(ada, "0.5")
    await scene.money.spend(scene.payer("bob"), "0.25")
    await scene.money.budget(
        ada,
        *(
            Budget(scope=scope, period=period, model=model, scope_id=scope_id, amount=Decimal(9))
            for scope, scope_ids in ((Scope.TENANT, ("",)), (Scope.TEAM, ("", "red")), (Scope.USER, ("", "ada", "bob")))
            for scope_id in scope_ids
            for period in (Period.DAY, Period.MONTH)
            for model in ("", "tiny")
        ),
    )

    async def stands() -> list[Account]:
        async with scene.money.database.tenant(ada) as session:
            return await read_standing(session, ada, datetime.now(UTC))

    before = await stands()
    assert await scene.money.accounts(ada) == {}
    hold = await scene.money.ledger.hold(Payer(principal=ada), bill("0.1"))
    await scene.money.ledger.release(hold)
    assert await stands() == before
    accounts = list((await scene.money.accounts(ada)).values())
    assert sorted(accounts, key=repr) == sorted(before, key=repr)
    assert len(before) == 12
    assert {one.settled for one in before} == {Decimal("0.5"), Decimal("0.75")}
