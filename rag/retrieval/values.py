"""What a search is asked and what it answers: frozen values, checked where they are made.

Above: `search` and everyone who asks. Below: `filters`, the errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from rag.errors import InvalidInput
from rag.retrieval.filters import Filter

__all__ = [
    "DEFAULT_WEIGHTS",
    "MAX_DEPTH",
    "MAX_LIMIT",
    "MAX_QUERY_CHARS",
    "MAX_WAIT_S",
    "Explanation",
    "Fusion",
    "Hit",
    "MatchedTerm",
    "Mode",
    "Report",
    "SearchRequest",
    "SearchResult",
    "Span",
]

MAX_QUERY_CHARS = 4000
MAX_LIMIT = 50
"""Hits that a client may ask for."""
MAX_DEPTH = 500
"""Hits that an evaluation in this process may ask for; the graph's ef_search ends at twice as many."""
MAX_WAIT_S = 10.0
DEFAULT_WEIGHTS = (0.2, 0.8)
"""BM25 and vectors: the best mean nDCG@10 over nine public collections (retrieval.md 4)."""
SHARE_DIGITS = 12
"""Of a leg's share; less than that is nothing, and PostgreSQL would raise where a product of two numbers underflows."""
MAX_VERSION = 2**62


class Mode(StrEnum):
    """Which legs take part."""

    HYBRID = "hybrid"
    KEYWORD = "keyword"
    SEMANTIC = "semantic"


class Fusion(StrEnum):
    """How two legs become one order: by scores, or by ranks alone."""

    CONVEX = "convex"
    RRF = "rrf"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search."""

    query: str
    phrases: bool = True
    """Words in double quotes are phrases, which every hit contains; False: quotes are punctuation, as in prose."""
    limit: int = 10
    bm25_weight: float | None = None
    vector_weight: float | None = None
    """In hybrid mode, relative to each other; 0 switches a leg off. Both None: the tenant's, or DEFAULT_WEIGHTS."""
    mode: Mode = Mode.HYBRID
    fusion: Fusion = Fusion.CONVEX
    filter: Filter | None = None
    max_per_document: int | None = None
    """So many hits of one document at most, and no fewer hits for it: other documents fill up; None: any number."""
    min_version: int | None = None
    """A corpus version, as a put returned it: the search waits until all writes up to it are found by both legs."""
    wait_s: float = 2.0
    """How long it waits for `min_version`; then it answers and says `stale`."""
    rerank: bool = True
    """Whether a reranker orders the hits, where one is configured."""
    max_limit: int = MAX_LIMIT

    def __post_init__(self) -> None:
        """Refuse what has no answer.

        Raises:
            InvalidInput: The query is empty, too long or not storable text; a number is out of range.
        """
        if not 1 <= len(self.query) <= MAX_QUERY_CHARS or not self.query.strip():
            raise InvalidInput(f"the query must be 1 to {MAX_QUERY_CHARS} characters, not all of them white space")
        if "\0" in self.query:
            raise InvalidInput("the query has NUL characters")
        if any("\ud800" <= character <= "\udfff" for character in self.query):
            raise InvalidInput("the query has lone surrogates, which are no characters")
        if not 1 <= self.limit <= min(self.max_limit, MAX_DEPTH):
            raise InvalidInput(f"limit must be 1 to {min(self.max_limit, MAX_DEPTH)}")
        if self.max_per_document is not None and not 1 <= self.max_per_document <= MAX_DEPTH:
            raise InvalidInput(f"max_per_document must be 1 to {MAX_DEPTH}")
        weights = [weight for weight in (self.bm25_weight, self.vector_weight) if weight is not None]
        if not all(math.isfinite(weight) and 0 <= weight <= 1e6 for weight in weights):
            raise InvalidInput("bm25_weight and vector_weight must be 0 to 1000000")
        if len(weights) == 2 and not any(weights):
            raise InvalidInput("bm25_weight and vector_weight must not both be 0")
        if self.min_version is not None and not 0 <= self.min_version <= MAX_VERSION:
            raise InvalidInput("min_version must be a corpus version, as put_document returned it")
        if not 0 <= self.wait_s <= MAX_WAIT_S:
            raise InvalidInput(f"the wait for min_version must be 0 to {MAX_WAIT_S:.0f} s")

    def weights(self) -> tuple[float, float] | None:
        """Return the lexical and the dense weight, adding up to 1; None where they are the tenant's."""
        if self.mode is Mode.KEYWORD:
            return 1.0, 0.0
        if self.mode is Mode.SEMANTIC:
            return 0.0, 1.0
        if self.bm25_weight is None and self.vector_weight is None:
            return None
        # one alone counts relative to the other's default
        bm25 = DEFAULT_WEIGHTS[0] if self.bm25_weight is None else self.bm25_weight
        vector = DEFAULT_WEIGHTS[1] if self.vector_weight is None else self.vector_weight
        share = round(bm25 / (bm25 + vector), SHARE_DIGITS)
        return share, 1 - share


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A chunk by its place in the document's text."""

    chunk: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedTerm:
    """A term of the query, as the index knows it: a word's stem, or an exact code such as `=10b-5`."""

    term: str
    idf: float
    """ln(1 + (N - df + 0.5) / (df + 0.5)), over the chunks that the caller may read."""
    frequency: int
    """How often it occurs in the hit; an occurrence in the title counts twice."""


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
    terms: tuple[MatchedTerm, ...]
    rerank_score: float | None = None
    """What the reranker made of it, on its own scale; the hits are in its order then."""


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
    duplicates: tuple[Span, ...]
    """Chunks of the same document that say the same and for which this one stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the search was run."""

    lexical_plan: str
    """`full`: every posting was scored; `pruned`: of the longest lists, only those of the best chunks; `off`."""
    dense_plan: str
    """`exact`, `hnsw`, `exact after hnsw` (the graph gave up early), `off`."""
    chunks: int
    """How many chunks the caller may read and the filter leaves."""
    terms: Mapping[str, float]
    """The query's terms that occur, with their idf."""
    expanded: Mapping[str, tuple[str, ...]]
    """Words that no document has, and the near ones that were searched for instead."""
    timings_ms: Mapping[str, float]
    """embed, filter, dense, rank (the lexical leg, fusion and fetching), rerank."""
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Hits, best first."""

    hits: tuple[Hit, ...]
    degraded: tuple[str, ...]
    """What could not take part: `dense`, `rerank`."""
    version: int
    """The corpus version that was searched."""
    stale: bool
    """`min_version` was asked for and not reached in time."""
    report: Report


def hit_of(value: Mapping[str, Any], *, digits: int) -> Hit:
    """Return a hit from the database's JSON, its numbers rounded to `digits`."""
    vector_score: float | None = value["vector_score"]
    return Hit(
        document_id=UUID(value["document_id"]),
        source=value["source"],
        title=value["title"],
        version=value["version"],
        chunk=value["chunk"],
        heading=value["heading"],
        start=value["start"],
        end=value["end"],
        text=value["text"],
        score=round(value["score"], digits),
        explain=Explanation(
            bm25_rank=value["bm25_rank"],
            bm25_score=round(value["bm25_score"], digits),
            bm25_part=round(value["bm25_part"], digits),
            vector_rank=value["vector_rank"],
            vector_score=None if vector_score is None else round(vector_score, digits),
            vector_part=round(value["vector_part"], digits),
            vector_imputed=value["vector_imputed"],
            terms=tuple(MatchedTerm(**term) for term in value["terms"]),
        ),
        duplicates=tuple(Span(**span) for span in value["duplicates"]),
    )
