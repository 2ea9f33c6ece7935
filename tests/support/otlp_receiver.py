"""A collector of the test's own: takes OTLP over HTTP as a real one does and keeps what came for the test to see."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
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
    kind: int
    attributes: dict[str, Any]
    events: tuple[str, ...]
    """Everything that its events say."""


@dataclass(slots=True, kw_only=True)
class OtlpReceiver:
    """The running collector."""

    endpoint: str
    spans: list[Span] = field(default_factory=list[Span])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """The latest sum or gauge of each instrument, all attributes together."""
    _came: anyio.Condition = field(default_factory=anyio.Condition)

    async def until(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Return the spans once `enough` says so."""
        async with self._came:
            while not enough(self.spans):
                await self._came.wait()
        return list(self.spans)

    async def take(self, request: Request) -> Response:
        """Keep the spans that one export brings."""
        export = ExportTraceServiceRequest.FromString(await _body(request))
        async with self._came:
            for resource in export.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self.spans.extend(_span(str(service), span) for span in scope.spans)
            self._came.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        return Response(answer, media_type="application/x-protobuf")

    async def measure(self, request: Request) -> Response:
        """Keep the metrics that one export brings."""
        export = ExportMetricsServiceRequest.FromString(await _body(request))
        for scope in (scope for resource in export.resource_metrics for scope in resource.scope_metrics):
            for metric in scope.metrics:
                points = (metric.sum if metric.HasField("sum") else metric.gauge).data_points
                self.metrics[metric.name] = sum(point.as_int + point.as_double for point in points)
        answer = ExportMetricsServiceResponse().SerializeToString()
        return Response(answer, media_type="application/x-protobuf")


@asynccontextmanager
async def otlp_receiver() -> AsyncGenerator[OtlpReceiver]:
    """Collect on a free port until the block ends."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        receiver = OtlpReceiver(endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}")
        takes = {"/v1/traces": receiver.take, "/v1/metrics": receiver.measure}
        app = Starlette(routes=[Route(path, take, methods=["POST"]) for path, take in takes.items()])
        async with serving(app, listening):
            yield receiver


async def _body(request: Request) -> bytes:
    body = await request.body()
    return gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        attributes=_attributes(span.attributes),
        events=tuple(str(event) for event in span.events),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
