"""Each large tenant has a graph (HNSW) over its own vectors; here they are built, dropped and put right after a crash.

Above: the maintenance process (`bulkhead maintain`). Below: `rag.db.maintenance`. A pass compares what there should be
with what there is and does the difference, so it does not matter where the one before broke off. One session builds at
a time, in the whole installation. Writers are never kept waiting; searches use a graph as soon as the register says
`ready`.

A build or drop is a sequence of commits. Build: register (not ready), create index concurrently, analyze, enable. Drop:
disable, drop index concurrently, forget. Broken off anywhere this leaves a graph that no search uses, and that the next
pass ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import anyio

from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.errors import BulkheadError
from sql import load_queries

__all__ = ["Act", "Change", "GraphPolicy", "maintain", "run_maintenance"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("vector_indexes")
PASS_S = 20.0
"""Between two looks at the sizes of all tenants."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LEAST_MEMORY_KB = 64 * 1024
NEIGHBOUR_BYTES = 1_100
"""A chunk's lists of neighbours with m = 16, in pgvector's working memory; its vector comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPolicy:
    """Who gets a graph, and how it is built."""

    build_at: int = 5_001
    """Vectors of one tenant and model; up to 5 000 the exact scan takes five to ten milliseconds (retrieval.md 3)."""
    keep_share: float = 0.6
    """Of `build_at`: a graph stays until there are fewer, so that a tenant on the edge is not rebuilt all the time."""
    m: int = 16
    ef_construction: int = 64
    memory_mb: int = 256
    """At most this for a build; a graph that does not fit is finished on disk, several times as slowly."""
    workers: int = 1
    """Server processes that help; together they share `memory_mb`, out of the server's shared memory (/dev/shm)."""

    @property
    def keep_at(self) -> int:
        """Vectors below which a graph is dropped."""
        return int(self.build_at * self.keep_share)


class Act(StrEnum):
    """What was done to a graph."""

    BUILT = "built"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that a pass did."""

    act: Act
    index_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    tenant_id: UUID
    model_id: int
    dimension: int


async def run_maintenance(dsn: str, policy: GraphPolicy) -> None:
    """Look after the graphs until cancelled. Failures are logged, and slow the loop down; they never end it."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async with open_maintenance(dsn, application="bulkhead-maintenance") as session:
                while True:
                    await maintain(session, policy)
                    pause_s = FIRST_PAUSE_S
                    await anyio.sleep(PASS_S)
        except BulkheadError as exc:
            _log.warning("the maintenance of vector indexes pauses for %.0f s: %s", pause_s, exc.code)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def maintain(session: MaintenanceSession, policy: GraphPolicy) -> list[Change]:
    """Make one pass and return what was done; nothing where another session is the builder.

    Raises:
        Unavailable: The connection broke; what was begun is put right by the next pass.
        BulkheadError: The server could not build: no room on its disk or in its shared memory, as its log says.
    """
    if not await session.owner_value(_QUERIES["lead"]):
        _log.debug("another maintenance process is at work")
        return []
    sizes = await session.fetch(_QUERIES["vector_counts"], least=policy.keep_at, most=policy.build_at)
    large = {
        (row["tenant_id"], row["model_id"]): _Wanted(
            tenant_id=row["tenant_id"], model_id=row["model_id"], dimension=row["dimension"]
        )
        for row in sizes
    }
    grown = {(row["tenant_id"], row["model_id"]) for row in sizes if row["vectors"] >= policy.build_at}
    done: list[Change] = []
    standing: set[tuple[UUID, int]] = set()
    for row in await session.fetch(_QUERIES["built"]):
        key = (row["tenant_id"], row["model_id"])
        if row["ready"] and row["valid"] and key in large:
            standing.add(key)
            continue
        await _drop(session, row["index_name"], row["tenant_id"], row["model_id"])
        done.append(Change(act=Act.DROPPED, index_name=row["index_name"]))
        if row["ready"] and key in large:
            grown.add(key)  # it had one, which is gone or broken: it gets another
    return done + [await _build(session, large[key], policy) for key in sorted(grown - standing, key=str)]


async def _build(session: MaintenanceSession, wanted: _Wanted, policy: GraphPolicy) -> Change:
    which = {"tenant_id": wanted.tenant_id, "model_id": wanted.model_id}
    began = anyio.current_time()
    vectors = int(await session.fetch_value(_QUERIES["vectors_of"], **which))
    needed_kb = vectors * (2 * wanted.dimension + NEIGHBOUR_BYTES) // 1024
    await session.fetch(
        _QUERIES["build_memory"],
        memory_kb=max(LEAST_MEMORY_KB, min(needed_kb, policy.memory_mb * 1024)),
        workers=policy.workers,
    )
    name = str(await session.fetch_value(_QUERIES["register"], **which))
    await session.execute_made(
        _QUERIES["create_statement"],
        index_name=name,
        dimension=wanted.dimension,
        m=policy.m,
        ef_construction=policy.ef_construction,
        **which,
    )
    await session.execute_made(_QUERIES["analyze_statement"], index_name=name)
    await session.fetch(_QUERIES["enable"], vectors=vectors, **which)
    _log.info("built %s over %d vectors in %.1f s", name, vectors, anyio.current_time() - began)
    return Change(act=Act.BUILT, index_name=name)


async def _drop(session: MaintenanceSession, name: str, tenant_id: UUID | None, model_id: int | None) -> None:
    if tenant_id is not None:
        await session.fetch(_QUERIES["disable"], tenant_id=tenant_id, model_id=model_id)
    await session.execute_made(_QUERIES["drop_statement"], index_name=name)
    if tenant_id is not None:
        await session.fetch(_QUERIES["forget"], tenant_id=tenant_id, model_id=model_id)
    _log.info("dropped %s", name)
