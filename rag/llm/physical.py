"""One physical call: what is known of it, what it may cost, what it has cost, and its span.

Above: `gateway`. Below: `catalogue`, `request`, `ledger`.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import anyio
from opentelemetry import trace

from rag.llm.breaker import Trial
from rag.llm.catalogue import Offer
from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.ledger import Settlement
from rag.llm.request import ChatRequest, Limits, Reply, TokenUsage

__all__ = ["Made", "describe", "most_of", "physical_span"]

_tracer = trace.get_tracer("bulkhead.llm")


@dataclass(slots=True, kw_only=True)
class Made:
    """What is known of one physical call."""

    offer: Offer
    upper: Decimal | None
    """None: the model has no price."""
    sent_at: float | None = None
    """None: nothing was sent."""
    free: bool = False
    """It was sent, and the server did no work for it."""
    usage: TokenUsage | None = None
    seconds: float | None = None

    def failed(self, exc: NotBilled | MaybeBilled, trial: Trial) -> None:
        """Note how the call failed."""
        if exc.at_fault:
            trial.failed()
        if isinstance(exc, NotBilled):
            self.free = True
        else:
            self.usage = exc.usage

    def tokens(self, bound: int) -> int:
        """Return how much of the server the call took, as far as anybody knows; `bound` where nobody does."""
        if self.sent_at is None or self.free:
            return 0
        return bound if self.usage is None else self.usage.prompt + self.usage.completion

    def settlement(self) -> Settlement:
        """Return what the call has cost; the upper bound where the server did not say what it used."""
        assert self.sent_at is not None
        price, used = self.offer.price, self.usage
        if used is None:
            return Settlement(cost=self.upper or Decimal(0), usage=None, estimated=True)
        if price is None:
            return Settlement(cost=Decimal(0), usage=used)
        seconds = anyio.current_time() - self.sent_at if self.seconds is None else self.seconds
        cost = price.cost(
            prompt=used.prompt, cached=used.cached, completion=used.completion, milliseconds=math.ceil(seconds * 1000)
        )
        return Settlement(cost=cost, usage=used)


def most_of(offer: Offer, prompt: int, request: ChatRequest, limits: Limits) -> Decimal | None:
    """Return the most that the call may cost with a prompt of so many tokens; None: the model has no price."""
    if offer.price is None:
        return None
    return offer.price.upper(prompt=prompt, completion=request.max_tokens, seconds=math.ceil(limits.total_s) + 1)


@contextmanager
def physical_span(offer: Offer, request: ChatRequest, *, number: int) -> Generator[trace.Span]:
    """Put one physical call into a span, by OpenTelemetry's conventions for generative AI; no text is in it."""
    with _tracer.start_as_current_span(
        f"chat {offer.served_name}",
        kind=trace.SpanKind.CLIENT,
        record_exception=False,
        set_status_on_exception=False,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": offer.endpoint.kind,
            "gen_ai.request.model": offer.served_name,
            "gen_ai.request.max_tokens": request.max_tokens,
            "bulkhead.llm.endpoint": offer.endpoint.name,
            "bulkhead.llm.attempt": number,
        },
    ) as span:
        yield span


def describe(span: trace.Span, reply: Reply) -> None:
    """Say in the span what came back, but for the text."""
    span.set_attribute("gen_ai.response.finish_reasons", [reply.finish])
    span.set_attribute("gen_ai.response.time_to_first_chunk", reply.first_token_s)
    if reply.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", reply.usage.prompt)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", reply.usage.cached)
        span.set_attribute("gen_ai.usage.output_tokens", reply.usage.completion)
