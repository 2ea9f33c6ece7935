"""Search results that are kept for a while, each under a key that names all it depends on.

Above: `search`. Below: `rag.cache`, where what is kept lies.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from opentelemetry.metrics import Counter, Meter, get_meter

from rag.cache import TTL_S, CacheKey, open_cache
from rag.cache import Cache as ResultCache
from rag.cache import LocalCache as LocalResultCache

__all__ = ["CacheKey", "LocalResultCache", "ResultCache", "lookup_counter", "open_result_cache"]


def lookup_counter(meter: Meter) -> Counter:
    """Return the counter of look-ups. It names no tenant: what one tenant asks again is not another's business."""
    return meter.create_counter(
        "bulkhead.search.cache", unit="{lookup}", description="Look-ups in the cache of search results, by outcome"
    )


_LOOKUPS = lookup_counter(get_meter("bulkhead.search"))


@asynccontextmanager
async def open_result_cache(
    *, redis_url: str | None, secret: bytes, installation: str, ttl_s: float = TTL_S
) -> AsyncGenerator[ResultCache]:
    """Open the cache in Redis, or without a URL the one in this process; closed when the block ends."""
    async with open_cache(
        redis_url=redis_url,
        secret=secret,
        installation=installation,
        purpose="result",
        ttl_s=ttl_s,
        lookups=_LOOKUPS,
    ) as cache:
        yield cache
