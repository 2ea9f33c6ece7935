"""A small server of our own in the shape of the OpenAI API, for tests of clients. It is not vLLM and holds no model.

It speaks real HTTP on a port of the loopback interface: `/v1/chat/completions` (streamed or not), `/v1/embeddings`,
`/tokenize` in vLLM's shape, and `/v1/rerank` in the two shapes that reranking servers have; there it scores by the
words that query and text share.
What it says is set by the test; what it was asked is kept for the test to see; faults are scripted, one per request.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

__all__ = ["Fault", "OpenAiServer", "serve_openai", "word_overlap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request. Set one of them."""

    status: int | None = None
    """Answer with this HTTP status."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of that answer."""
    hang: bool = False
    """Answer nothing until the client goes away or the server ends."""
    cut_after: int | None = None
    """Chat only: close the stream after so many pieces, without an end."""
    stall_after: int | None = None
    """Chat only: fall silent after so many pieces."""
    raw: bytes | None = None
    """Answer 200 with this body."""


@dataclass(slots=True, kw_only=True)
class OpenAiServer:
    """The running server's script and its record."""

    base_url: str = ""
    """Ends in /v1."""
    pieces: Sequence[str] = ("Hello", " world.")
    """The text of the next chat answers, as it is streamed."""
    reply: Callable[[dict[str, Any]], Sequence[str]] | None = None
    """Makes the pieces from the request's body instead."""
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    """What a chat request is said to have cost, instead of its length."""
    cached_tokens: int | None = None
    """How many of them are said to have been in the prefix cache; None: nothing is said of it."""
    usage: Any = None
    """Said instead of the count, whatever it is: what a server says that cannot count or lies."""
    usage_in_each: bool = False
    """Tell the count so far with every piece as well, as vLLM does when it is asked to."""
    pages: dict[str, str] = field(default_factory=dict[str, str])
    """What GET of a path answers, as it is asked: what a test wants the server to say of itself. All others: 404."""
    dimension: int = 8
    embed: Callable[[list[str]], Awaitable[list[list[float]]]] | None = None
    """Makes the vectors, by a real model that the test brings, instead of `vector`."""
    api_key: str | None = None
    """When set, a request without it is answered 401."""
    faults: deque[Fault] = field(default_factory=deque[Fault])
    """Taken from the left, one for each request; none left: the request is served."""
    tokenize_faults: deque[Fault] = field(default_factory=deque[Fault])
    """The same for /tokenize."""
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The bodies received, in order; those of /tokenize apart."""
    tokenized: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Their headers."""
    abandoned: anyio.Event = field(default_factory=anyio.Event)
    """Set when a client went away from a stream that had not ended."""
    closing: anyio.Event = field(default_factory=anyio.Event)

    def vector(self, text: str) -> list[float]:
        """Return the vector that this server gives `text`: numbers out of a hash, without any meaning."""
        stream = hashlib.shake_256(text.encode("utf-8", "replace")).digest(self.dimension)
        return [byte / 128 - 1 + 1e-3 for byte in stream]


@asynccontextmanager
async def serve_openai() -> AsyncGenerator[OpenAiServer]:
    """Run the server on a free port of 127.0.0.1 while the context is open."""
    script = OpenAiServer()
    routes = [
        Route("/v1/chat/completions", _handler(script, _chat), methods=["POST"]),
        Route("/v1/embeddings", _handler(script, _embeddings), methods=["POST"]),
        Route("/v1/rerank", _handler(script, _rerank), methods=["POST"]),
        Route("/tokenize", _handler(script, _tokenize, counting=True), methods=["POST"]),
        Route("/{path:path}", _page(script), methods=["GET"]),
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # asyncio sets it for sockets that name their protocol, which this one does not: each piece would wait 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        script.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="error", lifespan="off", timeout_graceful_shutdown=1, loop="none"
        )
        server = _Server(config)
        async with anyio.create_task_group() as group:
            await group.start(server.run_in_task, listener)
            try:
                yield script
            finally:
                script.closing.set()
                server.should_exit = True


class _Server(uvicorn.Server):
    """Runs by `_serve`, because `serve` takes the process's signal handlers away from pytest."""

    async def run_in_task(
        self, listener: socket.socket, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()  # the socket listens already: a request waits for the server, not the other way
        await self._serve([listener])


def _handler(
    script: OpenAiServer,
    answer: Callable[[OpenAiServer, dict[str, Any], Fault], Awaitable[Response]],
    *,
    counting: bool = False,
) -> Callable[[Request], Any]:
    faults = script.tokenize_faults if counting else script.faults

    async def handle(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        if counting:
            script.tokenized.append(body)
        else:
            script.requests.append(body)
            script.headers.append(dict(request.headers))
        fault = faults.popleft() if faults else Fault()
        if script.api_key is not None and request.headers.get("authorization") != f"Bearer {script.api_key}":
            return JSONResponse({"error": {"message": "invalid key"}}, status_code=401)
        if fault.hang:
            await script.closing.wait()
        if fault.status is not None:
            injected = {"error": {"message": f"injected: {body}"}}
            return JSONResponse(injected, status_code=fault.status, headers=dict(fault.headers))
        if fault.raw is not None:
            return Response(fault.raw, media_type="application/json")
        return await answer(script, body, fault)

    return handle


def _page(script: OpenAiServer) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        text = script.pages.get(request.url.path)
        return Response(status_code=404) if text is None else Response(text, media_type="text/plain")

    return handle


async def _embeddings(script: OpenAiServer, body: dict[str, Any], _: Fault) -> Response:
    texts: list[str] = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [script.vector(text) for text in texts] if script.embed is None else await script.embed(texts)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    # Backwards: the order of `data` is not promised, the index is what counts.
    return JSONResponse({"object": "list", "model": body["model"], "data": data[::-1]})


def word_overlap(query: str, text: str) -> float:
    """Return the share of the query's words that the text has: what this server's /rerank calls relevance."""
    words = set(query.lower().split())
    return len(words & set(text.lower().split())) / max(1, len(words))


async def _rerank(_: OpenAiServer, body: dict[str, Any], __: Fault) -> Response:
    """Answer best first, as servers of both shapes do: documents make the one shape, texts the other."""
    texts: list[str] = body["documents"] if "documents" in body else body["texts"]
    scores = [(word_overlap(body["query"], text), index) for index, text in enumerate(texts)]
    ranked = sorted(scores, key=lambda pair: -pair[0])
    if "documents" not in body:
        return JSONResponse([{"index": index, "score": score} for score, index in ranked])
    results = [{"index": index, "relevance_score": score} for score, index in ranked[: body["top_n"]]]
    return JSONResponse({"id": "r", "model": body["model"], "results": results})


def _prompt_tokens(script: OpenAiServer, body: dict[str, Any]) -> int:
    return len(json.dumps(body["messages"])) if script.prompt_tokens is None else script.prompt_tokens


async def _tokenize(script: OpenAiServer, body: dict[str, Any], _: Fault) -> Response:
    count = _prompt_tokens(script, body)
    return JSONResponse({"count": count, "max_model_len": 1 << 20, "tokens": list(range(count)), "token_strs": None})


def _usage(script: OpenAiServer, body: dict[str, Any], completion_tokens: int) -> Any:
    if script.usage is not None:
        return script.usage
    prompt_tokens = _prompt_tokens(script, body)
    usage: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    if script.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens}
    return usage


async def _chat(script: OpenAiServer, body: dict[str, Any], fault: Fault) -> Response:
    pieces = list(script.reply(body) if script.reply is not None else script.pieces)
    usage = _usage(script, body, len(pieces))
    if not body.get("stream"):
        message = {"role": "assistant", "content": "".join(pieces)}
        choices = [{"index": 0, "message": message, "finish_reason": script.finish_reason}]
        return JSONResponse({"id": "c", "object": "chat.completion", "choices": choices, "usage": usage})
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return StreamingResponse(
        _chunks(script, pieces, fault, usage if wants_usage else None, body), media_type="text/event-stream"
    )


async def _chunks(
    script: OpenAiServer, pieces: list[str], fault: Fault, usage: Any, body: dict[str, Any]
) -> AsyncIterator[bytes]:
    ended = False
    try:
        yield _event(_choice({"role": "assistant", "content": ""}))
        yield b": a comment, as proxies send to keep a connection\n\n"
        for number, piece in enumerate(pieces):
            if number == fault.cut_after:
                ended = True
                return
            if number == fault.stall_after:
                await script.closing.wait()
            so_far = {"usage": _usage(script, body, number + 1)} if script.usage_in_each else {}
            yield _event(_choice({"content": piece}) | so_far)
            await anyio.lowlevel.checkpoint()
        yield _event(_choice({}, script.finish_reason))
        if usage is not None:
            yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"
        ended = True
    finally:
        if not ended:
            script.abandoned.set()


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', **value})}\n\n".encode()
