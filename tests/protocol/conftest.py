"""One MCP server for the tests of a file, and tenants of each test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.support.mcp_scene import McpScene, mcp_scene, with_new_tenants
from tests.support.world import Cluster, world


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[McpScene]:
    """A server for all tests of a file that leave it as it was."""
    async with world(cluster) as own, mcp_scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: McpScene) -> McpScene:
    """The file's server, and two tenants that no other test knows."""
    return await with_new_tenants(stage)
