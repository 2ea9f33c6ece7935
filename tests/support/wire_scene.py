"""A model server of our own, a proxy before it that disturbs, and a client: what tests of single calls stand on."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

import httpx
import pytest

from rag.llm.catalogue import Offer
from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.request import ChatRequest, Limits, Reply
from rag.llm.wire import stream
from tests.support.faulty_proxy import Disturbance, FaultyProxy, event_stream, faulty_proxy
from tests.support.models import PROMPT, QUICK, Reader, offer
from tests.support.openai_server import OpenAiServer, serve_openai

__all__ = ["BOUND_S", "Scene", "Stage", "answers", "event", "piece", "scene_on", "stage"]

BOUND_S = 10.0
"""Of a wait for what must come."""


@dataclass(slots=True, kw_only=True)
class Scene:
    server: OpenAiServer
    proxy: FaultyProxy
    client: httpx.AsyncClient

    async def ask(
        self,
        reader: Reader,
        *,
        limits: Limits = QUICK,
        request: ChatRequest = PROMPT,
        at: Offer | None = None,
        cache_salt: str | None = None,
    ) -> Reply:
        where = at or offer(self.proxy.base_url)
        return await stream(self.client, where, request, reader, cache_salt=cache_salt, limits=limits)

    async def not_billed(self, *, limits: Limits = QUICK, at: Offer | None = None) -> NotBilled:
        reader = Reader()
        with pytest.raises(NotBilled) as failure:
            await self.ask(reader, limits=limits, at=at)
        assert reader.pieces == []
        return failure.value

    async def maybe_billed(self, reader: Reader, *, limits: Limits = QUICK) -> MaybeBilled:
        with pytest.raises(MaybeBilled) as failure:
            await self.ask(reader, limits=limits)
        assert failure.value.emitted == bool(reader.pieces)
        return failure.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is started once for a module's tests."""

    server: OpenAiServer
    proxy: FaultyProxy
    certificates: ssl.SSLContext
    """Read once: httpx would for each client."""


@asynccontextmanager
async def stage() -> AsyncGenerator[Stage]:
    """Run the server and the proxy while the context is open."""
    async with serve_openai() as server, faulty_proxy(server.base_url) as proxy:
        yield Stage(server=server, proxy=proxy, certificates=ssl.create_default_context())


@asynccontextmanager
async def scene_on(running: Stage) -> AsyncGenerator[Scene]:
    """Give one test the stage, with nothing on its scripts and records, and a client of its own."""
    server, proxy = running.server, running.proxy
    blank = OpenAiServer(base_url=server.base_url, closing=server.closing)
    for script in fields(OpenAiServer):
        # the handlers hold these two queues themselves
        if script.name not in {"faults", "tokenize_faults"}:
            setattr(server, script.name, getattr(blank, script.name))
    server.faults.clear()
    server.tokenize_faults.clear()
    proxy.faults.clear()
    proxy.always, proxy.connections, proxy.requests, proxy.answered, proxy.closed = None, 0, 0, 0, 0
    async with httpx.AsyncClient(trust_env=False, verify=running.certificates) as client:
        yield Scene(server=server, proxy=proxy, client=client)


def event(**said: Any) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def piece(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def answers(*events: bytes, then: Any = "end") -> Disturbance:
    return Disturbance(answer=event_stream(b"".join(events)), then=then)
