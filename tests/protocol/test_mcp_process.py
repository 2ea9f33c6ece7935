"""`python -m mcp_server` as deployed: TLS, spans and metrics exported, logs without content, an end in order."""

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
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rag.clients.mcp import McpClient, mcp_client
from rag.errors import RateLimited, Unavailable
from rag.identity.scopes import Audience
from rag.identity.tls import ensure_development_tls
from rag.runtime import http_client
from rag.settings import Settings
from rag.telemetry import carried_from
from tests.support.otlp_receiver import otlp_receiver
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


async def spend_all(client: McpClient) -> None:
    """Ask until the limit is met."""
    for _ in range(30):
        await client.call("list_documents", {})


async def test_the_process_serves_over_tls_traces_logs_nothing_secret_and_ends_in_order(
    world: World, tmp_path: Path
) -> None:
    tls = ensure_development_tls(tmp_path / "tls")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.MCP)
    log = tmp_path / "stderr"
    async with otlp_receiver() as receiver:
        settings = dataclasses.replace(
            world.settings,
            mcp_port=port,
            tls_certificate=tls.certificate,
            tls_key=tls.key,
            ca_certificate=tls.ca,
            otlp_endpoint=receiver.endpoint,
            request_limit_per_minute=60,
        )
        assert settings.mcp_url == f"https://127.0.0.1:{port}/mcp"
        async with process(settings, log) as running:
            await ready(settings, running)
            async with mcp_client(settings.mcp_url, token, ca=tls.ca) as client:
                with carried_from({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}):
                    await client.call("put_document", {"source": "r", "title": "R", "text": SECRET_WORDS})
                    await client.call("hybrid_search", {"query": SECRET_WORDS})
            limited = world.token(await world.tenant("limited"), audience=Audience.MCP)
            async with mcp_client(settings.mcp_url, limited, ca=tls.ca) as client:
                with pytest.raises(RateLimited):
                    await spend_all(client)
            async with mcp_client(settings.mcp_url, token) as distrustful:
                with pytest.raises(Unavailable):
                    await distrustful.call("list_documents", {})
            running.send_signal(signal.SIGTERM)
            with anyio.fail_after(STOP_BOUND_S):
                assert await running.wait() == 0
    assert receiver.metrics["bulkhead.limits.refusals"] >= 1
    assert receiver.metrics["bulkhead.limits.degraded"] == 0
    by_name = {span.name: span for span in receiver.spans}
    called = by_name["tools/call hybrid_search"]
    assert (called.trace_id, called.parent_id) == (TRACE_ID, PARENT_ID)
    assert called.kind == Span.SPAN_KIND_SERVER
    assert called.attributes["bulkhead.tenant"] == str(tenant.tenant_id)
    assert (by_name["sql search"].trace_id, by_name["sql search"].parent_id) == (called.trace_id, called.span_id)
    logged = log.read_text()
    for secret in ("vinegar", token, token.split(".")[2], "bulkhead_app:"):
        assert secret not in logged
        assert not any(secret in str(span) for span in receiver.spans)
    assert {type(orjson.loads(line)) for line in logged.splitlines()} <= {dict}


async def test_a_process_that_cannot_serve_says_why_and_what_to_set(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(world.settings, seal_keys_file=tmp_path / "absent.json")
    async with process(settings, tmp_path / "stderr") as running:
        with anyio.fail_after(START_BOUND_S):
            assert await running.wait() == 1
    assert (tmp_path / "stderr").read_text().startswith("misconfigured: the seal keys file absent.json cannot be read")
