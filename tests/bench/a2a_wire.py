"""Just enough HTTP/1.1, JSON-RPC and server-sent events for load on an A2A server, at a fraction of a library's cost.

Above: `a2a_client`, `a2a_readers`, the benchmarks. Below: anyio, httptools. A connection carries one request at a time;
what cannot be read raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
import anyio.abc
import httptools
import orjson

from tests.bench.a2a_work import Work

__all__ = ["BROKEN", "Stream", "ask", "encoded", "opened", "sending", "task_of"]

PATH = "/a2a/jsonrpc"
BROKEN = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError)
"""What a connection raises that its other end has left."""
_SHOWN = 400
_EVENT_END = re.compile(rb"\r?\n\r?\n")


class _Answer:
    """Takes one response out of the bytes of a connection; httptools calls the `on_` methods."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.begun = self.done = False

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def sending(work: Work, *, wait: bool = True, skill: str = "bench", **fields: Any) -> dict[str, Any]:
    """Return the params of SendMessage for a piece of work; `fields` are the message's."""
    message = {
        "messageId": str(uuid4()),
        "role": "ROLE_USER",
        "parts": [{"text": work.text()}],
        "metadata": {"skillId": skill},
        **fields,
    }
    return {"message": message, "configuration": {"returnImmediately": not wait}}


def encoded(token: str, method: str, params: Mapping[str, Any], *, last_event_id: int | None = None) -> bytes:
    """Return one request."""
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    resumed = "" if last_event_id is None else f"last-event-id: {last_event_id}\r\n"
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\na2a-version: 1.0\r\n"
        f"content-type: application/json\r\n{resumed}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def opened(host: str, port: int) -> AsyncGenerator[anyio.abc.SocketStream]:
    """Open a connection, cut when the block ends."""
    connection = await anyio.connect_tcp(host, port)
    try:
        yield connection
    finally:
        await anyio.aclose_forcefully(connection)


async def ask(connection: anyio.abc.SocketStream, request: bytes) -> dict[str, Any]:
    """Send one request and return the result in its answer.

    Raises:
        ValueError: It is an error.
    """
    answer = _Answer()
    await connection.send(request)
    while not answer.done:
        answer.parser.feed_data(await connection.receive(262_144))
    body = bytes(answer.body)
    if answer.parser.get_status_code() != 200:
        raise ValueError(f"HTTP {answer.parser.get_status_code()}: {body[:_SHOWN]!r}")
    result = orjson.loads(body)
    if "error" in result:
        raise ValueError(repr(result["error"])[:_SHOWN])
    return result["result"]


def task_of(result: Mapping[str, Any]) -> str:
    """Return the id of the task that SendMessage answered with."""
    return str(result["task"]["id"])


@dataclass(slots=True, kw_only=True)
class Stream:
    """The server-sent events of one answer, as bytes."""

    connection: anyio.abc.SocketStream
    _answer: _Answer = field(default_factory=_Answer)

    async def begin(self, request: bytes) -> None:
        """Send the request and return once its answer has begun.

        Raises:
            ValueError: It is no stream.
        """
        await self.connection.send(request)
        while not self._answer.begun:
            self._answer.parser.feed_data(await self.connection.receive())
        if self._answer.parser.get_status_code() != 200:
            while not self._answer.done:
                self._answer.parser.feed_data(await self.connection.receive())
            raise ValueError(f"HTTP {self._answer.parser.get_status_code()}: {bytes(self._answer.body[:_SHOWN])!r}")

    async def next(self) -> list[bytes]:
        """Return the events that have come since; none: the stream has ended."""
        answer = self._answer
        while True:
            *whole, rest = _EVENT_END.split(bytes(answer.body))
            answer.body = bytearray(rest)
            events = [event for event in whole if b"data:" in event]
            if events or answer.done:
                return events
            answer.parser.feed_data(await self.connection.receive())
