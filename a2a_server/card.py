"""The agent's cards (A2A 1.0, section 8), signed: who we are, what we can do (the registry says), how to get in.

Above: `app`, `handler`. Below: `workflows.registry`. The public card names no tenant and is the same on every replica,
but for its signature. The extended card is one caller's: what it may ask for, and what only some clients can take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import orjson
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentProvider,
    AgentSkill,
    HTTPAuthSecurityScheme,
    OpenIdConnectSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.signing import ProtectedHeader, create_agent_card_signer
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from a2a_server.interfaces import interfaces
from a2a_server.protocol.idempotency import EXTENSION as IDEMPOTENCY_EXTENSION
from a2a_server.protocol.incoming import INPUT_MODES, OUTPUT_MODES
from a2a_server.protocol.outgoing import RESUME_EXTENSION
from rag.identity.outward import ALGORITHM, OutwardKey
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.settings import Settings
from workflows.forms import HITL_EXTENSION
from workflows.registry import WORKFLOWS
from workflows.workflow import Workflow

__all__ = ["CARD_PATH", "JWKS_PATH", "PARAMETERS_EXTENSION", "Cards", "card_route", "jwks_route"]

CARD_PATH = "/.well-known/agent-card.json"
JWKS_PATH = "/.well-known/jwks.json"
PARAMETERS_EXTENSION = "urn:bulkhead:a2a:parameters:v1"
"""Its `params` hold, by skill, the JSON Schema of what a message may say in a data part besides its text."""
MAX_AGE_S = 300
_BEARER = "bearer"
_OPENID = "openid"
_EMPTY = (None, "", [], {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Makes the cards of one installation."""

    settings: Settings
    key: OutwardKey | None
    """Signs them. Without one they are unsigned, and there are no push notifications, which must be signed."""
    workflows: Sequence[Workflow] = WORKFLOWS

    def public(self) -> AgentCard:
        """Return the card that anybody may read."""
        return self._signed(self._card(self.workflows, extended=False))

    def extended(self, principal: Principal) -> AgentCard:
        """Return the card of this caller: the skills that its token has the scopes for, and every interface."""
        allowed = [one for one in self.workflows if one.scopes <= principal.scopes]
        return self._signed(self._card(allowed, extended=True))

    def _card(self, workflows: Sequence[Workflow], *, extended: bool) -> AgentCard:
        schemes = _schemes(self.settings)
        return AgentCard(
            name="Bulkhead",
            description=(
                "Works on a tenant's own documents as durable tasks: progress is streamed, tasks survive crashes, "
                "answers cite passages that were checked against the stored text."
            ),
            version=version("bulkhead"),
            provider=AgentProvider(organization="Bulkhead", url=self.settings.a2a_url),
            supported_interfaces=interfaces(self.settings, extended=extended),
            capabilities=AgentCapabilities(
                streaming=True,
                push_notifications=self.key is not None,
                extended_agent_card=True,
                extensions=_extensions(workflows),
            ),
            default_input_modes=list(INPUT_MODES),
            default_output_modes=list(OUTPUT_MODES),
            skills=[_skill(workflow, schemes) for workflow in workflows],
            security_schemes=schemes,
            security_requirements=_requirements(schemes, [Scope.TASKS_RUN]),
        )

    def _signed(self, card: AgentCard) -> AgentCard:
        if self.key is None:
            return card
        public = ECAlgorithm.to_jwk(self.key.key, as_dict=True)
        header: ProtectedHeader = {
            "kid": self.key.kid,
            "alg": ALGORITHM,
            "jku": self.settings.a2a_url + JWKS_PATH,
            "typ": "JOSE",
        }
        return create_agent_card_signer(PyJWK(public, ALGORITHM), header)(card)


def card_route(card: AgentCard) -> Route:
    """Return the route that serves `card`, with what caches need to keep and to revalidate it (8.6)."""
    body = orjson.dumps(agent_card_to_dict(card))
    # the file that says most of it; a signature that is made anew says nothing new
    return _cached(CARD_PATH, body, tag=_unsigned(card), modified_s=Path(__file__).stat().st_mtime)


def jwks_route(key: OutwardKey) -> Route:
    """Return the route that publishes the keys which verify our cards and notifications (RFC 7517)."""
    return _cached(JWKS_PATH, key.jwks, tag=key.jwks, modified_s=key.published_at)


def _cached(path: str, body: bytes, *, tag: bytes, modified_s: float) -> Route:
    headers = {
        "Cache-Control": f"public, max-age={MAX_AGE_S}",
        "ETag": f'W/"{hashlib.sha256(tag).hexdigest()[:32]}"',
        "Last-Modified": formatdate(modified_s, usegmt=True),
        "Access-Control-Allow-Origin": "*",
    }

    async def serve(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"].removeprefix("W/") in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return Route(path, serve, methods=["GET"])


def _unsigned(card: AgentCard) -> bytes:
    """Return what the card says, and under which keys: an ECDSA signature differs from one replica to the next."""
    copy = AgentCard()
    copy.CopyFrom(card)
    copy.ClearField("signatures")
    keys = "".join(signature.protected for signature in card.signatures)
    return orjson.dumps(agent_card_to_dict(copy), option=orjson.OPT_SORT_KEYS) + keys.encode()


def _extensions(workflows: Sequence[Workflow]) -> list[AgentExtension]:
    parameters = AgentExtension(
        uri=PARAMETERS_EXTENSION,
        description="The JSON Schema, by skill, of what a data part of the message may say besides its text.",
    )
    schemas = {workflow.name: _without_empty(dict(workflow.options)) for workflow in workflows}
    parameters.params.update({name: schema for name, schema in schemas.items() if schema})
    return [
        AgentExtension(
            uri=RESUME_EXTENSION,
            description=(
                "Events are numbered: metadata and SSE id carry seq. SubscribeToTask with the header "
                "Last-Event-ID goes on after it, without a snapshot and without repeating an event."
            ),
        ),
        AgentExtension(
            uri=HITL_EXTENSION,
            description="A task that asks says so in a form, and takes the answer in one: ask_user and tool_approval.",
        ),
        AgentExtension(
            uri=IDEMPOTENCY_EXTENSION,
            description=(
                "A message sent again under the same key, in Idempotency-Key or in its metadata, makes no second task."
            ),
        ),
        parameters,
    ]


def _schemes(settings: Settings) -> dict[str, SecurityScheme]:
    schemes = {
        _BEARER: SecurityScheme(
            http_auth_security_scheme=HTTPAuthSecurityScheme(
                scheme="bearer",
                bearer_format="JWT",
                description="RS256, audience a2a-server, scope tasks:run and the scopes of the skill.",
            )
        )
    }
    if settings.external_issuer is not None:
        issuer = settings.external_issuer.rstrip("/")
        schemes[_OPENID] = SecurityScheme(
            open_id_connect_security_scheme=OpenIdConnectSecurityScheme(
                open_id_connect_url=f"{issuer}/.well-known/openid-configuration",
                description=f"Ask for the audience {settings.external_a2a_audience}; send the access token as bearer.",
            )
        )
    return schemes


def _requirements(schemes: dict[str, SecurityScheme], scopes: Sequence[Scope]) -> list[SecurityRequirement]:
    """Return the schemes as alternatives: any one of them opens the door."""
    named = StringList(list=sorted(scope.value for scope in scopes))
    return [SecurityRequirement(schemes={scheme: named}) for scheme in schemes]


def _skill(workflow: Workflow, schemes: dict[str, SecurityScheme]) -> AgentSkill:
    return AgentSkill(
        id=workflow.name,
        name=workflow.title,
        description=workflow.description,
        tags=list(workflow.tags),
        examples=list(workflow.examples),
        input_modes=list(INPUT_MODES),
        output_modes=list(OUTPUT_MODES),
        security_requirements=_requirements(schemes, [Scope.TASKS_RUN, *workflow.scopes]),
    )


def _without_empty(value: Any) -> Any:
    """Return a schema without what is null or empty: one verifier of signatures leaves it out, another does not."""
    if isinstance(value, dict):
        kept = {key: _without_empty(one) for key, one in cast("dict[str, Any]", value).items()}
        return {key: one for key, one in kept.items() if one not in _EMPTY}
    if isinstance(value, list):
        return [one for one in map(_without_empty, cast("list[Any]", value)) if one not in _EMPTY]
    return value
