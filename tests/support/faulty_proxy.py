"""A TCP proxy of our own between a client and a server of the tests: what networks and dying servers do to HTTP.

It knows of HTTP only that a request comes before its response, so that a fault begins with a request also on a
connection that was kept open.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import anyio
import anyio.abc

__all__ = ["Disturbance", "FaultyProxy", "event_stream", "faulty_proxy"]

TRICKLE = b": still here\n\n"
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)
"""One of the two ends is no longer there, which is what tests are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What happens to one request."""

    answer: bytes | None = None
    """Sent at once, raw, instead of what the server says; the server does not see the request."""
    after: int | None = None
    """So many bytes of the server's answer (or of `answer`) come through; then `then`. None: all of them."""
    then: Literal["hang", "reset", "end", "trickle"] = "end"
    """`hang`: silence. `reset`: the connection breaks. `end`: it is closed in order. `trickle`: comments, for ever."""
    pause_s: float | None = None
    """Each byte of the server's answer comes so long after the one before."""


@dataclass(slots=True, kw_only=True)
class FaultyProxy:
    """The running proxy and its script."""

    base_url: str
    """Where the client goes instead; ends as the server's does."""
    target: tuple[str, int]
    always: Disturbance | None = None
    """For every request, until it is taken away."""
    faults: deque[Disturbance] = field(default_factory=deque[Disturbance])
    """One for each request, before `always`."""
    connections: int = 0
    requests: int = 0
    answered: int = 0
    """Answers of a disturbance's own that have been sent, as far as they go."""
    closed: int = 0
    """Connections that the client has closed."""
    _changed: anyio.Condition = field(default_factory=anyio.Condition)
    closing: anyio.Event = field(default_factory=anyio.Event)

    async def take(self) -> Disturbance | None:
        """Return what happens to the next request."""
        await self.note(requests=1)
        return self.faults.popleft() if self.faults else self.always

    async def note(self, *, requests: int = 0, answered: int = 0, closed: int = 0) -> None:
        """Count what has happened."""
        async with self._changed:
            self.requests += requests
            self.answered += answered
            self.closed += closed
            self._changed.notify_all()

    async def until(self, *, requests: int = 0, answered: int = 0, closed: int = 0) -> None:
        """Return when as much has happened."""
        async with self._changed:
            while self.requests < requests or self.answered < answered or self.closed < closed:
                await self._changed.wait()


def event_stream(body: bytes) -> bytes:
    """Return an HTTP response with this body, which ends where the connection does."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body


@asynccontextmanager
async def faulty_proxy(server_url: str) -> AsyncGenerator[FaultyProxy]:
    """Run a proxy to the server of that URL while the context is open."""
    parts = urlsplit(server_url)
    assert parts.hostname is not None
    assert parts.port is not None
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  # no Django
    proxy = FaultyProxy(base_url=f"http://127.0.0.1:{port}{parts.path}", target=(parts.hostname, parts.port))

    async def serve(client: anyio.abc.SocketStream) -> None:
        proxy.connections += 1
        async with client:
            await _Connection(proxy, client).run()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        try:
            yield proxy
        finally:
            proxy.closing.set()
            group.cancel_scope.cancel()


class _Connection:
    """One connection of a client, and the server's side of it, opened when it is needed."""

    def __init__(self, proxy: FaultyProxy, client: anyio.abc.SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._server: anyio.abc.SocketStream | None = None
        self._disturbance: Disturbance | None = None
        self._answering = True
        """What the client sends next begins a request."""

    async def run(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                with suppress(*_GONE):
                    async for data in self._client:
                        await self._up(data, group)
                await self._proxy.note(closed=1)
                group.cancel_scope.cancel()
        finally:
            if self._server is not None:
                await anyio.aclose_forcefully(self._server)

    async def _up(self, data: bytes, group: anyio.abc.TaskGroup) -> None:
        if self._answering:
            self._answering = False
            self._disturbance = await self._proxy.take()
            if self._disturbance is not None and self._disturbance.answer is not None:
                group.start_soon(self._answer, self._disturbance, self._disturbance.answer)
        if self._disturbance is not None and self._disturbance.answer is not None:
            return
        if self._server is None:
            self._server = await anyio.connect_tcp(*self._proxy.target)
            group.start_soon(self._down, self._server)
        await self._server.send(data)

    async def _answer(self, disturbance: Disturbance, answer: bytes) -> None:
        with suppress(*_GONE):
            await self._send(answer[: disturbance.after], disturbance)
            await self._proxy.note(answered=1)
            await self._stop(disturbance)

    async def _down(self, server: anyio.abc.SocketStream) -> None:
        with suppress(*_GONE):
            await self._bring_down(server)

    async def _bring_down(self, server: anyio.abc.SocketStream) -> None:
        left: int | None = None
        async for data in server:
            if not self._answering:
                self._answering = True
                left = None if self._disturbance is None else self._disturbance.after
            disturbance = self._disturbance
            if disturbance is None or left is None:
                await self._send(data, disturbance)
                continue
            await self._send(data[:left], disturbance)
            left -= min(left, len(data))
            if left == 0:
                await self._stop(disturbance)
                return
        await self._client.send_eof()

    async def _send(self, data: bytes, disturbance: Disturbance | None) -> None:
        if disturbance is None or disturbance.pause_s is None:
            if data:
                await self._client.send(data)
            return
        for number in range(len(data)):
            await self._client.send(data[number : number + 1])
            await self._pass(disturbance.pause_s)

    async def _stop(self, disturbance: Disturbance) -> None:
        match disturbance.then:
            case "end":
                await self._client.send_eof()
            case "reset":
                raw: socket.socket = self._client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await self._client.aclose()
            case "hang":
                await self._proxy.closing.wait()
            case "trickle":
                while True:
                    await self._client.send(TRICKLE)
                    await self._pass(0.01)

    async def _pass(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._proxy.closing.wait()
