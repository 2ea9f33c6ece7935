"""The agent cards over HTTP: what they say, to whom, and that their signatures hold with the keys that we publish."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import jwt
import pytest
from a2a.client import ClientConfig, create_client
from a2a.client.card_resolver import parse_agent_card
from a2a.types import a2a_pb2 as pb
from a2a.utils.signing import InvalidSignaturesError, create_signature_verifier

from a2a_server.app import create_face
from rag.db.listener import Wakeups
from rag.identity.keys import ensure_keys
from rag.identity.outward import ensure_outward_keys, load_outward_key, rotate_outward
from rag.identity.scopes import Audience, Scope
from rag.runtime import open_runtime
from rag.settings import Settings
from rag.tenants.operator import Tenant
from tests.support.agents import Rpc, a2a_server
from tests.support.servers import serving
from tests.support.world import World
from workflows.registry import WORKFLOWS

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
CARD, JWKS = "/.well-known/agent-card.json", "/.well-known/jwks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server and a tenant."""

    world: World
    base: str
    acme: Tenant
    http: httpx.AsyncClient

    async def card(self) -> dict[str, Any]:
        """Return the public card."""
        return (await self.http.get(self.base + CARD)).raise_for_status().json()

    async def extended(self, *scopes: Scope) -> dict[str, Any]:
        """Return the card of a caller with these scopes."""
        token = self.world.token(self.acme, audience=Audience.A2A, scopes=frozenset(scopes))
        return await Rpc(base=self.base, token=token, http=self.http).call("GetExtendedAgentCard", {})

    async def verify(self, card: dict[str, Any]) -> None:
        """Check a card as the SDK's clients do, with the keys behind the `jku` of its signature."""
        jwks = (await self.http.get(self.base + JWKS)).raise_for_status()
        keys = jwt.PyJWKSet.from_dict(jwks.json())

        def key_of(kid: str | None, jku: str | None) -> jwt.PyJWK:
            assert jku == self.base + JWKS
            assert kid is not None
            return keys[kid]

        create_signature_verifier(key_of, ["ES256"])(parse_agent_card(card))


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """One replica."""
    acme = await world.tenant("acme")
    async with a2a_server(world) as base, httpx.AsyncClient(timeout=BOUND_S) as http:
        yield Scene(world=world, base=base, acme=acme, http=http)


async def test_the_card_lists_every_workflow_with_what_it_needs_and_takes(scene: Scene) -> None:
    card = await scene.card()
    assert [skill["id"] for skill in card["skills"]] == [workflow.name for workflow in WORKFLOWS]
    for skill, workflow in zip(card["skills"], WORKFLOWS, strict=True):
        assert all(skill[name] for name in ("name", "description", "tags", "examples", "inputModes", "outputModes"))
        (needed,) = skill["securityRequirements"]
        assert set(needed["schemes"]["bearer"]["list"]) == {"tasks:run", *(scope.value for scope in workflow.scopes)}
    extensions = {extension["uri"]: extension for extension in card["capabilities"]["extensions"]}
    assert set(extensions) == {
        "urn:bulkhead:a2a:resume:v1",
        "https://kagent.dev/extensions/hitl/v1",
        "urn:bulkhead:a2a:idempotency:v1",
        "urn:bulkhead:a2a:parameters:v1",
    }
    parameters = extensions["urn:bulkhead:a2a:parameters:v1"]["params"]
    assert set(parameters) == {workflow.name for workflow in WORKFLOWS if workflow.options}


async def test_the_card_tells_what_there_is(scene: Scene) -> None:
    card = await scene.card()
    capabilities = {key: value for key, value in card["capabilities"].items() if key != "extensions"}
    assert capabilities == {"streaming": True, "pushNotifications": True, "extendedAgentCard": True}
    assert card["securitySchemes"]["bearer"]["httpAuthSecurityScheme"]["scheme"] == "bearer"
    assert card["securityRequirements"] == [{"schemes": {"bearer": {"list": ["tasks:run"]}}}]
    first = card["supportedInterfaces"][0]
    assert first == {"url": f"{scene.base}/a2a/jsonrpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    assert {one["url"].startswith(scene.base) for one in card["supportedInterfaces"]} == {True}


@pytest.mark.parametrize("path", [CARD, JWKS])
async def test_card_and_keys_are_public_and_kept_by_caches(scene: Scene, path: str) -> None:
    first = await scene.http.get(scene.base + path)
    assert first.headers["cache-control"].startswith("public, max-age=")
    assert first.headers["last-modified"].endswith("GMT")
    assert first.headers["access-control-allow-origin"] == "*"
    again = await scene.http.get(scene.base + path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")


async def test_replicas_tag_one_card_alike_though_each_signs_it_anew(scene: Scene) -> None:
    async with a2a_server(scene.world) as other:
        cards = [await scene.http.get(base + CARD) for base in (scene.base, scene.base, other)]
    assert cards[0].headers["etag"] == cards[1].headers["etag"]
    assert cards[0].headers["etag"] != cards[2].headers["etag"], "another address is another card"


async def test_the_keys_hold_nothing_secret_and_verify_no_access_token(scene: Scene) -> None:
    keys = (await scene.http.get(scene.base + JWKS)).json()["keys"]
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    assert {key["kty"] for key in keys} == {"EC"}
    assert all(set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"} for key in keys)
    assert jwt.get_unverified_header(token)["kid"] not in {key["kid"] for key in keys}


async def test_the_sdk_verifies_the_signature_and_a_changed_card_does_not_pass(scene: Scene) -> None:
    card = await scene.card()
    await scene.verify(card)
    for changed in (
        {**card, "name": "Somebody else"},
        {**card, "supportedInterfaces": [{**card["supportedInterfaces"][0], "url": "https://evil.example/"}]},
        {**card, "skills": card["skills"][:-1]},
    ):
        with pytest.raises(InvalidSignaturesError):
            await scene.verify(changed)


async def test_the_sdks_client_reads_and_verifies_card_and_extended_card(scene: Scene) -> None:
    keys = jwt.PyJWKSet.from_dict((await scene.http.get(scene.base + JWKS)).json())
    verify = create_signature_verifier(lambda kid, _: keys[str(kid)], ["ES256"])
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    async with (
        httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=BOUND_S) as http,
        await create_client(scene.base, ClientConfig(httpx_client=http), signature_verifier=verify) as client,
    ):
        extended = await client.get_extended_agent_card(pb.GetExtendedAgentCardRequest(), signature_verifier=verify)
    assert [skill.id for skill in extended.skills] == [workflow.name for workflow in WORKFLOWS]


async def test_the_extended_card_lists_what_this_caller_may_ask_for(scene: Scene) -> None:
    everything = await scene.extended(*Scope)
    assert [skill["id"] for skill in everything["skills"]] == [workflow.name for workflow in WORKFLOWS]
    reader = {Scope.TASKS_RUN, Scope.CORPUS_READ}
    some = await scene.extended(*reader)
    allowed = [workflow.name for workflow in WORKFLOWS if workflow.scopes <= reader]
    assert [skill["id"] for skill in some["skills"]] == allowed
    assert 0 < len(allowed) < len(WORKFLOWS)
    await scene.verify(some)


async def test_grpc_is_in_the_extended_card_alone(world: World) -> None:
    acme = await world.tenant("acme")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = dataclasses.replace(
            world.settings, a2a_public_url=base, a2a_grpc_port=50_051, a2a_grpc_public="grpc.example:443"
        )
        async with (
            open_runtime(settings, audience=Audience.A2A, application="test-a2a", embeds=False) as runtime,
            serving(create_face(runtime, Wakeups(), anyio.Event()).app, listening),
            httpx.AsyncClient(timeout=BOUND_S) as http,
        ):
            scene = Scene(world=world, base=base, acme=acme, http=http)
            public, extended = await scene.card(), await scene.extended(*Scope)
    assert "GRPC" not in {one["protocolBinding"] for one in public["supportedInterfaces"]}
    found = [one["url"] for one in extended["supportedInterfaces"] if one["protocolBinding"] == "GRPC"]
    assert set(found) == {"grpc.example:443"}


async def test_an_external_issuer_is_a_scheme_with_its_discovery(world: World) -> None:
    settings = dataclasses.replace(
        world.settings, external_issuer="https://login.example/realm", jwks_url="https://127.0.0.1:9/keys"
    )
    async with (
        a2a_server(dataclasses.replace(world, settings=settings)) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        card = (await http.get(base + CARD)).json()
    scheme = card["securitySchemes"]["openid"]["openIdConnectSecurityScheme"]
    assert scheme["openIdConnectUrl"] == "https://login.example/realm/.well-known/openid-configuration"
    assert [set(one["schemes"]) for one in card["securityRequirements"]] == [{"bearer"}, {"openid"}]


async def test_a_rotated_key_signs_and_the_one_before_it_still_verifies(world: World, tmp_path: Path) -> None:
    certs = _certs(world.settings, tmp_path)
    acme = await world.tenant("acme")
    world = dataclasses.replace(world, settings=dataclasses.replace(world.settings, certs_dir=certs))
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        async with a2a_server(world) as base:
            scene = Scene(world=world, base=base, acme=acme, http=http)
            old = await scene.card()
        kid = rotate_outward(certs)
        async with a2a_server(world) as base:
            scene = Scene(world=world, base=base, acme=acme, http=http)
            await scene.verify(await scene.card())
            published = [key["kid"] for key in (await http.get(base + JWKS)).json()["keys"]]
    (signature,) = parse_agent_card(old).signatures
    before = jwt.get_unverified_header(f"{signature.protected}..{signature.signature}")["kid"]
    assert published == [kid, before]
    rotate_outward(certs)
    assert len(list(certs.glob("outward-*.pem"))) == 2, "the oldest is gone"


async def test_without_a_key_nothing_is_signed_and_there_are_no_notifications(world: World, tmp_path: Path) -> None:
    certs = _certs(world.settings, tmp_path)
    for path in certs.glob("outward*"):
        path.unlink()
    assert load_outward_key(certs) is None
    acme = await world.tenant("acme")
    world = dataclasses.replace(world, settings=dataclasses.replace(world.settings, certs_dir=certs))
    async with a2a_server(world) as base, httpx.AsyncClient(timeout=BOUND_S) as http:
        scene = Scene(world=world, base=base, acme=acme, http=http)
        card = await scene.card()
        assert not card.get("signatures")
        assert card["capabilities"]["pushNotifications"] is False
        token = world.token(acme, audience=Audience.A2A)
        rpc = Rpc(base=base, token=token, http=http)
        params = {"taskId": "8c3c3b1c-7a2f-4a53-9bd3-6f0f6f0a3c11", "url": "https://hook.example/"}
        assert (await rpc.error("CreateTaskPushNotificationConfig", params))["code"] == -32003


def _certs(settings: Settings, tmp_path: Path) -> Path:
    """Return a folder with the keys of the world and outward keys of its own."""
    certs = tmp_path / "certs"
    ensure_keys(settings.certs_dir)
    certs.mkdir()
    for path in settings.certs_dir.iterdir():
        if not path.name.startswith("outward"):
            (certs / path.name).write_bytes(path.read_bytes())
            (certs / path.name).chmod(0o600)
    ensure_outward_keys(certs)
    return certs
