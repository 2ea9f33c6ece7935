"""What `bulkhead bench llm` hands back: the results file's content, its notes, the table. Above: `bench`.

Below: `rag.llm.bench`. The file's schema is docs/results/llm/schema.json, and `FORM` names its version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

from rich.table import Table

from rag.llm.bench.figures import LevelFigures, PrefixCache, Spread
from rag.llm.bench.measure import Plan
from rag.llm.bench.server import ServerFacts
from rag.llm.catalogue import Offer, Price

__all__ = ["FORM", "Measurement", "is_here", "notes", "result", "table"]

FORM = "bulkhead-bench-llm/1"
BUSY_CLIENT = 0.8
"""Share of a core from which on the client may have been what was measured."""
LATE_CLIENT_MS = 10.0
"""Lateness of the client (p95) from which on its times are in question; asyncio's timers are up to 1 ms late anyway."""
COARSE_PIECES = 1.5
"""Tokens a piece from which on the time between pieces is not the time between tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run and all that its file tells of it."""

    offer: Offer
    facts: ServerFacts
    plan: Plan
    concurrencies: tuple[int, ...]
    machine_hour: Decimal | None
    remarks: tuple[str, ...]
    """What the user says of the server: its flags, the quantisation, the hardware behind a URL."""
    began: datetime
    ended: datetime
    levels: tuple[LevelFigures, ...]

    @property
    def complete(self) -> bool:
        """Whether every level was run to its end."""
        return len(self.levels) == len(self.concurrencies) and all(level.complete for level in self.levels)


def result(done: Measurement, *, machine: dict[str, object], provenance: dict[str, object]) -> dict[str, object]:
    """Return the content of the results file: JSON's types only, amounts of money as text."""
    endpoint = done.offer.endpoint
    content = {
        "schema": FORM,
        "complete": done.complete,
        "began": done.began.isoformat(timespec="seconds"),
        "ended": done.ended.isoformat(timespec="seconds"),
        "target": {
            "url": endpoint.base_url,
            "kind": endpoint.kind,
            "model": done.offer.served_name,
            "on_this_machine": is_here(endpoint.base_url),
        },
        "server": _plain(done.facts),
        "remarks": list(done.remarks),
        "machine": machine,
        "code": provenance,
        "load": {**_plain(done.plan), "concurrencies": list(done.concurrencies)},
        "prices": _prices(done.offer.price, done.machine_hour),
        "levels": [_plain(level) for level in done.levels],
        "notes": list(notes(done)),
    }
    return cast("dict[str, object]", content)


def notes(done: Measurement) -> Iterator[str]:
    """Yield what a reader must know before believing the figures."""
    if not done.complete:
        yield "broken off: the last level, or levels after it, are not whole"
    for level in done.levels:
        for note in _notes(level):
            yield f"concurrency {level.concurrency}: {note}"


def table(done: Measurement) -> Table:
    """Return the figures for people: a line for each level."""
    shown = Table(title=f"{done.offer.served_name} at {done.offer.endpoint.base_url}", title_justify="left")
    priced = done.offer.price is not None or done.machine_hour is not None
    heads = ["at a time", "calls", "failed", "first token ms p50", "p95", "p99", "between pieces ms p50", "p95", "p99"]
    heads += ["tokens/s", "calls/s", "prefix cache", *(["per 1000 calls"] if priced else [])]
    for head in heads:
        shown.add_column(head, justify="right")
    for level in done.levels:
        cells = [str(level.concurrency), str(level.finished), str(level.failed)]
        cells += [*_spread(level.first_token_ms), *_spread(level.between_pieces_ms)]
        cells += [_number(level.output_tokens_per_s), _number(level.requests_per_s), _cached(level.prefix_cache)]
        shown.add_row(*cells, *([_cost(level)] if priced else []))
    return shown


def is_here(url: str) -> bool:
    """Tell whether the URL is of this machine, by its text alone."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _notes(level: LevelFigures) -> Iterator[str]:
    if level.failed:
        kinds = ", ".join(f"{count} x {what}" for what, count in level.failures.items())
        yield f"failed calls are in no figure: {kinds}"
    if level.tokens.calls_without_usage:
        yield f"calls without usage: {level.tokens.calls_without_usage}, so tokens a second are not known"
    if level.client_cpu_share is not None and level.client_cpu_share > BUSY_CLIENT:
        yield f"the client used {level.client_cpu_share:.0%} of its core: the server may do more than this"
    late = level.client_lag_ms.max if level.client_lag_ms.p95 is None else level.client_lag_ms.p95
    if late is not None and late > LATE_CLIENT_MS:
        yield f"the client was up to {late:.0f} ms late: times may be too long by that, and the server may do more"
    if level.tokens_per_piece is not None and level.tokens_per_piece > COARSE_PIECES:
        yield f"a piece holds {level.tokens_per_piece:g} tokens: see per_output_token_ms for the time of one"
    if level.requests_of_others:
        yield f"requests of others that the server answered meanwhile: {level.requests_of_others}"
    if level.preemptions:
        yield f"requests that the server began again for want of cache: {level.preemptions}"


def _prices(price: Price | None, machine_hour: Decimal | None) -> dict[str, str] | None:
    if price is None and machine_hour is None:
        return None
    named: dict[str, Decimal | None] = {"machine_hour": machine_hour}
    if price is not None:
        named |= {
            "input": price.input,
            "cached_input": price.cached_input,
            "output": price.output,
            "second": price.second,
        }
    return {name: f"{amount:f}" for name, amount in named.items() if amount is not None}


def _plain(value: Any) -> Any:
    """Return a dataclass, and what is in it, in JSON's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return value


def _spread(spread: Spread) -> tuple[str, str, str]:
    return _number(spread.p50), _number(spread.p95), _number(spread.p99)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _cached(cache: PrefixCache) -> str:
    share = cache.by_usage if cache.by_usage is not None else cache.by_server
    return "-" if share is None else f"{share:.0%}"


def _cost(level: LevelFigures) -> str:
    if level.costs is None:
        return "-"
    amount = level.costs.tokens_per_1000_requests
    amount = level.costs.machine_per_1000_requests if amount is None else amount
    return "-" if amount is None else f"{amount:f}"
