"""The MCP face over real HTTP: both revisions, every tool, its schemas, hostile input, and who is let in."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx2
import jsonschema
import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from mcp_types import TextContent

from mcp_server.tools import TOOLS
from rag.corpus.store import MAX_PART_CHARS
from rag.identity.scopes import Audience, Scope
from rag.tenants.operator import Tenant
from tests.support.mcp_scene import ERAS, Era, McpScene, bad, good, mcp_scene, refused
from tests.support.mcp_tools import EXAMPLES, arguments_of
from tests.support.mcp_wire import LEGACY, MODERN, raw_request
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
ABSENT = "not_found", "there is no document of that id"
TEXT = "# Fraud\n\nIt is unlawful to use a manipulative device.\n\n## Remedies\n\nThe court may grant an injunction."


async def put(scene: McpScene, *, source: str = "fraud.md", text: str = TEXT, tenant: Tenant | None = None) -> str:
    """Store a document and return its id."""
    return await scene.put("Fraud", source=source, text=text, tenant=tenant, media_type="text/markdown")


async def post(scene: McpScene, payload: object, *, token: str | None = None, **headers: str) -> httpx2.Response:
    """Send one raw request of revision 2025-11-25, with a token or without."""
    return await scene.post(payload if isinstance(payload, bytes) else orjson.dumps(payload), token=token, **headers)


def call(tool: str, arguments: object) -> dict[str, Any]:
    """Return a raw tools/call."""
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


@pytest.mark.parametrize(("era", "revision"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
async def test_each_revision_lists_every_tool_and_each_answers_in_its_own_schema(
    scene: McpScene, era: Era, revision: str
) -> None:
    declared = {tool.name: tool for tool in TOOLS}
    document_id, task_id = await put(scene), ""
    async with scene.client(era=era) as client:
        assert client.session.protocol_version == revision
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == list(declared) == list(EXAMPLES)
        for tool in listed:
            assert tool.description
            assert tool.output_schema is not None
            assert tool.annotations is not None
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            assert tool.input_schema["additionalProperties"] is False
            arguments = arguments_of(declared[tool.name], {"document_id": document_id, "task_id": task_id})
            jsonschema.validate(arguments, tool.input_schema)
            result = await client.call_tool(tool.name, arguments)
            structured = good(result)
            task_id = structured.get("task_id", task_id)
            jsonschema.validate(structured, tool.output_schema)
            assert isinstance(result.content[0], TextContent)
            assert orjson.loads(result.content[0].text) == structured


async def test_a_document_is_put_found_read_listed_and_deleted(scene: McpScene) -> None:
    async with scene.client() as client:
        document = {"source": "fraud.md", "title": "Fraud", "text": TEXT, "media_type": "text/markdown"}
        document_id = good(await client.call_tool("put_document", document))["document_id"]
        hit = good(await client.call_tool("hybrid_search", {"query": "manipulative device"}))["hits"][0]
        assert (hit["document_id"], hit["source"], hit["explain"]["bm25_rank"]) == (document_id, "fraud.md", 1)
        found = good(await client.call_tool("search_documents", {"query": "injunction"}))["documents"]
        assert [document["source"] for document in found] == ["fraud.md"]
        span = {"document_id": document_id, "start": hit["start"], "end": hit["end"]}
        read = good(await client.call_tool("retrieve_document", span))
        assert (read["text"], read["document"]["title"]) == (hit["text"], "Fraud")
        listed = good(await client.call_tool("list_documents"))
        assert [document["document_id"] for document in listed["documents"]] == [document_id]
        assert (listed["next_cursor"], listed["embeddings_pending"]) == (None, 1)
        assert good(await client.call_tool("delete_document", {"document_id": document_id}))["deleted"]
        assert good(await client.call_tool("hybrid_search", {"query": "manipulative device"}))["hits"] == []
        assert bad(await client.call_tool("retrieve_document", span)) == ABSENT


async def test_the_longest_read_stays_below_the_mebibyte_that_clients_take(scene: McpScene) -> None:
    # each such character is twelve bytes where it is escaped, in the structure and in its text form
    document_id = await put(scene, text="\U00010348" * MAX_PART_CHARS)
    read = {"name": "retrieve_document", "arguments": {"document_id": document_id}}
    for revision in (LEGACY, MODERN):
        response = await scene.send("tools/call", read, revision=revision)
        assert len(response.json()["result"]["structuredContent"]["text"]) == MAX_PART_CHARS
        assert len(response.content) < 2**20


async def test_without_a_token_the_answer_says_where_to_get_one_and_blames_none(scene: McpScene) -> None:
    response = await post(scene, call("list_documents", {}))
    challenge = response.headers["www-authenticate"]
    assert response.status_code == 401
    assert challenge == (
        f'Bearer scope="corpus:read", resource_metadata="{scene.server.base}/.well-known/oauth-protected-resource/mcp"'
    )
    async with httpx2.AsyncClient() as http:
        for path in ("/mcp", ""):
            metadata = (await http.get(f"{scene.server.base}/.well-known/oauth-protected-resource{path}")).json()
            assert metadata["resource"] == scene.server.url
            assert metadata["authorization_servers"] == [scene.world.settings.issuer]


async def test_a_token_that_does_not_verify_is_refused_without_a_reason(scene: McpScene) -> None:
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    header, payload, signature = scene.token().split(".")
    for wrong in (token, f"{header}.{payload}.{signature[:-4]}AAAA", "x", "a.b.c", "A" * 50_000):
        response = await post(scene, call("list_documents", {}), authorization=f"Bearer {wrong}")
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert response.json()["error"]["message"] == "the token is not valid here"
    assert (await post(scene, call("list_documents", {}), authorization="Basic YTpi")).status_code == 401


async def test_a_scope_that_is_missing_is_named_and_its_tools_are_not_listed(scene: McpScene) -> None:
    document_id = await put(scene)
    reader = scene.token(scopes=frozenset({Scope.CORPUS_READ}))
    response = await post(scene, call("delete_document", {"document_id": document_id}), token=reader)
    assert response.status_code == 403
    assert 'error="insufficient_scope"' in response.headers["www-authenticate"]
    assert 'scope="corpus:read corpus:write"' in response.headers["www-authenticate"]
    for era in ERAS:
        async with scene.client(token=reader, era=era) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == [tool.name for tool in TOOLS if tool.scope is Scope.CORPUS_READ]
            with refused(40300) as told:
                await client.call_tool("delete_document", {"document_id": document_id})
            assert told.value.message == "this needs the scope corpus:write"
            assert good(await client.call_tool("list_documents"))["documents"]
    # the name is escaped: only a JSON parser finds it
    hidden = orjson.dumps(call("X", {"document_id": document_id})).replace(b'"X"', b'"delete\\u005fdocument"')
    assert (await post(scene, hidden, token=reader)).status_code == 403


async def test_a_header_that_names_a_harmless_tool_opens_no_other(scene: McpScene) -> None:
    document_id = await put(scene)
    reader = scene.token(scopes=frozenset({Scope.CORPUS_READ}))
    deletion = {"name": "delete_document", "arguments": {"document_id": document_id}}
    body, headers = raw_request("tools/call", deletion, revision=MODERN)
    headers["mcp-name"] = "list_documents"
    for token, answer in ((reader, (403, 40300)), (scene.token(), (400, -32020))):
        response = await scene.post(body, token=token, **headers)
        assert (response.status_code, response.json()["error"]["code"]) == answer
    async with scene.client() as client:
        assert len(good(await client.call_tool("list_documents"))["documents"]) == 1


async def test_another_tenants_document_answers_like_one_that_never_was(scene: McpScene) -> None:
    theirs = await put(scene, tenant=scene.rival, text="The rival's secret recipe is vinegar.")
    async with scene.client() as client:
        for tool in ("retrieve_document", "delete_document"):
            answers = [await client.call_tool(tool, {"document_id": one}) for one in (theirs, str(uuid4()))]
            assert answers[0].model_dump_json() == answers[1].model_dump_json()
            assert bad(answers[0]) == ABSENT
        for tool in ("hybrid_search", "search_documents"):
            assert "vinegar" not in str(good(await client.call_tool(tool, {"query": "secret recipe vinegar"})))
        assert good(await client.call_tool("list_documents"))["documents"] == []
    async with scene.client(scene.rival) as client:
        assert good(await client.call_tool("retrieve_document", {"document_id": theirs}))["text"].endswith("vinegar.")


async def test_pages_join_without_gap_and_a_cursor_serves_its_own_tenant_only(scene: McpScene) -> None:
    for number in range(5):
        await put(scene, source=f"{number}.md")
    async with scene.client() as client:
        seen: list[str] = []
        cursor: str | None = None
        cursors: list[str] = []
        while True:
            more = {"cursor": cursor} if cursor else {}
            page = good(await client.call_tool("list_documents", {"limit": 2, **more}))
            seen += [document["source"] for document in page["documents"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
            cursors.append(cursor)
        assert seen == [f"{number}.md" for number in range(5)]
        first = cursors[0]
        flipped = first[:-1] + ("A" if first[-1] != "A" else "B")
        for forged in (flipped, first[1:], "", "AAAA", "%%%", "é", first + "A" * 3000):
            with refused(-32602):
                await client.call_tool("list_documents", {"cursor": forged})
    async with scene.client(scene.rival) as client:
        with refused(-32602):
            await client.call_tool("list_documents", {"cursor": first})


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    *(
        ("hybrid_search", {"query": query})
        for query in ("", " ", "x" * 4001, "x" * 1_000_000, "a\0b", 5, None, ["x"], {"a": 1}, True)
    ),
    *(("hybrid_search", {"query": "x", "limit": limit}) for limit in (0, -1, 51, 10**9, 10**30, 1.5, "10", None, True)),
    *(
        ("hybrid_search", {"query": "x", "bm25_weight": first, "vector_weight": second})
        for first, second in ((-1, 1), (0, 0), (1, -0.5), (1e300, 1), ("1", 1), ([1], 1))
    ),
    ("hybrid_search", {"query": "x", "mode": "HYBRID"}),
    ("hybrid_search", {"query": "x", "'; drop table rag.document; --": 1}),
    ("hybrid_search", {}),
    ("search_documents", {"query": ""}),
    ("retrieve_document", {"document_id": "x"}),
    ("retrieve_document", {"document_id": "x" * 100_000}),
    ("retrieve_document", {"document_id": str(uuid4()), "start": -1}),
    ("retrieve_document", {"document_id": str(uuid4()), "start": 10**15, "end": 5}),
    ("retrieve_document", {"document_id": str(uuid4()), "start": 10**18}),
    ("list_documents", {"limit": 101}),
    ("list_documents", {"cursor": 5}),
    ("put_document", {"source": "a", "title": "t", "text": ""}),
    ("put_document", {"source": "a", "title": "t", "text": " \n"}),
    ("put_document", {"source": "a", "title": "t", "text": "a\0b"}),
    ("put_document", {"source": "a\0", "title": "t", "text": "b"}),
    ("put_document", {"source": "a", "title": "\n", "text": "b"}),
    ("put_document", {"source": "é" * 1024, "title": "t", "text": "b"}),
    ("put_document", {"source": "a", "title": "t", "text": "b", "media_type": "text/html"}),
    ("put_document", {"source": "a", "title": "t", "text": "b", "metadata": {"a": "b\0"}}),
    ("put_document", {"source": "a", "title": "t", "text": "b", "metadata": {"a": 10**40}}),
    ("put_document", {"source": "a", "title": "t", "text": "b", "metadata": []}),
    ("delete_document", {"document_id": 5}),
]


async def test_hostile_arguments_are_refused_shortly_and_never_quoted(scene: McpScene) -> None:
    marker = "zq" * 8
    async with scene.client(era="legacy") as client:
        for tool, arguments in HOSTILE:
            _, text = bad(await client.call_tool(tool, arguments))
            assert 0 < len(text) < 400, (tool, text)
            assert "pydantic" not in text
            assert "drop table" not in text or len(text) < 120
        for name in ("query", "mode", "limit"):
            assert marker not in bad(await client.call_tool("hybrid_search", {"query": "x", name: [marker]}))[1]


async def test_odd_but_legal_queries_are_answered(scene: McpScene) -> None:
    await put(scene)
    async with scene.client() as client:
        for query in ("the of and", "😀", "' or 1=1 --", "\u202e\u200b", "x" * 4000, "%", "\\", "e\u0301"):
            good(await client.call_tool("hybrid_search", {"query": query}))


MALFORMED: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"tools/call"',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":5}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hybrid_search","arguments":[]}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hybrid_search","arguments":{"query":NaN}}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hybrid_search","arguments":'
    b'{"query":"x","bm25_weight":NaN}}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hybrid_search","arguments":'
    b'{"query":"x","vector_weight":1e999}}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hybrid_search","arguments":{"query":"\\ud800"}}}',
    b"[" * 100_000,
    b"\xff\xfe",
]


async def test_malformed_bodies_are_the_clients_fault(scene: McpScene) -> None:
    token = scene.token()
    for body in MALFORMED:
        response = await post(scene, body, token=token)
        assert response.status_code < 500, body[:80]
        assert b'"isError":true' in response.content or b'"error"' in response.content, body[:80]
        assert b"-32603" not in response.content, body[:80]


async def test_a_request_that_is_too_large_is_refused_and_one_without_a_token_is_not_even_read(scene: McpScene) -> None:
    body = orjson.dumps(call("put_document", {"text": "x" * (17 * 2**20)}))
    assert (await post(scene, body)).status_code == 401
    response = await post(scene, body, token=scene.token())
    assert (response.status_code, response.json()["error"]["code"]) == (413, 41300)


async def test_a_foreign_host_or_origin_is_refused(scene: McpScene) -> None:
    token = scene.token()
    assert (await post(scene, call("list_documents", {}), token=token, host="evil.example")).status_code == 421
    assert (
        await post(scene, call("list_documents", {}), token=token, origin="https://evil.example")
    ).status_code == 403
    good_origin = await post(scene, call("list_documents", {}), token=token, origin="http://localhost:3000")
    assert good_origin.status_code == 200


async def test_get_and_delete_are_not_allowed_rather_than_left_hanging(scene: McpScene) -> None:
    async with httpx2.AsyncClient(timeout=BOUND_S) as http:
        for method in ("GET", "DELETE", "PUT"):
            response = await http.request(method, scene.server.url)
            assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_an_unknown_tool_is_a_protocol_error_and_its_name_is_cut(scene: McpScene) -> None:
    for era in ERAS:
        async with scene.client(era=era) as client:
            with refused(-32602) as told:
                await client.call_tool("n" * 200)
            assert len(told.value.message) == len("Unknown tool: ") + 64


async def test_a_revoked_token_ends_in_the_middle_of_a_session(scene: McpScene) -> None:
    token = scene.token()
    token_id = scene.world.verifier(Audience.MCP).verify(token).token_ids[0]
    ids = {"document_id": str(uuid4()), "task_id": str(uuid4())}
    for era in ERAS:
        async with scene.client(token=token, era=era) as client:
            if era == "auto":
                good(await client.call_tool("list_documents"))
                async with scene.world.operator() as operator:
                    await operator.revoke_token(scene.acme.tenant_id, token_id)
            for tool in TOOLS:
                with refused(40100) as told:
                    await client.call_tool(tool.name, arguments_of(tool, ids))
                assert told.value.message == "The token was revoked."


async def test_probes_tell_a_living_process_from_a_ready_one(world: World) -> None:
    async with mcp_scene(world) as scene, httpx2.AsyncClient(timeout=BOUND_S) as http:
        assert (await http.get(f"{scene.server.base}/healthz")).status_code == 200
        assert (await http.get(f"{scene.server.base}/readyz")).json() == {"status": "ready"}
        await scene.server.runtime.database.pool.close()
        assert (await http.get(f"{scene.server.base}/healthz")).status_code == 200
        unready = await http.get(f"{scene.server.base}/readyz")
        assert (unready.status_code, unready.json()["status"]) == (503, "unavailable")


async def test_a_tenant_over_its_rate_is_told_when_to_come_back_and_its_neighbour_is_served(world: World) -> None:
    # a burst of ten seconds' worth: three requests, one of which the library's client spends on listing the tools
    async with mcp_scene(world, request_limit_per_minute=18) as scene:
        async with scene.client() as client:
            for _ in range(2):
                good(await client.call_tool("search_documents", {"query": "x"}))
            with refused(42900) as told:
                await client.call_tool("search_documents", {"query": "x"})
            assert 0 < told.value.data["retryAfterMs"] <= 5000
        async with scene.client(scene.rival) as client:
            good(await client.call_tool("search_documents", {"query": "x"}))


class Forger:
    """Makes tokens that differ from a good one in exactly one thing."""

    def __init__(self, scene: McpScene) -> None:
        self.now = int(time.time())
        self._signer = scene.world.issuer.signing_key
        self.own_key = generate_private_key(public_exponent=65537, key_size=2048)
        self._claims: dict[str, Any] = {
            "iss": scene.world.settings.issuer,
            "aud": "mcp-server",
            "sub": "ada",
            "tenant_id": str(scene.acme.tenant_id),
            "scope": "corpus:read",
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + 60,
            "jti": "forged",
        }

    def signed(self, *, key: Any = None, headers: dict[str, Any] | None = None, **claims: object) -> str:
        """Return an RS256 token with some claims or header fields changed; None leaves one out."""
        body = {name: value for name, value in {**self._claims, **claims}.items() if value is not None}
        kid = {"kid": self._signer.kid, **(headers or {})}
        fields = {name: value for name, value in kid.items() if value is not None}
        return jwt.encode(body, key or self._signer.key, algorithm="RS256", headers=fields)

    def unsigned(self, algorithm: str) -> str:
        """Return a token without a signature."""
        return f"{self._part({'alg': algorithm, 'typ': 'JWT', 'kid': self._signer.kid})}.{self._part(self._claims)}."

    def hmac_with_public_key(self) -> str:
        """Return a token signed by HMAC, its secret the public key as everybody can read it."""
        public = self._signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        head = self._part({"alg": "HS256", "typ": "JWT", "kid": self._signer.kid})
        signed = f"{head}.{self._part(self._claims)}"
        mac = hmac.digest(public, signed.encode(), "sha256")
        return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    def _part(self, value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


FORGERIES: list[tuple[str, Callable[[Forger], str]]] = [
    ("expired", lambda forger: forger.signed(exp=forger.now - 60)),
    ("not yet valid", lambda forger: forger.signed(nbf=forger.now + 600)),
    ("another issuer", lambda forger: forger.signed(iss="https://evil.example")),
    ("the other audience", lambda forger: forger.signed(aud="a2a-server")),
    ("both audiences", lambda forger: forger.signed(aud=["mcp-server", "a2a-server"])),
    ("no tenant", lambda forger: forger.signed(tenant_id=None)),
    ("a tenant with quotes", lambda forger: forger.signed(tenant_id="' or true --")),
    ("an unknown key", lambda forger: forger.signed(headers={"kid": "nobody"})),
    ("no key", lambda forger: forger.signed(headers={"kid": None})),
    ("a key of its own", lambda forger: forger.signed(key=forger.own_key)),
    ("alg none", lambda forger: forger.unsigned("none")),
    ("alg None", lambda forger: forger.unsigned("NoNe")),
    ("HS256 with the public key", lambda forger: forger.hmac_with_public_key()),
]


async def test_forged_and_outdated_tokens_are_refused_alike(scene: McpScene) -> None:
    forger = Forger(scene)
    for name, forge in FORGERIES:
        response = await post(scene, call("list_documents", {}), token=forge(forger))
        assert response.status_code == 401, name
        assert response.json()["error"] == {"code": 40100, "message": "the token is not valid here"}, name


async def test_the_forgers_tools_make_a_valid_token_when_nothing_is_forged(scene: McpScene) -> None:
    assert (await post(scene, call("list_documents", {}), token=Forger(scene).signed())).status_code == 200
