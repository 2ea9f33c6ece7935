"""Fixtures of every test: real parts, one database per test, and no ambient configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.world import Cluster, World, cluster, world

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio: asyncpg knows no other loop."""
    return "asyncio"


@pytest.fixture(scope="session", name="cluster")
def cluster_fixture() -> Iterator[Cluster]:
    """The embedded PostgreSQL that all test workers share."""
    with cluster(ROOT / ".cache" / "test-cluster") as shared:
        yield shared


@pytest.fixture(name="world")
async def world_fixture(cluster: Cluster) -> AsyncIterator[World]:
    """A database of the test's own, migrated and empty, with keys and an operator."""
    async with world(cluster) as own:
        yield own
