"""External MCP servers of a tenant: the list, its wall, its secrets, and a client that trusts nothing it is told."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from starlette.responses import JSONResponse, RedirectResponse, Response

from rag.errors import BulkheadError, Conflict, Forbidden, InvalidInput, NotFound, SealRefused, Unavailable
from rag.external import client as client_module
from rag.external.client import MAX_RESPONSE_BYTES, ExternalClient
from rag.external.operator import ServerList
from rag.external.store import PURPOSE, list_servers
from rag.external.values import ExternalServer
from rag.identity.seal import SealKeys, load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.outbound import pinned_client
from rag.tenants.operator import Tenant
from sql import Query
from tests.support.external_server import GAZETTE, ExternalScript, external_process, external_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
SECRET = "s3cret-of-the-gazette"
ROOT = Path(__file__).parent.parent.parent
URL = "https://mcp.example.com/mcp"
EVERYTHING = Query(
    name="everything", description="Without a condition.", text="select * from rag.external_server", parameters=()
)
open_loopback = partial(pinned_client, allow_loopback=True)


def box(world: World) -> SecretBox:
    assert world.settings.seal_keys_file is not None
    return SecretBox.derive(load_seal_keys(world.settings.seal_keys_file), purpose=PURPOSE)


@asynccontextmanager
async def listed(world: World, tenant: Tenant, *, allow_loopback: bool = True) -> AsyncGenerator[ServerList]:
    async with world.operator() as operator:
        yield ServerList(
            database=operator.database, box=box(world), tenant_id=tenant.tenant_id, allow_loopback=allow_loopback
        )


def asks(script: ExternalScript | str, *tools: str, **more: Any) -> ExternalClient:
    """Return a client of the running server that may call `tools` (search_gazette)."""
    url = script if isinstance(script, str) else script.url
    server = ExternalServer(
        server_id=uuid4(), name="gazette", url=url, tools=tools or ("search_gazette",), sends_queries=True, **more
    )
    return ExternalClient(server=server, open_http=open_loopback)


async def refusal(client: ExternalClient, tool: str = "search_gazette") -> BulkheadError:
    """Return how a call fails."""
    with anyio.fail_after(BOUND_S), pytest.raises(BulkheadError) as caught:
        await client.call(tool, {"query": "seaplanes"})
    return caught.value


# the list


async def test_a_tenant_sees_its_own_servers_and_never_anothers(world: World) -> None:
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with listed(world, acme) as ours:
        await ours.add("gazette", url=URL, tools=["search"], credential=SECRET, header="authorization")
    async with world.database(claims=True) as database:
        (found,) = await list_servers(database, world.principal(acme), box(world))
        assert (found.name, found.tools, found.credential, found.sends_queries) == (
            "gazette",
            ("search",),
            SECRET,
            False,
        )
        assert await list_servers(database, world.principal(rival), box(world)) == []
        async with database.tenant(world.principal(rival)) as session:
            stolen = await session.fetch(EVERYTHING)
        assert stolen == []
    async with listed(world, rival) as theirs:
        with pytest.raises(NotFound):
            await theirs.remove("gazette")


async def test_the_faces_login_cannot_read_the_list_at_all(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database:
        with pytest.raises(SealRefused):
            await list_servers(database, world.principal(acme), box(world))


async def test_a_credential_is_stored_closed_and_does_not_open_at_another_address_or_for_another_tenant(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    for tenant in (acme, rival):
        async with listed(world, tenant) as known:
            await known.add("gazette", url=URL, tools=["search"], credential=SECRET, header="x-api-key")
    admin = await asyncpg.connect(world.superuser_url)
    rows = await admin.fetch("select tenant_id, credential from rag.external_server")
    assert all(SECRET.encode() not in row["credential"] for row in rows)
    await admin.execute(
        "update rag.external_server set url = $1 where tenant_id = $2", "https://evil.example/", acme.tenant_id
    )
    await admin.execute(
        "update rag.external_server set credential = (select credential from rag.external_server where tenant_id = $1)"
        " where tenant_id = $2",
        acme.tenant_id,
        rival.tenant_id,
    )
    await admin.close()
    async with world.database(claims=True) as database:
        for tenant in (acme, rival):
            (found,) = await list_servers(database, world.principal(tenant), box(world))
            assert found.lacks_credential
            assert found.headers() == {}
    assert SECRET not in caplog.text
    assert SECRET not in repr(found)


async def test_credentials_outlast_rotations_that_they_are_resealed_between(world: World) -> None:
    acme = await world.tenant("acme")
    keys = {name: name.encode() * 16 for name in ("k1", "k2", "k3")}

    def having(active: str, *names: str) -> SecretBox:
        return SecretBox.derive(SealKeys(active=active, keys={name: keys[name] for name in names}), purpose=PURPOSE)

    async with listed(world, acme) as known:
        first, second, third = (
            dataclasses.replace(known, box=having(*named))
            for named in (("k1", "k1"), ("k2", "k1", "k2"), ("k3", "k2", "k3"))
        )
        for name in ("gazette", "archive"):
            await first.add(name, url=URL, tools=["search"], credential=SECRET, header="x-api-key")
        assert await second.reseal() == (2, [])
        await first.set_credential("archive", header="x-api-key", credential=SECRET)
        assert await third.reseal() == (1, ["archive"])
        assert (await third.find("gazette")).credential == SECRET


async def test_the_list_refuses_what_it_could_not_keep_to(world: World) -> None:
    acme = await world.tenant("acme")
    async with listed(world, acme, allow_loopback=False) as known:
        await known.add("gazette", url=URL, tools=["search"])
        with pytest.raises(Conflict):
            await known.add("gazette", url=URL, tools=["search"])
        bad: Sequence[dict[str, Any]] = (
            {"name": "Gazette"},
            {"url": "http://mcp.example.com/mcp"},
            {"url": "https://10.0.0.7/mcp"},
            {"url": "https://user:word@mcp.example.com/"},
            {"tools": []},
            {"tools": ["search", "search"]},
            {"tools": ["rm -rf"]},
            {"header": "cookie", "credential": "x"},
            {"header": "mcp-session-id", "credential": "x"},
            {"credential": "x"},
            {"header": "authorization", "credential": "two\nlines"},
        )
        for changes in bad:
            told: dict[str, Any] = {"name": "other", "url": URL, "tools": ["search"], **changes}
            with pytest.raises(InvalidInput):
                await known.add(**told)
        assert [one.name for one in await known.servers()] == ["gazette"]


async def test_a_server_that_is_disabled_or_removed_is_gone_at_the_next_look(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database(claims=True) as database, listed(world, acme) as known:
        await known.add("gazette", url=URL, tools=["search"])
        await known.change("gazette", enabled=False)
        assert await list_servers(database, world.principal(acme), box(world)) == []
        await known.change("gazette", enabled=True, sends_queries=True, tools=["other"])
        (found,) = await list_servers(database, world.principal(acme), box(world))
        assert (found.tools, found.sends_queries) == (("other",), True)
        await known.remove("gazette")
        assert await list_servers(database, world.principal(acme), box(world)) == []


# the client


async def test_a_server_in_a_process_of_its_own_is_asked_and_quoted() -> None:
    with anyio.fail_after(40.0):
        async with external_process() as url:
            client = asks(url)
            (tool,) = await client.tools()
            result = await client.call("search_gazette", {"query": "seaplanes"})
    assert (tool.name, tool.description) == ("search_gazette", "Search the gazette.")
    assert result.text == GAZETTE
    assert not result.truncated


async def test_only_tools_on_the_list_are_seen_and_called() -> None:
    async with external_server() as script:
        client = asks(script, "search_gazette", "not_there")
        assert [tool.name for tool in await client.tools()] == ["search_gazette"]
        assert isinstance(await refusal(client, "erase_gazette"), Forbidden)
        assert script.called == []


async def test_what_goes_out_is_the_servers_credential_and_the_arguments_and_nothing_of_ours() -> None:
    async with external_server(api_key=SECRET) as script:
        client = asks(script, header="authorization", credential=SECRET)
        result = await client.call("search_gazette", {"query": "q"})
    assert result.text == GAZETTE
    assert {one["authorization"] for one in script.headers} == {f"Bearer {SECRET}"}
    assert not any({"cookie", "traceparent", "tracestate"} & one.keys() for one in script.headers)


async def test_the_librarys_spans_are_not_recorded_and_carry_no_id_of_ours() -> None:
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("ours") as span:
        ours = f"{span.get_span_context().trace_id:032x}"
        async with external_server() as script:
            await asks(script).call("search_gazette", {"query": "q"})
    assert script.bodies
    assert not any(ours.encode() in body for body in script.bodies)


async def test_a_missing_or_refused_credential_is_told_without_the_servers_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with external_server(api_key=SECRET) as script:
        missing = await refusal(asks(script, header="authorization"))
        assert script.headers == [], "not even asked"
        refused = await refusal(asks(script, header="authorization", credential="wr0ng-one"))
    assert isinstance(missing, Forbidden)
    assert "needs a credential" in missing.message
    assert isinstance(refused, Forbidden)
    assert "refuses our credential" in refused.message
    assert "hidden words" not in caplog.text + refused.message
    assert "wr0ng-one" not in caplog.text


def hostile() -> dict[str, Response]:
    deep = "[" * 50_000 + "]" * 50_000
    loud = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "LOUD words of the server"}}
    return {
        "no MCP": Response("LOUD words of the server", media_type="text/html"),
        "an error with words": JSONResponse({**loud, "id": None}, status_code=400),
        "an answer to another request": JSONResponse({**loud, "id": "LOUD"}),
        "a status": Response("LOUD words of the server", status_code=500),
        "not JSON": Response("LOUD {", media_type="application/json"),
        "an unknown event": Response("event: LOUD\ndata: x\n\n", media_type="text/event-stream"),
        "a broken event": Response("event: message\ndata: LOUD{\n\n", media_type="text/event-stream"),
        "too deep": Response(f'{{"jsonrpc":"2.0","id":1,"result":{deep}}}', media_type="application/json"),
        "too large": Response(b" " * (MAX_RESPONSE_BYTES + 1), media_type="application/json"),
        "unfolding": Response(
            gzip.compress(b" " * 10_000_000), media_type="application/json", headers={"content-encoding": "gzip"}
        ),
        "elsewhere": RedirectResponse("http://169.254.169.254/latest/meta-data?LOUD", status_code=307),
    }


@pytest.mark.parametrize("kind", sorted(hostile()))
async def test_whatever_a_server_does_is_one_of_our_errors_and_its_words_reach_no_log(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SESSION_BOUND_S", 3.0)
    caplog.set_level(logging.DEBUG)
    async with external_server() as script:
        script.answers.extend(hostile()[kind] for _ in range(4))
        error = await refusal(asks(script))
    assert isinstance(error, Unavailable | Forbidden | InvalidInput)
    assert "gazette" in error.message
    assert "LOUD" not in error.message
    assert not any("LOUD" in record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn"))


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SESSION_BOUND_S", 0.3)
    async with external_server(hangs=True) as script:
        error = await refusal(asks(script))
    assert isinstance(error, Unavailable)
    assert "too long" in error.message


async def test_a_server_that_is_down_or_stands_inside_is_told_apart() -> None:
    async with external_server() as script:
        url = script.url
    down = await refusal(asks(url))
    inside = await refusal(
        ExternalClient(
            server=ExternalServer(
                server_id=uuid4(), name="gazette", url="https://localhost:1/mcp", tools=("search_gazette",)
            ),
            open_http=pinned_client,
        )
    )
    assert isinstance(down, Unavailable)
    assert "cannot be reached" in down.message
    assert isinstance(inside, Forbidden)
    assert "address" in inside.message


async def test_a_tool_that_fails_is_told_without_its_words() -> None:
    async with external_server() as script:
        error = await refusal(asks(script, "search_year"), "search_year")
    assert isinstance(error, InvalidInput)
    assert "year" not in error.message


async def test_the_librarys_own_calls_may_go_on_logging_after_an_exchange(caplog: pytest.LogCaptureFixture) -> None:
    async with external_server() as script:
        await asks(script).tools()
    logging.getLogger("mcp.client.streamable_http").warning("ours again")
    assert "ours again" in caplog.text


# the command line


async def test_an_operator_keeps_the_list_and_no_credential_is_ever_shown_or_an_argument(world: World) -> None:
    await world.tenant("acme")
    settings = dataclasses.replace(world.settings, outbound_loopback="on")
    env = {"PATH": os.environ["PATH"], **settings.to_env()}  # noqa: TID251  # what a child needs to start at all

    async def bulkhead(*arguments: str, stdin: bytes | None = None) -> str:
        command = [sys.executable, "-m", "rag.cli", "tenant", "servers", *arguments]
        with anyio.fail_after(60.0):
            done = await anyio.run_process(command, input=stdin, env=env, cwd=ROOT, check=False)
        return (done.stdout + done.stderr).decode()

    async with external_server(api_key=SECRET) as script:
        tools = ("--tool", "search_gazette", "--tool", "search_year", "--tool", "gone")
        said = [
            await bulkhead(
                "add", "acme", "gazette", "--url", script.url, "--credential-header", "authorization", *tools
            ),
            await bulkhead("test", "acme", "gazette"),
            await bulkhead("credential", "acme", "gazette", "--credential-file", "-", stdin=f"{SECRET}\n".encode()),
            await bulkhead("set", "acme", "gazette", "--send-queries"),
            await bulkhead("reseal", "acme"),
            await bulkhead("test", "acme", "gazette"),
            await bulkhead("list", "acme", "--json"),
            await bulkhead("list", "rival", "--json"),
            await bulkhead("remove", "acme", "gazette"),
            await bulkhead("list", "acme", "--json"),
        ]
    added, missing, _, _, resealed, tested, listed, stranger, _, empty = said
    assert "its credential is missing" in added
    assert "needs a credential" in missing
    assert resealed.strip() == "resealed 1"
    assert tested.splitlines() == [
        "search_gazette: offered; the question goes into query",
        "search_year: offered, but cannot be asked with a question alone",
        "gone: not offered",
    ]
    (shown,) = json.loads(listed)
    assert (shown["credential"], shown["credential_header"], shown["send_queries"]) == ("set", "authorization", True)
    assert "not_found" in stranger
    assert json.loads(empty) == []
    assert script.called == []
    assert not any(SECRET in one for one in said)
