"""Another party's MCP server, made with the official library: real HTTP, in the test's loop or in its own process.

Above: tests of external servers and of the workflow `hybrid`. It offers a search in a small gazette, a second tool that
nobody should call, and one that needs more than a question. What it was sent is kept; what it does wrong is scripted.

    python -m tests.support.external_server PORT
"""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import uvicorn
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.cli.supervisor import free_port
from tests.support.servers import serving

__all__ = ["GAZETTE", "ExternalScript", "external_process", "external_server"]

GAZETTE = (
    "The gazette of 3 May reports that the Harbour Act of 2031 forbids night landings of seaplanes. "
    "Fines under the Harbour Act reach nine hundred crowns."
)
READY_BOUND_S = 20.0
POLL_S = 0.05
ROOT = Path(__file__).parent.parent.parent


@dataclass(slots=True, kw_only=True)
class ExternalScript:
    """What the server does, and what it saw."""

    url: str = ""
    text: str = GAZETTE
    """What search_gazette answers."""
    api_key: str | None = None
    """When set, a request without `authorization: Bearer` and this is answered 401."""
    answers: deque[Response] = field(default_factory=deque[Response])
    """Sent instead of the library's answer, one for each POST, taken from the left."""
    hangs: bool = False
    """Every POST waits until the server ends."""
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    bodies: list[bytes] = field(default_factory=list[bytes])
    """Of every POST, in order."""
    called: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Tool and query."""
    asked: anyio.Event = field(default_factory=anyio.Event)
    """Set by the first POST."""
    closing: anyio.Event = field(default_factory=anyio.Event)


def _library_app(script: ExternalScript) -> ASGIApp:
    server = MCPServer("gazette")

    @server.tool(description="Search the gazette.")
    def search_gazette(query: str) -> str:  # pyright: ignore[reportUnusedFunction]  # registered
        script.called.append(("search_gazette", query))
        return script.text

    @server.tool(description="Not for you.")
    def erase_gazette(query: str) -> str:  # pyright: ignore[reportUnusedFunction]  # registered
        script.called.append(("erase_gazette", query))
        return "erased"

    @server.tool(description="Search in one year.")
    def search_year(query: str, year: int) -> str:  # pyright: ignore[reportUnusedFunction]  # registered
        script.called.append(("search_year", query))
        return f"{query} in {year}"

    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(stateless_http=True, transport_security=security)


class _Scripted:
    def __init__(self, app: ASGIApp, script: ExternalScript) -> None:
        self._app = app
        self._script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        script = self._script
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        script.headers.append(headers)
        script.asked.set()
        if script.api_key is not None and headers.get("authorization") != f"Bearer {script.api_key}":
            await Response("who are you? hidden words of the server", status_code=401)(scope, receive, send)
            return
        if script.hangs:
            await script.closing.wait()
        if script.answers:
            await script.answers.popleft()(scope, receive, send)
            return
        body = b""

        async def recorded() -> dict[str, object]:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                script.bodies.append(body)
            return dict(message)

        await self._app(scope, recorded, send)


@asynccontextmanager
async def external_server(**script: object) -> AsyncGenerator[ExternalScript]:
    """Run the server in this loop on a free port of the loopback interface."""
    made = dataclasses.replace(ExternalScript(), **script)  # pyright: ignore[reportArgumentType]  # its fields
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        made.url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        async with serving(_Scripted(_library_app(made), made), listening):
            try:
                yield made
            finally:
                made.closing.set()


@asynccontextmanager
async def external_process() -> AsyncGenerator[str]:
    """Run the server as a process of its own; yields its URL."""
    port = free_port("127.0.0.1")
    process = await anyio.open_process(
        [sys.executable, "-m", "tests.support.external_server", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        async with httpx.AsyncClient() as http:
            with anyio.fail_after(READY_BOUND_S):
                while True:
                    assert process.returncode is None
                    try:
                        await http.get(f"http://127.0.0.1:{port}/")
                        break
                    except httpx.TransportError:
                        await anyio.sleep(POLL_S)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()


if __name__ == "__main__":
    uvicorn.run(_library_app(ExternalScript()), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
