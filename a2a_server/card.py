"""The public agent card (A2A 1.0, section 8): who we are, what we can do, how to get in. Skills come from the registry.

Above: `app`. Below: `workflows.registry`. The card names no tenant and is the same on every replica.
"""

from __future__ import annotations

import hashlib
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path

import orjson
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    AgentProvider,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from a2a_server.protocol.incoming import INPUT_MODES, OUTPUT_MODES
from a2a_server.protocol.outgoing import RESUME_EXTENSION
from rag.settings import Settings
from workflows.registry import WORKFLOWS
from workflows.workflow import Workflow

__all__ = ["CARD_PATH", "RPC_PATH", "agent_card", "card_route"]

CARD_PATH = "/.well-known/agent-card.json"
RPC_PATH = "/a2a/jsonrpc"
MAX_AGE_S = 300
_SCHEME = "bearer"


def agent_card(settings: Settings) -> AgentCard:
    """Return the card of an installation that is reached at `settings.a2a_url`."""
    return AgentCard(
        name="Bulkhead",
        description=(
            "Works on a tenant's own documents as durable tasks: progress is streamed, tasks survive crashes, "
            "answers cite passages that were checked against the stored text."
        ),
        version=version("bulkhead"),
        provider=AgentProvider(organization="Bulkhead", url=settings.a2a_url),
        supported_interfaces=[
            AgentInterface(url=settings.a2a_url + RPC_PATH, protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=AgentCapabilities(
            streaming=True,
            push_notifications=False,
            extended_agent_card=False,
            extensions=[
                AgentExtension(
                    uri=RESUME_EXTENSION,
                    description=(
                        "Events are numbered: metadata and SSE id carry seq. SubscribeToTask with the header "
                        "Last-Event-ID goes on after it, without a snapshot and without repeating an event."
                    ),
                )
            ],
        ),
        default_input_modes=list(INPUT_MODES),
        default_output_modes=list(OUTPUT_MODES),
        skills=[_skill(workflow) for workflow in WORKFLOWS],
        security_schemes={
            _SCHEME: SecurityScheme(
                http_auth_security_scheme=HTTPAuthSecurityScheme(
                    scheme="bearer",
                    bearer_format="JWT",
                    description="RS256, audience a2a-server, scope tasks:run and the scopes of the skill.",
                )
            )
        },
        security_requirements=[SecurityRequirement(schemes={_SCHEME: StringList(list=["tasks:run"])})],
    )


def card_route(card: AgentCard) -> Route:
    """Return the route that serves `card`, with what caches need to keep and to revalidate it (8.6)."""
    body = orjson.dumps(agent_card_to_dict(card))
    headers = {
        "Cache-Control": f"public, max-age={MAX_AGE_S}",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Last-Modified": formatdate(Path(__file__).stat().st_mtime, usegmt=True),
        "Access-Control-Allow-Origin": "*",
    }

    async def serve(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return Route(CARD_PATH, serve, methods=["GET"])


def _skill(workflow: Workflow) -> AgentSkill:
    return AgentSkill(
        id=workflow.name,
        name=workflow.title,
        description=workflow.description,
        tags=list(workflow.tags),
        examples=list(workflow.examples),
        input_modes=list(INPUT_MODES),
        output_modes=list(OUTPUT_MODES),
    )
