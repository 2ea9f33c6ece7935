"""From single calls to the figures of a level: percentiles, tokens a second, what the prefix cache served, costs.

Above: `measure`, `rag.cli.bench`. Below: `rag.llm.catalogue`, `rag.llm.request`. Pure: nothing here knows a clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from rag.llm.bench.server import Counters
from rag.llm.catalogue import Price
from rag.llm.request import Reply

__all__ = ["Call", "Costs", "LevelFigures", "LevelRecord", "PrefixCache", "Spread", "Tokens", "figures", "spread"]

_COST = Decimal("0.000001")
_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that came to its end."""

    reply: Reply
    gaps_s: tuple[float, ...]
    """Between one piece of its text and the next."""


@dataclass(slots=True, kw_only=True)
class LevelRecord:
    """What was measured at one concurrency, so far: it grows while the level runs, and is good at any moment."""

    concurrency: int
    calls: list[Call] = field(default_factory=list[Call])
    failures: Counter[str] = field(default_factory=Counter[str])
    started: int = 0
    duration_s: float = 0.0
    """From the first request to the end of the last; as of the last call that ended while the level runs."""
    client_cpu_s: float = 0.0
    lags_s: list[float] = field(default_factory=list[float])
    """How much later than it should the client's own event loop came back to a timer, again and again."""
    complete: bool = False
    counters: tuple[Counters, Counters] | None = None
    """The server's, before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Milliseconds, as they lie. A percentile is a value that was measured (nearest rank), never one in between.

    None: there are too few values for it. 20 carry a p95 and 100 a p99; below that it would only be the largest.
    """

    count: int
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Sums of what the server said it used. Calls of which it said nothing are in none of the sums."""

    prompt: int
    cached: int
    completion: int
    calls_without_usage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache:
    """Shares of the prompt tokens that the server had in its prefix cache, 0 to 1."""

    by_usage: float | None
    """Of this benchmark's calls, by their `prompt_tokens_details`. None: no call had a cached token, or the server does
    not tell (vLLM: --enable-prompt-tokens-details), which look alike."""
    by_server: float | None
    """By the server's own counters over the time of the level: of everybody's requests. None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """In the currency of the prices given; exact to the sixth place."""

    tokens_per_1000_requests: Decimal | None
    """By the price per token and second, as a ledger books it; failed calls are not in it."""
    machine_per_1000_requests: Decimal | None
    """By what the machine costs an hour, all of it taken by this level."""
    second_that_covers_machine: Decimal | None
    """What a call's second would have to cost at this concurrency for the calls to pay the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFigures:
    """The figures of one concurrency."""

    concurrency: int
    complete: bool
    """False: broken off; the figures are of what was measured until then."""
    duration_s: float
    finished: int
    failed: int
    cut_off: int
    """Under way when the level was broken off."""
    failures: dict[str, int]
    """By what went wrong."""
    cut_by_length: int
    """Of the finished, those that wrote as much as they were let. The others ended by themselves, and are shorter."""
    first_token_ms: Spread
    between_pieces_ms: Spread
    """Of all pieces of all calls. A piece may hold several tokens: `tokens_per_piece` tells."""
    per_output_token_ms: Spread
    """Of each call, its time from the first piece to the last, shared by its tokens after the first."""
    total_ms: Spread
    tokens: Tokens
    tokens_per_piece: float | None
    output_tokens_per_s: float | None
    """All calls together; None: some call's usage is not known, and the sum would be too small."""
    requests_per_s: float | None
    prefix_cache: PrefixCache
    costs: Costs | None
    requests_of_others: int | None
    """That the server finished meanwhile, by its own counter; None: it has none."""
    preemptions: int | None
    """Requests that the server threw out of its cache and began again."""
    client_cpu_share: float | None
    """Of one core. Near 1 the client was the bottleneck, and the server can do more than was measured."""
    client_lag_ms: Spread
    """How late the client was: the times above may be too long by as much. It grows where the client has too little of
    a processor, be it its own fault or its neighbours'."""


def spread(seconds: Iterable[float]) -> Spread:
    """Return how `seconds` lie, in milliseconds."""
    ordered = sorted(value * 1000 for value in seconds)
    if not ordered:
        return Spread(count=0)
    return Spread(
        count=len(ordered),
        mean=round(math.fsum(ordered) / len(ordered), 3),
        p50=_percentile(ordered, 50),
        p95=_percentile(ordered, 95),
        p99=_percentile(ordered, 99),
        max=round(ordered[-1], 3),
    )


def figures(record: LevelRecord, *, price: Price | None, machine_hour: Decimal | None) -> LevelFigures:
    """Return the figures of a level.

    Args:
        record: What was measured.
        price: What tokens and seconds cost; None: not told.
        machine_hour: What the server's machine costs an hour; None: not told.
    """
    replies = [call.reply for call in record.calls]
    tokens = _tokens(replies)
    failed = record.failures.total()
    duration = record.duration_s
    known = bool(replies) and not tokens.calls_without_usage and duration > 0
    return LevelFigures(
        concurrency=record.concurrency,
        complete=record.complete,
        duration_s=round(duration, 3),
        finished=len(replies),
        failed=failed,
        cut_off=record.started - len(replies) - failed,
        failures=dict(record.failures),
        cut_by_length=sum(reply.finish == "length" for reply in replies),
        first_token_ms=spread(reply.first_token_s for reply in replies),
        between_pieces_ms=spread(gap for call in record.calls for gap in call.gaps_s),
        per_output_token_ms=spread(_per_output_token(record.calls)),
        total_ms=spread(reply.total_s for reply in replies),
        tokens=tokens,
        tokens_per_piece=_tokens_per_piece(record.calls),
        output_tokens_per_s=round(tokens.completion / duration, 3) if known else None,
        requests_per_s=round(len(replies) / duration, 3) if replies and duration > 0 else None,
        prefix_cache=_prefix_cache(tokens, record.counters),
        costs=_costs(replies, duration, price, machine_hour),
        requests_of_others=_requests_of_others(record),
        preemptions=_delta(record.counters, "preemptions"),
        client_cpu_share=round(record.client_cpu_s / duration, 3) if duration > 0 else None,
        client_lag_ms=spread(record.lags_s),
    )


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    if len(ordered) * (100 - percent) < 100 and percent > 50:
        return None
    return round(ordered[-(-len(ordered) * percent // 100) - 1], 3)


def _tokens(replies: Sequence[Reply]) -> Tokens:
    told = [reply.usage for reply in replies if reply.usage is not None]
    return Tokens(
        prompt=sum(usage.prompt for usage in told),
        cached=sum(usage.cached for usage in told),
        completion=sum(usage.completion for usage in told),
        calls_without_usage=len(replies) - len(told),
    )


def _per_output_token(calls: Iterable[Call]) -> Iterable[float]:
    for call in calls:
        usage = call.reply.usage
        if usage is not None and usage.completion > 1 and call.gaps_s:
            yield math.fsum(call.gaps_s) / (usage.completion - 1)


def _tokens_per_piece(calls: Iterable[Call]) -> float | None:
    told = [(call.reply.usage.completion, len(call.gaps_s) + 1) for call in calls if call.reply.usage is not None]
    pieces = sum(count for _, count in told)
    return round(sum(tokens for tokens, _ in told) / pieces, 3) if pieces else None


def _prefix_cache(tokens: Tokens, counters: tuple[Counters, Counters] | None) -> PrefixCache:
    queries, hits = _delta(counters, "prefix_queries"), _delta(counters, "prefix_hits")
    return PrefixCache(
        by_usage=round(tokens.cached / tokens.prompt, 4) if tokens.cached else None,
        by_server=round(hits / queries, 4) if queries and hits is not None else None,
    )


def _requests_of_others(record: LevelRecord) -> int | None:
    """Return None for a level that was broken off as well: a call that was cut off may have been counted or not."""
    finished = _delta(record.counters, "requests")
    return None if finished is None or not record.complete else max(0, finished - len(record.calls))


def _delta(counters: tuple[Counters, Counters] | None, name: str) -> int | None:
    if counters is None:
        return None
    before, after = (getattr(counter, name) for counter in counters)
    if before is None or after is None or after < before:  # it was started anew in between
        return None
    return round(after - before)


def _costs(
    replies: Sequence[Reply], duration_s: float, price: Price | None, machine_hour: Decimal | None
) -> Costs | None:
    if price is None and machine_hour is None:
        return None
    machine = None if machine_hour is None else machine_hour * Decimal(str(duration_s)) / _HOUR_S
    call_seconds = Decimal(str(math.fsum(reply.total_s for reply in replies)))
    return Costs(
        tokens_per_1000_requests=_per_1000(_charged(replies, price)),
        machine_per_1000_requests=_per_1000((machine, len(replies))),
        second_that_covers_machine=(machine / call_seconds).quantize(_COST) if machine and call_seconds else None,
    )


def _charged(replies: Sequence[Reply], price: Price | None) -> tuple[Decimal | None, int]:
    """Return what the calls whose usage is known have cost, and how many they are."""
    told = [(reply.usage, reply.total_s) for reply in replies if reply.usage is not None]
    if price is None:
        return None, 0
    costs = (
        price.cost(
            prompt=usage.prompt, cached=usage.cached, completion=usage.completion, milliseconds=round(total_s * 1000)
        )
        for usage, total_s in told
    )
    return sum(costs, Decimal(0)), len(told)


def _per_1000(costs: tuple[Decimal | None, int]) -> Decimal | None:
    amount, requests = costs
    return None if amount is None or not requests else (amount * 1000 / requests).quantize(_COST)
