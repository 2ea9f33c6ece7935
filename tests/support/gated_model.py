"""A chat server in the shape of the OpenAI API that says its next piece when the test lets it. It holds no model.

Beside `openai_server`, whose answers come at once: here a test decides how far an answer has come when it breaks.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support.servers import serving

__all__ = ["GatedAnswer", "GatedModel", "gated_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedAnswer:
    """One request's answer."""

    gate: anyio.Semaphore
    left: anyio.Event
    """Set when the client has gone or has everything."""

    def allow(self, pieces: int) -> None:
        """Let so many more pieces out."""
        for _ in range(pieces):
            self.gate.release()


@dataclass(slots=True, kw_only=True)
class GatedModel:
    """The running server."""

    base_url: str
    pieces: tuple[str, ...]
    answers: list[GatedAnswer] = field(default_factory=list[GatedAnswer])
    _arrived: anyio.Condition = field(default_factory=anyio.Condition)

    async def answer(self, number: int) -> GatedAnswer:
        """Return the answer to the request of that number, from 0, once it has come."""
        async with self._arrived:
            while len(self.answers) <= number:
                await self._arrived.wait()
        return self.answers[number]

    async def arrive(self) -> GatedAnswer:
        """Record a request."""
        answer = GatedAnswer(gate=anyio.Semaphore(0), left=anyio.Event())
        async with self._arrived:
            self.answers.append(answer)
            self._arrived.notify_all()
        return answer


@asynccontextmanager
async def gated_model(*pieces: str) -> AsyncGenerator[GatedModel]:
    """Serve answers made of `pieces` until the block ends."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        model = GatedModel(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", pieces=pieces)

        async def chat(request: Request) -> Response:
            await request.body()
            return StreamingResponse(_stream(model, await model.arrive()), media_type="text/event-stream")

        app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
        async with serving(app, listening):
            try:
                yield model
            finally:
                for answer in model.answers:
                    answer.allow(len(pieces))


async def _stream(model: GatedModel, answer: GatedAnswer) -> AsyncGenerator[bytes]:
    try:
        for piece in model.pieces:
            await answer.gate.acquire()
            yield _chunk({"content": piece}, None)
        yield _chunk({}, "stop")
        yield b"data: [DONE]\n\n"
    finally:
        answer.left.set()


def _chunk(delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'choices': choices})}\n\n".encode()
