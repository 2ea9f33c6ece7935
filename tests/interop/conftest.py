"""The stage of the interop tests: a server process, and callers with a document each."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from rag.clients.mcp import mcp_client
from rag.errors import RateLimited
from rag.identity.scopes import Audience
from rag.tenants.operator import Tier
from tests.support.processes import fleet_settings, started
from tests.support.world import Cluster, World, world

__all__ = ["TEXT", "Caller", "Stage"]

TEXT = "# Lease\n\nThe notice period of the lease is three months.\n\n## Rent\n\nRent is due on the first of the month."
NARROW_BURST = 4
"""What a user of the tier free may ask for at once on this stage; another unit takes half a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user of a tenant of its own, which holds one document."""

    token: str
    document_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a client is pointed at."""

    world: World
    url: str

    async def caller(self, *, narrow: bool = False) -> Caller:
        """Make a tenant with a document, and a user of it. A narrow one may ask for NARROW_BURST units."""
        tenant = await self.world.tenant(f"t{secrets.token_hex(6)}")
        if not narrow:
            async with self.world.operator() as operator:
                await operator.set_tier(tenant.tenant_id, Tier.ENTERPRISE)
        # another user puts the document: limits are each user's own
        async with mcp_client(self.url, self.world.token(tenant, audience=Audience.MCP, user="clerk")) as client:
            document = {"source": "lease.md", "title": "Lease", "text": TEXT, "media_type": "text/markdown"}
            put = await client.call("put_document", document)
        return Caller(token=self.world.token(tenant, audience=Audience.MCP), document_id=str(put["document_id"]))

    async def exhausted(self) -> Caller:
        """Make a caller who has used up what it may ask for."""
        caller = await self.caller(narrow=True)
        async with mcp_client(self.url, caller.token) as client:
            try:
                while True:
                    await client.call("list_documents", {})
            except RateLimited:
                return caller


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A process, started once for all tests of a module."""
    logs: Path = tmp_path_factory.mktemp("logs")
    async with world(cluster) as own:
        connection = await asyncpg.connect(own.superuser_url)
        await connection.execute(
            "update rag.tier set user_per_minute = 2, user_burst = $1 where name = 'free'", NARROW_BURST
        )
        await connection.close()
        settings = fleet_settings(own.settings)
        async with started("mcp_server", settings, logs):
            yield Stage(world=own, url=settings.mcp_url)
