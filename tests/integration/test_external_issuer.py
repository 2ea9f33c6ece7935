"""An external issuer over real HTTP: rotation, floods, outages, hostile key sets, and the servers that live with it.

The clock is set by hand where time matters; nothing here waits for anything but an event.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest
from starlette.responses import RedirectResponse, Response, StreamingResponse

from rag.errors import Unauthenticated, Unavailable
from rag.identity.external import ExternalIssuer
from rag.identity.jwks import MAX_KEY_SET_BYTES, fetch_jwks
from rag.identity.keys import ensure_keys, load_public_keys, load_signing_key
from rag.identity.remote_keys import COOLDOWN_S, RemoteKeys, remote_keys
from rag.identity.scopes import Audience, Scope
from rag.identity.tokens import TokenIssuer, TokenVerifier
from rag.identity.verified import REMEMBERED_S, VerifiedTokens
from tests.support.agents import a2a_server
from tests.support.oauth_server import AuthorizationServer, authorization_server, public_entry
from tests.support.servers import mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
KEEP_S = 3600.0
OURS = "https://bulkhead.test"
RESOURCE = "https://mcp.bank.test/mcp"


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A verifier that trusts a server, and the hands of its clock."""

    issuer: AuthorizationServer
    keys: RemoteKeys
    verified: VerifiedTokens
    clock: Hands
    own: TokenIssuer

    def token(self, kid: str = "first", **changes: Any) -> str:
        """Return a token for this door."""
        return self.issuer.token(kid, aud=RESOURCE, **changes)

    async def next_refresh(self) -> None:
        """Let the background task fetch now, as it would by itself some minutes later."""
        self.clock.now += COOLDOWN_S
        await self.keys.look_again()

    async def refuses(self, token: str) -> bool:
        """Tell whether the token is answered 401."""
        with pytest.raises(Unauthenticated):
            await self.verified.verify(token)
        return True


@asynccontextmanager
async def scene_of(
    issuer: AuthorizationServer, certs: Path, *, refresh_s: float = 600.0, bound_s: float = 2.0
) -> AsyncGenerator[Scene]:
    """Trust `issuer`."""
    clock = Hands()
    ensure_keys(certs)
    with anyio.fail_after(BOUND_S):
        async with httpx.AsyncClient() as client:
            fetch = partial(fetch_jwks, client, issuer.jwks_url, bound_s=bound_s)
            async with remote_keys(fetch, keep_s=KEEP_S, refresh_s=refresh_s, clock=clock) as keys:
                verifier = TokenVerifier(
                    keys=load_public_keys(certs),
                    issuer=OURS,
                    audience=Audience.MCP,
                    external=ExternalIssuer(issuer=issuer.issuer, audience=RESOURCE, keys=keys),
                    clock=clock,
                )
                own = TokenIssuer(signing_key=load_signing_key(certs), issuer=OURS, clock=clock)
                verified = VerifiedTokens(verifier, clock=clock)
                yield Scene(issuer=issuer, keys=keys, verified=verified, clock=clock, own=own)


@pytest.fixture(name="scene")
async def scene_fixture(tmp_path: Path) -> AsyncGenerator[Scene]:
    """A server that publishes the key `first`, and a verifier that has fetched it."""
    async with authorization_server(uuid4()) as issuer, scene_of(issuer, tmp_path) as scene:
        yield scene


async def test_a_new_key_is_good_with_the_first_token_that_it_signs(scene: Scene) -> None:
    assert (await scene.verified.verify(scene.token())).subject == "grace"
    scene.issuer.published = ["first", "second"]
    scene.clock.now += COOLDOWN_S
    subjects: list[str] = []

    async def one() -> None:
        subjects.append((await scene.verified.verify(scene.token("second"))).subject)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(one)
    assert subjects == ["grace"] * 50
    assert scene.issuer.key_requests == 2, "one at the start, and one for all fifty"
    assert await scene.verified.verify(scene.token())


async def test_a_removed_key_is_forgotten_with_everything_that_it_verified(scene: Scene) -> None:
    scene.issuer.published = ["first", "second"]
    await scene.next_refresh()
    token, other = scene.token(), scene.token("second")
    first = await scene.verified.verify(token)
    assert await scene.verified.verify(token) is first
    scene.issuer.published = ["second"]
    await scene.next_refresh()
    assert COOLDOWN_S < REMEMBERED_S, "the token would still be remembered"
    assert await scene.refuses(token)
    assert await scene.verified.verify(other)
    scene.issuer.published = []
    await scene.next_refresh()
    assert await scene.refuses(other), "an issuer may take back all its keys"


async def test_another_key_under_the_same_id_ends_the_first_one(scene: Scene) -> None:
    token = scene.token()
    await scene.verified.verify(token)
    entry = public_entry("second", kid="first")
    scene.issuer.answer = Response(json.dumps({"keys": [entry]}), media_type="application/json")
    await scene.next_refresh()
    assert await scene.refuses(token)
    assert await scene.verified.verify(scene.token("second", header={"kid": "first"}))


async def test_the_keys_are_refreshed_without_anybody_asking(tmp_path: Path) -> None:
    async with authorization_server(uuid4()) as issuer, scene_of(issuer, tmp_path, refresh_s=0.01) as scene:
        token = scene.token()
        await scene.verified.verify(token)
        issuer.published = ["second"]
        for _ in range(2):  # the second one begins after the first was taken in
            await issuer.asked.wait()
        assert not scene.keys.knows("first")
        assert await scene.refuses(token)


async def test_a_flood_of_invented_key_ids_costs_the_issuer_nothing(scene: Scene) -> None:
    known = scene.token()
    await scene.verified.verify(known)
    refused = 0

    async def flood(number: int) -> None:
        nonlocal refused
        for again in range(10):
            assert await scene.refuses(scene.token("mallory", header={"kid": f"{number}-{again}"}))
            refused += 1

    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(flood, number)
        assert await scene.verified.verify(known)
        scene.clock.now += COOLDOWN_S
    assert refused == 600
    # the start's, then one for each of the two moments at which the last one was long enough ago
    assert scene.issuer.key_requests == 3


async def test_what_claims_another_issuer_asks_ours_for_nothing(scene: Scene) -> None:
    scene.clock.now += COOLDOWN_S
    for changes in ({"iss": OURS}, {"iss": "https://elsewhere.test"}, {"iss": scene.issuer.issuer + "/"}):
        assert await scene.refuses(scene.token("mallory", header={"kid": "new"}, **changes))
    assert await scene.refuses("x.y.z")
    assert scene.issuer.key_requests == 1


async def test_an_outage_is_survived_for_as_long_as_was_said_and_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rag")
    async with authorization_server(uuid4(), up=False) as issuer, anyio.create_task_group() as tasks:
        ready, stop, gone = anyio.Event(), anyio.Event(), anyio.Event()

        async def serve() -> None:
            async with issuer.up():
                ready.set()
                await stop.wait()
            gone.set()

        tasks.start_soon(serve)
        await ready.wait()
        async with scene_of(issuer, tmp_path) as scene:
            token = scene.token(exp=int(time.time() + 3 * KEEP_S))
            await scene.verified.verify(token)
            stop.set()
            await gone.wait()
            await scene.next_refresh()
            assert await scene.verified.verify(token), "known keys go on"
            assert await scene.refuses(scene.token("second")), "unknown ones are refused"
            scene.clock.now += KEEP_S - 2 * COOLDOWN_S
            await scene.next_refresh()
            assert await scene.verified.verify(token)
            await scene.next_refresh()
            for _ in range(2):
                with pytest.raises(Unavailable, match="issuer cannot be reached"):
                    await scene.verified.verify(token)
            own = scene.own.issue(tenant_id=uuid4(), subject="a", audience=Audience.MCP, scopes=[], lifetime_s=60)
            assert await scene.verified.verify(own), "ours do not depend on theirs"
            async with issuer.up():
                scene.clock.now += COOLDOWN_S
                assert await scene.verified.verify(token), "back, with the first token that asks"
    said = [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records]
    assert said == [
        ("INFO", "the external issuer publishes 1 keys"),
        ("WARNING", "the external issuer's keys cannot be refreshed, the known ones go on for now"),
        ("ERROR", "the external issuer's keys are too old, its tokens are refused from now on"),
        ("INFO", "the external issuer publishes 1 keys"),
    ]


def body(document: object) -> Response:
    return Response(json.dumps(document), media_type="application/json")


def padded() -> Response:
    async def pieces() -> AsyncGenerator[bytes]:
        yield json.dumps(SECOND).encode()
        for _ in range(1 + MAX_KEY_SET_BYTES // 2**16):
            yield b" " * 2**16

    return StreamingResponse(pieces(), media_type="application/json")


def dripping() -> Response:
    async def pieces() -> AsyncGenerator[bytes]:
        while True:
            yield b" "
            await anyio.sleep(0.01)

    return StreamingResponse(pieces(), media_type="application/json")


SECOND = {"keys": [public_entry("second")]}
HOSTILE: dict[str, tuple[Callable[[], Response], str]] = {
    "an error page": (lambda: Response("<html>", status_code=200, media_type="text/html"), "not JSON"),
    "not found": (lambda: Response(json.dumps(SECOND), status_code=404), "HTTP 404"),
    "an error": (lambda: Response(json.dumps(SECOND), status_code=503), "HTTP 503"),
    "created": (lambda: Response(json.dumps(SECOND), status_code=201), "HTTP 201"),
    "a redirect": (lambda: RedirectResponse("/moved"), "HTTP 307"),
    "too large": (padded, "larger than 256 KiB"),
    "compressed": (
        lambda: Response(gzip.compress(json.dumps(SECOND).encode()), headers={"content-encoding": "gzip"}),
        "compressed",
    ),
    "a secret": (lambda: body({"keys": [public_entry("second"), {"kty": "oct", "k": "A", "kid": "s"}]}), "a secret"),
    "a private key": (lambda: body({"keys": [{**public_entry("second"), "d": "AAAA"}]}), "a secret"),
    "no set": (lambda: body({"keys": None}), "not a JSON Web Key Set"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_changes_nothing(scene: Scene, name: str) -> None:
    answer, reason = HOSTILE[name]
    known, new = scene.token(), scene.token("second")
    scene.issuer.answer = answer()
    async with httpx.AsyncClient() as client:
        with pytest.raises(Unavailable, match=reason):
            await fetch_jwks(client, scene.issuer.jwks_url)
    scene.issuer.answer = answer()
    await scene.next_refresh()
    assert scene.issuer.key_requests == 3
    assert await scene.verified.verify(known)
    assert await scene.refuses(new)
    scene.issuer.answer = body(SECOND)
    await scene.next_refresh()
    assert await scene.verified.verify(new)
    assert await scene.refuses(known)


@pytest.mark.parametrize("answer", [None, dripping()])
async def test_an_issuer_that_never_ends_its_answer_holds_up_nobody_with_a_known_key(
    tmp_path: Path, answer: Response | None
) -> None:
    async with authorization_server(uuid4()) as issuer, scene_of(issuer, tmp_path, bound_s=0.3) as scene:
        known = scene.token()
        issuer.hang, issuer.answer = answer is None, answer
        scene.clock.now += COOLDOWN_S
        asked, waited = issuer.asked, anyio.Event()

        async def newcomer() -> None:
            assert await scene.refuses(scene.token("second"))
            waited.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(newcomer)
            await asked.wait()
            assert await scene.verified.verify(known)
            assert not waited.is_set()


async def test_a_start_during_an_outage_says_so_in_one_line_and_serves_our_own_tokens(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rag.identity")
    acme = await world.tenant("acme")
    async with authorization_server(acme.tenant_id, up=False) as issuer:
        trusting = trusting_world(world, issuer)
        async with mcp_server(trusting) as server, httpx.AsyncClient() as http:
            assert [record.levelname for record in caplog.records] == ["ERROR"]
            assert "no keys of the external issuer, its tokens are refused until there are" in caplog.text
            ping: dict[str, Any] = {"json": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}}
            accept = {"accept": "application/json, text/event-stream"}
            own = {**accept, "authorization": f"Bearer {world.token(acme, audience=Audience.MCP)}"}
            assert (await http.post(server.url, headers=own, **ping)).status_code == 200
            theirs = {**accept, "authorization": f"Bearer {issuer.token(aud=server.url)}"}
            refused = await http.post(server.url, headers=theirs, **ping)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
            assert refused.json()["error"]["code"] == 50300
            assert "www-authenticate" not in refused.headers, "the token may well be good"


def trusting_world(world: World, issuer: AuthorizationServer, **more: Any) -> World:
    """Return the world whose servers trust `issuer`."""
    settings = dataclasses.replace(world.settings, external_issuer=issuer.issuer, jwks_url=issuer.jwks_url, **more)
    settings.check()
    return dataclasses.replace(world, settings=settings)


async def test_each_server_takes_tokens_for_itself_and_revocation_ends_them(world: World) -> None:
    acme = await world.tenant("acme")
    async with authorization_server(acme.tenant_id) as issuer:
        trusting = trusting_world(world, issuer)
        async with mcp_server(trusting) as mcp, a2a_server(trusting) as a2a, httpx.AsyncClient() as http:

            async def status(token: str, url: str = mcp.url) -> int:
                method = "ListTasks" if "jsonrpc" in url else "tools/call"
                params: dict[str, Any] = {} if "jsonrpc" in url else {"name": "list_documents", "arguments": {}}
                answer = await http.post(
                    url,
                    json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
                    headers={
                        "accept": "application/json, text/event-stream",
                        "a2a-version": "1.0",
                        "authorization": f"Bearer {token}",
                    },
                )
                return answer.status_code if "40100" not in answer.text else 401

            for_mcp = issuer.token(aud=mcp.url, jti="lost")
            for_a2a = issuer.token(aud=a2a, scope=Scope.TASKS_RUN.value)
            rpc = f"{a2a}/a2a/jsonrpc"
            assert [await status(for_mcp), await status(for_mcp, rpc)] == [200, 401]
            assert [await status(for_a2a, rpc), await status(for_a2a)] == [200, 401]
            async with world.operator() as operator:
                await operator.revoke_token(acme.tenant_id, "lost")
            assert await status(for_mcp) == 401
            assert await status(issuer.token(aud=mcp.url)) == 200
            async with world.operator() as operator:
                await operator.revoke_user(acme.tenant_id, "grace")
            # an issuer whose clock runs ahead of ours by some seconds dates a token from before later than that
            assert await status(issuer.token(aud=mcp.url, iat=int(time.time()) + 3)) == 401
