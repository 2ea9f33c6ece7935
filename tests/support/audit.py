"""What a test sees of the audit trail: rows and verdicts as an operator gets them, and how the owner could tamper."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import asyncpg

from rag.audit.chain import Anchor, Record
from rag.audit.log import AuditLog, open_audit
from rag.audit.reader import AuditReader, Verdict
from rag.identity.seal import load_seal_keys
from rag.tenants.operator import Tenant
from tests.support.world import World

__all__ = ["audit_log", "audit_rows", "audit_verdict", "held_head", "outcomes", "until_outcome"]

BOUND_S = 10.0


@asynccontextmanager
async def audit_log(world: World, *, every_s: float = 10.0, all_durable: bool = False) -> AsyncGenerator[AuditLog]:
    """Open a trail as one more server process would."""
    assert world.settings.seal_keys_file is not None
    keys = load_seal_keys(world.settings.seal_keys_file)
    async with (
        world.database() as database,
        open_audit(database, keys=keys, every_s=every_s, all_durable=all_durable) as audit,
    ):
        yield audit


async def audit_rows(world: World, tenant: Tenant) -> list[Record]:
    """Return the tenant's rows."""
    async with world.operator() as operator:
        return [record async for record in AuditReader(database=operator.database).rows(tenant.tenant_id)]


async def outcomes(world: World, tenant: Tenant) -> list[tuple[str, str]]:
    """Return target and outcome of the tenant's rows."""
    return [(record.target, record.outcome) for record in await audit_rows(world, tenant)]


async def until_outcome(world: World, tenant: Tenant, outcome: str) -> list[Record]:
    """Wait for a row that nobody waits for, and return all rows."""
    with anyio.fail_after(BOUND_S):
        while True:
            rows = await audit_rows(world, tenant)
            if outcome in {row.outcome for row in rows}:
                return rows
            await anyio.sleep(0.02)


async def audit_verdict(world: World, tenant: Tenant, *, expected: Anchor | None = None) -> Verdict:
    """Verify the tenant's chain."""
    async with world.operator() as operator:
        reader = AuditReader(database=operator.database)
        [chain] = await reader.chains(tenant.tenant_id)
        return await reader.verify(chain, expected=expected)


@asynccontextmanager
async def held_head(world: World, tenant: Tenant) -> AsyncGenerator[None]:
    """Hold the lock of a chain's end, so that nothing can be appended."""
    owner = await asyncpg.connect(world.superuser_url)
    try:
        async with owner.transaction():
            await owner.execute("select from rag.audit_head where tenant_id = $1 for update", tenant.tenant_id)
            yield
    finally:
        await owner.close()
