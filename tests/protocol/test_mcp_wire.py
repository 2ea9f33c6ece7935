"""The MCP endpoint where no client's library would go: ids, versions, streams, cursors, one connection for two tenants.

Each test is marked with the rows of mcp_requirements.toml that it proves.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
import pytest

from mcp_server.tools import TOOLS
from rag.identity.scopes import Audience, Scope
from rag.settings import Settings
from tests.support.mcp_scene import McpScene
from tests.support.mcp_wire import LEGACY, MODERN, answered, events, raw_request
from tests.support.servers import McpServer
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
INVALID_PARAMS, METHOD_NOT_FOUND, HEADER_MISMATCH, UNSUPPORTED_VERSION = -32602, -32601, -32020, -32022
INVALID_REQUEST = -32600
LISTS = ["tools/list", "resources/list", "resources/templates/list", "prompts/list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One connection to a running server, and a token of one tenant."""

    world: World
    server: McpServer
    http: httpx2.AsyncClient
    token: str

    async def send(
        self, method: str, params: dict[str, Any] | None = None, *, revision: str = LEGACY, **changes: Any
    ) -> httpx2.Response:
        """Send one request as a client of `revision` would; `changes`: members of the message, token, bound_s."""
        bound_s, token = changes.pop("bound_s", BOUND_S), changes.pop("token", self.token)
        body, headers = raw_request(method, params, revision=revision, **changes)
        headers["authorization"] = f"Bearer {token}"
        return await self.http.post(self.server.url, content=body, headers=headers, timeout=bound_s)


@pytest.fixture(name="wire")
async def wire_fixture(scene: McpScene) -> AsyncGenerator[Wire]:
    """A connection of the test's own."""
    async with httpx2.AsyncClient(timeout=BOUND_S, limits=httpx2.Limits(max_connections=1)) as http:
        yield Wire(world=scene.world, server=scene.server, http=http, token=scene.token())


@pytest.mark.requirement("transport.notification")
async def test_a_notification_is_accepted_without_an_answer(wire: Wire) -> None:
    accepted = await wire.send("notifications/initialized", id=None)
    assert (accepted.status_code, accepted.content) == (202, b"")
    refused = await wire.send("notifications/initialized", id=None, jsonrpc="1.0")
    assert refused.status_code == 400


@pytest.mark.requirement("transport.loopback")
def test_a_server_listens_on_the_loopback_address_unless_told_otherwise() -> None:
    assert Settings().mcp_host == "127.0.0.1"


@pytest.mark.requirement("transport.version-header")
async def test_a_version_that_nobody_speaks_is_a_bad_request(wire: Wire) -> None:
    for version in ("2030-01-01", "latest", ""):
        answer = await wire.send("tools/list", revision=version)
        assert answer.status_code == 400, version
    answer = await wire.send("tools/list", revision="2030-01-01")
    error = answered(answer)["error"]
    assert (answer.status_code, error["code"]) == (400, UNSUPPORTED_VERSION)
    assert MODERN in error["data"]["supported"]


@pytest.mark.requirement("transport.unknown-method")
async def test_an_unknown_method_is_404_in_the_modern_revision(wire: Wire) -> None:
    answer = await wire.send("documents/steal", revision=MODERN)
    assert (answer.status_code, answered(answer)["error"]["code"]) == (404, METHOD_NOT_FOUND)
    answer = await wire.send("documents/steal")
    assert answered(answer)["error"]["code"] == METHOD_NOT_FOUND


@pytest.mark.requirement("base.json-rpc")
@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_an_answer_has_the_id_of_its_request(wire: Wire, revision: str) -> None:
    for request_id in (0, 7, 2**53 - 1, "seven", "7"):
        for tool in ("list_documents", "no_such_tool"):
            answer = await wire.send("tools/call", {"name": tool, "arguments": {}}, revision=revision, id=request_id)
            message = answered(answer)
            assert (message["jsonrpc"], message["id"]) == ("2.0", request_id)
            assert ("result" in message) == (tool == "list_documents")
            assert ("error" in message) == (tool == "no_such_tool")


@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_an_id_beyond_64_bits_comes_back_and_one_that_is_none_is_refused(wire: Wire, revision: str) -> None:
    body, headers = raw_request("tools/list", revision=revision)
    headers["authorization"] = f"Bearer {wire.token}"
    for raw, status in {str(2**70): 200, str(-(2**63)): 200, "1.5": 400, "null": 400, "true": 400, "[]": 400}.items():
        changed = body.replace(b'"id":1,', f'"id":{raw},'.encode())
        sent = await wire.http.post(wire.server.url, content=changed, headers=headers)
        assert sent.status_code == status, raw
        if status == 200:
            assert re.search(rf'"id": ?{raw}\b', sent.text)
        else:
            assert sent.json()["error"]["code"] == INVALID_REQUEST


async def test_nobody_is_redirected_with_a_token_in_hand(wire: Wire) -> None:
    headers = {"authorization": f"Bearer {wire.token}"}
    answer = await wire.http.post(f"{wire.server.url}/", content=b"{}", headers=headers)
    assert answer.status_code == 404


@pytest.mark.requirement("base.version-negotiation")
async def test_initialize_agrees_on_a_version(wire: Wire) -> None:
    for asked, agreed in ((LEGACY, LEGACY), ("2025-06-18", "2025-06-18"), ("1999-01-01", LEGACY)):
        answer = await wire.send(
            "initialize",
            {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
            revision="2025-06-18",
        )
        result = answered(answer)["result"]
        assert result["protocolVersion"] == agreed
        assert result["serverInfo"]["name"] == "bulkhead"


@pytest.mark.requirement("base.stateless")
@pytest.mark.requirement("auth.every-request")
@pytest.mark.requirement("tools.list.by-authorization")
async def test_two_tenants_may_share_one_connection(wire: Wire) -> None:
    rival = await wire.world.tenant("neighbour")
    reader = wire.world.token(rival, audience=Audience.MCP, scopes=frozenset({Scope.CORPUS_READ}))
    document = {"source": "a.md", "title": "Ours", "text": "Ours alone."}
    for revision in (LEGACY, MODERN):
        put = await wire.send("tools/call", {"name": "put_document", "arguments": document}, revision=revision)
        assert not answered(put)["result"]["isError"]
        names: dict[str, set[str]] = {}
        for token, seen in ((wire.token, 1), (reader, 0), (wire.token, 1)):
            call = {"name": "list_documents", "arguments": {}}
            answer = await wire.send("tools/call", call, revision=revision, token=token)
            assert len(answered(answer)["result"]["structuredContent"]["documents"]) == seen
            listed = await wire.send("tools/list", revision=revision, token=token)
            found = {tool["name"] for tool in answered(listed)["result"]["tools"]}
            assert names.setdefault(token, found) == found
        assert "put_document" in names[wire.token] - names[reader]
        nobody = await wire.send("tools/list", revision=revision, token="nobody")
        assert nobody.status_code == 401


@pytest.mark.requirement("base.result-type")
async def test_a_modern_result_says_its_type_and_its_server(wire: Wire) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        *((method, {}) for method in [*LISTS, "server/discover"]),
        ("tools/call", {"name": "list_documents", "arguments": {}}),
        ("tools/call", {"name": "hybrid_search", "arguments": {"query": ""}}),
    ]
    for method, params in requests:
        result = answered(await wire.send(method, params, revision=MODERN))["result"]
        assert result["resultType"] == "complete", method
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "bulkhead", method


@pytest.mark.requirement("transport.stream-unbuffered")
@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_a_stream_asks_proxies_not_to_hold_it_back(wire: Wire, revision: str) -> None:
    documents = [{"source": f"{number}.md", "title": "T", "text": "Text."} for number in range(2)]
    call = {"name": "put_documents", "arguments": {"documents": documents}, "_meta": {"progressToken": "p"}}
    answer = await wire.send("tools/call", call, revision=revision)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    *notes, last = events(answer)
    assert [note["method"] for note in notes] == ["notifications/progress"] * 2
    assert {note["params"]["progressToken"] for note in notes} == {"p"}
    assert last["id"] == 1
    assert last["result"]["structuredContent"]


@pytest.mark.requirement("patterns.progress")
@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_without_a_token_there_is_no_progress_and_no_stream(wire: Wire, revision: str) -> None:
    answer = await wire.send("tools/call", {"name": "list_documents", "arguments": {}}, revision=revision)
    assert answer.headers["content-type"] == "application/json"
    assert set(answered(answer)) == {"jsonrpc", "id", "result"}


@pytest.mark.requirement("tools.names")
def test_the_names_of_tools_are_plain_and_each_has_one() -> None:
    names = [tool.name for tool in TOOLS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names)


@pytest.mark.requirement("pagination.invalid-cursor")
@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_a_cursor_that_nobody_gave_out_is_refused_by_every_list(wire: Wire, revision: str) -> None:
    for method in LISTS:
        for cursor in ("", "AAAA", "é", "x" * 5000):
            answer = await wire.send(method, {"cursor": cursor}, revision=revision)
            assert answered(answer)["error"]["code"] == INVALID_PARAMS, (method, cursor[:5])


@pytest.mark.requirement("auth.no-query-token")
async def test_a_token_in_the_address_is_none(wire: Wire) -> None:
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    answer = await wire.http.post(f"{wire.server.url}?access_token={wire.token}", content=body, headers=headers)
    assert answer.status_code == 401
