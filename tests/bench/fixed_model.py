"""A model server that is no model, in a process of its own: `python -m tests.bench.fixed_model PORT`.

It speaks the part of the OpenAI API that the gateway uses and says the same at the same pace whatever it is asked: the
model `takes-2.5` streams PIECES pieces in 2.5 seconds. /tokenize is vLLM's in form and counts four bytes a token.
Above: the gateway benchmark. Below: uvicorn.
"""

from __future__ import annotations

import sys

import anyio
import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

__all__ = ["PIECES", "model_name"]

PIECES = 20
_HEADERS = [(b"content-type", b"text/event-stream")]


def model_name(seconds: float) -> str:
    """Return the model whose answers take so long."""
    return f"takes-{seconds}"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["method"] != "POST":
        await _json(send, {"object": "list", "data": []})
        return
    asked = orjson.loads(b"".join(parts))
    tokens = sum(len(message["content"]) for message in asked["messages"]) // 4
    if scope["path"] == "/tokenize":
        await _json(send, {"count": tokens, "max_model_len": 1 << 20, "tokens": list(range(tokens))})
    else:
        await _answer(send, float(asked["model"].removeprefix("takes-")), tokens)


async def _answer(send: Send, seconds: float, tokens: int) -> None:
    began = anyio.current_time()
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    for number in range(1, PIECES + 1):
        await anyio.sleep_until(began + seconds * number / PIECES)
        choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": "stop" if number == PIECES else None}
        await _event(send, {"choices": [choice]})
    usage = {"prompt_tokens": tokens, "completion_tokens": PIECES, "total_tokens": tokens + PIECES}
    await _event(send, {"choices": [], "usage": usage})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _event(send: Send, value: dict[str, object]) -> None:
    body = b"data: " + orjson.dumps({"id": "c", "object": "chat.completion.chunk", **value}) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _json(send: Send, value: dict[str, object]) -> None:
    body = orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _serve(port: int) -> None:
    config = uvicorn.Config(
        _app, host="127.0.0.1", port=port, loop="none", http="httptools", lifespan="off", log_config=None, backlog=1024
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    anyio.run(_serve, int(sys.argv[1]), backend_options={"use_uvloop": True})
