"""Fixtures of every test: real parts, one database per test, and no ambient configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from rag import runtime
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from tests.support.world import Cluster, World, cluster, cluster_root, world

ROOT = Path(__file__).parent.parent
OURS = ("mcp_server", "a2a_server", "workflows", "rag", "sql")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make bench` can be told; docs/benchmarks.md says what for."""
    group = parser.getgroup("bench", "benchmarks (tests/bench)")
    group.addoption("--uscode", type=Path, help="the United States Code, one JSON object a line, gzipped")
    group.addoption("--bench-dir", type=Path, default=ROOT / ".cache" / "bench", help="where their PostgreSQL stands")
    group.addoption("--bench-results", type=Path, help="write what was measured into this JSON file as well")
    group.addoption("--bench-sizes", default="100,1000,10000,40000", help="documents of each tenant")
    group.addoption("--bench-seconds", type=float, default=5.0, help="how long each run takes")
    group.addoption("--bench-rounds", type=int, default=3, help="alternating repetitions")
    faults = parser.getgroup("faults", "runs with faults (tests/faults)")
    faults.addoption("--fault-runs", type=int, default=40, help="how many tasks are disturbed")
    faults.addoption("--fault-at", help="the one place to disturb them at, and how: 'stop before run 1'")
    faults.addoption("--fault-seed", type=int, default=20260801, help="which places they are disturbed at")
    group.addoption("--chunks", type=int, default=1_000_000, help="size of the volume benchmark's tenant")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio: asyncpg knows no other loop."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _one_model() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  # autouse
    """Let the runtimes of this process, of which nearly every test opens some, read the model's files but once.

    It is the real model, as `load_minilm` checks and loads it; each runtime has an embedder of its own that it closes.
    """
    loaded = cache(load_minilm)

    def shared(*, threads: int = 1) -> MiniLmEmbedder:
        model = loaded(threads=threads)
        assert model._session is not None  # pyright: ignore[reportPrivateUsage]
        return MiniLmEmbedder(session=model._session, tokenizer=model._tokenizer)  # pyright: ignore[reportPrivateUsage]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "load_minilm", shared)
        yield


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which our own code blocks the event loop: on a socket, a lock, a sleep, a child process.

    Files are left out: what we read are keys and SQL, small and at the start of a process. They are left out before
    anything is patched, since a patched io type crashes Python 3.11.2 (Debian 12) when the process ends.
    """
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    blockbuster = BlockBuster(list(OURS))
    blockbuster.functions = {
        name: function for name, function in blockbuster.functions.items() if not name.startswith(("io.", "os."))
    }
    # gRPC waits for a thread of its own when the last of its objects goes, wherever that is
    blockbuster.functions["threading.Lock.acquire"].can_block_in("threading.py", {"_wait_for_tstate_lock"})
    blockbuster.activate()
    yield
    blockbuster.deactivate()


@pytest.fixture(scope="session", name="cluster")
def cluster_fixture() -> Iterator[Cluster]:
    """The embedded PostgreSQL that all test workers share."""
    with cluster(cluster_root()) as shared:
        yield shared


@pytest.fixture(name="world")
async def world_fixture(cluster: Cluster) -> AsyncIterator[World]:
    """A database of the test's own, migrated and empty, with keys and an operator."""
    async with world(cluster) as own:
        yield own
