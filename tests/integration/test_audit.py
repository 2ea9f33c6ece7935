"""The audit trail over real HTTP and a real database: what is recorded, what is not, and what tampering looks like."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import httpx2
import pytest
from click.testing import CliRunner, Result

from rag.audit.chain import START, Anchor, hash_of
from rag.audit.log import MAX_WAITING_OF_TENANT
from rag.audit.values import MAX_DOCUMENTS, Entry
from rag.cli import cli
from rag.errors import Revoked, Unavailable
from rag.identity.scopes import Audience, Scope
from rag.tenants.operator import Tenant
from sql import Query, load_queries
from tests.support.audit import audit_log, audit_rows, audit_verdict, held_head, outcomes, until_outcome
from tests.support.mcp_wire import answered, raw_request
from tests.support.servers import McpServer, mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
TEXT = "The heron stands in the reeds of the estuary."
QUERY = "heron of the estuary"
READ = Entry(door="mcp", method="tools/call", target="hybrid_search", outcome="ok", query=QUERY)
Tamper = Callable[[asyncpg.Connection, Tenant], Awaitable[Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server, a tenant, and a token of its user's."""

    world: World
    server: McpServer
    acme: Tenant
    token: str

    async def ask(self, method: str, params: dict[str, Any], *, token: str | None = None) -> httpx2.Response:
        """Send one request of revision 2025-11-25."""
        body, headers = raw_request(method, params)
        headers["authorization"] = f"Bearer {token or self.token}"
        async with httpx2.AsyncClient(timeout=BOUND_S) as http:
            return await http.post(self.server.url, content=body, headers=headers)

    async def call(self, tool: str, arguments: dict[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Call a tool and return its result, or the error in its place."""
        answer = await self.ask("tools/call", {"name": tool, "arguments": arguments}, token=token)
        message = answered(answer)
        return message.get("result") or message["error"]

    async def put(self, **more: Any) -> dict[str, Any]:
        """Store a document."""
        arguments = {"source": "heron.md", "title": "Of birds", "text": TEXT, **more}
        return await self.call("put_document", arguments)


@asynccontextmanager
async def a_scene(world: World, **more: Any) -> AsyncGenerator[Scene]:
    acme = await world.tenant("acme")
    token = world.token(acme, audience=Audience.MCP)
    with anyio.fail_after(BOUND_S):
        async with mcp_server(world, **more) as server:
            yield Scene(world=world, server=server, acme=acme, token=token)


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    async with a_scene(world) as scene:
        yield scene


async def append(world: World, tenant: Tenant, count: int = 5) -> None:
    """Append rows as two users."""
    async with audit_log(world) as audit:
        for number in range(count):
            await audit.record(world.principal(tenant, user=("ada", "bob")[number % 2]), READ)


async def test_a_read_leaves_one_row_that_says_who_what_and_which_documents(scene: Scene) -> None:
    document_id = (await scene.put())["structuredContent"]["document_id"]
    found = await scene.call("hybrid_search", {"query": QUERY})
    assert found["structuredContent"]["hits"]
    row = (await audit_rows(scene.world, scene.acme))[-1]
    assert (row.subject, row.actor, row.door, row.method, row.target) == (
        "ada",
        None,
        "mcp",
        "tools/call",
        "hybrid_search",
    )
    assert (row.outcome, row.documents, row.document_count, row.begun) == ("ok", (document_id,), 1, None)
    assert (len(row.token_ids), row.repeats, row.query_text) == (1, 1, None)
    assert row.query_digest is not None
    assert (await audit_verdict(scene.world, scene.acme)).fault is None


async def test_a_write_is_recorded_before_and_after_and_one_that_failed_with_its_error(scene: Scene) -> None:
    document_id = (await scene.put())["structuredContent"]["document_id"]
    await scene.put(source="theirs.md", groups=["no group of mine"])
    await scene.call("delete_document", {"document_id": document_id})
    rows = await audit_rows(scene.world, scene.acme)
    assert [(row.target, row.outcome, row.begun, row.documents) for row in rows] == [
        ("put_document", "begun", None, ()),
        ("put_document", "ok", 1, (document_id,)),
        ("put_document", "begun", None, ()),
        ("put_document", "forbidden", 3, ()),
        ("delete_document", "begun", None, ()),
        ("delete_document", "ok", 5, (document_id,)),
    ]


async def test_errors_and_unknown_names_are_recorded_and_lists_are_not(scene: Scene) -> None:
    await scene.ask("tools/list", {})
    await scene.call("hybrid_search", {"query": 7})
    await scene.call("retrieve_document", {"document_id": "00000000-0000-4000-8000-000000000000"})
    await scene.call("no such tool", {"query": QUERY})
    assert await outcomes(scene.world, scene.acme) == [
        ("hybrid_search", "invalid_input"),
        ("retrieve_document", "not_found"),
        ("unknown", "not_found"),
    ]


async def test_what_is_asked_for_without_its_scope_is_a_403_and_a_row(scene: Scene) -> None:
    weak = scene.world.token(scene.acme, audience=Audience.MCP, scopes=frozenset({Scope.CORPUS_READ}))
    for _ in range(20):
        answer = await scene.ask("tools/call", {"name": "put_document", "arguments": {}}, token=weak)
        assert answer.status_code == 403
    rows = await until_outcome(scene.world, scene.acme, "forbidden")
    assert [(row.target, row.repeats) for row in rows] == [("put_document", 1)], "repeats are counted, not written"


async def test_a_read_that_cannot_be_recorded_is_not_answered_and_a_write_not_done(scene: Scene) -> None:
    await scene.put()
    answers: list[dict[str, Any]] = []

    async def ask(tool: str, arguments: dict[str, Any]) -> None:
        answers.append(await scene.call(tool, arguments))

    async with held_head(scene.world, scene.acme), anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "hybrid_search", {"query": QUERY})
        tasks.start_soon(ask, "put_document", {"source": "b.md", "title": "B", "text": "Never stored."})
    for answer in answers:
        assert answer["isError"]
        assert answer["_meta"] == {"bulkhead/code": "unavailable"}
        assert "structuredContent" not in answer
    listed = await scene.call("list_documents", {})
    assert [document["source"] for document in listed["structuredContent"]["documents"]] == ["heron.md"]
    assert (await audit_verdict(scene.world, scene.acme)).fault is None


async def test_a_client_that_goes_away_leaves_a_row(scene: Scene) -> None:
    await scene.put()
    owner = await asyncpg.connect(scene.world.superuser_url)
    waits = "select exists (select from pg_locks where not granted and relation = 'rag.corpus_change'::regclass)"
    async with owner.transaction():
        await owner.execute("lock table rag.corpus_change in access exclusive mode")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.call, "hybrid_search", {"query": QUERY})
            while not await owner.fetchval(waits):  # noqa: ASYNC110  # the search has begun and waits for the lock
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        rows = await until_outcome(scene.world, scene.acme, "canceled")
    await owner.close()
    assert [(row.target, row.outcome) for row in rows][-1] == ("hybrid_search", "canceled")


async def test_a_flood_over_the_limit_is_one_row_and_its_count(world: World) -> None:
    async with a_scene(world, request_limit_per_minute=12) as scene:
        codes = [(await scene.call("list_documents", {})).get("code") for _ in range(10)]
        assert codes[-1] == 42900
    rows = await audit_rows(world, scene.acme)
    refused = [row.repeats for row in rows if row.outcome == "rate_limited"]
    assert refused == [1, codes.count(42900) - 1], "the second row came when the server ended"
    assert (await audit_verdict(world, scene.acme)).fault is None


async def test_repeats_are_told_while_a_flood_goes_on(world: World) -> None:
    acme = await world.tenant("acme")
    refused = dataclasses.replace(READ, outcome="rate_limited", query=None)
    with anyio.fail_after(BOUND_S):
        async with audit_log(world, every_s=0.1) as audit:
            told = 0
            while told < 3:
                for _ in range(100):
                    audit.note_refusal(world.principal(acme), refused)
                await anyio.sleep(0.02)
                told = len([row for row in await audit_rows(world, acme) if row.repeats > 1])


async def test_a_revoked_caller_is_refused_as_ever_and_leaves_no_row(scene: Scene) -> None:
    async with scene.world.operator() as operator:
        await operator.revoke_tenant(scene.acme.tenant_id)
    assert (await scene.call("hybrid_search", {"query": QUERY}))["data"] == {"code": "revoked"}
    assert (await scene.put())["data"] == {"code": "revoked"}
    assert await audit_rows(scene.world, scene.acme) == []


async def test_the_text_of_a_query_is_kept_only_where_the_tenant_wants_it(scene: Scene) -> None:
    await scene.call("hybrid_search", {"query": QUERY})
    async with scene.world.operator() as operator:
        await operator.set_audit_query_text(scene.acme.tenant_id, kept=True)
        await scene.call("hybrid_search", {"query": QUERY})
        await operator.set_audit_query_text(scene.acme.tenant_id, kept=False)
        await scene.call("search_documents", {"query": "something else"})
    before, kept, after = await audit_rows(scene.world, scene.acme)
    assert (before.query_text, kept.query_text, after.query_text) == (None, QUERY, None)
    assert before.query_digest == kept.query_digest != after.query_digest


async def test_nothing_of_a_document_a_query_or_a_token_is_in_the_table(scene: Scene) -> None:
    document_id = (await scene.put())["structuredContent"]["document_id"]
    await scene.call("hybrid_search", {"query": QUERY})
    await scene.call("retrieve_document", {"document_id": document_id})
    await scene.call("search_documents", {"query": QUERY, "limit": -1})
    owner = await asyncpg.connect(scene.world.superuser_url)
    table = "\n".join(row[0] for row in await owner.fetch("select a::text from rag.audit a"))
    await owner.close()
    assert document_id in table
    for secret in ("heron", "estuary", "birds", *scene.token.split(".")):
        assert secret not in table


async def test_any_text_hashes_alike_in_sql_and_in_python(world: World) -> None:
    acme = await world.tenant("acme")
    texts = [
        "",
        " ",
        '"',
        "\\",
        "a\\u0041",
        "\b\t\n\f\r\x01\x1f\x7f",
        "naïve – 語 😀 \u2028",
        "\ud800",
        "a\0b",
        "'; --",
        "x" * 20_000,
    ]
    async with world.operator() as operator, audit_log(world) as audit:
        await operator.set_audit_query_text(acme.tenant_id, kept=True)
        principal = dataclasses.replace(world.principal(acme, user='a "b" \\ ü'), actor="a2a-server")
        for text in texts:
            await audit.record(principal, dataclasses.replace(READ, query=text))
        many = tuple(f"d{number}" for number in range(MAX_DOCUMENTS + 10))
        await audit.record(principal, dataclasses.replace(READ, documents=many, trace_id="0" * 32, begun=1, repeats=3))
    rows = await audit_rows(world, acme)
    assert [row.query_text for row in rows[:8]] == [*texts[:7], "?"]
    assert (len(rows[-1].documents), rows[-1].document_count) == (MAX_DOCUMENTS, MAX_DOCUMENTS + 10)
    assert (await audit_verdict(world, acme)).fault is None


async def test_two_servers_and_many_callers_make_one_chain_without_gaps(world: World) -> None:
    acme, other = await world.tenant("acme"), await world.tenant("other")
    numbers: list[int] = []
    async with audit_log(world) as first, audit_log(world) as second, anyio.create_task_group() as tasks:

        async def work(audit: Any, user: str) -> None:
            for turn in range(15):
                numbers.append(await audit.record(world.principal(acme, user=user), READ))
                await audit.record(world.principal(other), dataclasses.replace(READ, durable=turn % 2 == 0))

        for user in range(10):
            tasks.start_soon(work, (first, second)[user % 2], f"user {user}")
    assert sorted(numbers) == list(range(1, 151))
    for tenant in (acme, other):
        verdict = await audit_verdict(world, tenant)
        assert verdict.fault is None
        assert verdict.anchor is not None
        assert verdict.anchor.seq == 150
    assert {row.subject for row in await audit_rows(world, acme)} == {f"user {user}" for user in range(10)}


async def test_a_caller_who_is_refused_does_not_take_others_of_its_batch_with_it(world: World) -> None:
    acme = await world.tenant("acme")
    await append(world, acme, 1)
    eve, ada = world.principal(acme, user="eve"), world.principal(acme)
    refused: list[str] = []
    async with world.operator() as operator:
        await operator.revoke_user(acme.tenant_id, "eve")

    async with audit_log(world) as audit:

        async def record(principal: Any) -> None:
            try:
                await audit.record(principal, READ)
            except Revoked:
                refused.append(principal.subject)

        async with anyio.create_task_group() as tasks, held_head(world, acme):
            for principal in (ada, ada, eve, ada, eve):
                tasks.start_soon(record, principal)
            await anyio.sleep(0.2)  # the first is under way; the others are one batch
    assert refused == ["eve", "eve"]
    assert [row.subject for row in await audit_rows(world, acme)] == ["ada"] * 4


async def test_only_the_entries_of_reads_do_not_wait_for_the_disk(world: World) -> None:
    acme = await world.tenant("acme")
    append_entries = load_queries("audit")["append"]
    setting = Query(name="setting", description="", text="select current_setting('synchronous_commit')", parameters=())
    async with world.database(pool_size=1) as database:
        for durable, expected in ((False, "off"), (True, "on"), (False, "off")):
            context = database.seal(world.principal(acme))
            async with database.unsafe_unscoped(reason="looks at the transaction that appends") as session:
                await session.fetch(append_entries, context=context, others=[], entries=[], durable=durable)
                assert await session.fetch_value(setting) == expected
    assert await audit_rows(world, acme) == []


async def test_a_queue_that_is_full_refuses_at_once(world: World) -> None:
    acme, other = await world.tenant("acme"), await world.tenant("other")
    await append(world, acme, 1)
    ada = world.principal(acme)
    async with audit_log(world) as audit, held_head(world, acme):
        for _ in range(MAX_WAITING_OF_TENANT):
            audit.note(ada, READ)
        with anyio.fail_after(1), pytest.raises(Unavailable):
            await audit.record(ada, READ)
        with anyio.fail_after(1):
            assert await audit.record(world.principal(other), READ) == 1, "another tenant is written"
    verdict = await audit_verdict(world, acme)
    assert verdict.fault is None
    assert verdict.anchor is not None
    assert verdict.anchor.seq == 1 + MAX_WAITING_OF_TENANT, "what waited is written when the server ends"


async def change(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute(
        "update rag.audit set subject = 'nobody' where tenant_id = $1 and seq = 3", acme.tenant_id
    )


async def delete_middle(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute("delete from rag.audit where tenant_id = $1 and seq = 3", acme.tenant_id)


async def delete_start(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute("delete from rag.audit where tenant_id = $1 and seq = 1", acme.tenant_id)


async def delete_tail(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute("delete from rag.audit where tenant_id = $1 and seq >= 4", acme.tenant_id)


async def delete_all(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute("delete from rag.audit where tenant_id = $1", acme.tenant_id)


async def delete_head(owner: asyncpg.Connection, acme: Tenant) -> Any:
    return await owner.execute("delete from rag.audit_head where tenant_id = $1", acme.tenant_id)


async def swap(owner: asyncpg.Connection, acme: Tenant) -> Any:
    for old, new in ((3, 99), (4, 3), (99, 4)):
        await owner.execute("update rag.audit set seq = $3 where tenant_id = $1 and seq = $2", acme.tenant_id, old, new)


async def insert_behind(owner: asyncpg.Connection, acme: Tenant) -> Any:
    await owner.execute(
        "create temp table forged as select * from rag.audit where tenant_id = $1 and seq = 5", acme.tenant_id
    )
    await owner.execute("update forged set seq = 6, previous = hash")
    return await owner.execute("insert into rag.audit select * from forged")


async def insert_between(owner: asyncpg.Connection, acme: Tenant) -> Any:
    await owner.execute("update rag.audit set seq = seq + 100 where tenant_id = $1 and seq >= 3", acme.tenant_id)
    await owner.execute("update rag.audit set seq = seq - 99 where tenant_id = $1 and seq >= 100", acme.tenant_id)
    await owner.execute(
        "create temp table forged as select * from rag.audit where tenant_id = $1 and seq = 2", acme.tenant_id
    )
    await owner.execute("update forged set seq = 3, previous = hash")
    return await owner.execute("insert into rag.audit select * from forged")


TAMPERING: dict[Tamper, int] = {
    change: 3,
    delete_middle: 3,
    delete_start: 1,
    delete_tail: 4,
    delete_all: 1,
    delete_head: 1,
    swap: 3,
    insert_behind: 6,
    insert_between: 3,
}


async def test_whatever_the_owner_changes_is_found_at_its_place(world: World) -> None:
    for tamper, seq in TAMPERING.items():
        tenant = await world.tenant(tamper.__name__.replace("_", "-"))
        await append(world, tenant)
        assert (await audit_verdict(world, tenant)).fault is None
        owner = await asyncpg.connect(world.superuser_url)
        await tamper(owner, tenant)
        await owner.close()
        fault = (await audit_verdict(world, tenant)).fault
        assert fault is not None, tamper
        assert fault.seq == seq, tamper
    untouched = await world.tenant("untouched")
    await append(world, untouched)
    assert (await audit_verdict(world, untouched)).fault is None


async def test_a_chain_that_was_rewritten_as_a_whole_is_found_by_an_anchor_kept_elsewhere(world: World) -> None:
    acme = await world.tenant("acme")
    await append(world, acme)
    kept = (await audit_verdict(world, acme)).anchor
    assert kept is not None
    owner = await asyncpg.connect(world.superuser_url)
    previous = START
    for row in await audit_rows(world, acme):
        forged = dataclasses.replace(row, subject="nobody", previous=previous)
        previous = hash_of(forged)
        await owner.execute(
            "update rag.audit set subject = 'nobody', previous = $3, hash = $4 where tenant_id = $1 and seq = $2",
            acme.tenant_id, row.seq, forged.previous, previous,
        )  # fmt: skip
    await owner.execute("update rag.audit_head set hash = $2 where tenant_id = $1", acme.tenant_id, previous)
    await owner.close()
    assert (await audit_verdict(world, acme)).fault is None, "by itself it looks right"
    fault = (await audit_verdict(world, acme, expected=kept)).fault
    assert fault is not None
    assert fault.seq == 5
    longer = await audit_verdict(world, acme, expected=Anchor(seq=6, hash=previous))
    assert longer.fault is not None


def bulkhead(world: World, *arguments: str) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(cli, arguments, env=world.settings.to_env())


def checked(script: str, text: str) -> subprocess.CompletedProcess[str]:
    """Run an auditor's script on an export."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=BOUND_S, check=False)


async def test_an_operator_verifies_exports_and_reads(world: World, tmp_path: Path) -> None:
    acme = await world.tenant("acme")

    async def run(*arguments: str) -> Result:
        return await anyio.to_thread.run_sync(bulkhead, world, *arguments)

    assert (await run("tenant", "set", "acme", "--audit-query-text", "on")).exit_code == 0
    async with audit_log(world) as audit:
        for query in ("=1+1", "plain"):
            await audit.record(world.principal(acme), dataclasses.replace(READ, query=query))

    verified = await run("audit", "verify", "acme")
    assert verified.exit_code == 0, verified.output
    anchor = verified.stdout.split()[-1]
    assert (await run("audit", "verify", "acme", "--expect", anchor)).exit_code == 0
    assert (await run("audit", "verify", "acme", "--expect", f"2:{'00' * 32}")).exit_code == 1

    lines = (await run("audit", "export", "acme", "--since", "2020-01-01")).stdout
    assert [json.loads(line)["query_text"] for line in lines.splitlines()] == ["=1+1", "plain"]
    assert (await run("audit", "export", "acme", "--until", "2020-01-01")).stdout == ""
    # what the documentation tells an auditor to run
    [script] = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "audit.md").read_text(), re.DOTALL
    )
    assert (await anyio.to_thread.run_sync(checked, script, lines)).stdout.strip() == anchor
    assert (await anyio.to_thread.run_sync(checked, script, lines.replace("plain", "plane"))).returncode != 0

    file = tmp_path / "acme.csv"
    assert (await run("audit", "export", "acme", "--format", "csv", "-o", str(file))).stdout.startswith("wrote 2 rows")
    assert file.stat().st_mode & 0o077 == 0
    with file.open(newline="") as opened:
        assert [row["query_text"] for row in csv.DictReader(opened)] == ["'=1+1", "plain"]
    assert [row["seq"] for row in json.loads((await run("audit", "tail", "acme", "-n", "1", "--json")).stdout)] == [2]

    owner = await asyncpg.connect(world.superuser_url)
    await change_first(owner)
    await owner.close()
    broken = await run("audit", "verify", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)[0]["fault"] == {"seq": 1, "reason": "the row was changed"}

    owner = await asyncpg.connect(world.superuser_url)
    await owner.execute("delete from rag.audit")
    await owner.execute("delete from rag.audit_head")
    await owner.close()
    # what was deleted with its head is not passed over in silence
    assert (await run("audit", "verify")).stdout == "acme: no rows\n"
    assert (await run("audit", "verify", "acme", "--expect", anchor)).exit_code == 1


async def change_first(owner: asyncpg.Connection) -> None:
    await owner.execute("update rag.audit set outcome = 'canceled' where seq = 1")
