"""Hybrid search: the query becomes a vector while it can, one statement answers, every hit says why it is there.

Above: the MCP tools, the evaluation. Below: `values`, `query`, `filters`, `cache`; the ports to models; `rag.db` and
the SQL function `rag.search_v2`, which does the ranking (retrieval.md 2-4). With the embedder down the lexical leg
answers alone, with the reranker late the fused order stands, and the result says so.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import numpy as np
import orjson
from numpy.typing import NDArray

from rag.db.pool import Database, Row
from rag.db.vectors import halfvec
from rag.errors import EmbedderUnavailable, ModelSwitched, Unavailable
from rag.identity.principal import Principal
from rag.llm.embedders import Embedders
from rag.llm.rerank import Reranker
from rag.retrieval.cache import CacheKey, ResultCache
from rag.retrieval.filters import to_jsonpath
from rag.retrieval.query import ParsedQuery, parse_query
from rag.retrieval.recall import RecallSampler
from rag.retrieval.values import Hit, Report, SearchRequest, SearchResult, hit_of
from sql import load_queries

__all__ = ["Retriever", "search"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("retrieval")
CANDIDATES = 100
"""Each leg's list before fusion, twice the largest answer."""
QUERY_EMBED_TIMEOUT_S = 2.0
"""A query waits this long for its vector; then the words alone must do."""
RERANK_POOL = 50
"""Hits that a reranker sees, at least."""
RERANK_TIMEOUT_S = 1.0
FRESHNESS_POLL_S = 0.05
MAX_KNOWN_TENANTS = 10_000
MAX_KNOWN_QUESTIONS = 20_000
DIGITS = 6
"""Scores are computed in millionths."""
_EVER = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Retriever:
    """What a search works with. Built by the composition root, one for a process."""

    database: Database
    embedders: Embedders
    cache: ResultCache | None = None
    reranker: Reranker | None = None
    recall: RecallSampler | None = None
    _models: dict[UUID, int] = field(default_factory=dict[UUID, int])
    """The model of tenants that have one of their own, as the last refusal told."""

    _asked: OrderedDict[CacheKey, None] = field(default_factory=OrderedDict[CacheKey, None])
    """Questions whose results were kept, whatever the version: others are not looked up, which takes a round trip."""

    def may_be_kept(self, asked: CacheKey) -> bool:
        """Return whether it makes sense to look for a kept result."""
        return self.cache is not None and asked in self._asked

    def remember_asked(self, asked: CacheKey) -> None:
        """Take note that a result was kept."""
        self._asked[asked] = None
        self._asked.move_to_end(asked)
        if len(self._asked) > MAX_KNOWN_QUESTIONS:
            self._asked.popitem(last=False)

    def model_of(self, tenant_id: UUID) -> int:
        """Return the model that the tenant's vectors were last seen to be made with."""
        return self._models.get(tenant_id, self.embedders.default_id)

    def remember_model(self, tenant_id: UUID, model_id: int) -> None:
        """Take note that the tenant's vectors are made with this model."""
        if len(self._models) >= MAX_KNOWN_TENANTS:
            self._models.clear()
        self._models[tenant_id] = model_id


async def search(retriever: Retriever, principal: Principal, request: SearchRequest) -> SearchResult:
    """Search the caller's tenant.

    Raises:
        InvalidInput: The query has too many phrases.
        EmbedderUnavailable: In semantic mode, when there is no query vector to be had.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    query = unicodedata.normalize("NFC", request.query)
    parsed = parse_query(query) if request.phrases else ParsedQuery(words=query, phrases=(), phrase_words="")
    limit = max(request.limit, RERANK_POOL) if _reranks(retriever, request) else request.limit
    asked = _asked(principal, request, query, limit)
    stale = False
    found: Mapping[str, Any] | None = None
    if request.min_version is not None or retriever.may_be_kept(asked):
        state = await _state(retriever, principal, request)
        stale = request.min_version is not None and _is_stale(state, request.min_version)
        found = await _kept(retriever, asked, state)
    cached = found is not None
    degraded: tuple[str, ...] = ()
    timings: dict[str, float] = {}
    if found is None:
        found, degraded, timings = await _search(retriever, principal, request, limit, parsed)
        if request.max_per_document is None and _crowded(found, limit):
            spread = dataclasses.replace(request, max_per_document=limit)
            found, degraded, timings = await _search(retriever, principal, spread, limit, parsed)
        if not degraded:
            await _keep(retriever, asked, found)
    result = _result(found, degraded=degraded, stale=stale, timings=timings, cached=cached)
    return await _reranked(retriever, request, parsed, result)


async def _state(retriever: Retriever, principal: Principal, request: SearchRequest) -> Row:
    """Return what the result depends on besides the request, once `min_version` is reached or the wait for it over."""
    until = time.monotonic() + request.wait_s
    written = _EVER if request.min_version is None else request.min_version
    while True:
        (state,) = await retriever.database.fetch_sealed(_QUERIES["corpus_state"], principal, min_version=written)
        if request.min_version is None or not _is_stale(state, request.min_version) or time.monotonic() >= until:
            return state
        await anyio.sleep(FRESHNESS_POLL_S)


def _is_stale(state: Row, min_version: int) -> bool:
    return bool(state["version"] < min_version or state["behind"])


def _asked(principal: Principal, request: SearchRequest, query: str, limit: int) -> CacheKey:
    return (
        str(principal.tenant_id),
        query,
        str(limit),
        str(request.phrases),
        request.mode,
        request.fusion,
        str(request.weights()),
        str(request.max_per_document),
        "" if request.filter is None else to_jsonpath(request.filter),
    )


def _kept_under(asked: CacheKey, state: Mapping[str, Any]) -> CacheKey:
    # read in the snapshot of the result: a write or a revocation that commits later makes another key
    return (*asked, str(state["version"]), orjson.dumps(state["state"], option=orjson.OPT_SORT_KEYS).decode())


async def _kept(retriever: Retriever, asked: CacheKey, state: Row) -> Mapping[str, Any] | None:
    if retriever.cache is None or not state["state"]["keep"]:
        return None
    value = await retriever.cache.get(_kept_under(asked, state))
    return None if value is None else orjson.loads(value)


async def _keep(retriever: Retriever, asked: CacheKey, found: Mapping[str, Any]) -> None:
    if retriever.cache is not None and found["state"]["keep"]:
        await retriever.cache.put(_kept_under(asked, found), orjson.dumps(dict(found)))
        retriever.remember_asked(asked)


async def _search(
    retriever: Retriever, principal: Principal, request: SearchRequest, limit: int, parsed: ParsedQuery
) -> tuple[Row, tuple[str, ...], dict[str, float]]:
    model_id = retriever.model_of(principal.tenant_id)
    weights = request.weights()
    lexical_weight, dense_weight = weights or (None, None)
    for last in (False, True):
        began = time.perf_counter()
        vector, degraded = None, ()
        if dense_weight != 0:
            try:
                vector = await _query_vector(retriever.embedders, model_id, parsed.words)
            except Unavailable as exc:
                if lexical_weight == 0:
                    raise EmbedderUnavailable from exc
                _log.warning("searching without vectors: %s", exc.code)
                degraded = ("dense",)
        timings = {"embed": (time.perf_counter() - began) * 1000}
        try:
            (row,) = await retriever.database.fetch_sealed(
                _QUERIES["search"],
                principal,
                query=parsed.words,
                phrases=list(parsed.phrases) or None,
                phrase_words=parsed.phrase_words,
                query_vector=None if vector is None else halfvec(vector),
                model_id=model_id,
                wanted=limit,
                candidates=_candidates(request, limit),
                lexical_weight=lexical_weight,
                dense_weight=dense_weight,
                fusion=request.fusion,
                per_document=request.max_per_document,
                filter=None if request.filter is None else to_jsonpath(request.filter),
            )
        except ModelSwitched as exc:
            # the tenant's vectors are another model's: ask that one, once
            if last:
                raise Unavailable("the tenant's embedding model is being switched; try again") from exc
            model_id = exc.model_id
            retriever.remember_model(principal.tenant_id, model_id)
            continue
        own: int | None = row["state"]["model_id"]
        if degraded and own is not None and own != model_id and not last:
            # the model that does not answer is not even the tenant's
            model_id = own
            retriever.remember_model(principal.tenant_id, own)
            continue
        if vector is not None and retriever.recall is not None and row["report"]["dense_plan"] == "hnsw":
            retriever.recall.offer(principal, vector, model_id)
        return row, degraded, timings
    raise AssertionError("the second attempt returns or raises")


def _candidates(request: SearchRequest, limit: int) -> int:
    """Return how many chunks each leg puts up: more where many of them are to make way for other documents."""
    return max(CANDIDATES, limit * (2 if request.max_per_document is None else 4))


def _crowded(found: Row, limit: int) -> bool:
    """Return whether chunks that say the same as others of their document have taken other documents' places."""
    hits = found["hits"]
    return len(hits) < limit and len(hits) + sum(len(hit["duplicates"]) for hit in hits) >= CANDIDATES


async def _query_vector(embedders: Embedders, model_id: int, query: str) -> NDArray[np.float32]:
    try:
        with anyio.fail_after(QUERY_EMBED_TIMEOUT_S):
            vectors = await embedders.get(model_id).embed([query])
    except TimeoutError as exc:
        raise EmbedderUnavailable from exc
    return vectors[0]


def _reranks(retriever: Retriever, request: SearchRequest) -> bool:
    return request.rerank and retriever.reranker is not None


async def _reranked(
    retriever: Retriever, request: SearchRequest, parsed: ParsedQuery, result: SearchResult
) -> SearchResult:
    if retriever.reranker is None or not request.rerank or not result.hits:
        return result
    began = time.perf_counter()
    try:
        with anyio.fail_after(RERANK_TIMEOUT_S):
            texts = [f"{hit.title}\n{hit.text}" for hit in result.hits]
            scores = await retriever.reranker.rerank(parsed.words, texts)
    except (TimeoutError, Unavailable):
        _log.warning("the reranker is late or down; the fused order stands")
        return dataclasses.replace(result, hits=result.hits[: request.limit], degraded=(*result.degraded, "rerank"))
    pairs = sorted(zip(scores.tolist(), result.hits, strict=True), key=lambda pair: -pair[0])  # stable: ties stay
    hits = tuple(_with_rerank(hit, score) for score, hit in pairs[: request.limit])
    timings = {**result.report.timings_ms, "rerank": round((time.perf_counter() - began) * 1000, 3)}
    return dataclasses.replace(result, hits=hits, report=dataclasses.replace(result.report, timings_ms=timings))


def _with_rerank(hit: Hit, score: float) -> Hit:
    return dataclasses.replace(hit, explain=dataclasses.replace(hit.explain, rerank_score=round(score, DIGITS)))


def _result(
    found: Mapping[str, Any],
    *,
    degraded: tuple[str, ...],
    stale: bool,
    timings: Mapping[str, float],
    cached: bool,
) -> SearchResult:
    report = found["report"]
    in_database = {name: report[f"{name}_ms"] for name in ("filter", "dense", "rank")}
    return SearchResult(
        hits=tuple(hit_of(hit, digits=DIGITS) for hit in found["hits"]),
        degraded=degraded,
        version=found["version"],
        stale=stale,
        report=Report(
            lexical_plan=report["lexical_plan"],
            dense_plan=report["dense_plan"],
            chunks=report["chunks"],
            terms={term["term"]: term["idf"] for term in report["terms"]},
            expanded={word: tuple(near) for word, near in report["expanded"].items()},
            timings_ms={name: round(ms, 3) for name, ms in {**timings, **in_database}.items()},
            cached=cached,
        ),
    )
