"""Texts that a model wrote, kept for a while for whoever sends it the same prompt and may see the same.

Above: `gateway`, where the caller opted in. Below: `rag.cache`, where they lie, encrypted if that is Redis.

A text is found only by a caller of the same tenant, with the same set of groups, who sees the same version of the
corpus, for the same model and a prompt that is the same to the byte. The prompt alone would do, as it holds the
passages that the text was written from; the rest is there so that no text outlives the sight of what it rests on: other
groups, or a document written or deleted, make another key. Teams are not in it: they decide who pays, not who sees.

Kept are whole texts of requests that leave no choice to chance (temperature 0): whoever asks for chance gets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from opentelemetry.metrics import Counter, Meter, get_meter

from rag.cache import Cache, CacheKey, open_cache
from rag.identity.principal import Principal
from rag.llm.request import ChatRequest, Reply, TokenUsage

__all__ = ["TTL_S", "AnswerCache", "KeptAnswer", "View", "lookup_counter", "open_answer_cache"]

TTL_S = 3600.0
"""No answer grows wrong, as the key holds the corpus version; this bounds how long text lies about."""
_FORMAT = "answer 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a caller sees at a moment."""

    tenant_id: UUID
    groups: frozenset[str]
    corpus_version: int
    """`SearchResult.version` of the search that the prompt was made from: how many writes its caller could see."""

    @classmethod
    def of(cls, principal: Principal, *, corpus_version: int) -> View:
        """Return what `principal` sees of this version."""
        return cls(tenant_id=principal.tenant_id, groups=frozenset(principal.groups), corpus_version=corpus_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """A text that was written before, and costs nothing now."""

    text: str
    model: str
    """Of the catalogue: who wrote it."""
    usage: TokenUsage | None
    """Of the call that it was written in, which was paid then."""


class AnswerCache:
    """Keeps whole texts under all that they depend on."""

    def __init__(self, cache: Cache) -> None:
        """Keep them in `cache`, which stays its owner's to close."""
        self._cache = cache

    async def find(self, view: View, request: ChatRequest, *, model: str) -> KeptAnswer | None:
        """Return what `model` wrote to exactly this request for an equal view, or None. Never raises, never waits long.

        `model` is the catalogue's name: wherever it is served, it is the same one.
        """
        if not _is_kept(request):
            return None
        kept = await self._cache.get(_key(view, request, model))
        return None if kept is None else _read(kept)

    async def keep(self, view: View, request: ChatRequest, reply: Reply, *, model: str) -> None:
        """Keep the reply's text, or do not: it is cut off or empty, or the request leaves a choice to chance."""
        if not _is_kept(request) or reply.finish != "stop" or not reply.text:
            return
        usage = None if reply.usage is None else asdict(reply.usage)
        await self._cache.put(
            _key(view, request, model), json.dumps({"text": reply.text, "model": model, "usage": usage}).encode()
        )


def lookup_counter(meter: Meter) -> Counter:
    """Return the counter of look-ups. It names no tenant: what one tenant asks again is not another's business."""
    return meter.create_counter(
        "bulkhead.llm.answer_cache", unit="{lookup}", description="Look-ups in the cache of answers, by outcome"
    )


_LOOKUPS = lookup_counter(get_meter("bulkhead.llm"))


@asynccontextmanager
async def open_answer_cache(
    *, redis_url: str | None, secret: bytes, installation: str, ttl_s: float = TTL_S
) -> AsyncGenerator[AnswerCache]:
    """Open the cache in Redis, or without a URL the one in this process; closed when the block ends."""
    async with open_cache(
        redis_url=redis_url,
        secret=secret,
        installation=installation,
        purpose="answer",
        ttl_s=ttl_s,
        lookups=_LOOKUPS,
    ) as cache:
        yield AnswerCache(cache)


def _is_kept(request: ChatRequest) -> bool:
    return request.temperature == 0


def _key(view: View, request: ChatRequest, model: str) -> CacheKey:
    # a schema's keys in their order: it is the order in which a model that is held to it writes
    prompt = json.dumps([request.system, request.user, request.max_tokens, request.schema])
    return (
        str(view.tenant_id),
        _FORMAT,
        json.dumps(sorted(view.groups)),
        str(view.corpus_version),
        model,
        hashlib.sha256(prompt.encode()).hexdigest(),
    )


def _read(kept: bytes) -> KeptAnswer:
    """Return what `keep` wrote: nobody else has the key to, and another format has another name."""
    said: dict[str, Any] = json.loads(kept)
    usage = said["usage"]
    return KeptAnswer(text=said["text"], model=said["model"], usage=None if usage is None else TokenUsage(**usage))
