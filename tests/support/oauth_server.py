"""A small OAuth 2.1 authorization server of our own on the loopback interface, for tests of those who trust one.

Above: tests of the external issuer and of the MCP client's flow. It is real on the wire: metadata (RFC 8414), dynamic
registration (RFC 7591), authorization codes with PKCE and `iss` (RFC 7636, RFC 9207), the resource parameter
(RFC 8707), JWT access tokens (RFC 9068), a key set. There is one user, who is always signed in and consents to the
scopes that the test says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import anyio
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.servers import serving

__all__ = ["AuthorizationServer", "authorization_server", "private_key", "public_entry"]


@functools.cache
def private_key(name: str) -> RSAPrivateKey:
    """Return an RSA key, the same for the same name in one run: making one takes a tenth of a second."""
    del name
    return generate_private_key(public_exponent=65537, key_size=2048)


def public_entry(name: str, **changes: object) -> dict[str, Any]:
    """Return the key of that name as a key set shows it; its id is its name."""
    entry: dict[str, Any] = RSAAlgorithm.to_jwk(private_key(name).public_key(), as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, "kid": name, "use": "sig", "alg": "RS256", **changes}


@dataclass(slots=True, kw_only=True)
class AuthorizationServer:
    """Its script and its record."""

    issuer: str
    tenant_id: UUID
    published: list[str] = field(default_factory=lambda: ["first"])
    """The ids of the keys in its set; the last one signs what the token endpoint gives out."""
    answer: Response | None = None
    """What the key set's URL answers instead."""
    hang: bool = False
    """The key set's URL answers nothing."""
    consents: frozenset[str] = frozenset({"corpus:read", "corpus:write"})
    """What the user grants of what a client asks for."""
    key_requests: int = 0
    """How often the key set was asked for."""
    asked: anyio.Event = field(default_factory=anyio.Event)
    """Set, and made new, by every request for the key set."""
    authorizations: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """The parameters of each visit to the authorization endpoint."""
    _clients: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _codes: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    @property
    def jwks_url(self) -> str:
        """Where its keys are."""
        return f"{self.issuer}/keys"

    def token(self, kid: str = "first", *, header: dict[str, Any] | None = None, **changes: object) -> str:
        """Return an access token for `aud` that the key `kid` signed, published or not; `...` takes a claim out."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "sub": "grace",
            "aud": "nobody",
            "client_id": "test",
            "iat": now,
            "exp": now + 600,
            "jti": secrets.token_urlsafe(8),
            "tenant_id": str(self.tenant_id),
            "scope": "corpus:read",
            **changes,
        }
        kept = {name: value for name, value in claims.items() if value is not ...}
        headers = {"kid": kid, "typ": "at+jwt", **(header or {})}
        return jwt.encode(kept, private_key(kid), algorithm="RS256", headers=headers)

    @asynccontextmanager
    async def up(self) -> AsyncGenerator[None]:
        """Serve until the block ends; then nothing listens there."""
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", int(self.issuer.rsplit(":", 1)[1])))
            async with serving(self._application(), listening):
                yield

    def _application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/keys", self._keys),
                Route("/moved", self._moved),
                Route("/.well-known/oauth-authorization-server", self._metadata),
                Route("/register", self._register, methods=["POST"]),
                Route("/authorize", self._authorize),
                Route("/token", self._give_token, methods=["POST"]),
            ]
        )

    async def _keys(self, request: Request) -> Response:
        self.key_requests += 1
        asked, self.asked = self.asked, anyio.Event()
        asked.set()
        if self.hang:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return self.answer or await self._set(request)

    async def _set(self, _: Request) -> Response:
        return JSONResponse({"keys": [public_entry(kid) for kid in self.published]})

    async def _moved(self, _: Request) -> Response:
        return JSONResponse({"keys": [public_entry("second")]})

    async def _metadata(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "registration_endpoint": f"{self.issuer}/register",
                "jwks_uri": self.jwks_url,
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _register(self, request: Request) -> Response:
        asked: dict[str, Any] = await request.json()
        client_id = secrets.token_urlsafe(8)
        self._clients[client_id] = asked
        return JSONResponse({**asked, "client_id": client_id, "token_endpoint_auth_method": "none"}, status_code=201)

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.authorizations.append(asked)
        client = self._clients.get(asked.get("client_id", ""))
        if client is None or asked.get("redirect_uri") not in client["redirect_uris"]:
            return JSONResponse({"error": "invalid_client"}, status_code=400)
        if asked.get("code_challenge_method") != "S256" or "resource" not in asked:
            return JSONResponse({"error": "invalid_request"}, status_code=400)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": self.issuer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(answer)}", status_code=302)

    async def _give_token(self, request: Request) -> Response:
        async with request.form() as form:
            sent = {name: str(value) for name, value in form.items()}
        asked = self._codes.pop(sent.get("code", ""), None)
        digest = hashlib.sha256(sent.get("code_verifier", "").encode()).digest()
        if (
            asked is None
            or base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]
            or any(sent.get(name) != asked[name] for name in ("client_id", "redirect_uri", "resource"))
        ):
            return JSONResponse({"error": "invalid_grant"}, status_code=400)
        scope = " ".join(sorted(self.consents & set(asked.get("scope", "").split())))
        token = self.token(self.published[-1], aud=asked["resource"], scope=scope, client_id=asked["client_id"])
        return JSONResponse(
            {"access_token": token, "token_type": "Bearer", "expires_in": 600, "scope": scope},
            headers={"cache-control": "no-store"},
        )


@asynccontextmanager
async def authorization_server(tenant_id: UUID, *, up: bool = True) -> AsyncGenerator[AuthorizationServer]:
    """Yield a server on a port of its own, which serves until the block ends unless it is to be brought `up` later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = AuthorizationServer(issuer=f"http://127.0.0.1:{free.getsockname()[1]}", tenant_id=tenant_id)
    if not up:
        yield server
        return
    async with server.up():
        yield server
