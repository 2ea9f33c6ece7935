"""OAuth as an MCP client does it: found by our challenge, step by step up; and what a browser may do and read.

The client is the MCP SDK's own, with its own OAuth provider, unchanged; the authorization server is tests.support's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp.shared.exceptions import MCPError
from pydantic import AnyUrl

from rag.identity.scopes import Audience, Scope
from rag.tenants.operator import Tenant
from tests.support.mcp_scene import good
from tests.support.oauth_server import AuthorizationServer, authorization_server
from tests.support.servers import McpServer, mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
REDIRECT = "http://127.0.0.1:1/callback"
PAGE = "https://assistant.bank.test"
READ_PROMPT = {"name": "grounded_answer", "arguments": {"question": "why?"}}


@dataclass(slots=True, kw_only=True)
class Person:
    """The client's storage, and the user's browser: it follows the redirect with a session that is signed in."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None
    visits: list[str] = field(default_factory=list[str])
    _answer: AuthorizationCodeResult | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return what was stored."""
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Store."""
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return what was stored."""
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Store."""
        self.client = client_info

    async def browse(self, url: str) -> None:
        """Open the authorization page, and be sent back."""
        self.visits.append(url)
        async with httpx2.AsyncClient(timeout=BOUND_S) as http:
            page = await http.get(url)
        assert page.status_code == 302, page.text
        answer = {name: values[0] for name, values in parse_qs(urlsplit(page.headers["location"]).query).items()}
        self._answer = AuthorizationCodeResult(code=answer["code"], state=answer["state"], iss=answer["iss"])

    async def come_back(self) -> AuthorizationCodeResult:
        """Return what the redirect brought."""
        assert self._answer is not None
        return self._answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server that trusts an issuer, and a tenant."""

    world: World
    issuer: AuthorizationServer
    server: McpServer
    acme: Tenant

    @asynccontextmanager
    async def client(self, person: Person, *, era: Any = "auto") -> AsyncGenerator[Client]:
        """Open the SDK's client, which knows nothing but our URL."""
        provider = OAuthClientProvider(
            self.server.url,
            OAuthClientMetadata(redirect_uris=[AnyUrl(REDIRECT)], client_name="test"),
            person,
            redirect_handler=person.browse,
            callback_handler=person.come_back,
        )
        with anyio.fail_after(BOUND_S):
            async with (
                httpx2.AsyncClient(auth=provider, timeout=BOUND_S) as http,
                Client(streamable_http_client(self.server.url, http_client=http), mode=era) as client,
            ):
                yield client

    async def send(self, method: str, params: dict[str, Any], token: str | None, **headers: str) -> httpx2.Response:
        """Post one raw request."""
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        accept = {"accept": "application/json, text/event-stream"}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with httpx2.AsyncClient(timeout=BOUND_S) as http:
            return await http.post(self.server.url, json=body, headers={**accept, **headers})

    async def preflight(self, url: str, method: str = "POST", *, origin: str = PAGE, asks: str = "") -> httpx2.Response:
        """Ask as a browser does before it lets a page send."""
        headers = {"origin": origin, "access-control-request-method": method}
        if asks:
            headers["access-control-request-headers"] = asks
        async with httpx2.AsyncClient(timeout=BOUND_S) as http:
            return await http.options(url, headers=headers)


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    acme = await world.tenant("acme")
    async with authorization_server(acme.tenant_id) as issuer:
        settings = dataclasses.replace(
            world.settings, external_issuer=issuer.issuer, jwks_url=issuer.jwks_url, allowed_origins=PAGE
        )
        async with mcp_server(dataclasses.replace(world, settings=settings)) as server:
            yield Scene(world=world, issuer=issuer, server=server, acme=acme)


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_client_finds_the_issuer_by_our_challenge_and_steps_up_when_it_must(scene: Scene, era: str) -> None:
    person = Person()
    async with scene.client(person, era=era) as client:
        assert good(await client.call_tool("list_documents"))["documents"] == []
        first = scene.issuer.authorizations[0]
        assert (first["scope"], first["resource"]) == ("corpus:read", scene.server.url)
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "hybrid_search" in names
        assert "delete_document" not in names
        assert len(person.visits) == 1
        # 403 with the scopes to ask for: the client asks its user, and sends the same call again
        arguments = {"source": "a.md", "title": "A", "text": "# A", "media_type": "text/markdown"}
        document_id = good(await client.call_tool("put_document", arguments))["document_id"]
        assert [visit["scope"] for visit in scene.issuer.authorizations] == ["corpus:read", "corpus:read corpus:write"]
        assert good(await client.call_tool("delete_document", {"document_id": document_id}))["deleted"]
        assert len(person.visits) == 2
        assert person.tokens is not None
        assert person.tokens.scope == "corpus:read corpus:write"


async def test_a_user_who_does_not_consent_stays_where_they_are(scene: Scene) -> None:
    scene.issuer.consents = frozenset({"corpus:read"})
    person = Person()
    async with scene.client(person) as client:
        with pytest.raises(MCPError) as refused:
            await client.call_tool("delete_document", {"document_id": str(uuid4())})
        assert (refused.value.code, refused.value.message) == (40300, "this needs the scope corpus:write")
        assert len(person.visits) == 2
        assert good(await client.call_tool("list_documents"))["documents"] == []


async def test_the_metadata_names_the_issuer_the_resource_and_every_scope(scene: Scene) -> None:
    async with httpx2.AsyncClient() as http:
        for path in ("/mcp", ""):
            answer = await http.get(f"{scene.server.base}/.well-known/oauth-protected-resource{path}")
            assert answer.json() == {
                "resource": scene.server.url,
                "resource_name": "Bulkhead",
                "authorization_servers": [scene.issuer.issuer],
                "scopes_supported": ["corpus:read", "corpus:write", "tasks:run", "usage:read", "admin"],
                "bearer_methods_supported": ["header"],
            }
            assert answer.headers["access-control-allow-origin"] == "*"


async def test_the_two_challenges_say_where_to_go_and_what_to_ask_for(scene: Scene) -> None:
    metadata = f'resource_metadata="{scene.server.base}/.well-known/oauth-protected-resource/mcp"'
    for token, blame in (
        (None, ""),
        (scene.issuer.token(aud="https://other.test"), 'error="invalid_token", '),
        (scene.issuer.token("mallory", aud=scene.server.url), 'error="invalid_token", '),
    ):
        refused = await scene.send("tools/list", {}, token)
        challenge = refused.headers["www-authenticate"]
        assert refused.status_code == 401
        assert challenge.startswith(f"Bearer {blame}")
        assert challenge.endswith(f'scope="corpus:read", {metadata}')
        assert ("error=" in challenge) == bool(blame)
    reader = scene.issuer.token(aud=scene.server.url)
    refused = await scene.send("tools/call", {"name": "delete_document", "arguments": {}}, reader)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (
        403,
        'Bearer error="insufficient_scope", error_description="this needs the scope corpus:write", '
        f'scope="corpus:read corpus:write", {metadata}',
    )


def needs(scene: Scene) -> list[tuple[str, dict[str, Any], str]]:
    """Return a request of every kind, and the scope without which it is a step up."""
    document = f"bulkhead://documents/{uuid4()}"
    return [
        ("tools/call", {"name": "hybrid_search", "arguments": {}}, "corpus:read"),
        ("tools/call", {"name": "put_document", "arguments": {}}, "corpus:write"),
        ("resources/read", {"uri": document}, "corpus:read"),
        ("resources/read", {"uri": f"{document}/chunks/0"}, "corpus:read"),
        ("resources/read", {"uri": f"bulkhead://tasks/{uuid4()}/artifacts/answer"}, "tasks:run"),
        ("prompts/get", READ_PROMPT, "corpus:read"),
    ]


async def test_every_kind_of_request_is_stepped_up_to_its_own_scope(scene: Scene) -> None:
    def token(scopes: set[str]) -> str:
        return scene.issuer.token(aud=scene.server.url, scope=" ".join(scopes))

    every = {scope.value for scope in Scope}
    for method, params, scope in needs(scene):
        refused = await scene.send(method, params, token({"usage:read"}))
        asked = " ".join(sorted({"usage:read", scope}))
        assert refused.status_code == 403, (method, params)
        assert f'scope="{asked}"' in refused.headers["www-authenticate"]
        for scopes in (every, {scope}):
            assert (await scene.send(method, params, token(scopes))).status_code != 403, (method, params)
        lacking = await scene.send(method, params, token(every - {scope}))
        assert lacking.status_code == 403, (method, params)


async def test_lists_show_what_the_scopes_allow_and_nothing_else(scene: Scene) -> None:
    lists = {"tools/list": "tools", "resources/templates/list": "resourceTemplates", "prompts/list": "prompts"}
    whole = {method: await shown(scene, method, key, set(Scope)) for method, key in lists.items()}
    assert all(whole.values())
    for method, key in lists.items():
        assert await shown(scene, method, key, {Scope.ADMIN}) == set(), method
        parts = [await shown(scene, method, key, {scope}) for scope in Scope]
        assert set().union(*parts) == whole[method], method
    read = await shown(scene, "resources/templates/list", "resourceTemplates", {Scope.CORPUS_READ})
    run = await shown(scene, "resources/templates/list", "resourceTemplates", {Scope.TASKS_RUN})
    assert read.isdisjoint(run)


async def shown(scene: Scene, method: str, key: str, scopes: set[Scope]) -> set[str]:
    """Return the names in a list as a caller with `scopes` sees it."""
    token = scene.issuer.token(aud=scene.server.url, scope=" ".join(scope.value for scope in scopes))
    answer = await scene.send(method, {}, token)
    assert answer.status_code == 200
    return {entry["name"] for entry in answer.json()["result"][key]}


async def test_our_own_tokens_go_on_beside_the_external_issuer(scene: Scene) -> None:
    own = scene.world.token(scene.acme, audience=Audience.MCP)
    assert (await scene.send("tools/list", {}, own)).status_code == 200


async def test_a_browser_may_call_from_an_allowed_origin_and_read_the_challenge(scene: Scene) -> None:
    asks = "authorization, content-type, mcp-protocol-version, mcp-method, mcp-name, mcp-param-region, x-evil"
    answer = await scene.preflight(scene.server.url, asks=asks)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"] == (
        "authorization, content-type, mcp-method, mcp-name, mcp-param-region, mcp-protocol-version"
    )
    assert "access-control-allow-credentials" not in answer.headers
    token = scene.issuer.token(aud=scene.server.url)
    for one, status in ((None, 401), (token, 200)):
        answer = await scene.send("tools/list", {}, one, origin=PAGE)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        assert answer.headers["access-control-expose-headers"] == "WWW-Authenticate, Retry-After"
        assert "origin" in answer.headers["vary"].lower()
    delete = {"name": "delete_document", "arguments": {}}
    answer = await scene.send("tools/call", delete, token, origin=PAGE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (403, PAGE)
    for path in ("/mcp", ""):
        url = f"{scene.server.base}/.well-known/oauth-protected-resource{path}"
        answer = await scene.preflight(url, "GET", origin="https://any.test", asks="mcp-protocol-version")
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "*")
        assert answer.headers["access-control-allow-headers"] == "mcp-protocol-version"


async def test_a_page_of_any_other_origin_gets_nothing(scene: Scene) -> None:
    token = scene.issuer.token(aud=scene.server.url)
    for origin in ("https://evil.test", "null", f"{PAGE}.evil.test", PAGE.replace("https", "http"), f"{PAGE}:444"):
        answer = await scene.preflight(scene.server.url, origin=origin, asks="authorization")
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
        for one, status in ((None, 401), (token, 403)):
            answer = await scene.send("tools/list", {}, one, origin=origin)
            assert answer.status_code == status, origin
            assert not [name for name in answer.headers if name.startswith("access-control")]
    for method in ("DELETE", "GET"):
        assert (await scene.preflight(scene.server.url, method)).status_code == 403
    # a client that is no browser sees no difference
    answer = await scene.send("tools/list", {}, token)
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]
    async with httpx2.AsyncClient() as http:
        plain = await http.options(scene.server.url)
        assert (plain.status_code, plain.headers["allow"]) == (405, "POST")
