"""The budgets' ledger as the gateway, the worker and an operator reach it, and what only the database's superuser sees.

Above: tests of budgets. Below: `rag.budgets`. One database serves a whole module: each test makes tenants of its own.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from rag.budgets.alerts import Alert, read_alerts
from rag.budgets.ledger import PostgresLedger
from rag.budgets.operator import Budget, set_budget
from rag.budgets.sweep import sweep_due
from rag.budgets.usage import Account, read_accounts
from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.llm.catalogue import Price
from rag.llm.ledger import Bill, Hold, Payer, Settlement
from rag.llm.request import TokenUsage
from rag.tenants.operator import Tier
from tests.support.world import World

__all__ = ["PRICE", "USAGE", "LedgerScene", "bill", "cost", "ledger_scene"]

PRICE = Price(price_id=uuid4(), input=Decimal(1), cached_input=Decimal("0.1"), output=Decimal(4))
USAGE = TokenUsage(prompt=10, cached=4, completion=5)


def bill(upper: str | Decimal, *, model: str = "tiny", key: str = "key", attempt: int = 1, priced: bool = True) -> Bill:
    """Return the bill of a call that may cost so much."""
    return Bill(
        call_key=key,
        attempt=attempt,
        model=model,
        endpoint="here",
        price=PRICE if priced else None,
        upper=Decimal(upper),
    )


def cost(amount: str | Decimal, *, estimated: bool = False) -> Settlement:
    """Return the settlement of a call that has cost so much."""
    return Settlement(cost=Decimal(amount), usage=None if estimated else USAGE, estimated=estimated)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerScene:
    """A database, and pools of the two logins that use the ledger."""

    world: World
    database: Database
    """As the servers'."""
    worker: Database
    """As the worker's, which alone calls models."""
    ledger: PostgresLedger

    async def caller(self, *, tier: Tier = Tier.ENTERPRISE, team: str | None = None) -> Principal:
        """Return a user of a new tenant; one of the tier enterprise has no budget at first."""
        async with self.world.operator() as operator:
            tenant = await operator.create_tenant(f"t-{secrets.token_hex(6)}", tier=tier)
        return dataclasses.replace(self.world.principal(tenant), team=team)

    @asynccontextmanager
    async def maintenance(self) -> AsyncGenerator[MaintenanceSession]:
        """Open the operator's session."""
        assert self.world.settings.maintenance_database_url
        async with open_maintenance(self.world.settings.maintenance_database_url, application="test") as session:
            yield session

    async def budget(self, who: Principal, *budgets: Budget) -> None:
        """Set budgets of the caller's tenant."""
        async with self.maintenance() as session:
            for one in budgets:
                await set_budget(session, who.tenant_id, one)

    async def accounts(self, who: Principal, *, task_id: UUID | None = None) -> dict[str, Account]:
        """Return how the budgets of the caller's tenant stand, by their scope, name, model and period, without what is
        empty.
        """
        async with self.database.tenant(who) as session:
            found = await read_accounts(session, who.tenant_id, datetime.now(UTC), task_id=task_id)
        parts = [(one.scope, "" if one.scope == "task" else one.scope_id, one.model, one.period) for one in found]
        return {" ".join(filter(None, key)): one for key, one in zip(parts, found, strict=True)}

    async def alerts(self, who: Principal) -> list[Alert]:
        """Return the alerts of the caller's tenant."""
        async with self.database.tenant(who) as session:
            return await read_alerts(session, who.tenant_id)

    async def spend(self, who: Principal | Payer, amount: str | Decimal, *, upper: str | Decimal | None = None) -> Hold:
        """Make a call that costs so much, and hold exactly that, or `upper`."""
        payer = who if isinstance(who, Payer) else Payer(principal=who)
        hold = await self.ledger.hold(payer, bill(upper if upper is not None else amount))
        await self.ledger.start(hold)
        await self.ledger.settle(hold, cost(amount))
        return hold

    async def sweep(self, who: Principal) -> int:
        """Let the time of every call under way of the caller's tenant be over, and sweep."""
        await self.fetch(
            "update queue.charge set leased_until = clock_timestamp() - interval '1 s' where tenant_id = $1",
            who.tenant_id,
        )
        return await sweep_due(self.worker)

    async def a_day_passes(self, who: Principal) -> None:
        """Let everything that the caller's tenant has done have been done a day ago."""
        await self.fetch(
            "update rag.budget_account set starts_at = starts_at - interval '1 day', ends_at = starts_at "
            "where tenant_id = $1 and period = 'day'",
            who.tenant_id,
        )
        await self.fetch(
            "update rag.charge set held_at = held_at - interval '1 day' where tenant_id = $1", who.tenant_id
        )

    async def charge(self, hold: Hold) -> asyncpg.Record:
        """Return a call's row."""
        (row,) = await self.fetch("select * from rag.charge where charge_id = $1", hold.charge_id)
        return row

    async def fetch(self, query: str, *values: object) -> list[Any]:
        """Ask as the superuser."""
        connection = await asyncpg.connect(self.world.superuser_url)
        try:
            return await connection.fetch(query, *values)
        finally:
            await connection.close()


@asynccontextmanager
async def ledger_scene(world: World, *, pool_size: int = 8) -> AsyncGenerator[LedgerScene]:
    """Open both pools on the world's database."""
    async with world.database(pool_size=2) as database, world.database(pool_size=pool_size, claims=True) as worker:
        yield LedgerScene(world=world, database=database, worker=worker, ledger=PostgresLedger(worker))
