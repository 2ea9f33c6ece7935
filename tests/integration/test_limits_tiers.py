"""What a tenant may ask for is data: its tier's row, read as the tenant, kept for a while, changed by an operator."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import orjson
import pytest

from rag.clients.mcp import mcp_client
from rag.db.maintenance import open_maintenance
from rag.db.pool import Database, Session
from rag.errors import InvalidInput, NotFound, RateLimited, Revoked, SealRefused, Unavailable
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.limits.limiter import open_limiter
from rag.limits.tiers import TierCache, list_tiers, set_tier
from rag.limits.values import Allowance, TierLimits
from rag.settings import Settings
from rag.tenants.operator import Tier
from tests.support.agents import Rpc, a2a_server
from tests.support.callers import PROMPT, Hand, caller
from tests.support.outage import cut_off
from tests.support.servers import mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
BULKHEAD = [sys.executable, "-c", "from rag.cli import main; main()"]
BOUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Database):
    """The real database, and who opened a session on it."""

    opened: list[str] = field(default_factory=list[str])

    @asynccontextmanager
    async def tenant(self, principal: Principal) -> AsyncGenerator[Session]:
        self.opened.append(principal.subject)
        async with Database.tenant(self, principal) as session:
            yield session


@asynccontextmanager
async def watched(world: World) -> AsyncGenerator[Watched]:
    async with world.database() as database:
        yield Watched(pool=database.pool, sealer=database.sealer, dsn=database.dsn)


async def change(world: World, name: str, **numbers: int) -> None:
    """Change a tier as an operator does."""
    assert world.settings.maintenance_database_url is not None
    async with open_maintenance(world.settings.maintenance_database_url, application="test") as session:
        await set_tier(session, name, **numbers)


async def test_each_tenant_may_ask_for_what_its_own_tier_says(world: World) -> None:
    async with world.operator() as operator:
        tenants = [await operator.create_tenant(tier.value, tier=tier) for tier in Tier]
    assert world.settings.maintenance_database_url is not None
    async with open_maintenance(world.settings.maintenance_database_url, application="test") as session:
        tiers = await list_tiers(session)
    assert [one.name for one in tiers] == ["free", "pro", "enterprise"]
    async with world.database() as database, open_limiter(Settings(), TierCache(database), pauses=PROMPT) as limiter:
        for tenant, booked in zip(tenants, tiers, strict=True):
            ada = world.principal(tenant)
            standing = await limiter.status(ada)
            assert standing.tier == booked.name
            assert (standing.tenant.per_minute, standing.tenant.remaining, standing.tenant.concurrency) == (
                booked.tenant.per_minute,
                booked.tenant.burst,
                booked.tenant.concurrency,
            )
            await limiter.admit(ada, booked.user.burst)
            with pytest.raises(RateLimited):
                await limiter.admit(ada, booked.user.burst)
    by_size = [(one.tenant.burst, one.user.burst, one.tenant.concurrency, one.user.concurrency) for one in tiers]
    assert by_size == sorted(by_size)
    assert all(one.user.per_minute < one.tenant.per_minute for one in tiers)


async def test_a_change_of_tier_or_of_its_numbers_is_followed_within_half_a_minute(world: World) -> None:
    acme, clock = await world.tenant("acme"), Hand()
    ada = world.principal(acme)
    async with watched(world) as database:
        tiers = TierCache(database, clock=clock)
        assert (await tiers(ada)).name == "free"
        async with world.operator() as operator:
            await operator.set_tier(acme.tenant_id, Tier.PRO)
        await change(world, "pro", tenant_per_minute=7, user_concurrency=3)
        clock.now += 29.0
        assert (await tiers(ada)).name == "free"
        clock.now += 1.0
        assert await tiers(ada) == TierLimits(
            name="pro",
            tenant=Allowance(per_minute=7, burst=5000, concurrency=128),
            user=Allowance(per_minute=6000, burst=1000, concurrency=3),
        )
        assert database.opened == ["ada", "ada"]


async def test_a_crowd_of_a_tenant_that_nothing_is_known_of_asks_once(world: World) -> None:
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with watched(world) as database:
        tiers, found = TierCache(database), list[str]()

        async def ask(principal: Principal) -> None:
            found.append((await tiers(principal)).name)

        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as crowd:
                for number in range(100):
                    crowd.start_soon(ask, world.principal(acme, user=f"acme {number}"))
                crowd.start_soon(ask, world.principal(rival, user="rival"))
        assert found == ["free"] * 101
        assert sorted(database.opened) == ["acme 0", "rival"]


async def test_who_is_revoked_is_refused_and_does_not_answer_for_those_who_are_not(world: World) -> None:
    acme = await world.tenant("acme")
    eve, ada = world.principal(acme, user="eve"), world.principal(acme)
    async with world.operator() as operator:
        await operator.revoke_user(acme.tenant_id, "eve")
    async with watched(world) as database:
        tiers, outcomes = TierCache(database), dict[str, str]()

        async def ask(principal: Principal) -> None:
            try:
                outcomes[principal.subject] = (await tiers(principal)).name
            except Revoked as exc:
                outcomes[principal.subject] = exc.code

        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as crowd:
                crowd.start_soon(ask, eve)
                crowd.start_soon(ask, ada)
        assert outcomes == {"eve": "revoked", "ada": "free"}
        with pytest.raises(SealRefused):
            await tiers(caller())


async def test_while_the_database_is_away_known_tenants_go_on_and_unknown_ones_are_refused(world: World) -> None:
    acme, rival, clock = await world.tenant("acme"), await world.tenant("rival"), Hand()
    ada, bob = world.principal(acme), world.principal(rival, user="bob")
    outcomes: list[str] = []
    async with watched(world) as database:
        tiers = TierCache(database, clock=clock)

        async def ask(principal: Principal) -> None:
            try:
                outcomes.append((await tiers(principal)).name)
            except Unavailable as exc:
                outcomes.append(exc.code)

        async def crowd(principal: Principal) -> list[str]:
            outcomes.clear()
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(ask, principal)
            return outcomes

        with anyio.fail_after(BOUND_S):
            await tiers(ada)
            await cut_off(world)
            clock.now += 31.0
            database.opened.clear()
            assert await crowd(ada) == ["free"] * 20
            assert await crowd(bob) == ["unavailable"] * 20
            assert database.opened == ["ada", "bob"]  # none of a crowd waits for what another was told just now
            clock.now += 5.0
            await tiers(ada)
            assert database.opened == ["ada", "bob", "ada"]


async def test_only_the_owner_changes_a_tier_and_only_to_what_can_be_counted(world: World) -> None:
    for dsn in (world.settings.database_url, world.settings.worker_database_url):
        connection = await asyncpg.connect(dsn)
        try:
            for statement in (
                "update rag.tier set tenant_per_minute = 1",
                "insert into rag.tier select * from rag.tier",
                "delete from rag.tier",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        finally:
            await connection.close()
    for numbers in ({"tenant_per_minute": 0}, {"user_burst": 1_000_001}, {"user_concurrency": 100_001}):
        with pytest.raises(InvalidInput, match="a rate is 1 to"):
            await change(world, "free", **numbers)
    with pytest.raises(NotFound):
        await change(world, "gold", user_burst=1)


async def test_both_servers_hold_a_user_to_its_tier(world: World) -> None:
    await change(world, "free", user_per_minute=1, user_burst=2, tenant_per_minute=1, tenant_burst=5)
    acme = await world.tenant("acme")
    async with mcp_server(world, request_limit_per_minute=None) as server:
        for user in ("ada", "bob"):
            async with mcp_client(server.url, world.token(acme, audience=Audience.MCP, user=user)) as client:
                for _ in range(2):
                    await client.call("list_documents", {})
                with pytest.raises(RateLimited, match="user") as caught:
                    await client.call("list_documents", {})
                assert 0 < caught.value.retry_after_s <= 60
    async with (
        a2a_server(world, request_limit_per_minute=None) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        rpc = Rpc(base=base, token=world.token(acme, audience=Audience.A2A), http=http)
        answers = [await rpc.raw("ListTasks", {}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60


async def test_a_token_that_was_revoked_is_refused_as_such_at_the_a2a_door(world: World) -> None:
    acme = await world.tenant("acme")
    token = world.token(acme, audience=Audience.A2A)
    async with world.operator() as operator:
        await operator.revoke_user(acme.tenant_id, "ada")
    async with (
        a2a_server(world, request_limit_per_minute=None) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        answer = await Rpc(base=base, token=token, http=http).raw("ListTasks", {})
        (info,) = answer.json()["error"]["details"]
        assert (answer.status_code, info["metadata"]["code"]) == (401, "revoked")


async def test_an_operator_books_tiers_and_changes_their_numbers_from_the_command_line(world: World) -> None:
    env = {**world.settings.to_env(), "PYTHONPATH": str(ROOT)}

    async def bulkhead(*arguments: str, status: int = 0) -> Any:
        with anyio.fail_after(60):
            done = await anyio.run_process([*BULKHEAD, *arguments, "--json"], env=env, check=False)
        assert done.returncode == status, done.stderr
        return orjson.loads(done.stdout) if status == 0 and done.stdout.startswith((b"{", b"[")) else done.stderr

    await world.tenant("acme")
    changed = await bulkhead("tenant", "tier", "pro", "--requests-per-minute", "120", "--user-burst", "9")
    assert (changed["tenant"]["per_minute"], changed["user"]["burst"], changed["tenant"]["burst"]) == (120, 9, 5000)
    assert changed in await bulkhead("tenant", "tiers")
    with anyio.fail_after(60):
        await anyio.run_process([*BULKHEAD, "tenant", "set", "acme", "--tier", "pro"], env=env)
    assert [one["tier"] for one in await bulkhead("tenant", "list")] == ["pro"]
    assert b"say what to change" in await bulkhead("tenant", "tier", "pro", status=1)
