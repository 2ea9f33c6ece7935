"""What a peer may hold of a server that it does not finish talking to: not its memory, and no connection for ever."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_server import body as body_module
from mcp_server.body import ReadBody
from rag.serving import BoundedHttp
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
ANSWER_BYTES = 16 * 2**20
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


class Hurried(BoundedHttp):
    """The same, for a test that has no minute."""

    head_s = 0.3
    silence_s = 0.3
    body_s = 2.0
    fetch_s = 0.3


async def answer(request: Request) -> Response:
    """Read what comes, answer with as much as is asked for."""
    size = len(await request.body())
    return Response(bytes(ANSWER_BYTES) if request.url.path == "/much" else b"%d" % size)


async def refusal(_: Request) -> Response:
    """Answer before the body has come."""
    return Response(status_code=401)


@asynccontextmanager
async def served(app: object) -> AsyncGenerator[int]:
    """Serve on a port of this machine until the block ends."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        async with serving(app, listening, http=Hurried):
            yield int(listening.getsockname()[1])


@pytest.fixture(name="port")
async def port_fixture() -> AsyncGenerator[int]:
    """A server that reads and answers."""
    routes = [Route("/refused", refusal, methods=["POST"]), Route("/{_:path}", answer, methods=["POST"])]
    async with served(Starlette(routes=routes)) as port:
        yield port


async def until_closed(stream: anyio.abc.ByteStream) -> bytes:
    """Return all that comes before the other side ends the connection."""
    received = b""
    with anyio.fail_after(BOUND_S):
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


async def flooded(port: int, beginning: bytes, piece: bytes) -> tuple[int, bytes]:
    """Send `beginning` and then `piece` again and again, until the server has enough; return how much went out."""
    sent = 0
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        with anyio.fail_after(BOUND_S):
            try:
                await stream.send(beginning)
                while sent < 2**26:
                    await stream.send(piece)
                    sent += len(piece)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
        return sent, await until_closed(stream)


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (HEAD, b"x: " + b"y" * 1000 + b"\r\n"),
        (HEAD + b"x: ", b"y" * 1000),
        (b"POST /", b"y" * 1000),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ", b"y" * 1000),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"y" * 1000),
    ],
    ids=["headers", "one header", "the address", "trailers", "one trailer", "a chunk's extension"],
)
async def test_what_is_no_body_has_a_bound(port: int, beginning: bytes, piece: bytes) -> None:
    sent, received = await flooded(port, beginning, piece)
    assert sent < 2**24
    assert b" 200 " not in received.partition(b"\r\n")[0]


async def test_a_long_head_within_the_bound_and_trailers_are_read(port: int) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        long = HEAD + b"x: " + b"y" * 60_000 + b"\r\n"
        for byte in (long[:30_000], long[30_000:], b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n"):
            await stream.send(byte)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(BOUND_S):
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
        await stream.send(HEAD + b"connection: close\r\ncontent-length: 200000\r\n\r\n" + bytes(200_000))
        assert (await until_closed(stream)).endswith(b"200000")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        HEAD,
        HEAD + b"content-length: 0\r\n\r\nPOST",
        b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n12",
    ],
    ids=["nothing", "half a head", "half a second head", "half of a body that was refused"],
)
async def test_who_does_not_go_on_is_cut_off(port: int, beginning: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        if beginning:
            await stream.send(beginning)
        if b"refused" in beginning:
            assert b" 401 " in await stream.receive()
            await stream.send(b"3")
        await until_closed(stream)


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_an_answer_that_nobody_fetches_is_given_up(port: int, connection: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        much = b"POST /much HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: " + connection + b"\r\n\r\n"
        await stream.send(much)
        await anyio.sleep(4 * Hurried.fetch_s)
        assert len(await until_closed(stream)) < ANSWER_BYTES


def reader(app: ASGIApp) -> ReadBody:
    """Return the layer before `app`, for tenants that a header names."""
    return ReadBody(app, max_bytes=2**20, tenant_of=lambda scope: dict(scope["headers"]).get(b"tenant"))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with nothing."""
    await Response()(scope, receive, send)


async def test_a_body_that_stops_coming_is_answered_and_its_room_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MAX_HELD_BYTES_OF_TENANT", 1000)
    async with served(Starlette(routes=[Route("/", reader(echo))])) as port:
        for _ in range(3):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(HEAD + b"content-length: 1000\r\n\r\n" + b"x" * 999)
                assert (await until_closed(stream)).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("size", "answered"), [(12, True), (40, False)])
async def test_a_body_may_come_slowly_but_not_for_ever(port: int, size: int, answered: bool) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size)
        try:
            for _ in range(size):
                await stream.send(b"x")
                await anyio.sleep(0.1)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        assert (b" 200 " in await until_closed(stream)) == answered


async def test_bodies_that_are_held_have_a_bound_for_each_tenant_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MAX_HELD_BYTES_OF_TENANT", 300)
    monkeypatch.setattr(body_module, "MAX_HELD_BYTES", 500)
    held, free = anyio.Semaphore(0), anyio.Event()

    async def hold(scope: Scope, receive: Receive, send: Send) -> None:
        held.release()
        await free.wait()
        await echo(scope, receive, send)

    layer = reader(hold)

    async def post(tenant: bytes) -> int:
        statuses: list[int] = []
        body = b'{"x": "' + b"y" * 190 + b'"}'

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await layer({"type": "http", "method": "POST", "headers": [(b"tenant", tenant)]}, receive, send)
        return statuses[0]

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post, b"acme")
            await held.acquire()
            assert await post(b"acme") == 503
            tasks.start_soon(post, b"rival")
            await held.acquire()
            assert await post(b"third") == 503
            free.set()
        assert await post(b"acme") == 200
        assert await post(b"third") == 200
