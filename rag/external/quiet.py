"""Keeps what a stranger's server says out of our logs and traces: the MCP library quotes it in warnings and in spans.

Above: `client`. Below: nothing of ours.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context as otel_context
from opentelemetry import trace

__all__ = ["quietly"]

_LIBRARIES = ("mcp", "httpx2", "httpcore2")
_QUIET: ContextVar[bool] = ContextVar("bulkhead_external_quiet", default=False)


def _unless_quiet(_: logging.LogRecord) -> bool:
    return not _QUIET.get()


@contextmanager
def quietly() -> Generator[None]:
    """Drop the libraries' log records and spans inside the block and the tasks that it starts; carry no trace of ours.

    Records go by a filter on each of the libraries' loggers, since a filter of a parent does not see its children's.
    Spans get a parent that is not sampled: then they are not recorded, and the ids that go over the wire are random.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LIBRARIES:
            logging.getLogger(name).addFilter(_unless_quiet)  # the same function again changes nothing
    unsampled = trace.SpanContext(trace_id=secrets.randbits(128) | 1, span_id=secrets.randbits(64) | 1, is_remote=False)
    token = otel_context.attach(trace.set_span_in_context(trace.NonRecordingSpan(unsampled)))
    quiet = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(quiet)
        otel_context.detach(token)
