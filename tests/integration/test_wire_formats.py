"""The streams of chat servers that cannot be run here, replayed; tests/data/wire/README.md says where they are from.

Each is served cut into pieces anywhere, with either end of line, with the space after `data:` and without.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from rag.llm.request import TokenUsage
from tests.support.faulty_proxy import Disturbance
from tests.support.models import Reader, offer
from tests.support.wire_scene import BOUND_S, Scene, Stage, scene_on, stage

pytestmark = pytest.mark.anyio

STREAMS = Path(__file__).parent.parent / "data" / "wire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    file: str
    kind: str
    pieces: list[str]
    usage: TokenUsage
    model: str


ALL = [
    Told(
        file="ollama.sse",
        kind="ollama",
        pieces=["The", " fee", " is", " < 1", " %", " [1]."],
        usage=TokenUsage(prompt=214, cached=0, completion=8),
        model="qwen3:8b",
    ),
    Told(
        file="ollama_thinking.sse",
        kind="ollama",
        pieces=["Yes", " [1]."],
        usage=TokenUsage(prompt=214, cached=0, completion=9),
        model="qwen3:8b",
    ),
    Told(
        file="openai.sse",
        kind="openai",
        pieces=["The", " fee is 0.4", " % – “net”", " [1]."],
        usage=TokenUsage(prompt=1187, cached=1024, completion=14),
        model="gpt-4o-mini-2024-07-18",
    ),
    Told(
        file="deepseek.sse",
        kind="openai",
        pieces=["The fee", " is due [2]."],
        usage=TokenUsage(prompt=412, cached=384, completion=31),
        model="deepseek-reasoner",
    ),
]
VARIANTS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda body: body,
    "CRLF": lambda body: body.replace(b"\n", b"\r\n"),
    "no space": lambda body: body.replace(b"data: ", b"data:"),
    "named events": lambda body: body.replace(b"data: {", b"event: message\nid: 7\nretry: 10\ndata: {"),
    "no end": lambda body: body.replace(b"data: [DONE]\n\n", b""),
    "comments": lambda body: b": hello\n\n" + body.replace(b"\n\n", b"\n\n:\n\n"),
}


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Stage]:
    async with stage() as shared:
        yield shared


@pytest.fixture
async def scene(running: Stage) -> AsyncIterator[Scene]:
    async with scene_on(running) as own:
        yield own


def response(body: bytes, *, piece: int) -> bytes:
    """Return `body` as a chunked response, cut into chunks of so many bytes."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [body[start : start + piece] for start in range(0, len(body), piece)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("piece", [1, 97, 1 << 20])
@pytest.mark.parametrize("told", [pytest.param(told, id=told.file) for told in ALL])
async def test_a_stream_is_read_as_its_server_means_it(scene: Scene, told: Told, piece: int, variant: str) -> None:
    body = VARIANTS[variant]((STREAMS / told.file).read_bytes())
    scene.proxy.faults.append(Disturbance(answer=response(body, piece=piece)))
    reader = Reader()
    with anyio.fail_after(BOUND_S):
        reply = await scene.ask(reader, at=offer(scene.proxy.base_url, kind=told.kind))
    assert reader.pieces == told.pieces
    assert (reply.text, reply.finish) == ("".join(told.pieces), "stop")
    assert reply.usage == told.usage
    assert reply.raw["model"] == told.model


async def test_an_ollama_whose_runner_dies_breaks_off(scene: Scene) -> None:
    body = (STREAMS / "ollama_died.sse").read_bytes()
    scene.proxy.faults.append(Disturbance(answer=response(body, piece=1 << 20)))
    reader = Reader()
    failure = await scene.maybe_billed(reader)
    assert (reader.pieces, failure.usage) == (["The"], None)


@pytest.mark.parametrize("file", [told.file for told in ALL])
async def test_a_server_that_does_not_count_leaves_the_usage_open(scene: Scene, file: str) -> None:
    body = re.sub(rb'"usage":\{.*?\}(?=[,}]("obf|\n))', b'"usage":null', (STREAMS / file).read_bytes())
    body = re.sub(rb'"usage":\{.*\}\}', b'"usage":null}', body)
    assert b"prompt_tokens" not in body
    scene.proxy.faults.append(Disturbance(answer=response(body, piece=1 << 20)))
    assert (await scene.ask(Reader())).usage is None
