"""Hybrid search: the query becomes a vector while it can, one statement answers, every hit says why it is there.

Above: the MCP tools. Below: an `Embedder`, `rag.db` and the SQL function `rag.search_v1`, which does the ranking
(retrieval.md 2-4). With the embedder down the lexical leg answers alone and the result says so.
"""

from __future__ import annotations

import logging
import math
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import anyio

from rag.db.pool import Database, Row
from rag.db.vectors import halfvec
from rag.errors import EmbedderUnavailable, InvalidInput, Unavailable
from rag.identity.principal import Principal
from rag.llm.ports import Embedder
from sql import load_queries

__all__ = [
    "DEFAULT_WEIGHTS",
    "MAX_LIMIT",
    "MAX_QUERY_CHARS",
    "Explanation",
    "Hit",
    "Mode",
    "SearchRequest",
    "SearchResult",
    "search",
]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("retrieval")
MAX_QUERY_CHARS = 4000
MAX_LIMIT = 50
DEFAULT_WEIGHTS = (0.2, 0.8)
"""BM25 and vectors: the best mean nDCG@10 over nine public collections (retrieval.md 4)."""
CANDIDATES = 100
"""Each leg's list before fusion, twice the largest answer."""
QUERY_EMBED_TIMEOUT_S = 2.0
"""A query waits this long for its vector; then the words alone must do."""
DIGITS = 6
"""Scores are computed in millionths."""
SHARE_DIGITS = 12
"""Of a leg's share; less than that is nothing, and PostgreSQL would raise where a product of two numbers underflows."""


class Mode(StrEnum):
    """Which legs take part."""

    HYBRID = "hybrid"
    KEYWORD = "keyword"
    SEMANTIC = "semantic"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search. The weights count relative to each other; a weight of 0 switches its leg off in hybrid mode."""

    query: str
    limit: int = 10
    bm25_weight: float = DEFAULT_WEIGHTS[0]
    vector_weight: float = DEFAULT_WEIGHTS[1]
    mode: Mode = Mode.HYBRID

    def __post_init__(self) -> None:
        """Refuse what has no answer.

        Raises:
            InvalidInput: The query is empty, too long or not storable text; the limit or a weight is out of range.
        """
        if not 1 <= len(self.query) <= MAX_QUERY_CHARS or not self.query.strip():
            raise InvalidInput(f"the query must be 1 to {MAX_QUERY_CHARS} characters, not all of them white space")
        if "\0" in self.query:
            raise InvalidInput("the query has NUL characters")
        if any("\ud800" <= character <= "\udfff" for character in self.query):
            raise InvalidInput("the query has lone surrogates, which are no characters")
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidInput(f"limit must be 1 to {MAX_LIMIT}")
        weights = (self.bm25_weight, self.vector_weight)
        if not all(math.isfinite(weight) and 0 <= weight <= 1e6 for weight in weights) or not any(weights):
            raise InvalidInput("bm25_weight and vector_weight must be 0 to 1000000, and not both 0")

    def weights(self) -> tuple[float, float]:
        """Return the lexical and the dense weight, adding up to 1."""
        if self.mode is Mode.KEYWORD:
            return 1.0, 0.0
        if self.mode is Mode.SEMANTIC:
            return 0.0, 1.0
        share = round(self.bm25_weight / (self.bm25_weight + self.vector_weight), SHARE_DIGITS)
        return share, 1 - share


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a hit has its score: `bm25_part + vector_part`."""

    bm25_rank: int | None
    """Place in the lexical leg's list, from 1; None when it is not among the leg's candidates."""
    bm25_score: float
    bm25_part: float
    vector_rank: int | None
    vector_score: float | None
    """Cosine similarity to the query; None while the chunk has no vector, or when the dense leg is off."""
    vector_part: float
    vector_imputed: bool
    """The chunk has no vector yet: its dense part stands in from the lexical leg."""
    terms: tuple[str, ...]
    """The query's terms (stemmed) that occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One chunk, `text[start:end]` of its document."""

    document_id: UUID
    source: str
    title: str
    version: int
    chunk: int
    heading: str
    start: int
    end: int
    text: str
    score: float
    explain: Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Hits, best first. `degraded` names the legs that could not take part."""

    hits: tuple[Hit, ...]
    degraded: tuple[str, ...]


async def search(
    database: Database, embedder: Embedder, model_id: int, principal: Principal, request: SearchRequest
) -> SearchResult:
    """Search the caller's tenant.

    Raises:
        EmbedderUnavailable: In semantic mode, when there is no query vector to be had.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    query = unicodedata.normalize("NFC", request.query)
    lexical_weight, dense_weight = request.weights()
    vector: object = None
    degraded: tuple[str, ...] = ()
    if dense_weight > 0:
        try:
            vector = await _query_vector(embedder, query)
        except Unavailable as exc:
            if lexical_weight == 0:
                raise EmbedderUnavailable from exc
            _log.warning("searching without vectors: %s", exc.code)
            degraded = ("dense",)
    rows = await database.fetch_sealed(
        _QUERIES["search"],
        principal,
        query=query,
        query_vector=vector,
        model_id=model_id,
        wanted=request.limit,
        lexical_weight=lexical_weight,
        dense_weight=dense_weight,
        candidates=CANDIDATES,
    )
    return SearchResult(hits=tuple(_hit(row) for row in rows), degraded=degraded)


async def _query_vector(embedder: Embedder, query: str) -> object:
    try:
        with anyio.fail_after(QUERY_EMBED_TIMEOUT_S):
            vectors = await embedder.embed([query])
    except TimeoutError as exc:
        raise EmbedderUnavailable from exc
    return halfvec(vectors[0])


def _hit(row: Row) -> Hit:
    return Hit(
        document_id=row["document_id"],
        source=row["source"],
        title=row["title"],
        version=row["version"],
        chunk=row["number"],
        heading=row["heading"],
        start=row["start_char"],
        end=row["end_char"],
        text=row["text"],
        score=round(row["score"], DIGITS),
        explain=Explanation(
            bm25_rank=row["lexical_rank"],
            bm25_score=round(row["lexical_score"], DIGITS),
            bm25_part=round(row["lexical_part"], DIGITS),
            vector_rank=row["dense_rank"],
            vector_score=None if row["dense_score"] is None else round(row["dense_score"], DIGITS),
            vector_part=round(row["dense_part"], DIGITS),
            vector_imputed=row["dense_imputed"],
            terms=tuple(row["terms"]),
        ),
    )
