"""Results that are kept for a while: in this process, or in a Redis that all replicas share.

Above: the search and the answer cache, whose keys name all that a result depends on, the corpus version among it: a
write makes other keys and nothing has to be removed. Below: redis and cryptography. What is kept is documents' text, or
made of it, so:

1. In Redis a value is encrypted with AES-256-GCM, under a key derived from the installation's secret for its tenant.
2. All parts of the key are authenticated with it: a value that was changed, or copied under another key, is a miss.
3. A name in Redis is an HMAC of the key: whoever lists names learns neither queries nor tenants.
4. Caches of different purposes have other keys and other names, also for equal keys in one Redis.

A cache never fails its user: Redis gone, slow or full of nonsense is a miss, for RETRY_REDIS_S without asking it again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import anyio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from opentelemetry.metrics import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rag.clock import Clock

__all__ = [
    "ENTRY_BYTES",
    "MAX_VALUE_BYTES",
    "TTL_S",
    "Cache",
    "CacheKey",
    "LocalCache",
    "RedisCache",
    "open_cache",
]

_log = logging.getLogger(__name__)

CacheKey = tuple[str, ...]
"""All that a result depends on. The first part is the tenant's id: it says whose key encrypts and whose budget pays."""

TTL_S = 300.0
"""A key holds the corpus version, so age makes no result wrong; it only bounds how long text lies about."""
MAX_VALUE_BYTES = 1 << 20
"""A larger result is not kept."""
MAX_BYTES = 64 << 20
"""In this process."""
MAX_TENANT_BYTES = 4 << 20
"""In this process: a busy tenant pushes out its own results first."""
ENTRY_BYTES = 512
"""What an entry costs beside its value: its key's digest and the dictionaries' part."""
REDIS_TIMEOUT_S = 0.1
REDIS_WAIT_S = 0.2
"""With the wait for a turn: searching again takes less than waiting longer."""
REDIS_CONCURRENCY = 8
RETRY_REDIS_S = 5.0
MIN_SECRET_BYTES = 16
_FORMAT = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16

T = TypeVar("T")


class Cache(Protocol):
    """Keeps bytes under a key."""

    async def get(self, key: CacheKey) -> bytes | None:
        """Return what was put under exactly this key, or None. Never raises, never waits long."""
        ...

    async def put(self, key: CacheKey, value: bytes) -> None:
        """Keep `value`, or do not: larger than MAX_VALUE_BYTES, or nowhere to keep it."""
        ...


@dataclass(slots=True)
class _Shelf:
    """One tenant's entries, longest unused first: digest of the key -> (when it ends, value)."""

    entries: OrderedDict[bytes, tuple[float, bytes]] = field(default_factory=OrderedDict[bytes, tuple[float, bytes]])
    size: int = 0

    def take(self, digest: bytes) -> tuple[float, bytes] | None:
        found = self.entries.pop(digest, None)
        if found is not None:
            self.size -= len(found[1]) + ENTRY_BYTES
        return found

    def add(self, digest: bytes, entry: tuple[float, bytes]) -> None:
        self.take(digest)
        self.entries[digest] = entry
        self.size += len(entry[1]) + ENTRY_BYTES


class LocalCache:
    """Keeps results in this process's memory. Satisfies `Cache`."""

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_tenant_bytes: int = MAX_TENANT_BYTES,
        ttl_s: float = TTL_S,
        clock: Clock = time.monotonic,
        lookups: Counter | None = None,
    ) -> None:
        """Start empty. `lookups` counts them by outcome."""
        self._max_bytes = max_bytes
        self._max_tenant_bytes = min(max_tenant_bytes, max_bytes)
        self._ttl_s = ttl_s
        self._clock = clock
        self._lookups = lookups
        self._shelves: dict[str, _Shelf] = {}
        self._size = 0

    async def get(self, key: CacheKey) -> bytes | None:
        """See `Cache.get`."""
        value = self._get(key)
        _count(self._lookups, value)
        return value

    async def put(self, key: CacheKey, value: bytes) -> None:
        """See `Cache.put`."""
        if len(value) > MAX_VALUE_BYTES or len(value) + ENTRY_BYTES > self._max_tenant_bytes:
            return
        shelf = self._shelves.setdefault(key[0], _Shelf())
        before = shelf.size
        shelf.add(_digest(key), (self._clock() + self._ttl_s, value))
        self._size += shelf.size - before
        while shelf.size > self._max_tenant_bytes:
            self._drop_oldest(key[0])
        while self._size > self._max_bytes:
            # who holds most pays: no traffic of others pushes out a tenant that holds at most its equal share
            self._drop_oldest(max(self._shelves, key=lambda tenant: self._shelves[tenant].size))

    def _get(self, key: CacheKey) -> bytes | None:
        shelf, digest = self._shelves.get(key[0]), _digest(key)
        entry = None if shelf is None else shelf.entries.get(digest)
        if shelf is None or entry is None:
            return None
        if entry[0] <= self._clock():
            self._drop(key[0], digest)
            return None
        shelf.entries.move_to_end(digest)
        return entry[1]

    def _drop_oldest(self, tenant: str) -> None:
        self._drop(tenant, next(iter(self._shelves[tenant].entries)))

    def _drop(self, tenant: str, digest: bytes) -> None:
        shelf = self._shelves[tenant]
        before = shelf.size
        shelf.take(digest)
        self._size += shelf.size - before
        if not shelf.entries:
            del self._shelves[tenant]


class RedisCache:
    """Keeps results in Redis, encrypted. Satisfies `Cache`."""

    def __init__(
        self,
        redis: Redis,
        *,
        secret: bytes,
        installation: str,
        purpose: str,
        ttl_s: float = TTL_S,
        clock: Clock = time.monotonic,
        lookups: Counter | None = None,
    ) -> None:
        """`redis` stays the caller's to close, and must not decode responses.

        `secret` is random and the same in all replicas; keys are derived from it, so that one that serves something
        else as well gives nothing away. `installation` tells apart installations that share a Redis, and `purpose` what
        one of them keeps.
        """
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the cache's secret needs at least {MIN_SECRET_BYTES} bytes")
        self._redis = redis
        self._root = hmac.digest(secret, f"bulkhead {purpose} cache 1".encode(), "sha256")
        self._prefix = f"bulkhead:{installation}:{purpose}:"
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._clock = clock
        self._lookups = lookups
        self._turns = anyio.CapacityLimiter(REDIS_CONCURRENCY)
        self._away_until: float | None = None

    async def get(self, key: CacheKey) -> bytes | None:
        """See `Cache.get`."""
        most = len(_FORMAT) + _NONCE_BYTES + MAX_VALUE_BYTES + _TAG_BYTES
        # one byte more than we ever write: of a larger value, which is not ours, no more than this is read
        stored = await self._ask(lambda: cast("Awaitable[bytes]", self._redis.getrange(self._name(key), 0, most)))
        value = self._opened(key, stored) if stored else None
        _count(self._lookups, value)
        return value

    async def put(self, key: CacheKey, value: bytes) -> None:
        """See `Cache.put`."""
        if len(value) > MAX_VALUE_BYTES:
            return
        nonce = secrets.token_bytes(_NONCE_BYTES)
        stored = _FORMAT + nonce + self._cipher(key).encrypt(nonce, value, self._bound(key))
        await self._ask(lambda: cast("Awaitable[object]", self._redis.set(self._name(key), stored, px=self._ttl_ms)))

    def _opened(self, key: CacheKey, stored: bytes) -> bytes | None:
        start = len(_FORMAT) + _NONCE_BYTES
        if not stored.startswith(_FORMAT) or len(stored) < start + _TAG_BYTES:
            return None
        try:
            return self._cipher(key).decrypt(stored[len(_FORMAT) : start], stored[start:], self._bound(key))
        except InvalidTag:
            return None

    def _cipher(self, key: CacheKey) -> AESGCM:
        # NOTE: a key per tenant, so that random nonces serve 2^32 results of one tenant (NIST SP 800-38D, 8.3)
        return AESGCM(hmac.digest(self._root, b"tenant\0" + key[0].encode(), "sha256"))

    def _bound(self, key: CacheKey) -> bytes:
        return self._prefix.encode() + _canonical(key)

    def _name(self, key: CacheKey) -> str:
        return self._prefix + hmac.digest(self._root, b"name\0" + _canonical(key), "sha256").hex()

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """Run one command, or return None: Redis is away, or a turn at it takes too long."""
        with anyio.move_on_after(REDIS_WAIT_S):
            async with self._turns:
                if self._away_until is None or self._clock() >= self._away_until:
                    return await self._ask_now(command)
        return None

    async def _ask_now(self, command: Callable[[], Awaitable[T]]) -> T | None:
        try:
            with anyio.fail_after(REDIS_TIMEOUT_S):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as exc:
            if self._away_until is None:
                _log.warning("redis does not answer (%s): results are not cached until it does", type(exc).__name__)
            self._away_until = self._clock() + RETRY_REDIS_S
            return None
        if self._away_until is not None:
            _log.warning("redis answers again: results are cached")
            self._away_until = None
        return answer


@asynccontextmanager
async def open_cache(
    *,
    redis_url: str | None,
    secret: bytes,
    installation: str,
    purpose: str,
    ttl_s: float = TTL_S,
    lookups: Counter | None = None,
) -> AsyncGenerator[Cache]:
    """Open the cache in Redis, or without a URL the one in this process; closed when the block ends."""
    if redis_url is None:
        yield LocalCache(ttl_s=ttl_s, lookups=lookups)
        return
    redis = Redis.from_url(redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    try:
        yield RedisCache(redis, secret=secret, installation=installation, purpose=purpose, ttl_s=ttl_s, lookups=lookups)
    finally:
        await redis.aclose()


def _count(lookups: Counter | None, value: bytes | None) -> None:
    if lookups is not None:
        lookups.add(1, {"outcome": "miss" if value is None else "hit"})


def _canonical(key: CacheKey) -> bytes:
    """Return one text for each key: no two keys run their parts together to the same."""
    return json.dumps(key, ensure_ascii=True, separators=(",", ":")).encode()


def _digest(key: CacheKey) -> bytes:
    return hashlib.sha256(_canonical(key)).digest()
