"""Whatever a verified caller sends, the MCP server answers in order: no 500, no hang, nothing of its insides.

And the fast lane says what the SDK's transport says: the same request by two equivalent Accept headers, of which one is
too rare for the lane, has the same answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import anyio
import anyio.abc
import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_server.lane import LANE_METHODS
from mcp_server.tools import TOOLS
from rag.identity.scopes import Audience, Scope
from tests.support.servers import McpServer, mcp_server
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
BOUND_S = 20.0
FINE = {200, 202, 400, 403, 404, 406, 413, 415, 421}
"""What a POST may be answered with; 500 and its like are not among them."""
INSIDES = (b"Traceback", b'File "', b"asyncpg", b"pydantic", b"site-packages", b"select ", b"SQLSTATE", b"mcp_server/")
BOTH = "application/json, text/event-stream"
BOTH_RARELY_SAID = "application/*, text/*"
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

texts = st.text(max_size=20) | st.sampled_from(["\0", "\ud800", "../../etc", "' or 1=1 --", "ﷺ" * 50, "%s%n", "{}"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(["acme", "78j(b)", "00000000-0000-0000-0000-000000000000"])
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
names = st.sampled_from([tool.name for tool in TOOLS]) | texts
keys = st.sampled_from(sorted({name for tool in TOOLS for name in tool.arguments.model_fields}))
arguments = st.dictionaries(keys | texts, values, max_size=5)
methods = st.sampled_from([*sorted(LANE_METHODS), "initialize", "ping", "server/discover", "logging/setLevel"]) | texts
params = st.one_of(
    values,
    st.fixed_dictionaries({"name": names, "arguments": arguments}),
    st.fixed_dictionaries({"uri": texts | st.just("bulkhead://documents/x")}),
    st.fixed_dictionaries({"cursor": texts}),
    st.fixed_dictionaries({"ref": values, "argument": values}),
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | values,
        "id": st.integers(0, 9) | values,
        "method": methods,
        "params": params,
        "extra": values,
    },
)
versions = st.sampled_from([None, "2025-11-25", "2026-07-28", "2025-03-26", "1999-01-01", ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server, and a caller with every right."""

    server: McpServer
    http: httpx2.AsyncClient

    async def post(self, body: bytes, **headers: str) -> httpx2.Response:
        """Send `body` and check what must hold for any answer."""
        given_headers = {"accept": BOTH, "content-type": "application/json", **headers}
        with anyio.fail_after(BOUND_S):
            response = await self.http.post(self.server.url, content=body, headers=given_headers)
        assert response.status_code in FINE, (response.status_code, body)
        for inside in INSIDES:
            if inside not in body:
                assert inside not in response.content, (inside, response.content, body)
        return response


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """Serve two documents."""
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.MCP, scopes=frozenset(Scope))
    headers = {"authorization": f"Bearer {token}"}
    async with mcp_server(world) as server, httpx2.AsyncClient(headers=headers, timeout=BOUND_S) as http:
        scene = Scene(server=server, http=http)
        for source in ("fraud.md", "acme.txt"):
            put = {"source": source, "title": "Fraud", "text": "Section 78j(b) forbids fraud.", "metadata": {"y": 1}}
            assert "result" in body_of(
                await scene.post(request("tools/call", {"name": "put_document", "arguments": put}))
            )
        yield scene


def request(method: str, given_params: object, *, modern: bool = False, given_id: str | int = 7) -> bytes:
    """Return a well-formed request."""
    filled: Any = given_params
    if modern and isinstance(filled, dict):
        filled = {**cast("dict[str, Any]", filled), "_meta": META}
    return encoded({"jsonrpc": "2.0", "id": given_id, "method": method, "params": filled})


def encoded(message: object) -> bytes:
    """Return JSON, also of what orjson refuses."""
    try:
        return orjson.dumps(message)
    except TypeError:
        import json  # noqa: PLC0415  # escapes lone surrogates and writes any integer

        return json.dumps(message).encode()


def body_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the JSON-RPC answer, out of an event stream too."""
    content = response.content
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        content = content.partition(b"data: ")[2].partition(b"\r\n")[0]
    return orjson.loads(content) if content else {}


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what differs between any two runs."""
    text = orjson.dumps(answer).decode()
    parsed: dict[str, Any] = orjson.loads(text)
    structured = (parsed.get("result") or {}).get("structuredContent") or {}
    for key in ("report", "task_id", "context_id", "version", "corpus_version", "outcome", "updated_at"):
        structured.pop(key, None)
    (parsed.get("result") or {}).pop("content", None)
    return parsed


@FUZZ
@given(message=messages | values, version=versions)
async def test_any_json_has_an_answer(scene: Scene, message: object, version: str | None) -> None:
    headers = {} if version is None else {"mcp-protocol-version": version}
    response = await scene.post(encoded(message), **headers)
    if response.status_code == 200:
        answer = body_of(response)
        assert ("result" in answer) != ("error" in answer)


@FUZZ
@given(method=methods, given_params=params, wire=st.sampled_from(["2025-11-25", "2026-07-28"]))
async def test_any_parameters_have_an_answer(scene: Scene, method: str, given_params: object, wire: str) -> None:
    modern = wire == "2026-07-28"
    headers = {"mcp-protocol-version": wire}
    if modern:
        if not (method.isascii() and method.isprintable()):
            return
        headers["mcp-method"] = method
        name: Any = cast("dict[str, Any]", given_params).get("name") if isinstance(given_params, dict) else None
        if isinstance(name, str) and name.isascii() and name.isprintable():
            headers["mcp-name"] = name
    answer = body_of(await scene.post(request(method, given_params, modern=modern), **headers))
    assert ("result" in answer) != ("error" in answer)
    assert answer.get("error", {}).get("code") != -32603, answer


@FUZZ
@given(body=st.binary(max_size=200), version=versions)
async def test_any_bytes_have_an_answer(scene: Scene, body: bytes, version: str | None) -> None:
    headers = {} if version is None else {"mcp-protocol-version": version}
    response = await scene.post(body, **headers)
    assert response.status_code != 200 or "error" in body_of(response)


@FUZZ
@given(
    accept=st.sampled_from([BOTH, BOTH_RARELY_SAID, "*/*", "application/json", "", "text/html;q=0.1", ",;,"]),
    kind=st.sampled_from(
        ["application/json", "application/json; charset=utf-8", "text/plain", "", "application/jsonx"]
    ),
    origin=st.sampled_from(["", "null", "http://127.0.0.1:1", "https://evil.example", "http://127.0.0.1.evil.example"]),
    routing=st.dictionaries(
        st.sampled_from(
            ["mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "mcp-param-x", "content-encoding"]
        ),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
        max_size=3,
    ),
)
async def test_any_headers_have_an_answer(
    scene: Scene, accept: str, kind: str, origin: str, routing: dict[str, str]
) -> None:
    headers = {"accept": accept, "content-type": kind, **routing}
    if origin:
        headers["origin"] = origin
    response = await scene.post(request("tools/list", {}), **headers)
    if origin in {"null", "https://evil.example", "http://127.0.0.1.evil.example"}:
        assert response.status_code != 200


async def test_bytes_that_are_no_http_leave_the_server_answering(scene: Scene) -> None:
    host, _, port = scene.server.base.removeprefix("http://").partition(":")
    head = b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    hostile = [
        b"\0" * 4096,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /mcp HTTP/9.9\r\n\r\n",
        head + b"content-length: -1\r\n\r\n",
        head + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        head + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\nzz\r\n",
        head + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        head + b"x: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /mcp\r\n\r\n" * 50,
        head + b"authorization: Bearer \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
    ]
    for data in hostile:
        with anyio.fail_after(BOUND_S):
            stream = await anyio.connect_tcp(host, int(port))
            async with stream:
                answer = await _exchange(stream, data)
        assert not answer.startswith(b"HTTP/1.1 5"), (data[:80], answer[:200])
        assert b"Traceback" not in answer
    assert (await scene.http.get(f"{scene.server.base}/healthz")).status_code == 200
    assert "result" in body_of(await scene.post(request("tools/list", {})))


async def _exchange(stream: anyio.abc.ByteStream, data: bytes) -> bytes:
    answer = b""
    try:
        await stream.send(data)
        await stream.send_eof()
        while True:
            answer += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return answer


@FUZZ
@given(
    method=st.sampled_from(sorted(LANE_METHODS)),
    given_params=params.filter(lambda value: isinstance(value, dict)),
    given_id=st.integers(-(2**70), 2**70) | st.sampled_from([2**63 - 1, 2**63, -(2**63)]) | st.text(max_size=5),
    wire=st.sampled_from(["2025-11-25", "2026-07-28"]),
)
async def test_the_lane_and_the_transport_answer_alike(
    scene: Scene, method: str, given_params: dict[str, Any], given_id: str | int, wire: str
) -> None:
    if given_params.get("name") in {"put_document", "put_documents", "delete_document", "delegate_task", "cancel_task"}:
        return  # the second of two writes says something else
    headers = {"mcp-protocol-version": wire}
    modern = wire == "2026-07-28"
    if modern:
        headers["mcp-method"] = method
        name = given_params.get("name") if method != "resources/read" else given_params.get("uri")
        if isinstance(name, str) and name.isascii() and name.isprintable() and name == name.strip():
            headers["mcp-name"] = name
    body = request(method, given_params, modern=modern, given_id=given_id)
    fast = await scene.post(body, **headers)
    slow = await scene.post(body, **headers, accept=BOTH_RARELY_SAID)
    assert fast.status_code == slow.status_code
    assert comparable(body_of(fast)) == comparable(body_of(slow))
