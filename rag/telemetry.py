"""Traces, metrics and logs, set up once per process; spans and metrics go out by OTLP/HTTP where an endpoint is set.

Ground floor, below identity. Span attributes and log fields name tenants and tasks by id and never hold document text,
a token or a key: what is logged here is what an operator may read.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from uuid import uuid4

import orjson
from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from rag.settings import Settings

__all__ = ["carried_from", "carrier", "log_fields", "telemetry"]

OURS = ("mcp_server", "a2a_server", "workflows", "rag", "uvicorn.error")
"""The loggers that BULKHEAD_LOG_LEVEL is about: what they say is ours to answer for (uvicorn's: that it listens)."""
METRICS_EVERY_S = 15.0
EXPORT_S = 2.0
"""A collector that does not answer must not hold up the end of a process, which exports once more."""
_FIELDS: ContextVar[Mapping[str, str]] = ContextVar("bulkhead_log_fields", default={})  # noqa: B039  # never mutated


@contextmanager
def telemetry(settings: Settings, *, service: str) -> Generator[None]:
    """Log JSON lines to stderr and, with an endpoint configured, export spans and metrics; flushed at the end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    # below WARNING libraries tell what they carry: sse_starlette every event, httpx every address
    root.setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.getLogger("a2a").setLevel(logging.CRITICAL)  # quotes a request's parameters at ERROR
    # also without an exporter: the ids of a trace in every process's log are what joins them
    resource = Resource.create(
        {"service.name": service, "service.namespace": "bulkhead", "service.instance.id": str(uuid4())}
    )
    traces = TracerProvider(resource=resource)
    readers: list[MetricReader] = []
    if settings.otlp_endpoint is not None:
        endpoint = settings.otlp_endpoint.rstrip("/")
        spans_to = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
        traces.add_span_processor(BatchSpanProcessor(spans_to, schedule_delay_millis=500))
        metrics_to = OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", timeout=EXPORT_S)
        readers.append(PeriodicExportingMetricReader(metrics_to, export_interval_millis=METRICS_EVERY_S * 1000))
    meters = MeterProvider(readers, resource=resource)
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(meters)
    try:
        yield
    finally:
        meters.shutdown(timeout_millis=EXPORT_S * 1000)
        traces.shutdown()


@contextmanager
def log_fields(**fields: str) -> Generator[None]:
    """Add fields, such as `tenant` and `task`, to every log line and to the current span inside the block."""
    trace.get_current_span().set_attributes({f"bulkhead.{name}": value for name, value in fields.items()})
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def carrier() -> dict[str, str]:
    """Return the current trace context as W3C headers, to be sent or stored with work that goes on elsewhere."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def carried_from(headers: Mapping[str, str]) -> Generator[None]:
    """Continue, inside the block, the trace that `headers` (W3C) carry; without one, start afresh."""
    token = otel_context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        otel_context.detach(token)


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, service, logger, message, trace and span id, the context's fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_FIELDS.get(),
        }
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
            line["span_id"] = f"{span.span_id:016x}"
        if record.exc_info and record.exc_info[0] is not None:
            # NOTE: the type and the place only: an exception's text may quote a row or a request.
            line["error"] = record.exc_info[0].__name__
            line["at"] = _place(record)
        return orjson.dumps(line).decode()


def _place(record: logging.LogRecord) -> str:
    traceback = record.exc_info[2] if record.exc_info else None
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f"{traceback.tb_frame.f_globals.get('__name__', '?')}:{traceback.tb_lineno}"
