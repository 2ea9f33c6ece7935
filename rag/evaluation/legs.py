"""One question, one leg, a ranking of documents: the only place here that calls the search that clients get.

Above: `evaluate`, `tuning`. Below: `rag.retrieval.search`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rag.errors import InvalidInput
from rag.identity.principal import Principal
from rag.llm.embedders import Embedders
from rag.llm.ports import Embedder, Vectors
from rag.retrieval.search import Retriever, search
from rag.retrieval.values import MAX_DEPTH, MAX_QUERY_CHARS, Mode, SearchRequest

__all__ = ["DEPTH", "Asked", "Leg", "Searcher", "rank", "remembering"]

DEPTH = 100
"""Documents of a ranking: as deep as Recall@100 looks."""
ATTEMPTS = 3
"""Of a search that had to do without vectors: a busy machine makes a query's vector late, which is not its quality."""


class Leg(StrEnum):
    """What answers."""

    LEXICAL = "lexical"
    DENSE = "dense"
    FUSED = "fused"


_MODES = {Leg.LEXICAL: Mode.KEYWORD, Leg.DENSE: Mode.SEMANTIC, Leg.FUSED: Mode.HYBRID}


@dataclass(frozen=True, slots=True, kw_only=True)
class Searcher:
    """What searches, and for whom."""

    retriever: Retriever
    principal: Principal
    phrases: bool = False
    """Whether quotes in a question ask for a phrase. In most collections they do not: what the prose of a question
    quotes need not stand in the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The answer to one question."""

    documents: tuple[tuple[str, float], ...]
    """Source and score of each document's best chunk, best first."""
    degraded: bool = False
    """Some part of the search could not take part, however often it was tried."""
    refused: bool = False
    """The search does not take such a question; it is answered by nothing."""


async def rank(
    searcher: Searcher,
    question: str,
    leg: Leg,
    *,
    chunks: int | None = None,
    weights: tuple[float, float] | None = None,
) -> Asked:
    """Search as a client's `hybrid_search` does, and return documents by their best chunk.

    Args:
        searcher: What searches, and for whom.
        question: Cut off at MAX_QUERY_CHARS, beyond which the search takes none.
        leg: What answers.
        chunks: Hits to ask for, of whatever documents; None: the best hit of each of DEPTH documents.
        weights: Of the words and of the vectors; None: the tenant's own, or the default.

    Raises:
        EmbedderUnavailable: For the dense leg, when there is no query vector to be had.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    try:
        request = SearchRequest(
            query=question[:MAX_QUERY_CHARS],
            limit=chunks or DEPTH,
            max_limit=MAX_DEPTH,
            max_per_document=None if chunks else 1,
            phrases=searcher.phrases,
            bm25_weight=weights[0] if weights else None,
            vector_weight=weights[1] if weights else None,
            mode=_MODES[leg],
        )
        result = await search(searcher.retriever, searcher.principal, request)
        for _ in range(ATTEMPTS - 1):
            if not result.degraded:
                break
            result = await search(searcher.retriever, searcher.principal, request)
    except InvalidInput:
        return Asked(documents=(), refused=True)
    best: dict[str, float] = {}
    for hit in result.hits:
        best.setdefault(hit.source, hit.score)
    return Asked(documents=tuple(best.items()), degraded=bool(result.degraded))


def remembering(searcher: Searcher) -> Searcher:
    """Return a searcher that embeds each question once: for questions that are asked many times over."""
    embedders = searcher.retriever.embedders
    remembered = Embedders(
        by_id={model_id: _Remembered(embedder) for model_id, embedder in embedders.by_id.items()},
        default_id=embedders.default_id,
    )
    return dataclasses.replace(searcher, retriever=dataclasses.replace(searcher.retriever, embedders=remembered))


@dataclass(frozen=True, slots=True)
class _Remembered:
    """Satisfies `rag.llm.ports.Embedder` by asking `inner` for each text once."""

    inner: Embedder
    known: dict[str, Vectors] = field(default_factory=dict[str, Vectors])

    @property
    def model(self) -> str:
        return self.inner.model

    @property
    def dimension(self) -> int:
        return self.inner.dimension

    async def embed(self, texts: Sequence[str]) -> Vectors:
        (text,) = texts  # a search embeds its query and nothing else
        if text not in self.known:
            self.known[text] = await self.inner.embed(texts)
        return self.known[text]

    async def aclose(self) -> None:
        """Leave `inner` to its owner."""
