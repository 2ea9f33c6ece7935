"""Two servers to compare, each a process: `python -m tests.bench.overhead_server raw|echo`.

    raw    the least that answers JSON with JSON: an ASGI function and orjson
    echo   the product's whole path, from the token to the result of a tool, less what it asks of the database: with a
           tool that needs none, and an audit trail that is not written

Settings come from the environment; both run under the same uvicorn settings. Above: the overhead benchmark. Below:
`mcp_server`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal, cast

import anyio
import orjson
import uvicorn
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_server import tools
from mcp_server.app import create_app
from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.audit.log import AuditLog
from rag.audit.values import Entry
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.identity.scopes import Scope as TokenScope
from rag.runtime import open_runtime
from rag.serving import BoundedHttp, settle_memory
from rag.settings import Settings


class EchoArguments(Arguments):
    """What to say, how often."""

    text: Annotated[str, Field(max_length=1000)]
    times: Annotated[int, Field(ge=1, le=10)]


class EchoOutput(Output):
    """It, so often."""

    text: str


async def _echo(call: Call, arguments: EchoArguments) -> EchoOutput:
    del call
    return EchoOutput(text=arguments.text * arguments.times)


ECHO = Tool(
    name="echo",
    title="Echo",
    description="Says it again.",
    scope=TokenScope.CORPUS_READ,
    arguments=EchoArguments,
    output=EchoOutput,
    run=_echo,
    read_only=True,
)


class _Unwritten:
    """Stands for the audit trail where only what surrounds it is measured."""

    async def record(self, principal: Principal, entry: Entry) -> int:
        del principal, entry
        return 0


async def _raw(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    if scope["method"] != "POST":
        answer = b"{}"
    else:
        request = orjson.loads(body)
        arguments = request["params"]["arguments"]
        text = arguments["text"] * arguments["times"]
        result = {"content": [{"type": "text", "text": text}], "structuredContent": {"text": text}}
        answer = orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def _serve(kind: str, settings: Settings) -> None:
    if kind == "raw":
        await _uvicorn(settings, _raw, lifespan="off").serve()
        return
    tools._BY_NAME[ECHO.name] = ECHO  # pyright: ignore[reportPrivateUsage]  # the product has no tool that does nothing
    async with open_runtime(settings, audience=Audience.MCP, application="bench-overhead", embeds=False) as opened:
        runtime = dataclasses.replace(opened, audit=cast("AuditLog", _Unwritten()))
        app = create_app(runtime)
        settle_memory()
        await _uvicorn(settings, app, lifespan="on").serve()


def _uvicorn(settings: Settings, app: ASGIApp, *, lifespan: Literal["on", "off"]) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.mcp_host,
            port=settings.mcp_port,
            loop="none",
            http="httptools" if lifespan == "off" else BoundedHttp,
            ws="none",
            lifespan=lifespan,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
        )
    )


if __name__ == "__main__":
    anyio.run(_serve, sys.argv[1], Settings.from_process(), backend_options={"use_uvloop": True})
