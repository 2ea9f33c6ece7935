"""The stages of the interop tests: the processes as they are deployed, and callers with a document each."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from rag.cli.supervisor import free_port
from rag.clients.mcp import mcp_client
from rag.errors import RateLimited
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tenants.operator import Tier
from tests.support.processes import fleet_settings, started
from tests.support.webhooks import Receiver, receiver
from tests.support.world import Cluster, World, world

__all__ = ["TEXT", "AgentStage", "Caller", "Stage"]

TEXT = "# Lease\n\nThe notice period of the lease is three months.\n\n## Rent\n\nRent is due on the first of the month."
NARROW_BURST = 4
"""What a user of the tier free may ask for at once on this stage; another unit takes half a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user of a tenant of its own, which holds one document."""

    token: str
    agent_token: str
    """For the A2A server."""
    document_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a client is pointed at."""

    world: World
    settings: Settings
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
        return Caller(
            token=self.world.token(tenant, audience=Audience.MCP),
            agent_token=self.world.token(tenant, audience=Audience.A2A),
            document_id=str(put["document_id"]),
        )

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
            yield Stage(world=own, settings=settings, url=settings.mcp_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStage:
    """What a client of the A2A server is pointed at."""

    stage: Stage
    base: str
    hook: Receiver
    """Somewhere to be notified."""

    async def token(self) -> str:
        """Return the token of a user whose tenant holds one document."""
        return (await self.stage.caller()).agent_token


@pytest.fixture(scope="module", name="agent")
async def agent_fixture(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentStage]:
    """An A2A server that has gRPC too and knows the compatibility kit's messages, a worker, and a webhook."""
    logs: Path = tmp_path_factory.mktemp("agent-logs")
    settings = dataclasses.replace(
        stage.settings,
        a2a_grpc_port=free_port("127.0.0.1"),
        test_fixtures="on",
        outbound_loopback="on",
        request_limit_per_minute=60_000,
    )
    async with (
        started("a2a_server", settings, logs),
        started("workflows", settings, logs),
        receiver() as hook,
    ):
        yield AgentStage(stage=stage, base=settings.a2a_url, hook=hook)
