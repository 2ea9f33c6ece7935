"""`python -m mcp_server` as deployed: over TLS, its spans exported, its logs without content, its end in order."""

from __future__ import annotations

import dataclasses
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import httpx
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rag.clients.mcp import mcp_client
from rag.errors import Unavailable
from rag.identity.scopes import Audience
from rag.identity.tls import ensure_development_tls
from rag.runtime import http_client
from rag.settings import Settings
from rag.telemetry import carried_from
from tests.support.servers import serving
from tests.support.world import World

pytestmark = pytest.mark.anyio
START_BOUND_S = 30.0
STOP_BOUND_S = 8.0
SECRET_WORDS = "The vinegar recipe of the seventh house"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@asynccontextmanager
async def process(settings: Settings, log: Path) -> AsyncGenerator[anyio.abc.Process]:
    """Run the server until the block ends; killed if it still runs then."""
    with log.open("wb") as stderr:
        running = await anyio.open_process(
            [sys.executable, "-m", "mcp_server"], env=settings.to_env(), stderr=stderr, cwd=Path(__file__).parents[2]
        )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        with anyio.CancelScope(shield=True):
            await running.aclose()


@asynccontextmanager
async def collector(spans: list[Span]) -> AsyncGenerator[str]:
    """Receive OTLP over HTTP, as a collector would."""

    async def receive(request: Request) -> Response:
        export = ExportTraceServiceRequest.FromString(await request.body())
        spans.extend(span for one in export.resource_spans for scope in one.scope_spans for span in scope.spans)
        return Response(status_code=200)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/v1/traces", receive, methods=["POST"])])
        async with serving(app, listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def ready(settings: Settings, running: anyio.abc.Process) -> None:
    """Wait until the server answers."""
    url = settings.mcp_url.removesuffix("/mcp") + "/readyz"
    async with http_client(settings) as http:
        with anyio.fail_after(START_BOUND_S):
            while True:
                assert running.returncode is None
                try:
                    if (await http.get(url)).status_code == 200:
                        return
                except httpx.TransportError:
                    await anyio.sleep(0.05)


async def test_the_process_serves_over_tls_traces_logs_nothing_secret_and_ends_in_order(
    world: World, tmp_path: Path
) -> None:
    tls = ensure_development_tls(tmp_path / "tls")
    spans: list[Span] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.MCP)
    log = tmp_path / "stderr"
    async with collector(spans) as endpoint:
        settings = dataclasses.replace(
            world.settings,
            mcp_port=port,
            tls_certificate=tls.certificate,
            tls_key=tls.key,
            ca_certificate=tls.ca,
            otlp_endpoint=endpoint,
        )
        assert settings.mcp_url == f"https://127.0.0.1:{port}/mcp"
        async with process(settings, log) as running:
            await ready(settings, running)
            async with mcp_client(settings.mcp_url, token, ca=tls.ca) as client:
                with carried_from({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}):
                    await client.call("put_document", {"source": "r", "title": "R", "text": SECRET_WORDS})
                    await client.call("hybrid_search", {"query": SECRET_WORDS})
            async with mcp_client(settings.mcp_url, token) as distrustful:
                with pytest.raises(Unavailable):
                    await distrustful.call("list_documents", {})
            running.send_signal(signal.SIGTERM)
            with anyio.fail_after(STOP_BOUND_S):
                assert await running.wait() == 0
    by_name = {span.name: span for span in spans}
    called = by_name["tools/call hybrid_search"]
    assert (called.trace_id.hex(), called.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert called.kind == Span.SPAN_KIND_SERVER
    attributes = {attribute.key: attribute.value.string_value for attribute in called.attributes}
    assert attributes["bulkhead.tenant"] == str(tenant.tenant_id)
    assert (by_name["sql search"].trace_id, by_name["sql search"].parent_span_id) == (called.trace_id, called.span_id)
    logged = log.read_text()
    for secret in ("vinegar", token, token.split(".")[2], "bulkhead_app:"):
        assert secret not in logged
        assert not any(secret in str(span) for span in spans)
    assert {type(orjson.loads(line)) for line in logged.splitlines()} <= {dict}


async def test_a_process_that_cannot_serve_says_why_and_what_to_set(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(world.settings, seal_keys_file=tmp_path / "absent.json")
    async with process(settings, tmp_path / "stderr") as running:
        with anyio.fail_after(START_BOUND_S):
            assert await running.wait() == 1
    assert (tmp_path / "stderr").read_text().startswith("misconfigured: the seal keys file absent.json cannot be read")
