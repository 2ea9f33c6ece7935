"""The audit trail and who shares a login: none reads or changes it, writes into another's, or signs as another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rag.audit.values import Entry
from rag.db.pool import Database
from rag.errors import BulkheadError, SealRefused
from sql import Query, load_queries
from tests.support.audit import audit_log, audit_rows, audit_verdict
from tests.support.world import World

pytestmark = pytest.mark.anyio
READ = Entry(door="mcp", method="tools/call", target="hybrid_search", outcome="ok", query="heron")
ROW: dict[str, Any] = {
    "context": 1,
    "door": "mcp",
    "method": "tools/call",
    "target": "hybrid_search",
    "outcome": "ok",
    "documents": [],
    "document_count": 0,
    "repeats": 1,
}
APPEND = load_queries("audit")["append"]


STATEMENTS = (
    "select count(*) from {table}",
    "update {table} set seq = 0",
    "delete from {table}",
    "truncate {table}",
    "insert into {table} select * from {table}",
    "insert into {table} (tenant_id, seq) values (gen_random_uuid(), 1)",
    "select hash from {table} for update",
    "lock table {table}",
)


@pytest.mark.parametrize("claims", [False, True])
async def test_no_server_reads_changes_or_locks_a_chain(world: World, claims: bool) -> None:
    ada = world.principal(await world.tenant("acme"))
    async with world.database(claims=claims) as database:
        for statement in STATEMENTS:
            for table in ("rag.audit", "rag.audit_head"):
                query = Query(name="injected", description="", text=statement.format(table=table), parameters=())
                with pytest.raises(SealRefused):
                    async with database.tenant(ada) as session:
                        await session.fetch(query)


async def append(database: Database, *contexts: str, entries: list[dict[str, Any]]) -> None:
    """Call the function as an injected statement could, with whatever contexts it got hold of."""
    async with database.unsafe_unscoped(reason="what somebody smuggles in") as session:
        await session.fetch(APPEND, context=contexts[0], others=list(contexts[1:]), entries=entries, durable=False)


async def test_nobody_appends_to_the_chain_of_another_tenant(world: World) -> None:
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with world.database() as database:
        ours, theirs = database.seal(world.principal(acme)), database.seal(world.principal(rival))
        forged = theirs.replace(str(rival.tenant_id), str(acme.tenant_id))
        for contexts in ((ours, theirs), (theirs, ours), (forged,), ("",), (theirs, forged)):
            with pytest.raises(SealRefused):
                await append(database, *contexts, entries=[ROW, {**ROW, "context": len(contexts)}])
        # naming another tenant in an entry names nothing
        await append(database, theirs, entries=[{**ROW, "tenant_id": str(acme.tenant_id)}])
    assert await audit_rows(world, acme) == []
    assert len(await audit_rows(world, rival)) == 1


async def test_who_did_it_is_what_the_seal_says(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database:
        claims = {"subject": "somebody else", "sub": "somebody else", "token_ids": ["x"], "seq": 9, "hash": "00"}
        principal = world.principal(acme, user="eve")
        await append(database, database.seal(principal), entries=[{**ROW, **claims}])
    [row] = await audit_rows(world, acme)
    assert (row.seq, row.subject, row.token_ids) == (1, "eve", principal.token_ids)
    assert (await audit_verdict(world, acme)).fault is None


@pytest.mark.parametrize(
    "more",
    [
        {"target": "t" * 257},
        {"method": "m" * 65},
        {"door": "d" * 33},
        {"actor": "a" * 257},
        {"trace_id": "0" * 65},
        {"query_digest": "0" * 129},
        {"documents": ["d"] * 51, "document_count": 51},
        {"outcome": "The text of a document."},
    ],
)
async def test_no_row_is_made_a_store_of_texts(world: World, more: dict[str, Any]) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database:
        with pytest.raises(BulkheadError):
            await append(database, database.seal(world.principal(acme)), entries=[{**ROW, **more}])
    assert await audit_rows(world, acme) == []


async def test_a_neighbours_traffic_changes_nothing_in_a_chain(world: World) -> None:
    alone, beside, other = await world.tenant("alone"), await world.tenant("beside"), await world.tenant("other")
    async with audit_log(world) as audit:
        for tenant in (alone, beside):
            for number in range(5):
                await audit.record(world.principal(tenant), dataclasses.replace(READ, target=f"t{number}"))
                if tenant is beside:
                    await audit.record(world.principal(other), READ)
    first, second = await audit_rows(world, alone), await audit_rows(world, beside)
    assert [(row.seq, row.target) for row in first] == [(row.seq, row.target) for row in second]
    assert not {row.query_digest for row in first} & {row.query_digest for row in second}, "one query, two keys"
