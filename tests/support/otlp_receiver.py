"""A collector of the test's own: takes OTLP over HTTP as a real one does and keeps the spans for the test to see."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.servers import serving

__all__ = ["OtlpReceiver", "Span", "otlp_receiver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One finished span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    """Everything that its events say."""


@dataclass(slots=True, kw_only=True)
class OtlpReceiver:
    """The running collector."""

    endpoint: str
    spans: list[Span] = field(default_factory=list[Span])
    _came: anyio.Condition = field(default_factory=anyio.Condition)

    async def until(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Return the spans once `enough` says so."""
        async with self._came:
            while not enough(self.spans):
                await self._came.wait()
        return list(self.spans)

    async def take(self, request: Request) -> Response:
        """Keep what one export brings."""
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        export = ExportTraceServiceRequest.FromString(body)
        async with self._came:
            for resource in export.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self.spans.extend(_span(str(service), span) for span in scope.spans)
            self._came.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        return Response(answer, media_type="application/x-protobuf")


@asynccontextmanager
async def otlp_receiver() -> AsyncGenerator[OtlpReceiver]:
    """Collect on a free port until the block ends."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        receiver = OtlpReceiver(endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}")
        app = Starlette(routes=[Route("/v1/traces", receiver.take, methods=["POST"])])
        async with serving(app, listening):
            yield receiver


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        events=tuple(str(event) for event in span.events),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
