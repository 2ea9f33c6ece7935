"""Documents like a document, or passages like a passage: the vectors that stand already are the question.

Above: the MCP tools. Below: `search`, which ranks by words; `rag.search_v2`, which ranks by vectors and holds groups
apart. Nothing is embedded: the question is the mean of the document's own vectors, or the one of a chunk. While they
are still being made, the words of its title and its beginning ask instead, and the result says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from rag.db.pool import Row
from rag.errors import InvalidInput, ModelSwitched, NotFound, Unavailable
from rag.identity.principal import Principal
from rag.retrieval.filters import Filter, to_jsonpath
from rag.retrieval.search import CANDIDATES, DIGITS, Retriever, search
from rag.retrieval.values import MAX_DEPTH, MAX_LIMIT, Hit, Mode, SearchRequest, hit_of
from sql import load_queries

__all__ = ["SimilarRequest", "SimilarResult", "find_similar"]

WORDS_CHARS = 1_000
"""Of the text, where words must do: enough to say what it is about."""
MAX_CHUNK = 2**20
_QUERIES = load_queries("retrieval")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarRequest:
    """What others are to be like."""

    document_id: UUID
    chunk: int | None = None
    """One passage of the document; None: the document as a whole."""
    limit: int = 10
    passages: bool = False
    """False: each document once, by its nearest passage; True: all passages that are near."""
    filter: Filter | None = None

    def __post_init__(self) -> None:
        """Refuse what has no answer.

        Raises:
            InvalidInput: The limit is out of range.
        """
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidInput(f"limit must be 1 to {MAX_LIMIT}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarResult:
    """Passages of other documents, nearest first."""

    hits: tuple[Hit, ...]
    by_vectors: bool
    """False: by words (BM25), because the document's vectors are still being made."""
    degraded: tuple[str, ...]
    """`dense`: no vector could take part; `partial`: some of the document's passages have none yet."""
    version: int
    """The corpus version that was searched."""


async def find_similar(retriever: Retriever, principal: Principal, request: SimilarRequest) -> SimilarResult:
    """Search the caller's tenant for what is like a document that the caller may read; never for the document itself.

    Raises:
        NotFound: There is no such document in this tenant.
        InvalidInput: The document has no such chunk.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    for last in (False, True):
        likeness = await _likeness(retriever, principal, request)
        if likeness["vector"] is None:
            return await _by_words(retriever, principal, request, likeness)
        try:
            return await _by_vectors(retriever, principal, request, likeness)
        except ModelSwitched as exc:
            # between the two statements: ask for the other model's vectors
            if last:
                raise Unavailable("the tenant's embedding model is being switched; try again") from exc
    raise AssertionError("the second attempt returns or raises")


async def _likeness(retriever: Retriever, principal: Principal, request: SimilarRequest) -> Row:
    if request.chunk is not None and not 0 <= request.chunk < MAX_CHUNK:
        raise InvalidInput("the document has no passage of that number")
    async with retriever.database.tenant(principal) as session:
        row = await session.fetch_one(
            _QUERIES["likeness"],
            tenant_id=principal.tenant_id,
            document_id=request.document_id,
            chunk=request.chunk,
            words=WORDS_CHARS,
            default_model=retriever.embedders.default_id,
        )
    if row is None:
        raise NotFound("there is no document of that id")
    if request.chunk is not None and request.chunk >= row["chunks"]:
        raise InvalidInput(f"chunk must be 0 to {row['chunks'] - 1}: this document has so many passages")
    return row


async def _by_vectors(
    retriever: Retriever, principal: Principal, request: SimilarRequest, likeness: Row
) -> SimilarResult:
    wanted, each = _wanted(request)
    (found,) = await retriever.database.fetch_sealed(
        _QUERIES["search"],
        principal,
        query="",
        phrases=None,
        phrase_words="",
        query_vector=likeness["vector"],
        model_id=likeness["model_id"],
        wanted=wanted,
        candidates=max(CANDIDATES, 4 * wanted),
        lexical_weight=0.0,
        dense_weight=1.0,
        fusion="convex",
        per_document=each,
        filter=None if request.filter is None else to_jsonpath(request.filter),
    )
    whole = 1 if request.chunk is not None else int(likeness["chunks"])
    return SimilarResult(
        hits=_others(request, (hit_of(hit, digits=DIGITS) for hit in found["hits"])),
        by_vectors=True,
        degraded=() if likeness["embedded"] == whole else ("partial",),
        version=found["version"],
    )


async def _by_words(
    retriever: Retriever, principal: Principal, request: SimilarRequest, likeness: Row
) -> SimilarResult:
    wanted, each = _wanted(request)
    found = await search(
        retriever,
        principal,
        SearchRequest(
            query=f"{likeness['title']}\n{likeness['text'][:WORDS_CHARS]}",
            phrases=False,
            limit=wanted,
            mode=Mode.KEYWORD,
            filter=request.filter,
            max_per_document=each,
            rerank=False,
            max_limit=MAX_DEPTH,
        ),
    )
    return SimilarResult(
        hits=_others(request, found.hits), by_vectors=False, degraded=("dense",), version=found.version
    )


def _wanted(request: SimilarRequest) -> tuple[int, int]:
    """Return how many hits to ask for and how many of one document: so many that the document's own can be left out.

    Cheaper than a filter that names it, for which every document's record would be looked at.
    """
    each = request.limit if request.passages else 1
    return request.limit + each, each


def _others(request: SimilarRequest, hits: Iterable[Hit]) -> tuple[Hit, ...]:
    return tuple(hit for hit in hits if hit.document_id != request.document_id)[: request.limit]
